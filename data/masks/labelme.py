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


def read_labelme(path: Path, content: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The mask, 0 and 1, ``(rows, columns)``, of all shapes: polygons, rectangles, circles and masks.

    Args:
        path: The file, for messages.
        content: What it holds.

    Raises:
        InputError: The file is not as LabelMe writes it, or a shape has no area.
    """
    try:
        shape_hw = int(content["imageHeight"]), int(content["imageWidth"])
        mask = np.zeros(shape_hw, np.uint8)
        for shape in content["shapes"]:
            mask |= _drawn(shape, shape_hw, path)
    except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: this is not a LabelMe file, or it is damaged ({type(error).__name__}: {error})"
        ) from None
    return mask


def _drawn(shape: Mapping[str, Any], shape_hw: tuple[int, int], path: Path) -> NDArray[np.uint8]:
    kind, points = shape.get("shape_type", "polygon"), np.array(shape["points"], float).reshape(-1, 2)
    if kind == "polygon":
        return fill([points], shape_hw)
    if kind == "rectangle":
        (left, top), (right, bottom) = points
        return fill([np.array([(left, top), (right, top), (right, bottom), (left, bottom)])], shape_hw)
    if kind == "circle":
        center, edge = points
        angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
        radius = float(np.hypot(*(edge - center)))
        return fill([center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)], shape_hw)
    if kind == "mask":
        from PIL import Image

        left, top = (int(n) for n in points[0])
        part = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) != 0
        mask = np.zeros(shape_hw, np.uint8)
        height, width = (min(n, room) for n, room in zip(part.shape, mask[top:, left:].shape, strict=True))
        mask[top : top + height, left : left + width] = part[:height, :width]
        return mask
    raise InputError(f"{path}: a shape is a {kind}, which has no area; draw lesions as polygons")
