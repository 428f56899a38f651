"""Boxes and outlines of YOLO and COCO files, as masks of their pictures.

YOLO (https://docs.ultralytics.com/datasets) has a text file for each picture, whose lines are boxes ``class x y width
height`` or outlines ``class x1 y1 x2 y2 ...`` in shares of the picture; an empty one says that there is no lesion. COCO
has one JSON file for many pictures, whose annotations have an outline, run lengths or a ``bbox``. An outline with four
corners is a box: programs write boxes so. Boxes of a class that is named for healthy slices (``negative``) are not
lesions.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import TUMOR_FREE
from tumorlens.data.masks.coco import draw_coco
from tumorlens.data.masks.drawn import reading, ring_of
from tumorlens.data.masks.outlines import fill
from tumorlens.data.spellings import known_label

_BOX = 5  # numbers in a line of YOLO that is a box
_ROUNDING = 1e-3  # of shares
_NAMES = ("data.yaml", "data.yml", "dataset.yaml")  # where YOLO names its classes
_LEVELS = 3  # folders above that of the text files in which these may lie
CLASS_LIST = "classes.txt"  # or here, in the folder of the text files


@dataclass(frozen=True)
class Drawing:
    """The lesions that a file draws in one picture.

    Attributes:
        rings: Their boxes and outlines in shares of the picture, ``(n, 2)`` each, with their lines.
        coco: Those of a COCO file, for `data.masks.coco.draw_coco`; None for YOLO.
        boxed: Whether any of them is a box.
        names: The names of their classes; ``""`` among them where one has none.
    """

    rings: tuple[tuple[NDArray[np.float64], int], ...] = ()
    coco: dict[str, Any] | None = None
    boxed: bool = False
    names: tuple[str, ...] = ()

    @property
    def lesions(self) -> int:
        """How many lesions are drawn."""
        return len(self.rings if self.coco is None else self.coco["outlines"])


def is_drawing(path: Path) -> bool:
    """Whether a mask's file has the name of a drawing."""
    return path.suffix.lower() in (".txt", ".json")


def is_boxed(path: Path, image: Path) -> bool:
    """Whether the mask of a picture is boxes, at least in part.

    Raises:
        InputError: See `drawing_of`.
    """
    return is_drawing(path) and drawing_of(path, image).boxed


def drawing_of(path: Path, image: Path) -> Drawing:
    """What a file draws in a picture.

    Args:
        path: A text file of YOLO, or a JSON file of COCO.
        image: The picture's file.

    Raises:
        InputError: The file cannot be read, a line is neither a box nor an outline, or COCO does not name the picture.
    """
    if path.suffix.lower() == ".txt":
        return _read_yolo(path)
    state = path.stat() if path.is_file() else None
    found = _by_file_name(path, state.st_mtime_ns, state.st_size).get(image.name, []) if state else []
    if len(found) > 1:
        found = [pair for pair in found if f"/{image.absolute().as_posix()}".endswith(f"/{pair[0]}")]
    if len(found) != 1:
        raise InputError(f"{path}: the COCO file names {'several images' if found else 'no image'} {image.name}")
    return found[0][1]


def draw(path: Path, image: Path, shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """The mask that a file draws in a picture, 0 and 1, ``(rows, columns)``; boxes are filled.

    Args:
        path: A text file of YOLO, or a JSON file of COCO.
        image: The picture's file.
        shape_hw: The size of the picture.

    Raises:
        InputError: See `drawing_of`; or a shape lies outside of the picture, has no area or another picture's size.
    """
    drawing = drawing_of(path, image)
    if drawing.coco is not None:
        rows, columns = shape_hw
        size = {"height": drawing.coco["height"] or rows, "width": drawing.coco["width"] or columns}
        return draw_coco(Path(f"{path}, {image.name}"), drawing.coco | size, shape_hw)
    mask = np.zeros(shape_hw, np.uint8)
    for shares, line in drawing.rings:
        with _line(path, line):
            mask |= fill([ring_of(shares * shape_hw[::-1], shape_hw)], shape_hw)
    return mask


def class_files(path: Path) -> list[Path]:
    """The files that name the classes of a text file of YOLO; of others, none."""
    if path.suffix.lower() != ".txt":
        return []
    folders = [path.parent, *path.parent.parents][: _LEVELS + 1]
    files = [path.parent / CLASS_LIST, *(folder / name for folder in folders for name in _NAMES)]
    return [file for file in files if file.is_file()][:1]


def _line(path: Path, line: int) -> Any:
    return reading(Path(f"{path}, line {line}"), "a box or an outline of YOLO")


def _read_yolo(path: Path) -> Drawing:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{path}: this is not a text file of boxes") from None
    names = _class_names(path)
    rings, drawn, boxed = [], [], False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with _line(path, number):
            values = np.array([float(word) for word in line.split()])
            if not (len(values) == _BOX or (len(values) > _BOX + 1 and len(values) % 2 == 1)):
                raise InputError(
                    f"{len(values)} numbers are neither a box (class x y width height) nor an outline (class x1 y1 x2 "
                    "y2 x3 y3 ...)"
                )
            if not (np.isfinite(values).all() and values[0] == int(values[0]) >= 0):
                raise InputError(f"{line.split()[0]!r} is not the number of a class, or a number is not finite")
            if (values[1:] < -_ROUNDING).any() or (values[1:] > 1 + _ROUNDING).any():
                raise InputError("a shape lies outside of the picture; YOLO counts in shares of it, from 0 to 1")
            ring = values[1:].reshape(-1, 2)
            if len(values) == _BOX:
                ring = _corners(*(ring[0] - ring[1] / 2), *ring[1])
        name = names.get(int(values[0]), "")
        if not _is_healthy(name):
            drawn.append(name)
            rings.append((ring, number))
            boxed |= _is_box(ring)
    return Drawing(tuple(rings), boxed=boxed, names=tuple(dict.fromkeys(drawn)))


def coco_drawings(path: Path) -> Sequence[tuple[str, Drawing]]:
    """The images that a COCO file names, and what it draws in each.

    Raises:
        InputError: The file cannot be read, or is not as COCO has it.
    """
    with reading(path, "a COCO file"):
        state = path.stat()
        return _read_coco(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)  # every picture of a set asks for its own
def _read_coco(path: Path, _changed_ns: int, _size: int) -> Sequence[tuple[str, Drawing]]:
    with reading(path, "a COCO file"):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {row["id"]: str(row["name"]) for row in content.get("categories", ())}
        of_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        if len(of_image) < len(content["images"]):
            raise InputError("two images of the COCO file have the same id")
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        return [
            (str(image["file_name"]), _coco_drawing(image, of_image[image["id"]], names)) for image in content["images"]
        ]


@lru_cache(maxsize=4)
def _by_file_name(path: Path, changed_ns: int, size: int) -> dict[str, list[tuple[str, Drawing]]]:
    named = defaultdict(list)
    for name, drawing in _read_coco(path, changed_ns, size):
        named[Path(name).name].append((name, drawing))
    return dict(named)


def _coco_drawing(image: dict[str, Any], annotations: list[dict[str, Any]], names: dict[Any, str]) -> Drawing:
    outlines, drawn, boxed = [], [], False
    for annotation in annotations:
        name = names.get(annotation.get("category_id"), "")
        if _is_healthy(name):
            continue
        drawn.append(name)
        outline = annotation.get("segmentation")
        if not outline:
            left, top, width, height = (float(n) for n in annotation["bbox"])
            outline = [_corners(left, top, width, height).ravel().tolist()]
        boxed |= isinstance(outline, list) and any(_is_box(np.array(ring, float).reshape(-1, 2)) for ring in outline)
        outlines.append(outline)
    coco = {"height": image.get("height"), "width": image.get("width"), "outlines": outlines}
    return Drawing((), coco, boxed, tuple(dict.fromkeys(drawn)))


def _corners(left: float, top: float, width: float, height: float) -> NDArray[np.float64]:
    right, bottom = left + width, top + height
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def _is_box(ring: NDArray[np.float64]) -> bool:
    closed = len(ring) > 1 and np.array_equal(ring[0], ring[-1])
    return len(ring) - closed <= 4


def _is_healthy(name: str) -> bool:
    return known_label(name) == TUMOR_FREE


def _class_names(path: Path) -> dict[int, str]:
    """The names of the classes of a text file of YOLO, by number; empty where no file names them."""
    return next((_read_names(file, file.stat().st_mtime_ns) for file in class_files(path)), {})


@lru_cache(maxsize=16)
def _read_names(path: Path, _changed_ns: int) -> dict[int, str]:
    with reading(path, "a list of YOLO's classes"):
        return dict(_named(path))


def _named(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8-sig")
    if path.name == CLASS_LIST:
        yield from enumerate(line.strip() for line in text.splitlines())
        return
    import yaml

    try:
        names = (yaml.safe_load(text) or {}).get("names") or ()
    except yaml.YAMLError:
        raise ValueError("not YAML") from None
    for number, name in names.items() if isinstance(names, dict) else enumerate(names):
        yield int(number), str(name)
