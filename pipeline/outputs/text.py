"""Letters on pictures: white, in a dark rim, at a height in pixels that fits the picture."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Picture = NDArray[np.uint8]
WHITE = (255, 255, 255)
GROUND = 16  # dark gray, so that the black border of a slice stays visible
_RIM = (0, 0, 0)
_LEAST = 11  # smaller letters cannot be read
_DARKENED = 0.35  # brightness of a picture behind a caption


def letter_size(height: int, width: int) -> int:
    """Height of letters in pixels for a picture: in proportion to it, and small enough for a very flat one."""
    return int(np.clip(min(max(height, width) / 32, min(height, width) / 10), _LEAST, 48))


def fitted(text: str, size: int, width: int) -> int:
    """The largest size up to `size` at which a text is no wider than `width` pixels."""
    while size > 5 and text_width(text, size) > width:
        size -= 1
    return size


def text_width(text: str, size: int) -> int:
    """Width of a line of text in pixels, its rim included."""
    return round(_font(size).getlength(text)) + 2 * _rim(size)


def line_height(size: int) -> int:
    """Distance of lines of text in pixels."""
    return round(1.4 * size)


def draw_text(
    picture: Picture, text: str, x: int, y: int, size: int, anchor: str = "la", color: tuple[int, int, int] = WHITE
) -> Picture:
    """The picture, on which a text has been written; what lies outside of it is cut off.

    Args:
        picture: ``(rows, columns, 3)``, changed in place.
        text: One line.
        x: Column of the anchor.
        y: Row of the anchor.
        size: Height of the letters in pixels.
        anchor: As in Pillow: ``l``, ``m`` or ``r``, and ``a`` (top of the line), ``m``, ``s`` (baseline) or ``d``.
        color: Of the letters.
    """
    left, top, alone, covered = _letters(text, size, anchor, color)
    left, top = left + x, top + y
    rows, columns = slice(max(0, top), max(0, top + len(alone))), slice(max(0, left), max(0, left + alone.shape[1]))
    part = picture[rows, columns]
    if part.size:
        row, column = rows.start - top, columns.start - left
        seen = slice(row, row + part.shape[0]), slice(column, column + part.shape[1])
        part[:] = alone[seen] + (part * covered[seen] + 127) // 255
    return picture


def draw_caption(picture: Picture, text: str, size: int | None = None) -> Picture:
    """The picture with a text in the upper left corner, on a darkened ground, as large as the width allows."""
    size = fitted(text, size or letter_size(*picture.shape[:2]), picture.shape[1] - 8)
    rim = max(2, size // 4)
    box = picture[: line_height(size) + rim, : text_width(text, size) + 2 * rim]
    box[:] = (box * _DARKENED).astype(np.uint8)
    return draw_text(picture, text, rim, rim, size)


def band(lines: list[str], width: int, size: int) -> Picture:
    """A dark strip of a width with lines of text; lines that are too long are broken between words."""
    room = width - size
    broken = [part for line in lines for part in _broken(line, size, room)]
    strip = ground(len(broken) * line_height(size) + size // 2, width)
    for k, line in enumerate(broken):
        draw_text(strip, line, size // 2, size // 4 + k * line_height(size), fitted(line, size, room))
    return strip


def ground(height: int, width: int) -> Picture:
    """An empty dark picture."""
    return np.full((height, width, 3), GROUND, np.uint8)


def _broken(line: str, size: int, room: int) -> list[str]:
    lines = [""]
    for word in line.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and text_width(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _rim(size: int) -> int:
    return max(1, round(size / 10))


@lru_cache(512)  # the scans of a batch share labels, and the same words on each
def _letters(
    text: str, size: int, anchor: str, color: tuple[int, int, int]
) -> tuple[int, int, Picture, NDArray[np.uint16]]:
    """A text as it is laid over a picture: its column and row from the anchor, its pixels on black, and which part of
    255 of the picture shows through."""
    from PIL import Image, ImageDraw

    font, rim = _font(size), _rim(size)
    box = font.getbbox(text, anchor=anchor, stroke_width=rim)
    left, top = int(np.floor(box[0])), int(np.floor(box[1]))
    shape = max(1, int(np.ceil(box[2])) - left), max(1, int(np.ceil(box[3])) - top)
    on_black, on_white = (Image.new("RGB", shape, ground) for ground in ((0, 0, 0), WHITE))
    for image in (on_black, on_white):
        draw = ImageDraw.Draw(image)
        draw.text((-left, -top), text, color, font, anchor, stroke_width=rim, stroke_fill=_RIM)
    alone = np.asarray(on_black)
    return left, top, alone, np.asarray(on_white).astype(np.uint16) - alone


@cache
def _font(size: int) -> FreeTypeFont:
    from PIL import ImageFont
    from ttf_opensans import OPENSANS_BOLD

    return ImageFont.truetype(str(OPENSANS_BOLD.path), size)
