"""A trained classifier, ready to answer: weights are loaded once and reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from classification.calibration import calibrated
from classification.conformal import prediction_sets
from classification.evaluate import look, predict_logits
from classification.model import build_classifier
from classification.operating_point import threshold_of_each
from classification.refusal import Refusal, take_refusal
from classification.zoo import find_architecture
from data.cards import load_into, load_weights
from data.compute import pick_device
from data.errors import InputError
from data.labels import CLASSES, NO_TUMOR
from data.loaders import Normalization, normalization_of, to_batch
from data.preprocess import PreparedSlice

SHIPPED = Path(__file__).parent / "weights" / "classifier.safetensors"


@dataclass(frozen=True)
class Classifier:
    """Stage one.

    Attributes:
        model: The network, on its device.
        card: What the weights are.
        device: Where it runs.
        refusal: What tells brains from other pictures, or none.
        tta: Whether each slice is also seen mirrored left to right and the logits are averaged (test-time
            augmentation): twice the time.
    """

    model: torch.nn.Module
    card: dict[str, Any]
    device: torch.device
    refusal: Refusal | None = None
    tta: bool = False

    @classmethod
    def load(cls, weights: str | Path | None = None, device: str = "auto", tta: bool = False) -> Classifier:
        """The shipped classifier, or one of your own.

        Args:
            weights: A ``.safetensors`` file with its card beside it, as a training run writes it.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
            tta: See `Classifier`.

        Raises:
            InputError: Files missing or damaged, another stage, architecture or class list.
        """
        path = Path(weights) if weights is not None else SHIPPED
        state, card = load_weights(path, "classification")
        if card.get("classes") != list(CLASSES):
            raise InputError(f"{path}: a model for {card.get('classes')}, where one for {list(CLASSES)} is needed")
        model = build_classifier(find_architecture(card["architecture"]), card["input_size"])
        refusal = take_refusal(state, card, path)
        load_into(model, state, path)
        if refusal is not None and refusal.layer not in dict(model.named_modules()):
            card_path = path.with_suffix(".json")
            raise InputError(f"{card_path}: refusal.layer {refusal.layer!r} is no layer of {card['architecture']}")
        where = pick_device(device)
        return cls(model.to(where).eval(), card, where, refusal, tta)

    @property
    def input_size(self) -> int:
        """Side of the prepared slices in pixels."""
        return int(self.card["input_size"])

    @property
    def normalization(self) -> Normalization:
        """What the weights expect of the pixels."""
        return normalization_of(self.card, find_architecture(self.card["architecture"]).normalization)

    @property
    def tumor_threshold(self) -> float:
        """The tumor probability from which a picture is positive, chosen on patients not learnt from."""
        return float(self.card["operating_point"]["tumor_threshold"])

    @property
    def volume_threshold(self) -> float:
        """The same for a slice of a volume; that of pictures where the card tells no other."""
        return float(self.card["operating_point"].get("volume_threshold", self.tumor_threshold))

    @property
    def temperature(self) -> float:
        """What the logits are divided by; 1 where the weights were never calibrated."""
        return float(self.card.get("calibration", {}).get("temperature", 1.0))

    def logits(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Uncalibrated logits ``(n, 4)`` in the order of `data.labels.CLASSES` for prepared slices."""
        logits = predict_logits(self.model, images_nhw, str(self.device), self.normalization)
        return self._averaged(logits, images_nhw)

    def _averaged(self, logits_nc: NDArray[np.float32], images_nhw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The logits, or their mean with those of the mirrored slices."""
        if not self.tta:
            return logits_nc
        mirrored = np.ascontiguousarray(images_nhw[:, :, ::-1])
        others = predict_logits(self.model, mirrored, str(self.device), self.normalization)
        return np.asarray((logits_nc + others) / 2, np.float32)

    def look(self, images_nhw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Uncalibrated logits ``(n, 4)`` and, in the same pass, how strange each slice is ``(n,)``; None for weights
        that cannot tell."""
        if self.refusal is None:
            return self.logits(images_nhw), None
        seen = look(self.model, images_nhw, self.refusal.layer, str(self.device), self.normalization)
        return self._averaged(seen.logits, images_nhw), self.refusal.strangeness(seen.features)

    def calibrate(self, logits_nc: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities ``(n, 4)`` of logits."""
        return calibrated(logits_nc, self.temperature)

    @property
    def strangeness_limit(self) -> float | None:
        """The highest strangeness of a brain slice; None for weights that cannot tell."""
        return None if self.refusal is None else self.refusal.limit

    def explain(self, images_nhw: NDArray[np.uint8], class_indices: Sequence[int]) -> NDArray[np.float32]:
        """Grad-CAM ``(n, size, size)`` in 0..1 of prepared slices for one class each, see `classification.explain`.

        Raises:
            InputError: The architecture has no feature maps.
        """
        from classification.explain import grad_cam

        return grad_cam(self.model, to_batch(images_nhw, self.normalization), class_indices)

    def predict(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Calibrated class probabilities ``(n, 4)`` in the order of `data.labels.CLASSES` for prepared slices."""
        return self.calibrate(self.logits(images_nhw))

    def labels(
        self, probabilities_nc: NDArray[np.float32], from_volumes_n: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """The label of each slice alone, ``(n,)`` index: the likeliest tumor from the threshold on, else no tumor.

        Args:
            probabilities_nc: ``(n, 4)``, calibrated.
            from_volumes_n: ``(n,)`` which are slices of volumes and not pictures; none are, by default.
        """
        volumes = np.zeros(len(probabilities_nc), bool) if from_volumes_n is None else from_volumes_n
        thresholds = threshold_of_each(volumes, self.tumor_threshold, self.volume_threshold)
        positive = 1 - probabilities_nc[:, NO_TUMOR] >= thresholds
        return np.where(positive, 1 + probabilities_nc[:, 1:].argmax(axis=1), NO_TUMOR)

    def refuses(self, strangeness_n: NDArray[np.float32] | None, has_head_n: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which slices alone would be taken for no brain, ``(n,)``: no head stands out, or too strange a one."""
        if strangeness_n is None or self.strangeness_limit is None:
            return ~has_head_n
        return ~has_head_n | (strangeness_n > self.strangeness_limit)

    def judge(self, prepared: Sequence[PreparedSlice]) -> NDArray[np.int64]:
        """The label of each slice alone, ``(n,)`` index, -1 where it is refused."""
        logits, strangeness = self.look(np.stack([p.image for p in prepared]))
        refused = self.refuses(strangeness, np.array([p.head_fraction > 0 for p in prepared]))
        return np.where(refused, -1, self.labels(self.calibrate(logits)))

    def prediction_sets(
        self, probabilities_nc: NDArray[np.float32], labels_n: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_] | None:
        """The classes that remain possible at the card's coverage, ``(n, 4)``, the label always among them; None for
        weights without such figures.

        Args:
            probabilities_nc: ``(n, 4)``, calibrated.
            labels_n: ``(n,)`` what was decided; by default what `labels` says of pictures.
        """
        conformal = self.card.get("conformal")
        if conformal is None:
            return None
        sets = prediction_sets(probabilities_nc, [conformal["thresholds"][name] for name in CLASSES])
        sets[np.arange(len(sets)), self.labels(probabilities_nc) if labels_n is None else labels_n] = True
        return sets
