"""The one path from a slice to the input of a network, for training and prediction alike, and its inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.preprocessing.head import find_head
from tumorlens.data.preprocessing.percentiles import percentiles

PREPROCESS_VERSION = 1  # raise it when any output pixel changes: weights trained on another version are refused


@dataclass(frozen=True)
class Placement:
    """Where a prepared slice lies in its source: all that is needed to put a mask back.

    Attributes:
        source_shape: Rows and columns of the source slice.
        box: Crop of the source, ``(top, bottom, left, right)`` in pixels, bottom and right exclusive. It may reach
            beyond the slice, where the input is 0.
        inner: Rows and columns of the crop inside the network's square.
        offset: First row and column of the crop inside the network's square.
    """

    source_shape: tuple[int, int]
    box: tuple[int, int, int, int]
    inner: tuple[int, int]
    offset: tuple[int, int]

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the crop that lie in the source."""
        y0, y1, x0, x1 = self.box
        height, width = self.source_shape
        return slice(max(y0, 0), min(y1, height)), slice(max(x0, 0), min(x1, width))


@dataclass(frozen=True)
class PreparedSlice:
    """The input of a network and the way back.

    Attributes:
        image: ``(size, size)`` uint8; 0 outside the head. Eight bits, so that a cached training sample and a slice in
            prediction are the same to the last bit.
        head: ``(size, size)`` bool, the head's convex mask in the same grid.
        head_fraction: Share of the source slice that the head covers, 0..1; 0 if there is no head.
        placement: The way back to the source's grid.
    """

    image: NDArray[np.uint8]
    head: NDArray[np.bool_]
    head_fraction: float
    placement: Placement


@dataclass(frozen=True)
class Preprocess:
    """Gray slice -> head crop -> robust intensities -> square without distortion.

    Size, borders, everything outside the head, intensity unit and window are removed: they show the source of a
    picture, not the health of the patient.

    Attributes:
        size: Side of the square output in pixels.
        margin: Free rim around the head, as a share of the head's longer side.
        percentiles: Percentiles of the intensities inside the head that become 0 and 1.
        version: `PREPROCESS_VERSION` of the output.

    Example:
        >>> preprocess = Preprocess(size=224)
        >>> prepared = preprocess(scan.slice(12), scan.pixel_aspect)
        >>> prepared.image.shape, prepared.image.dtype
        ((224, 224), dtype('uint8'))
        >>> map_hw = np.zeros((224, 224), np.uint8)  # a segmenter's answer, 255 is certain
        >>> preprocess.mask_to_source(map_hw, prepared.placement).shape == scan.slice(12).shape
        True
    """

    size: int = 224
    margin: float = 0.03
    percentiles: tuple[float, float] = (1.0, 99.5)
    version: int = PREPROCESS_VERSION

    def __call__(self, slice_hw: NDArray[np.generic], pixel_aspect: float = 1.0) -> PreparedSlice:
        """Prepare one slice.

        Args:
            slice_hw: One slice, ``(rows, columns)`` gray or ``(rows, columns, 3 or 4)`` color, any numeric type.
            pixel_aspect: Height of a pixel divided by its width, from the spacing in mm; 1 if unknown.

        Raises:
            InputError: As `to_gray`.
        """
        image_hw = to_gray(slice_hw)
        head = find_head(image_hw)
        head_fraction = np.count_nonzero(head) / head.size
        if not head_fraction:  # nothing stands out, so the whole picture counts
            head[:] = True
        placement = self._placement(head, pixel_aspect)
        window = placement.window
        inside = np.ascontiguousarray(head[window])
        # Bytes are counted and looked up, which is faster and comes to the same.
        source = np.asarray(slice_hw)
        part = np.ascontiguousarray((source if source.dtype == np.uint8 and source.ndim == 2 else image_hw)[window])
        low, high = percentiles(part, self.percentiles, where=inside)
        if high - low <= 0:  # a few bright pixels on a flat field: use the full range
            low, high = np.float64(part[inside].min()), np.float64(part[inside].max())
        if high - low <= 0:
            low, high = np.float64(image_hw.min()), np.float64(image_hw.max())
        if part.dtype == np.uint8:
            level = cv2.LUT(part, _share_of_range(np.arange(256), low, high))
        else:
            level = _share_of_range(part, low, high)
        level = cv2.copyTo(level, inside.view(np.uint8))  # 0 outside the head
        return PreparedSlice(
            image=np.rint(_place(level, placement, self.size) * 255).astype(np.uint8),
            head=_place(inside.view(np.uint8) * 255, placement, self.size) > 127,
            head_fraction=head_fraction,
            placement=placement,
        )

    def mask_to_input(self, mask_hw: NDArray[np.generic], placement: Placement) -> NDArray[np.uint8]:
        """A mask of the source on the network's grid, 0 and 1, ``(size, size)``.

        Args:
            mask_hw: ``(rows, columns)`` of the source slice; non-zero is lesion.
            placement: Where the slice lies on the network's grid.

        Raises:
            InputError: The mask has another shape than the slice.
        """
        if mask_hw.shape != placement.source_shape:
            raise InputError(f"mask has shape {mask_hw.shape}, its slice {placement.source_shape}")
        inside_u8 = (mask_hw[placement.window] != 0).astype(np.uint8) * 255
        return (_place(inside_u8, placement, self.size) > 127).astype(np.uint8)

    def mask_to_source(
        self, map_hw: NDArray[np.uint8], placement: Placement, threshold: float = 0.5
    ) -> NDArray[np.uint8]:
        """A lesion map on the network's grid -> mask of 0 and 1 on the source's grid, ``(rows, columns)``.

        The map is resampled with eight bits, which is faster than floats and smoother than a mask.

        Args:
            map_hw: ``(size, size)`` uint8, 255 is certain. A mask of 0 and 255 is a map, too.
            placement: Where the slice lies on the network's grid.
            threshold: Share of 255 from which a pixel of the source belongs to the mask.
        """
        return (self.map_to_source(map_hw, placement) >= max(1, round(threshold * 255))).astype(np.uint8)

    def map_to_source(self, map_hw: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
        """A map ``(size, size)`` uint8 on the source's grid, ``(rows, columns)``; 0 outside the crop."""
        top, left = placement.offset
        height, width = placement.inner
        inner_u8 = np.ascontiguousarray(map_hw[top : top + height, left : left + width], np.uint8)
        y0, y1, x0, x1 = placement.box
        crop = cv2.resize(inner_u8, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        whole = np.zeros(placement.source_shape, np.uint8)
        rows, columns = placement.window
        whole[rows, columns] = crop[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
        return whole

    def _placement(self, head: NDArray[np.bool_], pixel_aspect: float) -> Placement:
        left, top, columns, rows = cv2.boundingRect(head.view(np.uint8))
        rim = self.margin * max(rows * pixel_aspect, columns)
        rim_rows, rim_columns = round(rim / pixel_aspect), round(rim)
        height, width = (rows + 2 * rim_rows) * pixel_aspect, float(columns + 2 * rim_columns)
        scale = self.size / max(height, width)
        inner = min(self.size, max(1, round(height * scale))), min(self.size, max(1, round(width * scale)))
        return Placement(
            source_shape=(head.shape[0], head.shape[1]),
            box=(top - rim_rows, top + rows + rim_rows, left - rim_columns, left + columns + rim_columns),
            inner=inner,
            offset=((self.size - inner[0]) // 2, (self.size - inner[1]) // 2),
        )


def to_gray(slice_hw: NDArray[np.generic]) -> NDArray[np.float32]:
    """One gray float32 channel ``(rows, columns)`` of a gray or color slice.

    Colors are weighted by ITU-R BT.601. A fourth channel (alpha) is dropped, because readers have applied it.

    Raises:
        InputError: The array is not a slice, has no pixels, holds NaN or infinite values, or one value everywhere.
    """
    array = np.asarray(slice_hw)
    if array.ndim == 3 and array.shape[2] in (3, 4):
        image = array[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    elif array.ndim == 3 and array.shape[2] == 1:
        image = array[..., 0].astype(np.float32)
    elif array.ndim == 2:
        image = array.astype(np.float32)
    else:
        raise InputError(
            f"a slice has rows and columns, with 3 or 4 colors at most; this array has shape {array.shape}"
        )
    if image.size == 0:
        raise InputError("the slice has no pixels")
    low, high = image.min(), image.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("the slice holds NaN or infinite values")
    if low == high:
        raise InputError("the slice has the same value everywhere")
    return np.ascontiguousarray(image)


def _share_of_range(values: NDArray[Any], low: np.float64, high: np.float64) -> NDArray[np.float32]:
    """The values as shares of a range, 0 to 1."""
    level = np.subtract(values, low, dtype=np.float64)
    level /= high - low
    return np.clip(level, 0, 1, out=level).astype(np.float32)


def _place(array_hw: NDArray[Any], placement: Placement, size: int) -> NDArray[Any]:
    """The array of a placement's window on the network's grid, ``(size, size)``."""
    y0, y1, x0, x1 = placement.box
    height, width = placement.source_shape
    crop = cv2.copyMakeBorder(
        array_hw,
        max(-y0, 0),
        max(y1 - height, 0),
        max(-x0, 0),
        max(x1 - width, 0),
        cv2.BORDER_CONSTANT,
        value=0,
    )
    rows, columns = placement.inner
    smaller = rows * columns < crop.shape[0] * crop.shape[1]
    resized = cv2.resize(crop, (columns, rows), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    square = np.zeros((size, size), array_hw.dtype)
    top, left = placement.offset
    square[top : top + rows, left : left + columns] = resized
    return square
