"""A trained classifier, ready to answer: weights are loaded once and reused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.refusal import PREFIX, Refusal, take_refusal
from tumorlens.classification.trust.calibration import calibrated
from tumorlens.classification.trust.conformal import prediction_sets
from tumorlens.classification.trust.operating_point import threshold_of_each
from tumorlens.data.cards.card import checked_card
from tumorlens.data.cards.weights import read_arrays
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.preprocessing.normalization import Normalization
from tumorlens.data.preprocessing.preprocess import PreparedSlice

if TYPE_CHECKING:
    import torch

SHIPPED = Path(__file__).parent / "weights" / "classifier.safetensors"


class Network(Protocol):
    """Stage one's network on whatever computes it."""

    def __call__(self, images_nhw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Prepared slices ``(n, size, size)`` -> uncalibrated logits ``(n, 4)``, and the features ``(n, d)`` that the
        refusal reads; none for weights without one."""
        ...


@dataclass(frozen=True)
class Classifier:
    """Stage one.

    Attributes:
        network: What computes.
        card: What the weights are.
        source: Their file.
        refusal: What tells brains from other pictures, or none.
        tta: Whether each slice is also seen mirrored left to right and the logits are averaged (test-time
            augmentation): twice the time.
    """

    network: Network
    card: dict[str, Any]
    source: Path
    refusal: Refusal | None = None
    tta: bool = False

    @classmethod
    def load(
        cls,
        weights: str | Path | None = None,
        device: str = "auto",
        tta: bool = False,
        network: Callable[[Path], Network] | None = None,
    ) -> Classifier:
        """The shipped classifier, or one of your own.

        Args:
            weights: A ``.safetensors`` file with its card beside it, as a training run writes it.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
            tta: See `Classifier`.
            network: Opens a weight file on an engine of its own, instead of PyTorch on that device.

        Raises:
            InputError: Files missing or damaged, another stage, architecture or class list.
        """
        path = Path(weights) if weights is not None else SHIPPED
        card = checked_card(path, "classification")
        if card.get("classes") != list(CLASSES):
            raise InputError(f"{path}: a model for {card.get('classes')}, where one for {list(CLASSES)} is needed")
        opened = network(path) if network else _torch_network(path, device)
        refusal = take_refusal(read_arrays(path, PREFIX), card, path)
        return cls(opened, card, path, refusal, tta)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The network in PyTorch, for what needs its gradients or its layers."""
        own: torch.nn.Module | None = getattr(self.network, "model", None)
        return own if own is not None else _torch_network(self.source, "cpu").model

    @property
    def input_size(self) -> int:
        """Side of the prepared slices in pixels."""
        return int(self.card["input_size"])

    @property
    def normalization(self) -> Normalization:
        """What the weights expect of the pixels."""
        from tumorlens.classification.architectures import find_architecture
        from tumorlens.data.preprocessing.normalization import normalization_of

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
        return self.look(images_nhw)[0]

    def look(self, images_nhw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Uncalibrated logits ``(n, 4)`` and, in the same pass, how strange each slice is ``(n,)``; None for weights
        that cannot tell."""
        logits, features = self.network(images_nhw)
        if self.tta:
            mirrored, _ = self.network(np.ascontiguousarray(images_nhw[:, :, ::-1]))
            logits = np.asarray((logits + mirrored) / 2, np.float32)
        if self.refusal is None or features is None:
            return logits, None
        return logits, self.refusal.strangeness(features)

    def calibrate(self, logits_nc: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities ``(n, 4)`` of logits."""
        return calibrated(logits_nc, self.temperature)

    @property
    def strangeness_limit(self) -> float | None:
        """The highest strangeness of a brain slice; None for weights that cannot tell."""
        return None if self.refusal is None else self.refusal.limit

    def explain(self, images_nhw: NDArray[np.uint8], class_indices: Sequence[int]) -> NDArray[np.float32]:
        """Grad-CAM ``(n, size, size)`` in 0..1 of prepared slices for one class each, see `classification.evaluation.explanation`.

        Raises:
            InputError: The architecture has no feature maps.
        """
        from tumorlens.classification.gradcam import grad_cam
        from tumorlens.data.preprocessing.normalization import to_batch

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


def _torch_network(path: Path, device: str) -> Any:
    from tumorlens.classification.network import load_network

    return load_network(path, device)
