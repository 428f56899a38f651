"""Cross-validation: train every fold, go on where it was stopped, measure unseen patients, write one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.gradcam import target_layer
from tumorlens.classification.model import build_classifier
from tumorlens.classification.train import train_classifier
from tumorlens.data.cards.card import check_settings, read_card
from tumorlens.data.config import TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of
from tumorlens.data.training.networks import freeze_stem
from tumorlens.data.training.partition import kept_in_memory
from tumorlens.data.training.run_folder import changed_setting, check_run, plain_config, with_start
from tumorlens.pipeline.evaluation.evaluate import Say, evaluate
from tumorlens.pipeline.evaluation.protocols import Progress, folds_are_common
from tumorlens.pipeline.evaluation.report import REPORT, check_out
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.selection import chosen_folds, count_folds, lgg_flaw, load_sets
from tumorlens.pipeline.evaluation.weights import PLACEHOLDER
from tumorlens.segmentation.model import build_segmenter
from tumorlens.segmentation.train import train_segmenter

WEIGHTS = {"classification": "classifier.safetensors", "segmentation": "segmenter.safetensors"}
_TRAIN: dict[str, Callable[..., Any]] = {"classification": train_classifier, "segmentation": train_segmenter}


@dataclass(frozen=True)
class FoldRun:
    """The training of one stage on one fold.

    Attributes:
        stage: Which.
        config: Settings of this very fold.
        folder: The run's folder.
    """

    stage: str
    config: TrainingConfig
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether weights and card are there.

        Raises:
            InputError: They are, but made with other settings.
        """
        weights = self.folder / WEIGHTS[self.stage]
        if not (weights.is_file() and weights.with_suffix(".json").is_file()):
            return False
        card = read_card(weights)
        check_settings(card, weights.with_suffix(".json"), self.stage)
        if sha256_of(weights) != card.get("sha256"):
            raise InputError(f"{weights}: damaged or changed, its SHA-256 is not the card's; delete {self.folder}")
        changed = changed_setting(card.get("training", {}), with_start(self.config))
        if changed:
            raise InputError(
                f"{self.folder}: the fold was trained with {changed}; give the same settings, or another -o"
            )
        return True

    @property
    def interrupted(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return (self.folder / "checkpoints" / "last.ckpt").is_file() and (self.folder / "config.yaml").is_file()

    def check(self) -> None:
        """Raise an `InputError` if the run's folder is of other settings, or its first weights are not there."""
        if self.finished:
            return
        check_run(self.folder, self.config, resume=self.interrupted)

    def train(self, show: bool, say: Say, prepared: Progress | None, command: str) -> None:
        """Train it, from its last checkpoint if there is one; a finished one is left alone."""
        name = f"{self.stage}, fold {self.config.fold}"
        if self.finished:
            say(f"{name}: trained already, {self.folder}")
            return
        say(f"{name}: {'goes on from its last checkpoint' if self.interrupted else 'training'}")
        _TRAIN[self.stage](self.config, self.folder, self.interrupted, show, say, prepared, command)


def crossval(
    request: EvaluationRequest,
    out: Path,
    measure: bool = True,
    show: bool = True,
    prepared: Progress | None = None,
    say: Say = print,
    warn: Say = print,
) -> dict[str, Any]:
    """Train and measure every fold. A call that was stopped goes on when it is repeated.

    Args:
        request: What to train (its `training`) and how to measure it.
        out: Folder of the runs, and of the report on all of them.
        measure: Measure the folds once they are trained.
        show: Show Lightning's progress bar.
        prepared: Called with the number of slices done and of all, in reading and in measuring.
        say: Gets one line of text at each step.
        warn: Gets a line for each reason to mistrust the figures.

    Returns:
        The report as ``report.json`` holds it; empty where nothing is to be measured.

    Raises:
        InputError: Unusable data or settings, no such fold, or a folder with runs of other settings.
    """
    _check_report(request, out)
    if (request.protocol or "").lower() == "p3":
        raise InputError("protocol p3 has no folds, so there is nothing to cross-validate; see `tumorlens evaluate`")
    request = replace(request, protocol=request.protocol or _own_protocol(request))
    folds = tuple(chosen_folds(request, count_folds(request)))
    _check_common_folds(request)
    _check_stems(request)
    classifier = request.training.get("classification")
    if request.explain and classifier is not None:  # not after hours of training
        architecture = find_architecture(classifier.arch)
        size = classifier.size
        target_layer(build_classifier(architecture, size), (3, size, size))
    runs = list(_runs(request, folds, out))
    _check_starts(runs, out)
    for run in runs:
        run.check()
    with kept_in_memory():
        for run in runs:
            run.train(show, say, prepared, request.command)
    if not measure:
        return {}
    return evaluate(_measurement(request, folds, out), out, True, prepared, say, warn)


def _check_stems(request: EvaluationRequest) -> None:
    """What has no stem to freeze is told before the first stage is trained."""
    classifier, segmenter = request.training.get("classification"), request.training.get("segmentation")
    if classifier is not None and classifier.freeze_stem:
        freeze_stem(build_classifier(find_architecture(classifier.arch), classifier.size))
    if segmenter is not None and segmenter.freeze_stem:
        model = build_segmenter(segmenter.arch, segmenter.encoder, segmenter.decoder_channels)
        freeze_stem(getattr(model, "encoder", model))


def _check_report(request: EvaluationRequest, out: Path) -> None:
    """A report of the same cross-validation is written anew; another one is not lost."""
    try:
        kept = json.loads((out / REPORT).read_text(encoding="utf-8"))
        same = kept["stage"] == request.stage and "crossval" in kept
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    check_out(out, overwrite=same)


def _own_protocol(request: EvaluationRequest) -> str | None:
    """P4 for a segmenter on LGG folders."""
    if request.stage != "segmentation":
        return None
    return None if any(lgg_flaw(source, samples) for source, samples in load_sets(request)) else "p4"


def _check_common_folds(request: EvaluationRequest) -> None:
    """Refuse two stages that would make different folds: one would train on whom the other is tested on.

    Folds that are made depend on the samples that a stage can use, and on look-alikes where a patient is unknown.
    """
    if len(request.training) < 2:
        return
    if folds_are_common([sample for _, samples in load_sets(request) for sample in samples]):
        return
    raise InputError(
        f"{request.data_names}: not every scan has a fold, and the two stages would make different ones, so that "
        "one is tested on patients the other was trained on; write folds with `tumorlens data split --folds 5`"
    )


def _runs(request: EvaluationRequest, folds: tuple[int, ...], out: Path) -> Iterator[FoldRun]:
    """Fold by fold, so that a stopped cross-validation has whole folds."""
    for fold in folds:
        for stage, config in request.training.items():
            init = config.init.replace(PLACEHOLDER, str(fold))
            yield FoldRun(
                stage, replace(config, fold=fold, init=init), fold_folder(out, request.stage, stage, str(fold))
            )


def fold_folder(out: Path, measured: str, stage: str, fold: str) -> Path:
    """Where the run of a fold lies: ``fold-K``, below the stage's name where there are two stages."""
    return (out / stage if measured == "pipeline" else out) / f"fold-{fold}"


def _check_starts(runs: list[FoldRun], out: Path) -> None:
    """A missing file of first weights is told before the first fold is trained, unless a run here writes it."""
    written = {run.folder / WEIGHTS[run.stage] for run in runs}
    for run in runs:
        init = run.config.init
        if init not in ("imagenet", "none") and Path(init) not in written and not Path(init).is_file():
            raise InputError(f"{init}: no such weight file, from which fold {run.config.fold} is to start")


def _measurement(request: EvaluationRequest, folds: tuple[int, ...], out: Path) -> EvaluationRequest:
    """The request with the weights that the folds have written."""
    files = {
        stage: str(fold_folder(out, request.stage, stage, PLACEHOLDER) / WEIGHTS[stage]) for stage in request.training
    }
    return replace(
        request,
        folds=folds,
        classifier=files.get("classification"),
        segmenter=files.get("segmentation"),
        training={stage: plain_config(config) for stage, config in request.training.items()},
    )
