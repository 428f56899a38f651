"""A trained classifier: loaded once, it predicts any number of slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.config import SHIPPED as SHIPPED
from tumorlens.classification.refusal import PREFIX as REFUSAL
from tumorlens.classification.refusal import Refusal, take_refusal
from tumorlens.classification.sequence import PREFIX as SEQUENCE
from tumorlens.classification.sequence import SequenceHead, take_sequence_head
from tumorlens.classification.trust.calibration import THRESHOLD, Calibration
from tumorlens.classification.trust.conformal import prediction_sets
from tumorlens.data.cards.card import checked_card
from tumorlens.data.cards.weights import read_arrays
from tumorlens.data.errors import needs
from tumorlens.data.labels import NO_TUMOR, ClassList
from tumorlens.data.preprocessing.normalization import Normalization
from tumorlens.data.preprocessing.preprocess import PreparedSlice

if TYPE_CHECKING:
    import torch


class Network(Protocol):
    """Stage one's network on an engine."""

    def __call__(self, images_nhw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Uncalibrated logits ``(n, c)`` of prepared slices ``(n, size, size)``, and the features ``(n, d)`` that the
        refusal reads; None for weights without a refusal."""
        ...


@dataclass(frozen=True)
class Look:
    """What one pass of the network says about ``n`` slices.

    Attributes:
        logits: ``(n, c)`` of all classes, uncalibrated.
        strangeness: ``(n,)`` see `classification.refusal`; None for weights without a refusal.
        sequences: ``(n, 4)`` probability of each of `data.labels.SEQUENCES`; None for weights that do not name them.
    """

    logits: NDArray[np.float32]
    strangeness: NDArray[np.float32] | None
    sequences: NDArray[np.float32] | None


@dataclass(frozen=True)
class Classifier:
    """Stage one.

    Attributes:
        network: The network on an engine.
        card: The weights' card.
        source: The weight file.
        refusal: Tells brains from other pictures; None for weights without one.
        sequence: Names the sequence; None for weights that do not.
        tta: Test-time augmentation: each slice is also seen mirrored left to right, and the logits are averaged. It
            takes twice the time.
    """

    network: Network
    card: dict[str, Any]
    source: Path
    refusal: Refusal | None = None
    sequence: SequenceHead | None = None
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
            weights: A ``.safetensors`` file, with its card in the same folder, as a training run writes it.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
            tta: See `Classifier`.
            network: Opens a weight file on another engine than PyTorch on that device.

        Raises:
            InputError: Files missing or damaged, or of another stage or architecture.
        """
        path = Path(weights) if weights is not None else SHIPPED
        card = checked_card(path, "classification")
        opened = network(path) if network else _torch_network(path, device)
        refusal = take_refusal(read_arrays(path, REFUSAL), card, path)
        sequence = take_sequence_head(read_arrays(path, SEQUENCE), card, refusal, path)
        return cls(opened, card, path, refusal, sequence, tta)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The network in PyTorch, for Grad-CAM."""
        loaded: torch.nn.Module | None = getattr(self.network, "model", None)
        return loaded if loaded is not None else _torch_network(self.source, "cpu").model

    @cached_property
    def classes(self) -> ClassList:
        """The classes, in the order of all logits and probabilities."""
        return ClassList.from_card(self.card)

    @property
    def input_size(self) -> int:
        """Side of the prepared slices in pixels."""
        return int(self.card["input_size"])

    @property
    def normalization(self) -> Normalization:
        """The normalization that the weights expect."""
        from tumorlens.classification.architectures import find_architecture
        from tumorlens.data.preprocessing.normalization import normalization_of

        return normalization_of(self.card, find_architecture(self.card["architecture"]).normalization)

    @cached_property
    def calibration(self) -> Calibration:
        """From logits to probabilities; a slice is positive from `THRESHOLD` on."""
        return Calibration.of_card(self.card)

    def look(self, images_nhw: NDArray[np.uint8]) -> Look:
        """Logits, strangeness and sequence of prepared slices ``(n, size, size)``, from one pass."""
        logits, features = self.network(images_nhw)
        if self.tta:
            mirrored, _ = self.network(np.ascontiguousarray(images_nhw[:, :, ::-1]))
            logits = np.asarray((logits + mirrored) / 2, np.float32)
        if self.refusal is None or features is None:
            return Look(logits, None, None)
        standard = self.refusal.standardize(features)
        sequences = None if self.sequence is None else self.sequence.probabilities(standard)
        return Look(logits, self.refusal.strangeness(features), sequences)

    def calibrate(self, logits_nc: NDArray[np.float32]) -> NDArray[np.float32]:
        """Class probabilities ``(n, c)`` of logits."""
        return self.calibration(logits_nc)

    @property
    def strangeness_limit(self) -> float | None:
        """The highest strangeness of a brain slice; None for weights without a refusal."""
        return None if self.refusal is None else self.refusal.limit

    def explain(
        self, images_nhw: NDArray[np.uint8], class_indices: Sequence[int] | NDArray[Any]
    ) -> NDArray[np.float32]:
        """Grad-CAM ``(n, size, size)`` in 0..1 of prepared slices for one class each, see `classification.gradcam`.

        Raises:
            InputError: The architecture has no feature maps, or PyTorch is needed and not installed.
        """
        outputs = np.asarray(class_indices) - self.classes.offset
        class_maps = getattr(self.network, "class_maps", None)
        maps = class_maps(images_nhw) if class_maps and len(images_nhw) else None
        if maps is not None:
            from tumorlens.classification.class_maps import heat_of

            return heat_of(maps, outputs, self.input_size)
        with needs(f"Grad-CAM of a {self.card['architecture']}", "train"):
            from tumorlens.classification.gradcam import grad_cam
            from tumorlens.data.preprocessing.normalization import to_batch

            return grad_cam(self.model, to_batch(images_nhw, self.normalization), outputs)

    def predict(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Calibrated probabilities ``(n, c)`` of all `classes` for prepared slices."""
        return self.calibrate(self.look(images_nhw).logits)

    def labels(self, probabilities_nc: NDArray[np.float32]) -> NDArray[np.int64]:
        """The label of each slice by itself, ``(n,)`` index: the likeliest tumor from the threshold on, else no tumor.

        Args:
            probabilities_nc: ``(n, c)``, calibrated.
        """
        positive = 1 - probabilities_nc[:, NO_TUMOR] >= THRESHOLD
        return np.where(positive, 1 + probabilities_nc[:, 1:].argmax(axis=1), NO_TUMOR)

    def refuses(self, strangeness_n: NDArray[np.float32] | None, has_head_n: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether each slice by itself is refused, ``(n,)``: no head stands out in it, or it is too strange.

        Args:
            strangeness_n: ``(n,)`` from `look`.
            has_head_n: ``(n,)`` whether preprocessing found a head.
        """
        if strangeness_n is None or self.strangeness_limit is None:
            return ~has_head_n
        return ~has_head_n | (strangeness_n > self.strangeness_limit)

    def judge(self, prepared: Sequence[PreparedSlice]) -> NDArray[np.int64]:
        """The label of each slice by itself, ``(n,)`` index; -1 where it is refused."""
        seen = self.look(np.stack([p.image for p in prepared]))
        refused = self.refuses(seen.strangeness, np.array([p.head_fraction > 0 for p in prepared]))
        return np.where(refused, -1, self.labels(self.calibrate(seen.logits)))

    def prediction_sets(
        self, probabilities_nc: NDArray[np.float32], labels_n: NDArray[np.int64] | None = None
    ) -> NDArray[np.bool_] | None:
        """The classes that remain possible at the card's coverage, ``(n, c)``. The label is always among them.

        None for weights without conformal thresholds, such as those of too few validation slices.

        Args:
            probabilities_nc: ``(n, c)``, calibrated.
            labels_n: ``(n,)`` the decided labels; by default those of pictures, see `labels`.
        """
        thresholds = self.card.get("conformal", {}).get("thresholds")
        if thresholds is None:
            return None
        sets = prediction_sets(probabilities_nc, [thresholds.get(name) for name in self.classes.names])
        sets[np.arange(len(sets)), self.labels(probabilities_nc) if labels_n is None else labels_n] = True
        return sets


def _torch_network(path: Path, device: str) -> Any:
    with needs("the engine torch", "train"):
        from tumorlens.classification.network import load_network

        return load_network(path, device)
