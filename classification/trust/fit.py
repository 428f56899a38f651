"""What is fitted once the network is trained, on validation patients: calibration, gate, prediction sets, refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tumorlens.classification.evaluation.metrics import expected_calibration_error
from tumorlens.classification.network import look, predict_logits
from tumorlens.classification.refusal import Refusal
from tumorlens.classification.trust.calibration import calibrated, fit_temperature
from tumorlens.classification.trust.conformal import LEVEL, fit_thresholds
from tumorlens.classification.trust.evidence import Evidence
from tumorlens.classification.trust.operating_point import (
    RULE,
    VOLUME_RULE,
    choose_threshold,
    choose_volume_threshold,
    enough,
    threshold_of_each,
)
from tumorlens.classification.trust.refusal_fit import feature_layer, fit_refusal, training_pictures
from tumorlens.data.devices import pick_device, wants_bf16
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.normalization import Normalization
from tumorlens.data.training.prepared import PreparedSet

if TYPE_CHECKING:
    from tumorlens.classification.config import ClassifierConfig
    from tumorlens.data.training.partition import Partition


@dataclass(frozen=True)
class Trust:
    """When to believe a classifier.

    Attributes:
        temperature: Of the softmax.
        tumor_threshold: Calibrated tumor probability from which a picture is positive.
        volume_threshold: The same for a slice of a volume; None where too few of them decided.
        set_thresholds: Per class, the least probability to be in the prediction set; None for a class never seen.
        refusal: What tells brains from other pictures; none for networks without feature maps.
        fitted_on: Which slices decided, in words.
        logits: ``(n, 4)`` of these slices.
        strangeness: ``(n,)`` of these slices, or none.
        ece: Expected calibration error on them, before and after.
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
        """The threshold that each of these slices is judged by, ``(n,)``."""
        return threshold_of_each(_from_volumes(part), self.tumor_threshold, self.volume_threshold)

    def tensors(self) -> dict[str, torch.Tensor]:
        """For the weight file."""
        return {} if self.refusal is None else self.refusal.tensors()

    def facts(self) -> dict[str, Any]:
        """For the card."""
        rounded = [None if t is None else round(t, 6) for t in self.set_thresholds]
        return {
            "operating_point": {
                "tumor_threshold": self.tumor_threshold,
                "rule": f"{RULE}, on {self.fitted_on}",
                **({} if self.volume_threshold is None else self._of_volumes()),
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

    def _of_volumes(self) -> dict[str, Any]:
        rule = f"{VOLUME_RULE}, on the {self.fitted_on}"
        return {"volume_threshold": self.volume_threshold, "volume_rule": rule}


def fit_trust(
    model: nn.Module,
    normalization: Normalization,
    parts: Partition,
    config: ClassifierConfig,
    others: Sequence[NDArray[np.uint8]] = (),
    evidence: Evidence | None = None,
) -> Trust:
    """Fit all of it.

    Args:
        model: The trained network.
        normalization: Its input's.
        parts: Training slices teach the refusal what a brain is; validation slices decide all else.
        config: The run's settings.
        others: Prepared pictures that are no brains, besides those that are drawn.
        evidence: Out-of-fold predictions, which then take the place of the validation slices.
    """
    half = wants_bf16(config.precision, pick_device(config.device))
    layer = feature_layer(model, config.size)
    refusal, strangeness = None, None
    if layer is not None:
        pictures, strange = training_pictures(parts.train, config.size, others, config.seed)
        features = look(model, pictures, layer, config.device, normalization, half).features
        refusal = fit_refusal(layer, features, strange)
    if evidence is not None:
        logits, strangeness = evidence.logits, evidence.strangeness
    elif layer is None or refusal is None:
        logits = predict_logits(model, parts.validation.images, config.device, normalization, half=half)
    else:
        seen = look(model, parts.validation.images, layer, config.device, normalization, half)
        logits, strangeness = seen.logits, refusal.strangeness(seen.features)
    labels = parts.validation.labels if evidence is None else evidence.labels
    cut = _from_volumes(parts.validation) if evidence is None else evidence.from_volumes
    alone = ~cut if enough(labels[~cut]) else np.ones(len(labels), bool)
    if refusal is not None and strangeness is not None:
        refusal = refusal.limited(strangeness)
    temperature = fit_temperature(logits, labels)
    probabilities = calibrated(logits, temperature)
    return Trust(
        temperature=temperature,
        tumor_threshold=choose_threshold(labels[alone], probabilities[alone]),
        volume_threshold=choose_volume_threshold(labels[cut], probabilities[cut]),
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


def _from_volumes(part: PreparedSet) -> NDArray[np.bool_]:
    return np.array([sample.from_volume for sample in part.samples], bool)
