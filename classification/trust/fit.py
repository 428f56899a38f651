"""Fits calibration, prediction sets, refusal and sequence of a trained network on validation patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.evaluation.metrics import expected_calibration_error, has_known_type
from tumorlens.classification.network import TorchNetwork
from tumorlens.classification.probabilities import softmax
from tumorlens.classification.refusal import Refusal
from tumorlens.classification.sequence import SequenceHead
from tumorlens.classification.trust.calibration import RULE, THRESHOLD, Calibration, fit_calibration
from tumorlens.classification.trust.conformal import conformal_facts, fit_thresholds
from tumorlens.classification.trust.evidence import PredictionEvidence
from tumorlens.classification.trust.refusal_fit import feature_layer, fit_refusal, training_pictures
from tumorlens.classification.trust.sequence_fit import fit_sequence_head, sequence_figures
from tumorlens.data.labels import NO_TUMOR, SEQUENCES, ClassList
from tumorlens.data.training.partition import Partition

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Trust:
    """Everything that says how far to trust a classifier.

    Attributes:
        calibration: Makes probabilities of logits.
        conformal: The card's entry for prediction sets, from `classification.trust.conformal.conformal_facts`.
        refusal: Tells brains from other pictures; None for networks without feature maps.
        sequence: Names the sequence; None where the data name fewer than two.
        sequence_recall: From `sequence_fit.sequence_figures`, on validation slices.
        fitted_on: The slices that decided.
        logits: ``(n, c)`` of these slices.
        strangeness: ``(n,)`` of these slices; None without a refusal.
        ece: Expected calibration error on these slices before and after calibration.
        classes: The classes of the logits.
    """

    calibration: Calibration
    conformal: dict[str, Any]
    refusal: Refusal | None
    sequence: SequenceHead | None
    sequence_recall: dict[str, Any]
    fitted_on: str
    logits: NDArray[np.float32]
    strangeness: NDArray[np.float32] | None
    ece: tuple[float, float]
    classes: ClassList

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors for the weight file."""
        return {
            name: tensor for head in (self.refusal, self.sequence) if head for name, tensor in head.tensors().items()
        }

    def facts(self) -> dict[str, Any]:
        """The entries for the card."""
        sequence = {"names": list(SEQUENCES), "validation_recall": self.sequence_recall}
        return {
            "operating_point": {"tumor_threshold": THRESHOLD, "rule": f"{RULE}, on {self.fitted_on}"},
            "calibration": {
                "method": f"temperature scaling and a tumor bias on {self.fitted_on}, all data sets alike",
                "temperature": self.calibration.temperature,
                "tumor_bias": self.calibration.tumor_bias,
                "validation_ece_before": round(self.ece[0], 4),
                "validation_ece_after": round(self.ece[1], 4),
            },
            "conformal": self.conformal,
            **({"refusal": self.refusal.facts()} if self.refusal is not None else {}),
            **({"sequence": sequence} if self.sequence is not None else {}),
        }


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
        parts: Training slices teach refusal and sequence; validation slices decide everything else.
        config: The run's settings.
        not_brains: Prepared pictures that are not brains, besides those that are drawn at random.
        evidence: Predictions for held-out patients, which replace the validation slices of a run on all patients.
    """
    layer = feature_layer(network.model, config.size)
    refusal = None if layer is None else _fit_refusal(network, layer, parts, config, not_brains)
    sequence = None if refusal is None else fit_sequence_head(network, refusal, parts.train, config.seed)
    recall: dict[str, Any] = {}
    if evidence is not None:
        logits, strangeness, labels, sources = evidence.logits, evidence.strangeness, evidence.labels, evidence.sources
        recall = evidence.sequence_recall
    else:
        part = parts.validation
        labels, sources = part.labels, np.array([sample.source for sample in part.samples], np.int64)
        if refusal is None:
            logits, strangeness = network.logits(part.images), None
        else:
            logits, features = network.predict_with_features(part.images, refusal.layer)
            strangeness = refusal.strangeness(features)
            if sequence is not None:
                recall = sequence_figures(sequence.probabilities(refusal.standardize(features)), part.samples)
    if refusal is not None and strangeness is not None:
        refusal = refusal.limited(strangeness)
    calibration = fit_calibration(logits, labels, sources)
    typed = labels != parts.classes.untyped
    after = calibration(logits[typed])
    return Trust(
        calibration=calibration,
        conformal=conformal_facts(fit_thresholds(after, labels[typed]), labels[typed], parts.classes),
        refusal=refusal,
        sequence=sequence,
        sequence_recall=recall,
        fitted_on="validation slices" if evidence is None else "predictions for held-out patients",
        logits=logits,
        strangeness=strangeness,
        ece=(_ece(labels, softmax(logits)), _ece(labels, calibration(logits))),
        classes=parts.classes,
    )


def _ece(labels_n: NDArray[np.int64], probabilities_nc: NDArray[np.float32]) -> float:
    """Expected calibration error of the classes; of presence, where no tumor's type is known."""
    known = has_known_type(labels_n, probabilities_nc.shape[1])
    if known.any():
        return expected_calibration_error(labels_n[known], probabilities_nc[known])
    healthy = probabilities_nc[:, :1]
    presence = np.concatenate([healthy, 1 - healthy], axis=1)
    return expected_calibration_error((labels_n != NO_TUMOR).astype(np.int64), presence)


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
