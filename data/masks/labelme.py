"""Masks <-> JSON of LabelMe (https://github.com/wkentaro/labelme), one file for each picture."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text
from tumorlens.data.masks.drawn import check_inside, check_size, reading, ring_of
from tumorlens.data.masks.labeling import MaskLabel, parts_of
from tumorlens.data.masks.outlines import fill, outlines_of, single_ring

_VERSION = "5.5.0"  # of LabelMe, whose fields these are


def write_labelme(path: Path, values_hw: NDArray[np.uint8], labels: Sequence[MaskLabel]) -> None:
    """Write the mask of one slice. It names the picture ``<name>.png`` beside it.

    A shape's ``label`` is the class, its ``group_id`` the number of the lesion, so that the parts of a lesion belong
    together. LabelMe's polygons have no holes: a cut of no width leads to each hole.

    Args:
        path: Ends in ``.json``.
        values_hw: ``(rows, columns)``, with the values of `labels`.
        labels: The labels of the scan.
    """
    shapes = [
        {
            "label": label.tumor.name,
            "points": single_ring(outline).tolist(),
            "group_id": label.lesion,
            "description": label.name,
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for label, part in parts_of(values_hw, labels)
        for outline in outlines_of(part)
    ]
    content = {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": path.with_suffix(".png").name,
        "imageData": None,
        "imageHeight": values_hw.shape[0],
        "imageWidth": values_hw.shape[1],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_labelme(path: Path, content: Mapping[str, Any], shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask, 0 and 1, ``(rows, columns)``, of all shapes: polygons, rectangles, circles and masks.

    Args:
        path: The file, for messages.
        content: What it holds.
        shape_hw: The size of the picture.

    Raises:
        InputError: The file is not as LabelMe writes it, is of a picture of another size, or a shape has no area.
    """
    mask = np.zeros(shape_hw, np.uint8)
    with reading(path, "a LabelMe file"):
        check_size((content["imageHeight"], content["imageWidth"]), shape_hw)
        for shape in content["shapes"]:
            mask |= _drawn(shape, shape_hw)
    return mask


def _drawn(shape: Mapping[str, Any], shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], float).reshape(-1, 2)
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    elif kind == "circle":
        center, edge = points
        angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        points = center + float(np.hypot(*(edge - center))) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind == "mask":
        part = _part(base64.b64decode(shape["mask"]), shape_hw)
        left, top = check_inside(points[0], part.shape, shape_hw)
        mask = np.zeros(shape_hw, np.uint8)
        mask[top : top + part.shape[0], left : left + part.shape[1]] = part
        return mask
    elif kind != "polygon":
        raise InputError(f"a shape is a {str(kind)[:20]}, which has no area; draw lesions as polygons")
    return fill([ring_of(points, shape_hw)], shape_hw)


def _part(content: bytes, shape_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a mask that LabelMe keeps as a PNG."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
        if picture.height <= shape_hw[0] and picture.width <= shape_hw[1]:
            return np.array(picture.convert("L")) != 0
    except Exception:  # Pillow raises what it meets, too large a picture among it
        raise InputError("the PNG of a mask is damaged") from None
    raise InputError("a mask reaches out of its picture")
