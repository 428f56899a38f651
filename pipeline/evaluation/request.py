"""The settings of an evaluation or a cross-validation. Needs neither torch nor NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tumorlens.data.config import CHANNEL, DEVICE, LABEL_MAP, LAYOUTS, MAX_SEED, TrainingConfig, setting
from tumorlens.data.labels import OUTLINES


@dataclass(frozen=True)
class EvaluationRequest:
    """The data, the protocol and the weights of a measurement.

    Attributes:
        stage: ``classification``, ``segmentation`` or ``pipeline``.
        protocol: ``p1`` to ``p7``; None for all scans as one set, or for the folds that are named.
        folds: Test folds. An empty tuple takes all, None leaves the choice to the weights' card.
        classifier: Weights, or the shipped ones; ``{fold}`` stands for the fold's number.
        segmenter: The same for stage two.
        seed: Of the bootstrap, and of folds that the data do not have; None takes the one on the weights' card.
        engine: See `pipeline.engines.choice.choose_engine`. The defaults of `engine` and `precision` are those of
            `tumorlens run`, so that what is measured is what a run answers. torch in fp32 gives the same figures on
            every machine.
        size: Side of the network's input in pixels, with which training looked for copies among slices without a
            patient.
        command: The command as the user typed it.
        training: The settings of the cross-validation that this measures, by stage; empty for weights from elsewhere.
    """

    data: tuple[str, ...] = setting(help=f"{LAYOUTS}; repeatable.")
    stage: str = ""
    protocol: str | None = setting(
        None,
        "p1: tumor types, by folds; p2: four classes, by folds; p3: official split (may leak); p4: LGG folder, "
        "segmentation only; p5: a source left out of training; p6: by sequence, by folds; p7: presence, by folds.",
        metavar="p1|p2|p3|p4|p5|p6|p7",
        shown="all scans as one set",
    )
    folds: tuple[int, ...] | None = setting(
        None, "Test folds.", metavar="all|0,1,..", shown="the test or held-out fold on the weights' card"
    )
    classifier: str | None = setting(
        None, "Your own classifier.safetensors; {fold} stands for the fold's number.", metavar="FILE"
    )
    segmenter: str | None = setting(
        None, "Your own segmenter.safetensors; {fold} stands for the fold's number.", metavar="FILE"
    )
    label_map: tuple[tuple[str, str], ...] = setting((), LABEL_MAP)
    channel: int | None = setting(None, CHANNEL)
    device: str = setting("auto", DEVICE)
    outline: str | None = setting(
        None,
        "What the masks outline: what takes up contrast agent, or the extent on FLAIR.",
        choices=OUTLINES,
        shown="by the sequence of each slice, as a run does",
    )
    tta: bool = setting(False, "Average over each slice and its mirror image.")
    engine: str = setting("auto", "torch, openvino or auto: what `tumorlens run` takes on this machine.")
    precision: str = setting("auto", "fp32, bf16 or auto: what `tumorlens run` takes on this machine.")
    seed: int | None = setting(
        None,
        "Seed of folds, where the data have none, and of the intervals.",
        least=0,
        most=MAX_SEED,
        shown="the one on the weights' card",
    )
    explain: bool = setting(False, "Score Grad-CAM against the masks.")
    probe: bool = setting(True, "Test that the label does not come from the picture's source.")
    size: int = 224
    command: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def data_names(self) -> str:
        """The data sets as messages name them."""
        return ", ".join(self.data)

    @property
    def fold_seed(self) -> int:
        """The seed of folds and intervals, 0 where neither the user nor a card names one."""
        return 0 if self.seed is None else self.seed


def crossval_request(training: Mapping[str, TrainingConfig], **rest: Any) -> EvaluationRequest:
    """A request to train the stages of `training` on every fold and to measure them on the same data.

    Args:
        training: Stage -> its settings, in the order of training. The fold is replaced, and so is ``{fold}`` in `init`.
        rest: Fields of `EvaluationRequest` that say how to measure: `protocol`, `folds`, `explain`, `probe`, `command`.
            Without a protocol all classes are measured, and an LGG folder by ``p4``.

    Raises:
        InputError: See `data.datasets.classes.given_classes`, whose spellings hold for all stages and data.
    """
    from tumorlens.data.datasets.classes import given_classes

    first = next(iter(training.values()))
    given = given_classes(getattr(first, "classes", ""), first.data)
    label_map = tuple(((given.classes.spellings if given else {}) | dict(first.label_map)).items())
    if "segmentation" in training:  # a classifier reads the classes itself
        training = {**training, "segmentation": replace(training["segmentation"], label_map=label_map)}
    return EvaluationRequest(
        data=first.data,
        stage="pipeline" if len(training) > 1 else next(iter(training)),
        label_map=label_map,
        channel=first.channel,
        device=first.device,
        seed=first.seed,
        training=training,
        **{"folds": (), **rest},
    )
