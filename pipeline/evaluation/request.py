"""What an evaluation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
