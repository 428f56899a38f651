"""The truth of a scan, from the samples that a data set has of it: its class, its mask and its regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import Sample, open_cut
from tumorlens.data.labels import TUMOR_FREE
from tumorlens.data.masks.regions import Regions
from tumorlens.data.masks.truth import known_regions, read_truth
from tumorlens.data.scan import Scan


def true_label(members: Sequence[Sample]) -> str:
    """The scan's class. The slices that are left of a volume may all be without its lesion."""
    labels = [members[0].volume_label, *(s.label for s in members)]
    return next((label for label in labels if label not in ("", TUMOR_FREE)), TUMOR_FREE)


def true_mask(members: Sequence[Sample], scan: Scan) -> NDArray[np.uint8] | None:
    """The true mask in the array order of ``scan.voxels``; None for a tumor that the set does not outline."""
    if members[0].weak:
        return None
    file = _mask_file(members)
    if file is not None:
        return read_truth(file, scan)
    if scan.annotation is not None and scan.annotation.mask is not None:
        return scan.annotation.mask
    if any(label != TUMOR_FREE for s in members for label in (s.volume_label or s.label, s.label)):
        return None
    return np.zeros(scan.voxels.shape if scan.volume else scan.voxels.shape[:2], np.uint8)


def true_regions(members: Sequence[Sample], scan: Scan, regions: Regions) -> NDArray[np.uint8] | None:
    """The true regions of a scan as bits, see `known_regions`; None where there are none to tell apart."""
    if not regions or (scan.annotation is not None and scan.annotation.mask is not None):
        return None
    return known_regions(_mask_file(members), scan, regions)


def _mask_file(members: Sequence[Sample]) -> Path | None:
    return next((mask for s in members for mask in (s.volume_mask, s.mask) if mask is not None), None)


class TrueRegions:
    """The true regions of slices. Those of a volume follow each other, so its mask is read once.

    Args:
        regions: Of the segmenter.
    """

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        self._volume: tuple[Any, NDArray[np.uint8] | None] = (None, None)

    def of(self, sample: Sample) -> NDArray[np.uint8] | None:
        """Bits ``(rows, columns)``, or None, as `known_regions`."""
        if not self.regions or sample.image.suffix.lower() == ".mat":
            return None
        scan = open_cut(sample)
        if sample.mask is None or not scan.volume:
            bits = known_regions(sample.mask, scan, self.regions)
        else:
            key = (sample.image, sample.plane, sample.mask)
            if self._volume[0] != key:
                self._volume = (key, known_regions(sample.mask, scan, self.regions))
            bits = self._volume[1]
        return scan.view(bits, sample.slice_index or 0) if bits is not None and scan.volume else bits
