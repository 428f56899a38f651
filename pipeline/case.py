"""A scan on its way through both stages: it is read, cut into slices and prepared before a network sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import channel_of
from tumorlens.data.devices import usable_cores
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import check_voxels, open_scan
from tumorlens.data.padding import without_padding
from tumorlens.data.preprocessing.head import tissue_shares
from tumorlens.data.preprocessing.preprocess import PreparedSlice, Preprocess
from tumorlens.data.scan import Scan
from tumorlens.pipeline.measurements.size import impossible_head, impossible_voxels, without_lengths
from tumorlens.pipeline.options import RunOptions

# A slice of a volume is judged where its head covers at least this share of the largest head in the volume. Smaller
# ones (vertex, neck) show too little.
MIN_HEAD_SHARE = 0.3

# The same for pixels brighter than air. Slices beyond the head show only noise and are not prepared at all.
_MIN_TISSUE_SHARE = 0.15


@dataclass(frozen=True)
class Case:
    """A scan, ready for the networks.

    Attributes:
        scan: The scan in the requested plane.
        prepared: Every slice as the classifier sees it, or None for a slice of a volume that shows only air.
        used: ``(n_slices,)`` bool: the slices that are judged.
        timings_s: Step -> seconds so far.
        size_doubt: Why the lengths in the file cannot be right, or None.
    """

    scan: Scan
    prepared: list[PreparedSlice | None]
    used: NDArray[np.bool_]
    timings_s: dict[str, float] = field(default_factory=dict)
    size_doubt: str | None = None

    @cached_property
    def measured(self) -> Scan:
        """The scan as it is decided on and measured: of unknown spacing where its lengths cannot be right."""
        return self.scan if self.size_doubt is None else without_lengths(self.scan)

    @property
    def chosen(self) -> list[PreparedSlice]:
        """The slices that are judged."""
        return [p for p, use in zip(self.prepared, self.used, strict=True) if use and p is not None]

    @property
    def head_px(self) -> float:
        """Largest area of the head in a slice, in pixels."""
        rows, columns = self.scan.slice(0).shape[:2]
        return max(p.head_fraction for p in self.chosen) * rows * columns

    @property
    def n_bytes(self) -> int:
        """Memory that the case takes."""
        return int(self.scan.voxels.nbytes) + sum(p.image.nbytes + p.head.nbytes for p in self.prepared if p)

    def slice_at(self, index: int, size: int) -> PreparedSlice:
        """A slice prepared at a size in pixels. It is prepared again where the stages work at different sizes."""
        prepared = self.prepared[index]
        if prepared is not None and len(prepared.image) == size:
            return prepared
        return Preprocess(size)(self.scan.slice(index), self.scan.pixel_aspect)


def open_source(
    source: str | Path | NDArray[Any] | Scan, options: RunOptions = RunOptions(), series: str | None = None
) -> Scan:
    """Read a scan, take the requested frame and channel, and cut it in the requested plane.

    Args:
        source: A file, a folder or zip of DICOM files, an array as in `data.scan.Scan.from_array`, or a `Scan`.
        options: Frame, channel and plane.
        series: UID or number of the DICOM series, where the source holds several.

    Raises:
        InputError: The scan cannot be used. The message says what is wrong and where.
    """
    if isinstance(source, (str, Path)):
        scan = open_scan(source, options.frame, series=series)
    else:
        scan = source if isinstance(source, Scan) else Scan.from_array(source)
        check_voxels(scan)
        scan = without_padding(scan)
    if options.channel is not None:
        scan = replace(scan, voxels=channel_of(scan, options.channel))
        check_voxels(scan)
    return scan.with_plane(options.plane) if scan.volume else scan


def prepare(scan: Scan, size: int, read_s: float = 0.0) -> Case:
    """Prepare the slices of a scan and choose those that are judged.

    Args:
        scan: From `open_source`.
        size: Side of the classifier's input in pixels.
        read_s: Seconds that reading the scan took, for the timings.

    Raises:
        InputError: No slice of the volume shows anything.
    """
    begun = time.perf_counter()
    doubt = impossible_voxels(scan)
    if doubt:  # their ratio would stretch the slices beyond recognition
        scan = replace(scan, spacing_mm=None)
    prepared = _prepared_slices(scan, Preprocess(size))
    case = Case(scan, prepared, _used_slices(prepared), {"read": read_s})
    doubt = doubt or impossible_head(scan, case.head_px, int(np.ptp(np.flatnonzero(case.used))) + 1)
    case.timings_s["preprocess"] = time.perf_counter() - begun
    return replace(case, size_doubt=doubt)


def prepare_slices(scan: Scan, size: int, indices: NDArray[np.int_]) -> dict[int, PreparedSlice]:
    """Slices of a volume in another plane, prepared at a size; those that show too little of the head are left out."""
    tissue = tissue_shares(scan)
    shown = [int(k) for k in indices if tissue[k] >= MIN_HEAD_SHARE * tissue.max() and np.ptp(scan.slice(int(k))) > 0]
    preprocess = Preprocess(size)
    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="prepare") as pool:
        return dict(zip(shown, pool.map(lambda k: preprocess(scan.slice(k), scan.pixel_aspect), shown), strict=True))


def share_time(step: str, seconds: float, cases: Sequence[Case], n_slices: Sequence[int]) -> None:
    """Charge the time of a step that scans share to each of them, by their numbers of slices."""
    total = max(1, sum(n_slices))
    for case, n in zip(cases, n_slices, strict=True):
        case.timings_s[step] = seconds * n / total


def _prepared_slices(scan: Scan, preprocess: Preprocess) -> list[PreparedSlice | None]:
    aspect = scan.pixel_aspect
    if not scan.volume:
        return [preprocess(scan.slice(0), aspect)]
    tissue = tissue_shares(scan)
    shows_tissue = tissue >= _MIN_TISSUE_SHARE * max(float(tissue.max()), 1e-9)

    def prepare_slice(k: int) -> PreparedSlice | None:
        view = scan.slice(k)
        return preprocess(view, aspect) if shows_tissue[k] and view.min() < view.max() else None

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="prepare") as pool:  # most of it releases Python's lock
        prepared = list(pool.map(prepare_slice, range(scan.n_slices)))
    if not any(prepared):
        raise InputError("no slice of the volume shows anything")
    return prepared


def _used_slices(prepared: list[PreparedSlice | None]) -> NDArray[np.bool_]:
    share = np.array([0.0 if p is None else p.head_fraction for p in prepared])
    if share.max() == 0:  # no head anywhere: judge every slice that shows something
        return np.array([p is not None for p in prepared])
    return share >= MIN_HEAD_SHARE * share.max()
