"""A mask while a reviewer corrects it: every change is in the reviewers' file before the next one begins."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.reviews.store import Store
from tumorlens.pipeline.services.views import View

TOOLS = ("brush", "eraser", "fill")


class Editor:
    """Draws on the mask of a view, with undo and redo that outlive a crash.

    Args:
        view: The scan; its mask is the state before the reviewer's first stroke and is changed in place.
        store: The reviewers' file.
        name: The scan's name in ``results.csv``.
        reviewer: Who draws.
        about: What is drawn on, from `pipeline.batch.stored.StoredResult.identity`.
    """

    def __init__(self, view: View, store: Store, name: str, reviewer: str, about: str = "") -> None:
        self.view, self._store, self._name, self._reviewer, self._about = view, store, name, reviewer, about
        self._original = None if view.mask is None else view.mask.copy()
        strokes, self.n_redo = store.strokes(name, reviewer, about)
        self.n_undo = len(strokes)
        for stroke in strokes:
            self._show({index: after for index, (_, after) in stroke.slices.items()})

    @property
    def n_voxels(self) -> int:
        """Size of the mask as it is now."""
        return 0 if self.view.mask is None else int(np.count_nonzero(self.view.mask))

    @property
    def changed(self) -> bool:
        """Whether the mask differs from the one before the first stroke."""
        mask = self.view.mask
        if mask is None or self._original is None:
            return mask is not None and bool(mask.any())
        return not np.array_equal(mask, self._original)

    def draw(self, tool: str, index: int, mask_hw: NDArray[np.uint8]) -> list[int]:
        """Replace the mask of a slice by what was drawn, and return the slices that have changed.

        Raises:
            InputError: The tool or the slice does not exist, or the mask has another shape.
        """
        if tool not in TOOLS:
            raise InputError(f"{tool!r} is not one of {', '.join(TOOLS)}")
        return self._apply(tool, {index: mask_hw})

    def copy(self, index: int, step: int) -> list[int]:
        """Copy the mask of the slice before (`step` -1) or after (1) into a slice.

        Raises:
            InputError: There is no such slice.
        """
        return self._apply("copy", {index: self._mask(index + step).copy()})

    def interpolate(self, index: int) -> list[int]:
        """Fill the slices between the nearest outlines below and above an empty slice.

        The outlines' signed distances are interpolated (S. Raya, J. Udupa, Shape-based interpolation of
        multidimensional objects, IEEE Transactions on Medical Imaging 9, 1990).

        Raises:
            InputError: There is no outline on one of the sides, or nothing between them.
        """
        drawn = [k for k in range(self._n_slices) if self._mask(k).any()]
        below = max((k for k in drawn if k <= index), default=None)
        above = min((k for k in drawn if k > index), default=None)
        if below is None or above is None:
            raise InputError("interpolation needs an outline on a slice below and on one above")
        if above == below + 1:
            raise InputError("this slice and the next one have outlines, so there is nothing between them")
        first, last = _signed_distance(self._mask(below)), _signed_distance(self._mask(above))
        shares = {k: (k - below) / (above - below) for k in range(below + 1, above)}
        return self._apply(
            "interpolate", {k: ((1 - s) * first + s * last > 0).astype(np.uint8) for k, s in shares.items()}
        )

    def undo(self) -> list[int]:
        """Take the last change back."""
        stroke = self._store.undo(self._name, self._reviewer, about=self._about)
        if stroke is None:
            return []
        self.n_undo, self.n_redo = self.n_undo - 1, self.n_redo + 1
        return self._show({index: before for index, (before, _) in stroke.slices.items()})

    def redo(self) -> list[int]:
        """Repeat the change that was taken back last."""
        stroke = self._store.undo(self._name, self._reviewer, redo=True, about=self._about)
        if stroke is None:
            return []
        self.n_undo, self.n_redo = self.n_undo + 1, self.n_redo - 1
        return self._show({index: after for index, (_, after) in stroke.slices.items()})

    def clear(self) -> list[int]:
        """Empty the mask, as one change."""
        return self._apply("clear", {k: np.zeros_like(self._mask(k)) for k in range(self._n_slices)})

    @property
    def _n_slices(self) -> int:
        return int(self.view.scan.n_slices)

    def _mask(self, index: int) -> NDArray[np.uint8]:
        return self.view.mask_slice(self.view.axes[0], index)

    def _apply(self, kind: str, masks: dict[int, NDArray[np.uint8]]) -> list[int]:
        changes = {}
        for index, after in masks.items():
            before = self._mask(index)
            if after.shape != before.shape:
                raise InputError(f"the drawn slice is {after.shape}, the scan's slices are {before.shape}")
            if not np.array_equal(before, after):
                changes[index] = (before.copy(), (after != 0).astype(np.uint8))
        if not changes:
            return []
        self._store.add_stroke(self._name, self._reviewer, kind, changes, self._about)  # first the disk
        self.n_undo, self.n_redo = self.n_undo + 1, 0
        return self._show({index: after for index, (_, after) in changes.items()})

    def _show(self, masks: dict[int, NDArray[np.uint8]]) -> list[int]:
        for index, mask in masks.items():
            self.view.set_mask_slice(index, mask)
        return sorted(masks)


def _signed_distance(mask_hw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Distance to the outline in pixels, positive inside."""
    import cv2

    inside, outside = (
        cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for part in (mask_hw != 0, mask_hw == 0)
    )
    return np.asarray(inside - outside, np.float32)
