"""Corrected masks of other programs -> the output folder: `tumorlens masks import`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.dicom.headers import is_dicom
from tumorlens.data.errors import InputError, reason_of
from tumorlens.data.files import claim
from tumorlens.data.masks.coco import draw_coco, read_coco
from tumorlens.data.masks.export import FORMATS, as_picture, as_volume
from tumorlens.data.masks.geojson import read_geojson
from tumorlens.data.masks.labelme import read_labelme
from tumorlens.data.masks.placed import read_mask_dicom, read_picture_mask, read_placed_mask
from tumorlens.data.masks.read import open_mask
from tumorlens.data.scan import Scan
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.sources import find_sources, open_stored
from tumorlens.pipeline.batch.stored import StoredResult, read_results
from tumorlens.pipeline.measurements.lesions import number_lesions, voxel_volume_mm3
from tumorlens.pipeline.outputs.changes import draw_changes, is_changes, write_changes
from tumorlens.pipeline.services.exchange import LABELS_FILE, as_seen, held_mask, mask_hash, read_labels
from tumorlens.pipeline.services.reviews.corrections import write_correction
from tumorlens.pipeline.services.reviews.state import decisions_about, models_of
from tumorlens.pipeline.services.reviews.store import CORRECT, ConflictError, Decision, Store

CHANGES = "changes.png"  # end of the names of the pictures of what changed
_SUFFIXES = {
    **dict.fromkeys((".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz"), "volume"),
    **dict.fromkeys((".png", ".tif", ".tiff", ".bmp"), "picture"),
    **dict.fromkeys((".geojson", ".json"), "json"),
    ".dcm": "dicom",
}
# Beside the files of drawings lie the pictures on which they were drawn.
_DRAWN = {"coco": draw_coco, "labelme": read_labelme, "geojson": read_geojson}
_PARENTS = 5  # folders in which labels.json is looked for, from that of the mask upward


@dataclass(frozen=True)
class MaskFile:
    """A mask, or a part of one, that was found.

    Attributes:
        path: The file.
        key: The name by which it belongs to a scan, with forward slashes and without its end.
        kind: ``volume``, ``picture``, ``dicom``, ``coco``, ``labelme`` or ``geojson``.
        content: What a JSON file holds, or a COCO file of one image.
        slice_index: The slice, or None for a whole scan.
    """

    path: Path
    key: str
    kind: str
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)
    slice_index: int | None = None


@dataclass(frozen=True)
class Imported:
    """What became of a corrected mask.

    Attributes:
        name: The scan's name, or the file where it belongs to no scan.
        problem: Why it was not taken; empty where it was.
        changed: Whether it differs from the mask so far, and so was written and recorded.
        dice: Overlap of both masks; 1 where both are empty.
        before: Voxels of the mask so far.
        after: Voxels of the corrected mask.
        voxel_mm3: Volume of a voxel in mm3, or None where it is not known.
        files: The files that were written into the scan's folder.
        warnings: Why others could not be written.
        note: Why a mask that is not the present one was left alone all the same.
    """

    name: str
    problem: str = ""
    changed: bool = False
    dice: float = 1.0
    before: int = 0
    after: int = 0
    voxel_mm3: float | None = None
    files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    note: str = ""

    def describe(self) -> str:
        """One line for the screen."""
        if self.problem:
            return self.problem if self.problem.startswith(self.name) else f"{self.name}: {self.problem}"
        if not self.changed:
            return f"{self.name}: {self.note or 'unchanged'}"
        if self.voxel_mm3 is None:
            size = f"{self.before} -> {self.after} voxels ({self.after - self.before:+d})"
        else:
            before, after = (count * self.voxel_mm3 / 1000 for count in (self.before, self.after))
            size = f"{before:.2f} -> {after:.2f} ml ({after - before:+.2f})"
        return f"{self.name}: Dice {self.dice:.3f} with the mask so far, {size}"


def import_masks(
    out: Path,
    paths: Sequence[Path],
    reviewer: str,
    only: str | None = None,
    scans: Sequence[str] = (),
    pictures: Path | None = None,
) -> Iterator[Imported]:
    """Take corrected masks over, one scan after the other.

    Each one that differs becomes the scan's reviewed mask, and a decision in the reviewers' file. The model's mask
    stays.

    Args:
        out: The output folder of `tumorlens run`.
        paths: Files and folders with corrected masks, called as `export_masks` calls them.
        reviewer: Who has corrected them.
        only: A name of `data.masks.export.FORMATS`: other files are left aside.
        scans: Inputs with the scans, for the pictures of what changed and for DICOM. By default those of the run, if
            this machine knows them.
        pictures: The folder for the pictures of what changed, instead of the folders of the scans.

    Raises:
        InputError: OUT holds no results, or there are no masks.
    """
    results = read_results(out)
    by_folder = {result.folder.relative_to(out).as_posix(): result for result in results}
    found: dict[str, list[MaskFile]] = {}
    for file in _find(paths, None if only is None else FORMATS[only].kind):
        if isinstance(file, Imported):
            yield file
            continue
        folder, slice_index = _match(file.key, by_folder)
        if folder is None:
            yield Imported(
                str(file.path), f"{file.path}: no scan of {out} is called {file.key}; name it as the export does"
            )
            continue
        found.setdefault(folder, []).append(replace(file, slice_index=slice_index))
    folders = [path.absolute() for path in paths if path.is_dir()]
    labels_of = cache(read_labels)
    with ScratchFolder() as scratch:
        sources = find_sources(results, out, scans, Path(scratch)) if found else {}
        for folder, files in found.items():
            result = by_folder[folder]
            target = result.folder / f"mask.{CHANGES}" if pictures is None else pictures / f"{folder}.{CHANGES}"
            try:
                exported = _exported(result, files, folders, labels_of)
                yield _import_one(result, files, Store(out), reviewer, sources.get(result.name), target, exported)
            except InputError as error:
                yield Imported(result.name, str(error))


@dataclass(frozen=True)
class Exported:
    """What a ``labels.json`` says of a scan: its mask as it was exported, and the last decision on it at that time."""

    mask_sha256: str
    decision: int
    of: str


def _exported(
    result: StoredResult, files: list[MaskFile], folders: list[Path], labels_of: Callable[[Path], dict[str, Any] | None]
) -> list[Exported]:
    """The exports from which the files of a scan come, as far as their ``labels.json`` lies near them."""
    places: dict[Path, None] = {}
    for file in files:
        path = file.path.absolute()
        above = [folder for folder in folders if path.is_relative_to(folder)]
        near = [folder for folder in (*path.parents[:_PARENTS], *above) if labels_of(folder) is not None]
        places.update(dict.fromkeys(near[:1]))
    found = []
    for folder in places:
        about = (labels_of(folder) or {}).get("scans", {}).get(result.name)
        if isinstance(about, dict) and isinstance(about.get("decision"), int):
            found.append(Exported(str(about.get("mask_sha256")), about["decision"], str(about.get("of"))))
    return found


def _import_one(
    result: StoredResult,
    files: list[MaskFile],
    store: Store,
    reviewer: str,
    source: Job | None,
    target: Path,
    exported: list[Exported],
) -> Imported:
    decisions = [] if result.failed else store.decisions(result.name)
    about = decisions_about(result, decisions)
    stored = None if result.failed else held_mask(result, store, about)
    if stored is None:
        reason = "it has failed" if result.failed else f"its label is {result.label}"
        raise InputError(f"{result.name}: this scan has no mask that could be corrected ({reason})")
    if any(export.of != result.identity for export in exported):
        raise InputError("the export is of another scan of this name, or of another plane of it; export again")
    before, seen = stored.voxels, as_seen(result, stored)
    after = _assemble(files, stored, seen)
    n_before, n_after = int(np.count_nonzero(before)), int(np.count_nonzero(after))
    if np.array_equal(before, after):
        return Imported(result.name, before=n_before, after=n_after)
    note = _untouched(result, after, store, about, exported)
    if note:
        return Imported(result.name, before=n_before, after=n_after, note=note)
    scan, warnings = None, []
    if source is not None:
        try:
            scan = open_stored(result, source)
        except InputError as error:
            warnings.append(str(error))
    if scan is None and result.mask_path(reviewed=False) is None:
        raise InputError("the model has no mask of this scan, so give --scans to say where the scan lies")
    copied = None if scan is None else next((file.path for file in files if _is_source(file, scan)), None)
    if copied is not None:
        raise InputError(f"{copied}: this is the scan itself; give its mask")
    claim([target], "a picture of changes", is_changes, overwrite=True)
    known = seen.affine is not None or not seen.volume
    voxel_mm3 = voxel_volume_mm3(seen) if known else None
    dice = 2 * int(np.count_nonzero(before & after)) / max(n_before + n_after, 1)
    facts = [_facts(mask, stored, voxel_mm3) for mask in (before, after)]
    comment = f"imported from {files[0].path.name}" + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
    facts[0]["of"] = result.identity
    last = min((export.decision for export in exported), default=decisions[-1].number if decisions else 0)
    try:
        number = store.decide(
            result.name,
            reviewer,
            CORRECT,
            comment=comment,
            before=facts[0],
            after=facts[1],
            models=models_of(result),
            mask=after,
            seen=last,
            about=result.identity,
        )
    except ConflictError:
        later = next(d for d in reversed(store.decisions(result.name)) if d.reviewer != reviewer)
        raise InputError(
            f"{later.reviewer} has decided on this scan at {later.at}, after its export; export it again and correct "
            "that mask"
        ) from None
    written: list[str] = []
    try:
        written, problems = write_correction(result, after, scan, reviewer)
        store.mark_written(number)
        write_changes(target, draw_changes(before, after, seen, _gray(scan, before.shape)))
    except OSError as error:
        problems = [f"the correction is recorded, but a file of it cannot be written ({error.strerror or error})"]
    return Imported(result.name, "", True, dice, n_before, n_after, voxel_mm3, tuple(written), (*warnings, *problems))


def _untouched(
    result: StoredResult, after: NDArray[np.uint8], store: Store, about: list[Decision], exported: list[Exported]
) -> str:
    """Why a mask that differs from the present one is not a correction; empty where it is one."""
    if exported:
        return "unchanged since the export" * (mask_hash(after) in {export.mask_sha256 for export in exported})
    model = result.mask(reviewed=False)
    earlier = [None if model is None else model.voxels, *(store.mask(d.number) for d in about if d.has_mask)]
    if any(mask is not None and np.array_equal(mask, after) for mask in earlier):
        return "equals an earlier state of the mask, left alone"
    return ""


def _is_source(file: MaskFile, scan: Scan) -> bool:
    """Whether a mask file holds what the scan holds."""
    if file.kind not in ("volume", "picture"):
        return False
    try:
        return np.array_equal(np.squeeze(open_mask(file.path).voxels), np.squeeze(scan.voxels))
    except InputError:  # several layers, which a scan has not
        return False


def _gray(scan: Scan | None, shape: tuple[int, ...]) -> NDArray[np.generic] | None:
    """The gray values of a source in the order of its mask, or None where it is not at hand or has another shape."""
    if scan is None or scan.voxels.shape[: len(shape)] != shape:
        return None
    return scan.voxels if scan.voxels.shape == shape else scan.voxels[..., :3].mean(axis=-1)  # colors


def _facts(mask: NDArray[np.uint8], scan: Scan, voxel_mm3: float | None) -> dict[str, Any]:
    voxels = int(np.count_nonzero(mask))
    facts: dict[str, Any] = {"mask_voxels": voxels, "lesions": int(number_lesions(mask, scan).max(initial=0))}
    return facts if voxel_mm3 is None else {**facts, "mask_ml": round(voxels * voxel_mm3 / 1000, 4)}


def _find(paths: Sequence[Path], only: str | None) -> Iterator[MaskFile | Imported]:
    """The masks in files and folders, and the files that cannot be masks."""
    for path in paths:
        if path.is_dir():
            files: list[MaskFile | Imported] = []
            for inner in sorted(path.rglob("*")):
                if inner.is_file() and inner.name != LABELS_FILE and not inner.name.endswith(f".{CHANGES}"):
                    files += _read_file(inner, inner.relative_to(path), named=False)
            # Beside drawings lie the pictures on which they were drawn.
            drawings = any(isinstance(file, MaskFile) and file.kind in _DRAWN for file in files)
            kinds = {only} if only else {*_SUFFIXES.values(), *_DRAWN} - ({"picture"} if drawings else set())
            masks = [file for file in files if isinstance(file, Imported) or file.kind in kinds]
            if not masks:
                yield Imported(
                    str(path), f"{path}: there are no masks in this folder{' of this format' if only else ''}"
                )
            yield from masks
        elif path.is_file():
            yield from _read_file(path, PurePath(*path.absolute().parts[1:]), named=True)
        else:
            yield Imported(str(path), f"{path}: no such file or folder")


def _read_file(path: Path, name: PurePath, named: bool) -> list[MaskFile | Imported]:
    """The masks in a file, or its problem. In a folder, files that cannot be masks are no problem."""
    suffix = next((end for end in _SUFFIXES if path.name.lower().endswith(end)), "")
    kind = _SUFFIXES.get(suffix) or ("dicom" if is_dicom(path) else "")
    key = name.as_posix()[: len(name.as_posix()) - len(suffix)]
    if kind == "json":
        return _read_json(path, key, named)
    if kind:
        return [MaskFile(path, key, kind)]
    return [
        Imported(str(path), f"{path}: this is not a mask in one of the formats of `tumorlens masks export`")
    ] * named


def _read_json(path: Path, key: str, named: bool) -> list[MaskFile | Imported]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        fields = set(content) if isinstance(content, dict) else set()
        if isinstance(content, list):  # QuPath's plain list of objects
            content, fields = {"features": content}, {"features"}
        if {"images", "annotations"} <= fields:
            return [
                MaskFile(path, re.sub(r"\.[^./]*$", "", name), "coco", image)
                for name, image in read_coco(path, content)
            ]
    except InputError as error:
        return [Imported(str(path), str(error))]
    except RecursionError:
        return [Imported(str(path), f"{path}: the JSON file is damaged (nested too deep)")]
    except (OSError, ValueError) as error:
        return [Imported(str(path), f"{path}: the JSON file is damaged ({reason_of(error)})")]
    if "shapes" in fields:
        return [MaskFile(path, key, "labelme", content)]
    if "features" in fields:
        return [MaskFile(path, key, "geojson", content)]
    return [Imported(str(path), f"{path}: this is not a JSON file of COCO, LabelMe or QuPath")] * named


def _match(key: str, folders: Mapping[str, object]) -> tuple[str | None, int | None]:
    """The scan's folder that a name means, and the slice. The longest end of the name that is a scan counts."""
    parts = key.split("/")
    for start in range(len(parts)):
        rest = "/".join(parts[start:])
        if rest in folders:
            return rest, None
        slice_name = re.fullmatch(r"(.+)/slice_(\d{1,9})", rest)
        if slice_name and slice_name[1] in folders:
            return slice_name[1], int(slice_name[2])
    return None, None


def _assemble(files: list[MaskFile], stored: Scan, seen: Scan) -> NDArray[np.uint8]:
    """The mask of a scan from its files, 0 and 1 in the order of the stored mask."""
    whole = [file for file in files if file.kind in ("volume", "dicom")]
    if whole:
        return _agreed([(file, _read_whole(file, stored)) for file in files if file in whole])
    n_slices = seen.n_slices
    masks: dict[int, list[tuple[MaskFile, NDArray[np.uint8]]]] = {}
    for file in files:
        index = file.slice_index
        if index is None and n_slices > 1:
            raise InputError(f"{file.path}: this is one picture, and the scan has {n_slices} slices; name the slice")
        if index is not None and not (seen.volume and index < n_slices):
            raise InputError(f"{file.path}: the scan has no slice {index}")
        shape_hw = seen.view(stored.voxels, index or 0).shape
        masks.setdefault(index or 0, []).append((file, _read_slice(file, (shape_hw[0], shape_hw[1]))))
    missing = [k for k in range(n_slices) if k not in masks]
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (" ..." if len(missing) > 5 else "")
        raise InputError(
            f"{files[0].path}: {len(missing)} of the scan's {n_slices} slices are missing ({shown}); give all of "
            "them, also those without a lesion"
        )
    stack = np.stack([_agreed(masks[k]) for k in range(n_slices)])
    return seen.mask_from_slices(stack).reshape(stored.voxels.shape)


def _agreed(masks: list[tuple[MaskFile, NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    first, mask = masks[0]
    for file, other in masks[1:]:
        if not np.array_equal(mask, other):
            raise InputError(f"{first.path} and {file.path}: two different masks of one scan; name the right one")
    return mask


def _read_whole(file: MaskFile, stored: Scan) -> NDArray[np.uint8]:
    read: Callable[[Path, Scan], NDArray[np.uint8]] = read_mask_dicom if file.kind == "dicom" else read_placed_mask
    if stored.volume:
        return read(file.path, stored)
    return as_picture(read(file.path, as_volume(stored.voxels, stored)[1]))


def _read_slice(file: MaskFile, shape_hw: tuple[int, int]) -> NDArray[np.uint8]:
    if file.kind == "picture":
        return read_picture_mask(file.path, shape_hw)
    return _DRAWN[file.kind](file.path, file.content, shape_hw)
