"""The no-shortcut probe: does the classifier look at the brain, or at signs of the picture's source?

Healthy slices of public data sets come from other scanners than sick ones, so a network that recognizes the source
scores as well as one that recognizes tumors. The probe has three parts:

- *blanked*: with the inside of the head replaced by a tone or by grain, can healthy and sick still be told apart? The
  AUC must be near 0.5. Anything above it comes from the head's outline and from what lies outside of it.
- *frames*: with the same head in another frame, size, border, file format or color, does the label stay?
- *erased*: with the tumor painted over by its surroundings, does the tumor probability fall? If not, the network has
  seen the tumor's effects, or something else that sick slices share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.data.augmentation.blank import blank_head
from tumorlens.data.augmentation.variants import picture_variants
from tumorlens.data.bootstrap import interval, weighted_mean
from tumorlens.data.datasets.sample import Reading, Sample, read_sample
from tumorlens.data.labels import NO_TUMOR, TUMOR_FREE
from tumorlens.data.preprocessing.head import find_head
from tumorlens.data.preprocessing.preprocess import Preprocess, to_gray

MOST_AUC = 0.60  # of a classifier without a shortcut, on blanked heads
LEAST_KEPT = 0.99  # share of the labels that other frames must leave
_EACH = 200  # slices of a kind for `blanked` and `erased`
_FRAMED = 100  # slices for `frames`, each in a dozen frames
_LEAST = 30  # healthy slices, and sick ones: fewer cannot decide about an AUC of 0.6
_DRAWS = 200
Progress = Callable[[int, int], None]


def probe(
    classifier: Classifier, samples: Sequence[Sample], seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """Run the probe on labeled slices that the classifier has not seen.

    Args:
        classifier: The model.
        samples: Slices; of a large set, a random selection is used.
        seed: Of that selection, of the grain and of the intervals.
        progress: Called with the number of slices done and of all.

    Returns:
        ``{"blanked": ..., "frames": ..., "erased": ...}``; a part is None if the slices do not allow it: `blanked`
        needs healthy and sick ones, `erased` needs masks.

    Raises:
        InputError: A slice cannot be read.
    """
    rng = np.random.default_rng(seed)
    sick = _some([s for s in samples if s.label not in ("", TUMOR_FREE)], _EACH, rng)
    healthy = _some([s for s in samples if s.label == TUMOR_FREE], _EACH, rng)
    framed = _some([s for s in samples if s.label], _FRAMED, rng)
    steps = _Steps(progress, 2 * len(sick) + len(healthy) + len(framed))
    return {
        "blanked": _blanked(classifier, healthy, sick, seed, steps) if healthy and sick else None,
        "frames": _frames(classifier, framed, seed, steps) if framed else None,
        "erased": _erased(classifier, sick, seed, steps),
    }


def _some(samples: list[Sample], most: int, rng: np.random.Generator) -> list[Sample]:
    return [samples[i] for i in np.sort(rng.permutation(len(samples))[:most])]


def _blanked(
    classifier: Classifier, healthy: list[Sample], sick: list[Sample], seed: int, steps: _Steps
) -> dict[str, Any]:
    """AUC of the tumor probability between healthy and sick heads without their inside, for each fill.

    The worst one is the farthest from 0.5, because a score that is always wrong also knows the answer.
    """
    preprocess = Preprocess(classifier.input_size)
    pictures: dict[str, list[NDArray[np.uint8]]] = {"flat": [], "grain": []}
    for number, sample in enumerate([*healthy, *sick]):
        reading = read_sample(sample)
        image = to_gray(reading.image)
        pictures["flat"].append(preprocess(_flattened(image), reading.aspect).image)
        # Drawn on the prepared grid: on the source's grid, the grain's coarseness would show the source's resolution.
        pictures["grain"].append(blank_head(preprocess(image, reading.aspect).image, seed + number))
        steps.next()
    truth = np.array([0] * len(healthy) + [1] * len(sick))
    patients = np.array([s.patient or s.name for s in (*healthy, *sick)])
    auc: dict[str, Any] = {}
    for name, images in pictures.items():
        logits = classifier.look(np.stack(images)).logits.astype(np.float64)
        # Ranked by log-odds: probabilities near 1 are equal in single precision, and such ties would lower the AUC.
        score = np.logaddexp.reduce(logits[:, 1:], axis=1) - logits[:, NO_TUMOR]
        auc[name] = interval(partial(_auc, truth, score), patients, seed, _DRAWS)
    worst = max(0.5 + abs(a["value"] - 0.5) for a in auc.values())
    decides = min(len(healthy), len(sick)) >= _LEAST
    return {
        "n_healthy": len(healthy),
        "n_sick": len(sick),
        "auc": auc,
        "worst": worst,
        "passed": worst <= MOST_AUC if decides else None,
    }


def _auc(truth: NDArray[np.int64], score: NDArray[np.float64], chosen: NDArray[np.int64]) -> float | None:
    from sklearn.metrics import roc_auc_score

    labels = truth[chosen]
    return float(roc_auc_score(labels, score[chosen])) if 0 < labels.sum() < len(labels) else None


def _flattened(image_hw: NDArray[np.float32]) -> NDArray[np.float32]:
    """The source slice with the inside of its head at one tone."""
    head = find_head(image_hw)
    if not head.any():
        return image_hw
    flat = image_hw.copy()
    flat[head] = np.median(image_hw[head])
    if not np.ptp(flat):  # the head fills the picture
        flat[0, 0] -= 1
    return flat


def _frames(classifier: Classifier, samples: list[Sample], seed: int, steps: _Steps) -> dict[str, Any]:
    """Share of labels that stay, over all frames and for each.

    A slice that is refused in its own or in the other frame has lost its label. A slice that is refused in both has no
    label to keep, and does not count.
    """
    preprocess = Preprocess(classifier.input_size)
    names: list[str] = []
    rows: list[NDArray[np.int64]] = []
    for sample in samples:
        image = _bytes(read_sample(sample).image)
        frames = picture_variants(image)
        names = list(frames)
        rows.append(classifier.judge([preprocess(picture) for picture in (image, *frames.values())]))
        steps.next()
    labels_nf = np.stack(rows)
    own, framed = labels_nf[:, :1], labels_nf[:, 1:]
    stays, counts = framed == own, (framed >= 0) | (own >= 0)
    patients = np.array([s.patient or s.name for s in samples])
    share = weighted_mean(stays.ravel(), counts.ravel(), np.repeat(patients, len(names)), seed)
    return {
        "n": len(samples),
        "refused_in_both": int((~counts).sum()),
        "kept": share,
        "by_frame": {name: weighted_mean(stays[:, k], counts[:, k], patients, seed) for k, name in enumerate(names)},
        "passed": None if share is None else share["value"] >= LEAST_KEPT,
    }


def _bytes(image: NDArray[np.generic]) -> NDArray[np.uint8]:
    """A slice as a picture of eight gray bits."""
    gray = to_gray(image)
    low, high = np.percentile(gray, (0, 99.9))
    if gray.min() >= 0 and gray.max() <= 255:
        low, high = 0.0, 255.0
    return np.rint(np.clip((gray - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)


def _erased(classifier: Classifier, sick: list[Sample], seed: int, steps: _Steps) -> dict[str, Any] | None:
    """Tumor probability before and after the lesion is painted over (A. Telea, Journal of Graphics Tools 2004)."""
    preprocess = Preprocess(classifier.input_size)
    inputs: list[NDArray[np.uint8]] = []
    patients: list[str] = []
    for sample in sick:
        reading = read_sample(sample)
        steps.next()
        if reading.mask is None or not reading.mask.any():
            continue
        whole = preprocess(reading.image, reading.aspect)
        inputs += [whole.image, preprocess(_without_lesion(reading), reading.aspect).image]
        patients.append(reading.sample.patient or sample.name)
    if not inputs:
        return None
    probabilities = classifier.predict(np.stack(inputs))
    tumor = (1 - probabilities[:, NO_TUMOR]).reshape(-1, 2).astype(float)
    every = np.ones(len(tumor))
    positive = (classifier.labels(probabilities) != NO_TUMOR).reshape(-1, 2).astype(float)
    return {
        "n": len(tumor),
        "tumor_probability_before": weighted_mean(tumor[:, 0], every, patients, seed),
        "tumor_probability_after": weighted_mean(tumor[:, 1], every, patients, seed),
        "positive_before": weighted_mean(positive[:, 0], every, patients, seed),
        "positive_after": weighted_mean(positive[:, 1], every, patients, seed),
    }


def _without_lesion(reading: Reading) -> NDArray[np.uint8]:
    image = _bytes(reading.image)
    mask = np.asarray(reading.mask, np.uint8)
    rim = 2 * max(2, round(0.015 * max(mask.shape))) + 1
    return np.asarray(cv2.inpaint(image, cv2.dilate(mask, np.ones((rim, rim), np.uint8)), 5, cv2.INPAINT_TELEA))


class _Steps:
    """Counts slices for a progress display."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def next(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)
