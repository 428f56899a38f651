"""Data sets of pictures and their masks, boxes or outlines: folders beside each other, or a COCO file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tumorlens.data.datasets.folders import SPLIT_FOLDERS, class_named, scans_in, with_masks
from tumorlens.data.datasets.listing import Listing, Row
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import TUMOR, TUMOR_FREE
from tumorlens.data.masks.drawings import CLASS_LIST, Drawing, coco_drawings, drawing_of, is_drawing

_IMAGES = ("images", "image", "imgs")
_MASKS = ("masks", "mask", "labels")
_COCO = ("_annotations.coco.json", "annotations.json")


@dataclass(frozen=True)
class Pair:
    """A folder of pictures with that of their masks, or with their COCO file.

    Attributes:
        images: The folder of pictures.
        masks: The folder of masks, or the COCO file.
        split: The part that the folders are named for, or empty.
    """

    images: Path
    masks: Path
    split: str


def find_pairs(root: Path) -> list[Pair]:
    """The folders of pictures of a data set and what lies beside them; empty for sets of other layouts.

    The folders of a split may lie above (``train/images``) or below (``images/train``).
    """
    folders = [root, *(path for path in sorted(root.iterdir()) if path.is_dir() and _split_of(path))]
    return [pair for folder in folders for pair in (*_side_by_side(folder), *_with_coco(folder))]


def _split_of(path: Path) -> str:
    return SPLIT_FOLDERS.get(path.name.lower(), "")


def _side_by_side(folder: Path) -> Iterator[Pair]:
    by_name = {path.name.lower(): path for path in folder.iterdir() if path.is_dir()}
    images = next((by_name[name] for name in _IMAGES if name in by_name), None)
    masks = next((by_name[name] for name in _MASKS if name in by_name), None)
    if not images or not masks:
        return
    parts = [path for path in sorted(images.iterdir()) if path.is_dir() and (masks / path.name).is_dir()]
    for inner in [images, *parts]:
        if scans_in(inner):
            yield Pair(inner, masks if inner == images else masks / inner.name, _split_of(inner) or _split_of(folder))


def _with_coco(folder: Path) -> Iterator[Pair]:
    for name in _COCO:
        if (folder / name).is_file() and _is_coco(folder / name):
            images = folder / "images" if (folder / "images").is_dir() else folder
            yield Pair(images, folder / name, _split_of(folder))


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return path.name == _COCO[0]  # reading reports the problem
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def list_pairs(listing: Listing, pairs: list[Pair]) -> None:
    """List images and their masks. Of an image without a mask nothing is known, which is worth a note.

    Raises:
        InputError: No mask has the name of an image.
    """
    for pair in pairs:
        members = _named_by_coco(pair, listing) if pair.masks.is_file() else _of_one_stem(pair, listing)
        for image, mask in members:
            listing.rows.append(Row(Sample(image, "", mask=mask, split=pair.split)))
            if mask is None:
                listing.report(image, "unmasked", "", stops=False)
    if not any(row.sample.mask for row in listing.rows) and not any(problem.stops for problem in listing.problems):
        raise InputError(f"{pairs[0].masks}: no mask has the name of an image in {pairs[0].images}")


def _of_one_stem(pair: Pair, listing: Listing) -> list[tuple[Path, Path | None]]:
    """Images with the masks of their names, with or without ``_mask``, or with YOLO's text files."""
    texts = sorted(p for p in pair.masks.glob("*.[tT][xX][tT]") if p.name.lower() != CLASS_LIST and p.name[0] != ".")
    return with_masks(scans_in(pair.images), [*scans_in(pair.masks), *texts], listing)


def _named_by_coco(pair: Pair, listing: Listing) -> list[tuple[Path, Path | None]]:
    """The images that a COCO file names. Others are not listed, because nobody says what they show."""
    members: list[tuple[Path, Path | None]] = []
    for name, _ in coco_drawings(pair.masks):
        places = [folder / part for folder in (pair.images, pair.masks.parent) for part in (name, Path(name).name)]
        image = next((path for path in places if path.is_file()), None)
        if image is None:
            listing.report(pair.masks, "missing_file", f"no such file {places[0]}")
        else:
            members.append((image, pair.masks))
    named = {image for image, _ in members}
    for image in scans_in(pair.images):
        if image not in named:
            listing.report(image, "unnamed_file", "", stops=False)
    return members


def label_drawn(listing: Listing, label_map: Mapping[str, str] | None = None) -> Listing:
    """The listing, in which images that YOLO or COCO draw in have the label of their lesions, if the set gives none."""
    listing.rows = [_with_label(row, label_map) for row in listing.rows]
    return listing


def _with_label(row: Row, label_map: Mapping[str, str] | None) -> Row:
    sample = row.sample
    if sample.label or sample.mask is None or not is_drawing(sample.mask):
        return row
    try:
        return replace(row, sample=replace(sample, label=_label_of(drawing_of(sample.mask, sample.image), label_map)))
    except InputError as problem:
        return replace(row, error=str(problem))


def _label_of(drawing: Drawing, label_map: Mapping[str, str] | None) -> str:
    """The label of a picture by the classes of its lesions; `TUMOR` where these are several or not known."""
    if not drawing.lesions:
        return TUMOR_FREE
    labels = {class_named(name, label_map) for name in drawing.names}
    return (labels.pop() if len(labels) == 1 else "") or TUMOR
