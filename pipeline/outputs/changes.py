"""The picture of what a correction has changed: pixels that were added, removed, and kept."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tumorlens.data.files import whole_file
from tumorlens.data.masks.labeling import rgb_of
from tumorlens.data.scan import Scan
from tumorlens.pipeline.outputs.overlay import display_limits, gray_bytes, mark_sides
from tumorlens.pipeline.outputs.text import draw_text, ground

# Colors that color-blind readers can tell apart (M. Okabe, K. Ito).
_COLORS = {"kept": "#F0E442", "added": "#56B4E9", "removed": "#D55E00"}
_SHARE = 0.6
_MOST = 12  # slices
_TILE = 320  # pixels of a slice's longer side, at least
_GAP, _LINE = 6, 24
_LEAST_WIDTH = 330  # pixels that the legend needs
_LETTERS = 13  # pixels


_MARK = ("Software", "tumorlens masks import")  # a text in the PNG, by which we know our own


def write_changes(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture of changes as PNG, marked as ours."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(*_MARK)
    with whole_file(path) as part:
        Image.fromarray(picture).save(part, format="PNG", pnginfo=info)


def is_changes(path: Path) -> bool:
    """Whether a file is a picture of changes that `write_changes` wrote."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get(_MARK[0]) == _MARK[1]
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def draw_changes(
    before: NDArray[np.uint8], after: NDArray[np.uint8], scan: Scan, gray: NDArray[np.generic] | None = None
) -> NDArray[np.uint8]:
    """RGB picture ``(rows, columns, 3)`` of the slices with the most changes, with a legend.

    Args:
        before: The mask before the correction, in the array order of the scan.
        after: The corrected mask.
        scan: Cuts volumes into slices.
        gray: The source in the same order, to lie below; black without it.
    """
    changed = before != after
    slices = range(scan.n_slices)
    sizes = [int(np.count_nonzero(scan.view(changed, k))) for k in slices]
    shown = sorted(sorted((k for k in slices if sizes[k]), key=lambda k: -sizes[k])[:_MOST]) or [scan.n_slices // 2]
    limits = None if gray is None else display_limits(gray)
    tiles = [_tile(before, after, scan, k, gray, limits) for k in shown]
    columns = min(len(tiles), 4)
    rows = [np.concatenate(tiles[k : k + columns], axis=1) for k in range(0, len(tiles), columns)]
    width = max(_LEAST_WIDTH, *(row.shape[1] for row in rows))
    return np.concatenate([_legend(before, after, width), *(_widened(row, width) for row in rows)])


def _tile(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    scan: Scan,
    index: int,
    gray: NDArray[np.generic] | None,
    limits: tuple[float, float] | None,
) -> NDArray[np.uint8]:
    old, new = (scan.view(mask, index) != 0 for mask in (before, after))
    ground = np.zeros(old.shape, np.uint8)
    if gray is not None and limits is not None:
        ground = gray_bytes(scan.view(gray, index), limits)
    picture = np.repeat(ground[..., None], 3, axis=2).astype(float)
    for name, part in (("kept", old & new), ("added", new & ~old), ("removed", old & ~new)):
        picture[part] = (1 - _SHARE) * picture[part] + _SHARE * np.array(rgb_of(_COLORS[name]))
    height, width = old.shape[0] * scan.pixel_aspect, float(old.shape[1])
    scale = max(1.0, _TILE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    large = cv2.resize(picture.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    if scan.volume:
        mark_sides(large, scan, _LETTERS)
        draw_text(large, f"slice {index}", 4, 4, _LETTERS)
    return np.pad(large, ((_GAP, _GAP), (_GAP, _GAP), (0, 0)))


def _legend(before: NDArray[np.uint8], after: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    old, new = before != 0, after != 0
    counts = {"kept": old & new, "added": new & ~old, "removed": old & ~new}
    strip = ground(_LINE, width)
    for place, (name, part) in enumerate(counts.items()):
        left = _GAP + place * (width - _GAP) // 3
        cv2.rectangle(strip, (left, 7), (left + 10, 17), rgb_of(_COLORS[name]), cv2.FILLED)
        text = f"{name} {np.count_nonzero(part)}"
        draw_text(strip, text, left + 15, _LINE // 2, _LETTERS, "lm")
    return strip


def _widened(row: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)))
