"""A pipeline whose networks give fixed answers, for tests where only the flow matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tumorlens.classification.predict import Classifier
from tumorlens.data.labels import CLASSES
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.segmentation.predict import Segmenter

SIZE = 64


class FixedClassifier:
    """Stage one's network: each slice has the tumor probability that a function gives for it, all of one type."""

    def __init__(self, tumor, kind):
        self.tumor, self.kind = tumor, CLASSES.index(kind)

    def __call__(self, images):
        probabilities = np.full((len(images), len(CLASSES)), 1e-9, np.float32)
        for row, image in zip(probabilities, images, strict=True):
            row[self.kind] = self.tumor(image)
            row[0] = 1 - row[self.kind]
        return np.log(probabilities), None


class SquareSegmenter:
    """Stage two's network: marks a square in the middle of every slice, and keeps the slices that it was given."""

    def __init__(self):
        self.images = []

    def __call__(self, images):
        self.images += list(images)
        maps = np.zeros_like(images[:, None])
        side = images.shape[1]
        maps[:, :, 3 * side // 8 : 5 * side // 8, 3 * side // 8 : 5 * side // 8] = 255
        return maps


class NestedSquares(SquareSegmenter):
    """A network with a channel for each region: the square of `SquareSegmenter`, and in it ever smaller ones."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def __call__(self, images):
        square = super().__call__(images)
        maps = np.repeat(square, self.count, axis=1)
        side = images.shape[1]
        for k in range(self.count):
            cut = 3 * side // 8 + k * side // 16
            maps[:, k, :cut] = maps[:, k, :, :cut] = 0
        return maps


BRATS = Regions.parse(("whole=1,2,4", "core=1,4", "enhancing=4"))


def fixed_pipeline(tumor=0.98, kind="meningioma", threshold=None, regions=NO_REGIONS):
    """A pipeline at a size of 64 pixels.

    Args:
        tumor: The tumor probability of every slice, a list with one for each judged slice, or a function of the slice.
        kind: The tumor type.
        threshold: As in `Pipeline`.
        regions: Of the segmenter; the last of them is the smallest.
    """
    if isinstance(tumor, list):
        in_order = iter(tumor)
        classifier = FixedClassifier(lambda image: next(in_order), kind)
    else:
        classifier = FixedClassifier(tumor if callable(tumor) else lambda image: tumor, kind)
    point = {"mask_threshold": 0.5, "min_lesion_px": 0}
    return Pipeline(
        Classifier(classifier, {"input_size": SIZE, "operating_point": {"tumor_threshold": 0.5}}, Path("fixed")),
        Segmenter(
            NestedSquares(len(regions)) if regions else SquareSegmenter(),
            {"input_size": SIZE, "operating_point": point, **regions.to_card()},
        ),
        threshold,
    )
