"""Cross-validation: train every fold, continue a stopped call, measure unseen patients, write one table."""

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
from tumorlens.data.cards.card import WEIGHT_FILES, check_settings, read_card
from tumorlens.data.config import TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of
from tumorlens.data.training.networks import freeze
from tumorlens.data.training.partition import kept_in_memory
from tumorlens.data.training.run_folder import changed_setting, check_run, plain_config, read_config, with_start
from tumorlens.pipeline.evaluation.evaluate import Say, evaluate
from tumorlens.pipeline.evaluation.protocols import Progress, folds_are_common
from tumorlens.pipeline.evaluation.report import REPORT, check_out
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.selection import chosen_folds, count_folds, lgg_flaw, load_sets
from tumorlens.pipeline.evaluation.weights import PLACEHOLDER
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.model import build_segmenter
from tumorlens.segmentation.module import new_segmenter
from tumorlens.segmentation.train import check_start, train_segmenter

_TRAIN: dict[str, Callable[..., Any]] = {"classification": train_classifier, "segmentation": train_segmenter}


@dataclass(frozen=True)
class FoldRun:
    """The training of one stage on one fold.

    Attributes:
        stage: ``classification`` or ``segmentation``.
        config: The settings of this fold.
        folder: The run's folder.
    """

    stage: str
    config: TrainingConfig
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the run has written its weights and their card.

        Raises:
            InputError: The weights were made with other settings, or changed since.
        """
        weights = self.folder / WEIGHT_FILES[self.stage]
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
        """Whether the run has a checkpoint to continue from."""
        return (self.folder / "checkpoints" / "last.ckpt").is_file() and (self.folder / "config.yaml").is_file()

    def check(self) -> None:
        """Raise an `InputError` if the folder holds a run with other settings, or the device is not available."""
        if self.finished:
            return
        check_run(self.folder, self.config, resume=self.interrupted)
        changed = changed_setting(read_config(self.folder), plain_config(self.config)) if self.interrupted else ""
        if changed:  # all folds have as many epochs
            raise InputError(f"{self.folder}: the fold began with {changed}; give the same settings, or another -o")

    def train(self, show: bool, say: Say, prepared: Progress | None, command: str) -> None:
        """Train the fold, from its last checkpoint if there is one. A finished run is left alone."""
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
    """Train and measure every fold. A repeated call continues a stopped one.

    Args:
        request: The settings of the training (in `training`) and of the measurement.
        out: Folder of the runs, and of the report on all of them.
        measure: Measure the folds once they are trained.
        show: Show Lightning's progress bar.
        prepared: Called with the number of slices done and of all, while slices are read and while they are measured.
        say: Gets one line of text at each step.
        warn: Gets a line for each reason to mistrust the figures.

    Returns:
        The content of ``report.json``, empty without `measure`.

    Raises:
        InputError: The data or settings cannot be used, a fold does not exist, or the folder holds runs with other
            settings.
    """
    _check_report(request, out)
    protocol = (request.protocol or "").lower()
    if protocol in ("p3", "p5"):
        raise InputError(
            f"protocol {protocol} has no folds, so there is nothing to cross-validate; see `tumorlens evaluate`"
        )
    request = replace(request, protocol=request.protocol or _own_protocol(request))
    folds = tuple(chosen_folds(request, count_folds(request)))
    _check_common_folds(request)
    _check_layers(request)
    classifier = request.training.get("classification")
    if request.explain and classifier is not None:  # raises now, not after hours of training
        architecture = find_architecture(classifier.arch)
        size = classifier.size
        target_layer(build_classifier(architecture, size), (3, size, size))
    runs = list(_runs(request, folds, out))
    _check_initial_weights(runs)
    for run in runs:
        run.check()
    with kept_in_memory():
        for run in runs:
            run.train(show, say, prepared, request.command)
    if not measure:
        return {}
    return evaluate(_measurement(request, folds, out), out, True, prepared, say, warn)


def _check_layers(request: EvaluationRequest) -> None:
    """Raise an `InputError`, before the first stage is trained, if a network lacks the layer to freeze."""
    classifier, segmenter = request.training.get("classification"), request.training.get("segmentation")
    if classifier is not None and classifier.frozen_until:
        freeze(build_classifier(find_architecture(classifier.arch), classifier.size), classifier.frozen_until)
    if segmenter is not None and segmenter.frozen_until:
        model = build_segmenter(segmenter.arch, segmenter.encoder, segmenter.decoder_channels)
        freeze(model, segmenter.frozen_until)


def _check_report(request: EvaluationRequest, out: Path) -> None:
    """Raise an `InputError` if the folder holds another report than that of an earlier call with the same settings."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        same = report["stage"] == request.stage and "crossval" in report
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    check_out(out, overwrite=same)


def _own_protocol(request: EvaluationRequest) -> str | None:
    """The protocol where you name none: P4 for a segmenter on LGG folders, else all classes."""
    if request.stage != "segmentation":
        return None
    return None if any(lgg_flaw(source, samples) for source, samples in load_sets(request)) else "p4"


def _check_common_folds(request: EvaluationRequest) -> None:
    """Raise an `InputError` if the two stages make different folds.

    One stage would then train on patients on which the other is tested.
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
    """The runs fold by fold, so that a stopped cross-validation has whole folds."""
    for fold in folds:
        for stage, config in request.training.items():
            init = config.init.replace(PLACEHOLDER, str(fold))
            yield FoldRun(
                stage, replace(config, fold=fold, init=init), fold_folder(out, request.stage, stage, str(fold))
            )


def fold_folder(out: Path, measured: str, stage: str, fold: str) -> Path:
    """The folder of a fold's run: ``fold-K``, below the stage's name where there are two stages.

    Args:
        out: The folder of the cross-validation.
        measured: ``pipeline`` for two stages, else the stage.
        stage: The stage that the run trains.
        fold: The fold's number, or a placeholder for it.
    """
    return (out / stage if measured == "pipeline" else out) / f"fold-{fold}"


def _check_initial_weights(runs: list[FoldRun]) -> None:
    """Raise an `InputError`, before the first fold is trained, if a file of initial weights is missing, or if those
    of a segmenter are not a whole network although they are to be mixed in.

    A file that one of the runs writes need not exist yet; the segmenter of a fold may start from its classifier.
    """
    written = {run.folder / WEIGHT_FILES[run.stage] for run in runs}
    for run in runs:
        start = run.config.init_file
        if start in written and run.config.start_share:
            raise InputError(
                f"--start-share needs a whole network, and the segmenter starts from the classifier of its fold, "
                f"{start}; leave --start-share out, or give --segmenter-init FILE"
            )
        if start is not None and start not in written and not start.is_file():
            raise InputError(f"{start}: no such weight file, from which fold {run.config.fold} is to start")
        if isinstance(run.config, SegmenterConfig) and run.config.start_share:
            check_start(new_segmenter(run.config), run.config)


def _measurement(request: EvaluationRequest, folds: tuple[int, ...], out: Path) -> EvaluationRequest:
    """The request to measure the weights that the runs have written."""
    files = {
        stage: str(fold_folder(out, request.stage, stage, PLACEHOLDER) / WEIGHT_FILES[stage])
        for stage in request.training
    }
    return replace(
        request,
        folds=folds,
        classifier=files.get("classification"),
        segmenter=files.get("segmentation"),
        training={stage: plain_config(config) for stage, config in request.training.items()},
    )
