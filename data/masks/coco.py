"""Masks <-> COCO annotations (https://cocodataset.org/#format-data), which CVAT and Label Studio read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text
from tumorlens.data.labels import CLASSES, NO_TUMOR, TUMOR, class_of
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


def write_coco(polygons: Path, run_lengths: Path, images: Iterable[CocoImage]) -> None:
    """Write the annotations of images twice: as polygons, which every program can edit, and as run lengths.

    Each lesion in a slice (or all lesions of a class) is one annotation, and none is a crowd: evaluations ignore
    crowds. Categories are classes, with their index in `data.labels.CLASSES` as ID. The number of the lesion is among
    the annotation's ``attributes``. COCO adds up the polygons of an annotation, so holes are cuts of no width.

    Args:
        polygons: The file with polygons, ``.json``.
        run_lengths: The file with run lengths, ``.json``.
        images: All images, also those without an annotation.

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
                "category_id": class_value(label.tumor),
                "area": int(tools.area(encoded)),
                "bbox": [float(n) for n in tools.toBbox(encoded)],
                "iscrowd": 0,
                "attributes": {} if label.lesion is None else {"lesion": label.lesion},
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
                {"id": class_value(row), "name": row.name, "supercategory": TUMOR, "color": row.color}
                for row in map(class_of, (*(name for name in CLASSES if name != CLASSES[NO_TUMOR]), TUMOR))
            ],
            "images": entries,
            "annotations": written,
        }
        write_text(path, json.dumps(content) + "\n")


def read_coco(path: Path, content: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Each image's file name and mask, 0 and 1, ``(rows, columns)``. All annotations of an image count.

    Args:
        path: The file, for messages.
        content: What it holds.

    Raises:
        InputError: The file is not as COCO has it, or holds run lengths and pycocotools is not installed.
    """
    try:
        masks = {
            image["id"]: (str(image["file_name"]), np.zeros((int(image["height"]), int(image["width"])), np.uint8))
            for image in content["images"]
        }
        for annotation in content["annotations"]:
            mask = masks[annotation["image_id"]][1]
            mask |= _decoded(annotation["segmentation"], mask.shape)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: this is not a COCO file, or it is damaged ({type(error).__name__}: {error})"
        ) from None
    yield from masks.values()


def _decoded(segmentation: Any, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    rows, columns = shape
    if isinstance(segmentation, list):
        mask = np.zeros((rows, columns), np.uint8)
        for polygon in segmentation:
            mask |= fill([np.array(polygon, float).reshape(-1, 2)], (rows, columns))
        return mask
    tools = _tools()
    if isinstance(segmentation["counts"], list):
        segmentation = tools.frPyObjects(segmentation, rows, columns)
    decoded: NDArray[np.uint8] = tools.decode(segmentation)
    return decoded


def _tools() -> Any:
    """pycocotools' functions for masks.

    Raises:
        InputError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError("COCO files need pycocotools; install tumorlens[coco]") from None
    return mask
