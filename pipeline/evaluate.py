"""From weights and data to a report: choose the scans, predict them, count, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from data.cards import check_settings, read_card
from data.errors import InputError
from pipeline.engines.choice import Engine, choose_engine
from pipeline.leaks import leak_warnings
from pipeline.protocols import DataRequest, Progress, Selection, find_protocol, known_leaks, select
from pipeline.report import check_out, screen_table, unit_of, write_report
from pipeline.versions import package_versions

PLACEHOLDER = "{fold}"
Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationRequest:
    """What to measure with what.

    Attributes:
        data: As for training.
        stage: ``classification``, ``segmentation`` or ``pipeline``.
        protocol: ``p1`` to ``p4``; none for all scans as one set, or for the folds that are named.
        folds: Test folds; an empty tuple takes all, none leaves the choice to the weights' card.
        classifier: Weights, or the shipped ones; ``{fold}`` stands for the fold's number.
        segmenter: The same for stage two.
        label_map: The user's label names -> classes.
        channel: Which channel of colour pictures.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        tta: Average over each slice and its mirror image.
        engine: ``torch``, ``openvino`` or ``auto``, see `pipeline.engines.choice.choose_engine`.
        precision: ``fp32``, ``bf16`` or ``auto``. With the defaults figures are the same on every machine.
        seed: Of the bootstrap, and of folds that the data do not have; by default the one on the weights' card.
        explain: Score Grad-CAM against the masks.
        probe: Run the no-shortcut probe.
        command: What the user typed.
        training: The settings of the cross-validation that this measures, by stage; empty for weights from elsewhere.
    """

    data: tuple[str, ...]
    stage: str
    protocol: str | None = None
    folds: tuple[int, ...] | None = None
    classifier: str | None = None
    segmenter: str | None = None
    label_map: tuple[tuple[str, str], ...] = ()
    channel: int | None = None
    device: str = "auto"
    tta: bool = False
    engine: str = "torch"
    precision: str = "fp32"
    seed: int | None = None
    explain: bool = False
    probe: bool = True
    command: str = ""
    training: dict[str, Any] = field(default_factory=dict)


def evaluate(
    request: EvaluationRequest,
    out: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say = print,
    warn: Say = print,
) -> dict[str, Any]:
    """Measure and write the report.

    Args:
        request: What to measure with what.
        out: The report's folder.
        overwrite: Replace the report that is there.
        progress: Called with the number of slices or scans done and of all.
        say: Gets the table and where the report is.
        warn: Gets a line for each reason to mistrust the figures.

    Returns:
        The report as ``report.json`` holds it.

    Raises:
        InputError: Unusable data, weights, folds, protocol or folder.
    """
    check_out(out, overwrite)
    weights = Weights(request)
    weights.check_name(request)
    card = weights.first_card()
    wanted = _data_request(request, weights, card)
    selection = select(wanted, card, progress)
    weights.check(selection)
    warnings = _warnings(selection, wanted, weights)
    for text in warnings:
        warn(text)
    evaluation = _evaluation(request, selection, wanted.seed)
    for fold, samples in selection.parts.items():
        evaluation.measure(weights.load(fold), samples, fold, progress)
    about = _about(request, wanted, selection, weights, warnings)
    report = write_report(out, about, evaluation, list(selection.parts))
    say(screen_table(report, evaluation.headline))
    counted = f"{report['n']} {unit_of(report)} of {report['n_patients']} patients"
    say(f"{counted}, {selection.choice}; report: {out / 'report.md'}")
    return report


class Weights:
    """The weight files of a request, one per stage and fold."""

    def __init__(self, request: EvaluationRequest) -> None:
        from classification.predict import SHIPPED as CLASSIFIER
        from segmentation.predict import SHIPPED as SEGMENTER

        self.request, self.stage, self.tta = request, request.stage, request.tta
        self.engine = choose_engine(request.engine, request.device, request.precision)
        named = {
            "classification": request.classifier or str(CLASSIFIER),
            "segmentation": request.segmenter or str(SEGMENTER),
        }
        self.names = {stage: name for stage, name in named.items() if request.stage in (stage, "pipeline")}
        self.first = (request.folds or (0,))[0]
        self.per_fold = any(PLACEHOLDER in name for name in self.names.values())

    def path(self, stage: str, fold: int | None) -> Path:
        """The file of a stage's weights for a fold."""
        return Path(self.names[stage].replace(PLACEHOLDER, str(fold)))

    def card(self, stage: str, fold: int | None) -> dict[str, Any]:
        """Its card.

        Raises:
            InputError: No weights or no card there, or those of another stage.
        """
        path = self.path(stage, fold)
        card = read_card(path)
        if card.get("stage") != stage:
            raise InputError(f"{path}: these weights are for {card.get('stage')}, not for {stage}")
        check_settings(card, path.with_suffix(".json"), stage)
        return card

    def first_card(self) -> dict[str, Any]:
        """The card that says how folds were made: the classifier's, if there is one."""
        return next(self.card(stage, self.first) for stage in self.names)

    def check_name(self, request: EvaluationRequest) -> None:
        """Raise an `InputError` if a name asks for a fold where there are none, before anything is read."""
        protocol = find_protocol(request.protocol, request.stage, request.folds)
        if not self.per_fold or protocol.split == "folds":
            return
        name = next(name for name in self.names.values() if PLACEHOLDER in name)
        if request.protocol is None:
            raise InputError(f"{name}: {PLACEHOLDER} needs folds; give --folds, or a protocol that has them")
        raise InputError(f"{name}: protocol {protocol.id} has no folds that {PLACEHOLDER} could stand for")

    def check(self, selection: Selection) -> None:
        """Raise an `InputError` if a file is missing, before the first of them is used."""
        for fold in selection.parts:
            for stage in self.names:
                self.card(stage, fold)

    def load(self, fold: int | None) -> dict[str, Any]:
        """The models of a fold, by stage."""
        from pipeline.engines.opening import open_or_torch

        asked = self.request.engine
        models, self.engine = open_or_torch(
            lambda engine: self._open(fold, engine), self.engine, asked, self.request.precision
        )
        return models

    def _open(self, fold: int | None, engine: Engine) -> dict[str, Any]:
        from classification.predict import Classifier
        from pipeline.engines.opening import open_classifier, open_segmenter, open_stages
        from pipeline.pipeline import Pipeline
        from segmentation.predict import Segmenter

        if self.stage == "pipeline":
            paths = (self.path("classification", fold), self.path("segmentation", fold))
            return {"pipeline": Pipeline(*open_stages(*paths, engine, self.tta), engine=engine)}
        path = self.path(self.stage, fold)
        if self.stage == "classification":
            return {self.stage: Classifier.load(path, tta=self.tta, network=lambda p: open_classifier(p, engine))}
        return {self.stage: Segmenter.load(path, tta=self.tta, network=lambda p: open_segmenter(p, engine))}

    def describe(self, folds: list[int | None]) -> list[dict[str, Any]]:
        """Fold, stage, file, architecture and hash of each, and what its card says of its training."""
        found = []
        for stage, name in self.names.items():
            for fold in folds if PLACEHOLDER in name else [None]:
                card = self.card(stage, fold)
                training = card.get("training") or {}
                found.append(
                    {
                        "stage": stage,
                        "fold": fold,
                        "file": str(self.path(stage, fold)),
                        "architecture": card.get("architecture"),
                        **({"encoder": card["encoder"]} if "encoder" in card else {}),
                        "sha256": card.get("sha256"),
                        "test_fold": None if training.get("split") in ("all", "official") else training.get("fold"),
                        "operating_point": card.get("operating_point"),
                    }
                )
        return found


def _data_request(request: EvaluationRequest, weights: Weights, card: dict[str, Any]) -> DataRequest:
    training = card.get("training")
    seed = training.get("seed") if isinstance(training, dict) else None
    folds = request.folds
    if weights.per_fold and folds is None and find_protocol(request.protocol, request.stage, None).split == "folds":
        folds = ()  # weights of every fold were given: measure them all
    return DataRequest(
        data=request.data,
        stage=request.stage,
        protocol=request.protocol,
        folds=folds,
        label_map=request.label_map,
        channel=request.channel,
        seed=request.seed if request.seed is not None else seed if isinstance(seed, int) else 0,
        size=int(card.get("input_size", 224)),
    )


def _warnings(selection: Selection, wanted: DataRequest, weights: Weights) -> list[str]:
    """The official split's own flaw, then why each model may have seen what it is measured on."""
    flaw = known_leaks(selection.samples) if selection.protocol.split == "official" else ""
    found = [flaw] if flaw else []
    for fold in selection.parts:
        for stage in weights.names:
            alone = replace(wanted, stage=stage)
            found += leak_warnings(stage, weights.card(stage, fold), fold, selection, alone)
    made = selection.n_folds is not None and not selection.own_folds
    if made and wanted.stage == "pipeline" and not selection.common_folds:
        found.append(
            "the data have no folds of their own, and scans without a label, a mask or a patient, so training makes "
            "other folds for the segmenter than for the classifier; write folds with `tumorlens data split --folds 5`"
        )
    return list(dict.fromkeys(found))


def _evaluation(request: EvaluationRequest, selection: Selection, seed: int) -> Any:
    from pipeline.evaluation_classification import ClassificationEvaluation
    from pipeline.evaluation_pipeline import PipelineEvaluation
    from pipeline.evaluation_segmentation import SegmentationEvaluation

    if request.stage == "classification":
        has_masks = any(s.mask is not None or s.image.suffix.lower() == ".mat" for s in selection.samples)
        if request.explain and not has_masks:
            raise InputError(f"{', '.join(request.data)}: --explain needs masks, and no scan has one")
        return ClassificationEvaluation(selection.protocol, seed, request.explain, request.probe)
    kind = SegmentationEvaluation if request.stage == "segmentation" else PipelineEvaluation
    return kind(selection.protocol, seed)


def _about(
    request: EvaluationRequest, wanted: DataRequest, selection: Selection, weights: Weights, warnings: list[str]
) -> dict[str, Any]:
    """What the report says of itself."""
    folds = list(selection.parts)
    return {
        "stage": request.stage,
        "protocol": {"id": selection.protocol.id, "title": selection.protocol.title},
        "data": list(request.data),
        "label_map": [list(pair) for pair in request.label_map],
        "frame_channel": request.channel,
        "folds": {
            "measured": [fold for fold in folds if fold is not None],
            "of": selection.n_folds,
            "of_the_data": selection.own_folds,
            "choice": selection.choice,
        },
        "warnings": warnings,
        "notes": list(selection.notes),
        "tta": request.tta,
        "engine": weights.engine.facts(),
        "models": weights.describe(folds),
        "seed": wanted.seed,
        "versions": package_versions(),
        "date": date.today().isoformat(),
        "command": request.command,
        **({"crossval": request.training} if request.training else {}),
    }
