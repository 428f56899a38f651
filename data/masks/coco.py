"""Masks <-> COCO annotations (https://cocodataset.org/#format-data), which CVAT and Label Studio read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError, needs
from tumorlens.data.files import write_text
from tumorlens.data.labels import SHIPPED_CLASSES, TUMOR, ClassList
from tumorlens.data.masks.drawn import check_size, reading, ring_of
from tumorlens.data.masks.labeling import MaskLabel, class_value, parts_of
from tumorlens.data.masks.outlines import fill, outlines_of, single_ring


@dataclass(frozen=True)
class CocoImage:
    """A slice of a scan, or a picture.

    Attributes:
        name: Its file name in COCO.
        values_hw: The mask, ``(rows, columns)``, with the values of `labels`.
        labels: The labels of its scan.
    """

    name: str
    values_hw: NDArray[np.uint8]
    labels: Sequence[MaskLabel]


def write_coco(
    polygons: Path, run_lengths: Path, images: Iterable[CocoImage], classes: ClassList = SHIPPED_CLASSES
) -> None:
    """Write the annotations of images twice: as polygons, which every program can edit, and as run lengths.

    Each lesion in a slice (or all lesions of a class, or each region) is one annotation, and none is a crowd:
    evaluations ignore crowds. Categories are classes, with their number in the list of classes as ID. The number of the
    lesion, or the name of the region, is among the annotation's ``attributes``. COCO adds up the polygons of an
    annotation, so holes are cuts of no width.

    Args:
        polygons: The file with polygons, ``.json``.
        run_lengths: The file with run lengths, ``.json``.
        images: All images, also those without an annotation.
        classes: The classes of the classifier.

    Raises:
        InputError: pycocotools is not installed.
    """
    tools = _tools()
    entries: list[dict[str, Any]] = []
    annotations: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for image in images:
        rows, columns = image.values_hw.shape
        entries.append({"id": len(entries) + 1, "file_name": image.name, "width": columns, "height": rows})
        for label, part in parts_of(image.values_hw, image.labels):
            encoded = tools.encode(np.asfortranarray(part, np.uint8))
            common = {
                "id": len(annotations[0]) + 1,
                "image_id": len(entries),
                "category_id": label.category,
                "area": int(tools.area(encoded)),
                "bbox": [float(n) for n in tools.toBbox(encoded)],
                "iscrowd": 0,
                "attributes": ({} if label.lesion is None else {"lesion": label.lesion})
                | ({"region": label.region} if label.region else {}),
            }
            rings = [single_ring(outline).ravel().tolist() for outline in outlines_of(part)]
            lengths = {"size": [rows, columns], "counts": encoded["counts"].decode("ascii")}
            for written, segmentation in zip(annotations, (rings, lengths), strict=True):
                written.append({**common, "segmentation": segmentation})
    for path, written in zip((polygons, run_lengths), annotations, strict=True):
        content = {
            "info": {"description": "tumor masks of tumorlens, for research only"},
            "licenses": [],
            "categories": [
                {"id": class_value(row, classes), "name": row.name, "supercategory": TUMOR, "color": row.color}
                for row in map(classes.row, classes.known[1:])
            ],
            "images": entries,
            "annotations": written,
        }
        write_text(path, json.dumps(content) + "\n")


def read_coco(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each image's file name, and its size and outlines for `draw_coco`. All annotations of an image count.

    Args:
        path: The file, for messages.
        content: What it holds.

    Raises:
        InputError: The file is not as COCO has it.
    """
    with reading(path, "a COCO file"):
        images: dict[Any, tuple[str, dict[str, Any]]] = {}
        for image in content["images"]:
            if image["id"] in images:
                raise InputError("two images of the COCO file have the same id")
            size = {name: image.get(name) for name in ("height", "width")}
            images[image["id"]] = str(image["file_name"]), {**size, "outlines": []}
        for annotation in content["annotations"]:
            images[annotation["image_id"]][1]["outlines"].append(annotation["segmentation"])
    yield from images.values()


def draw_coco(path: Path, image: Mapping[str, Any], shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of an image, 0 and 1, ``(rows, columns)``.

    Args:
        path: The file, for messages.
        image: From `read_coco`.
        shape_hw: The size of the picture.

    Raises:
        InputError: The image has another size, an outline has no area, or run lengths are damaged.
    """
    mask = np.zeros(shape_hw, np.uint8)
    with reading(path, "a COCO file"):
        check_size((image["height"], image["width"]), shape_hw)
        for outline in image["outlines"]:
            if isinstance(outline, list):
                if not outline:
                    raise InputError("an annotation has no outline; draw lesions as polygons or masks")
                for polygon in outline:
                    mask |= fill([ring_of(np.array(polygon, float).reshape(-1, 2), shape_hw)], shape_hw)
            else:
                check_size(outline["size"], shape_hw)
                mask |= _from_run_lengths(outline["counts"], shape_hw)
    return mask


def _from_run_lengths(counts: Any, shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask of run lengths, column by column, which begin with a run of 0.

    pycocotools' own decoder does not check that compressed ones are whole.
    """
    runs = np.array(_unpacked(counts) if isinstance(counts, str) else counts)
    rows, columns = shape_hw
    ordered = runs.ndim == 1 and runs.dtype.kind in "iu" and not ((runs < 0) | (runs > rows * columns)).any()
    if not ordered or int(runs.sum()) != rows * columns:
        raise InputError("the run lengths of an annotation do not cover its image")
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(columns, rows).T


def _unpacked(text: str) -> list[int]:
    """Run lengths that COCO has compressed: 5 bits a letter, and from the fourth on differences to the last but one."""
    runs: list[int] = []
    number = bits = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or bits > 30:
            raise ValueError("not a letter of run lengths")
        number |= (code & 31) << bits
        bits += 5
        if not code & 32:
            number -= (1 << bits) if code & 16 else 0
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = bits = 0
    return runs


def _tools() -> Any:
    """pycocotools' functions for masks.

    Raises:
        InputError: pycocotools is not installed.
    """
    with needs("a COCO file"):
        from pycocotools import mask
    return mask
