"""A scan on its way through both stages: what is read and prepared of it before a network sees anything."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.sample import channel_of
from tumorlens.data.devices import usable_cores
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import check_voxels, open_scan
from tumorlens.data.preprocessing.head import tissue_shares
from tumorlens.data.preprocessing.preprocess import PreparedSlice, Preprocess
from tumorlens.data.scan import ACQUISITION, Scan

# Slices of a volume whose head is smaller than this share of the largest one (vertex, neck) show too little to judge.
MIN_HEAD_SHARE = 0.3

# The same of the pixels brighter than air: beyond the head a volume shows noise, which is no slice at all.
_MIN_TISSUE_SHARE = 0.15


@dataclass(frozen=True)
class Case:
    """A scan, ready for the networks.

    Attributes:
        scan: What is looked at, in the plane that was asked for.
        prepared: Every slice as the classifier sees it; none for a slice of a volume that shows nothing but air.
        used: ``(n_slices,)``, which slices are judged.
        timings_s: Step -> seconds so far.
    """

    scan: Scan
    prepared: list[PreparedSlice | None]
    used: NDArray[np.bool_]
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def chosen(self) -> list[PreparedSlice]:
        """The slices that are judged."""
        return [p for p, use in zip(self.prepared, self.used, strict=True) if use and p is not None]

    @property
    def n_bytes(self) -> int:
        """What it takes of memory."""
        return int(self.scan.voxels.nbytes) + sum(p.image.nbytes + p.head.nbytes for p in self.prepared if p)


def open_case(
    source: str | Path | NDArray[Any] | Scan,
    size: int,
    frame: int | None = None,
    plane: str = ACQUISITION,
    series: str | None = None,
    channel: int | None = None,
) -> Case:
    """Read and prepare a scan.

    Args:
        source: As in `pipeline.pipeline.Pipeline.run`, and so are the others.
        size: Side of the classifier's input in pixels.

    Raises:
        InputError: The scan cannot be used; the message says what and where.
    """
    begun = time.perf_counter()
    if isinstance(source, (str, Path)):
        scan = open_scan(source, frame, series=series)
    else:
        scan = source if isinstance(source, Scan) else Scan.from_array(source)
        check_voxels(scan)
    if channel is not None:
        scan = replace(scan, voxels=channel_of(scan, channel))
        check_voxels(scan)
    if scan.volume:
        scan = scan.with_plane(plane)
    read = time.perf_counter()
    prepared = _prepare(scan, Preprocess(size))
    used = _used_slices(prepared)
    return Case(scan, prepared, used, {"read": read - begun, "preprocess": time.perf_counter() - read})


def _prepare(scan: Scan, preprocess: Preprocess) -> list[PreparedSlice | None]:
    aspect = scan.pixel_aspect
    if not scan.volume:
        return [preprocess(scan.slice(0), aspect)]
    tissue = tissue_shares(scan)
    shown = tissue >= _MIN_TISSUE_SHARE * max(float(tissue.max()), 1e-9)

    def one(k: int) -> PreparedSlice | None:
        view = scan.slice(k)
        return preprocess(view, aspect) if shown[k] and view.min() < view.max() else None

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="prepare") as pool:  # most of it leaves Python's lock
        prepared = list(pool.map(one, range(scan.n_slices)))
    if not any(prepared):
        raise InputError("no slice of the volume shows anything")
    return prepared


def _used_slices(prepared: list[PreparedSlice | None]) -> NDArray[np.bool_]:
    share = np.array([0.0 if p is None else p.head_fraction for p in prepared])
    if share.max() == 0:  # no head anywhere: judge all that shows something
        return np.array([p is not None for p in prepared])
    return share >= MIN_HEAD_SHARE * share.max()
