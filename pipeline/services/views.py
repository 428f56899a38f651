"""A scan and its masks as slices for the screen, in all three planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.percentiles import percentiles
from tumorlens.data.preprocessing.preprocess import to_gray
from tumorlens.data.scan import Scan

_BORDERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, upper and lower border of a slice
_LEVELS = 65535


@dataclass
class View:
    """A scan as the screen shows it: each plane is cut into slices of gray levels, 0 to 65535.

    Attributes:
        scan: The scan in the plane in which it was judged. Masks are drawn in this plane.
        mask: 0 and 1 in the order of the scan's voxels, or None where there is none.
        heat: Grad-CAM of one slice, ``(rows, columns)`` in 0..1, or None.
        heat_slice: The slice that `heat` belongs to.
        start: The slice to show first.
        center: The place of the cross at first, as indices along the array axes; the middle of the scan by default.
    """

    scan: Scan
    mask: NDArray[np.uint8] | None = None
    heat: NDArray[np.float32] | None = None
    heat_slice: int = 0
    start: int = 0
    center: Sequence[float] | None = None
    _range: tuple[float, float] = field(init=False, repr=False)
    _window: tuple[float, float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        values = self.scan.voxels if self.scan.volume else _gray(self.scan.voxels)
        values = _finite(values)
        low, high = float(values.min()), float(values.max())
        self._range = (low, high if high > low else low + 1)
        nonzero = values[values > low] if self.scan.volume else values
        dark, bright = percentiles(nonzero if nonzero.size else values, (0.5, 99.5))
        self._window = float(dark), float(bright)

    @property
    def axes(self) -> list[int]:
        """The array axes across which the screen cuts the volume, that of the judged slices first; of a picture, 0."""
        if not self.scan.volume:
            return [0]
        first = self.scan.slice_axis
        shape = self.scan.voxels.shape
        return [first, *(a for a in range(3) if a != first and min(n for b, n in enumerate(shape) if b != a) > 1)]

    def describe(self) -> dict[str, Any]:
        """Everything that the viewer has to know before it asks for slices, as plain values."""
        low, high = self._range
        shape = self.scan.voxels.shape[: 3 if self.scan.volume else 2]
        return {
            "panes": [self.describe_pane(axis) for axis in self.axes],
            "shape": list(shape),
            "volume": self.scan.volume,
            "start": self.start,
            "center": [float(n) for n in self.center or [n // 2 for n in shape]],
            "range": [low, high],
            "window": [(v - low) / (high - low) * _LEVELS for v in self._window],
            "mask": self.mask is not None,
            "heat": self.heat is not None,
            "heat_slice": self.heat_slice,
        }

    def describe_pane(self, axis: int | None = None) -> dict[str, Any]:
        """Size and layout of the slices across an axis, by default of the judged ones."""
        axis = self.axes[0] if axis is None else axis
        scan = self._cut(axis)
        rows, columns = scan.slice(0).shape[:2]
        pane = {"axis": axis, "rows": rows, "columns": columns, "slices": scan.n_slices, "aspect": scan.pixel_aspect}
        if not scan.volume:
            return pane | {"name": "picture", "borders": ""}
        layout = scan.layout
        plane = scan.plane
        return pane | {
            "name": plane or f"across axis {axis}",
            "borders": _BORDERS.get(plane or "", ""),
            "row_axis": layout[1],
            "column_axis": layout[2],
            "row_step": layout[3][0],
            "column_step": layout[3][1],
        }

    def slice(self, axis: int, index: int) -> NDArray[np.uint16]:
        """Gray levels of a slice, ``(rows, columns)``, black at the scan's lowest value and white at its highest.

        Raises:
            InputError: There is no such slice.
        """
        gray = _gray(self._checked(axis, index).slice(index))
        low, high = self._range
        return np.rint(np.clip((gray - low) / (high - low), 0, 1) * _LEVELS).astype("<u2")

    def mask_slice(self, axis: int, index: int) -> NDArray[np.uint8]:
        """The mask of a slice, ``(rows, columns)`` of 0 and 1; empty where there is no mask."""
        scan = self._checked(axis, index)
        if self.mask is None:
            return np.zeros(scan.slice(index).shape[:2], np.uint8)
        return np.ascontiguousarray(scan.view(self.mask, index))

    def heat_levels(self) -> NDArray[np.uint8]:
        """The heat in 0..255, ``(rows, columns)``.

        Raises:
            InputError: There is none.
        """
        if self.heat is None:
            raise InputError("this result has no explanation")
        return np.rint(self.heat * 255).astype(np.uint8)

    def set_mask_slice(self, index: int, mask_hw: NDArray[np.uint8]) -> None:
        """Replace the mask of a judged slice."""
        axis = self.axes[0]
        if self.mask is None:
            shape = self.scan.voxels.shape
            self.mask = np.zeros(shape if self.scan.volume else shape[:2], np.uint8)
        self._checked(axis, index).view(self.mask, index)[...] = mask_hw

    def _checked(self, axis: int, index: int) -> Scan:
        if axis not in self.axes:
            raise InputError(f"the scan is not cut across axis {axis}")
        scan = self._cut(axis)
        if not 0 <= index < scan.n_slices:
            raise InputError(f"the scan has no slice {index}")
        return scan

    def _cut(self, axis: int) -> Scan:
        return self.scan.in_plane(axis) if self.scan.volume and axis != self.scan.slice_axis else self.scan


def _gray(view: NDArray[Any]) -> NDArray[np.float32]:
    view = _finite(view)
    return view.astype(np.float32) if view.ndim == 2 else to_gray(view)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """The values with every value that is not a number, or infinite, as 0."""
    return np.nan_to_num(values, nan=0, posinf=0, neginf=0) if values.dtype.kind == "f" else values
