"""Fits calibration, thresholds, prediction sets and refusal of a trained network on validation patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.evaluation.metrics import expected_calibration_error
from tumorlens.classification.network import TorchNetwork
from tumorlens.classification.refusal import Refusal
from tumorlens.classification.trust.calibration import calibrated, fit_temperature
from tumorlens.classification.trust.conformal import LEVEL, fit_thresholds
from tumorlens.classification.trust.evidence import PredictionEvidence
from tumorlens.classification.trust.operating_point import (
    RULE,
    VOLUME_RULE,
    choose_threshold,
    choose_volume_threshold,
    has_enough_slices,
    threshold_of_each,
)
from tumorlens.classification.trust.refusal_fit import feature_layer, fit_refusal, training_pictures
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.prepared import PreparedSet

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Trust:
    """Everything that says how far to trust a classifier.

    Attributes:
        temperature: Of the softmax.
        tumor_threshold: Calibrated tumor probability from which a picture is positive.
        volume_threshold: The same for a slice of a volume; None if there were too few such slices.
        set_thresholds: Lowest probability of each class in a prediction set; None for a class that no slice shows.
        refusal: Tells brains from other pictures; None for networks without feature maps.
        fitted_on: The slices that decided, in words.
        logits: ``(n, 4)`` of these slices.
        strangeness: ``(n,)`` of these slices; None without a refusal.
        ece: Expected calibration error on them, before and after calibration.
    """

    temperature: float
    tumor_threshold: float
    volume_threshold: float | None
    set_thresholds: list[float | None]
    refusal: Refusal | None
    fitted_on: str
    logits: NDArray[np.float32]
    strangeness: NDArray[np.float32] | None
    ece: tuple[float, float]

    def thresholds(self, part: PreparedSet) -> NDArray[np.float32]:
        """The tumor threshold of each slice, ``(n,)``."""
        return threshold_of_each(_from_volumes(part), self.tumor_threshold, self.volume_threshold)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors for the weight file."""
        return {} if self.refusal is None else self.refusal.tensors()

    def facts(self) -> dict[str, Any]:
        """The entries for the card."""
        rounded = [None if t is None else round(t, 6) for t in self.set_thresholds]
        return {
            "operating_point": {
                "tumor_threshold": self.tumor_threshold,
                "rule": f"{RULE}, on {self.fitted_on}",
                **({} if self.volume_threshold is None else self._volume_facts()),
            },
            "calibration": {
                "method": f"temperature scaling on {self.fitted_on}",
                "temperature": self.temperature,
                "validation_ece_before": round(self.ece[0], 4),
                "validation_ece_after": round(self.ece[1], 4),
            },
            "conformal": {"level": LEVEL, "thresholds": dict(zip(CLASSES, rounded, strict=True))},
            **({"refusal": self.refusal.facts()} if self.refusal is not None else {}),
        }

    def _volume_facts(self) -> dict[str, Any]:
        rule = f"{VOLUME_RULE}, on the {self.fitted_on}"
        return {"volume_threshold": self.volume_threshold, "volume_rule": rule}


def fit_trust(
    network: TorchNetwork,
    parts: Partition,
    config: ClassifierConfig,
    not_brains: Sequence[NDArray[np.uint8]] = (),
    evidence: PredictionEvidence | None = None,
) -> Trust:
    """Fit everything that says how far to trust a trained network.

    Args:
        network: The trained network.
        parts: Training slices teach the refusal what a brain is; validation slices decide everything else.
        config: The run's settings.
        not_brains: Prepared pictures that are not brains, besides those that are drawn at random.
        evidence: Out-of-fold predictions, which replace the validation slices of a run on all patients.
    """
    layer = feature_layer(network.model, config.size)
    refusal = None if layer is None else _fit_refusal(network, layer, parts, config, not_brains)
    if evidence is not None:
        logits, strangeness = evidence.logits, evidence.strangeness
        labels, from_volumes = evidence.labels, evidence.from_volumes
    else:
        logits, strangeness = _predict(network, layer, refusal, parts.validation.images)
        labels, from_volumes = parts.validation.labels, _from_volumes(parts.validation)
    if refusal is not None and strangeness is not None:
        refusal = refusal.limited(strangeness)
    temperature = fit_temperature(logits, labels)
    probabilities = calibrated(logits, temperature)
    # Slices of volumes decide the pictures' threshold only where there are too few pictures.
    pictures = ~from_volumes if has_enough_slices(labels[~from_volumes]) else np.ones(len(labels), bool)
    return Trust(
        temperature=temperature,
        tumor_threshold=choose_threshold(labels[pictures], probabilities[pictures]),
        volume_threshold=choose_volume_threshold(labels[from_volumes], probabilities[from_volumes]),
        set_thresholds=fit_thresholds(probabilities, labels),
        refusal=refusal,
        fitted_on="validation slices" if evidence is None else "out-of-fold predictions of a cross-validation",
        logits=logits,
        strangeness=strangeness,
        ece=(
            expected_calibration_error(labels, calibrated(logits)),
            expected_calibration_error(labels, probabilities),
        ),
    )


def _fit_refusal(
    network: TorchNetwork,
    layer: str,
    parts: Partition,
    config: ClassifierConfig,
    not_brains: Sequence[NDArray[np.uint8]],
) -> Refusal:
    pictures, strange = training_pictures(parts.train, config.size, not_brains, config.seed)
    _, features = network.predict_with_features(pictures, layer)
    return fit_refusal(layer, features, strange)


def _predict(
    network: TorchNetwork, layer: str | None, refusal: Refusal | None, images: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Logits ``(n, 4)`` and strangeness ``(n,)`` of slices; no strangeness without a refusal."""
    if layer is None or refusal is None:
        return network.logits(images), None
    logits, features = network.predict_with_features(images, layer)
    return logits, refusal.strangeness(features)


def _from_volumes(part: PreparedSet) -> NDArray[np.bool_]:
    return np.array([sample.from_volume for sample in part.samples], bool)
