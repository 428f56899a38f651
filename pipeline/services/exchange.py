"""The masks of an output folder -> files for other programs: `tumorlens masks export`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import claim, write_text
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.data.masks.coco import CocoImage, write_coco
from tumorlens.data.masks.export import FORMATS, DicomWriter, MaskFormat, as_volume, slice_names, slices_of
from tumorlens.data.masks.labeling import MaskLabel, label_mask, label_regions, rgb_of
from tumorlens.data.masks.placed import read_mask_dicom
from tumorlens.data.scan import Scan
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.batch.sources import find_sources, open_stored
from tumorlens.pipeline.batch.stored import StoredResult, read_results
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.measurements.lesions import number_lesions
from tumorlens.pipeline.outputs import REVIEWED
from tumorlens.pipeline.outputs.overlay import display_limits, gray_bytes
from tumorlens.pipeline.services.reviews.state import current_mask, decisions_about, last_correction
from tumorlens.pipeline.services.reviews.store import Decision, Store

LABELS_FILE = "labels.json"  # says of every file of an export which value is what
MADE_BY = "tumorlens masks export"  # in the file of labels: nobody else wrote it
NOT_DICOM = "not from DICOM"  # the problem of a scan that has no DICOM Segmentation
COCO_POLYGONS, COCO_RUN_LENGTHS = "annotations.json", "annotations_rle.json"


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        out: The output folder of `tumorlens run`.
        folder: Where the files go.
        format: A name of `data.masks.export.FORMATS`.
        labels: One of `data.masks.BY`.
        original: Take the model's mask also where a reviewer has corrected it.
        scans: Inputs with the scans. Their slices are written beside the masks, for formats that name pictures.
        overwrite: Replace the files of an earlier export.
    """

    out: Path
    folder: Path
    format: str
    labels: str = "lesion"
    original: bool = False
    scans: tuple[str, ...] = ()
    overwrite: bool = False


@dataclass
class ExportReport:
    """The outcome of an export.

    Attributes:
        exported: Names of the scans whose mask was written.
        without_mask: Name of a scan -> why it has no mask: it failed or was refused.
        problems: Name of a scan -> why its mask could not be written in this format.
    """

    exported: list[str] = field(default_factory=list)
    without_mask: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """A scan whose mask is exported.

    Attributes:
        result: The stored result.
        about: The decisions by which its mask and label go; none with `ExportRequest.original`.
        decision: Number of the last decision on its name, 0 without one.
        volume: Whether its mask is a volume.
    """

    result: StoredResult
    about: list[Decision]
    decision: int
    volume: bool


@dataclass(frozen=True)
class ScanMask:
    """The mask of a scan on its way out.

    Attributes:
        chosen: The scan.
        folder: The scan's folder below OUT, which names its files.
        scan: The mask as it is stored.
        seen: The same, cut into slices as the source was.
        label: The label, the reviewer's if there is one.
        values: The mask with a value for each label.
        labels: The labels.
    """

    chosen: Chosen
    folder: str
    scan: Scan
    seen: Scan
    label: str
    values: NDArray[np.uint8]
    labels: list[MaskLabel]


def export_masks(request: ExportRequest, done: Callable[[int, int], None] | None = None) -> ExportReport:
    """Write the masks of all scans, negatives with an empty mask, and ``labels.json``.

    Raises:
        InputError: OUT holds no results, no scan has a mask, there are files already, or a package is missing.
    """
    row, report = FORMATS[request.format], ExportReport()
    if request.scans and not row.shows_pictures:
        names = ", ".join(name for name, other in FORMATS.items() if other.shows_pictures)
        raise InputError(f"--scans writes pictures beside the masks, which {row.name} does not name; only {names} do")
    store, scans = Store(request.out), []
    for result in read_results(request.out):
        chosen = _choose(result, store, request)
        if chosen is not None:
            scans.append(chosen)
        else:
            report.without_mask[result.name] = result.row["error"] or (
                REFUSED if result.label == REFUSED else "no mask"
            )
    if not scans:
        raise InputError(f"{request.out}: no scan here has a mask; {_counted(report.without_mask)}")
    files = [name for chosen in scans for name in _files_of(chosen, request, row)]
    if row.name == "coco":
        files += [COCO_POLYGONS, COCO_RUN_LENGTHS]
    earlier = _files_of_earlier(request.folder)
    claim(
        [request.folder / name for name in (*files, LABELS_FILE)],
        "an export",
        lambda path: earlier is not None and path.relative_to(request.folder).as_posix() in (*earlier, LABELS_FILE),
        request.overwrite,
    )
    described: dict[str, Any] = {}
    with ScratchFolder() as scratch:
        results = [chosen.result for chosen in scans]
        sources = find_sources(results, request.out, request.scans, Path(scratch)) if request.scans else {}

        def masks() -> Iterator[ScanMask]:
            for number, chosen in enumerate(scans):
                result = chosen.result
                if done is not None:
                    done(number, len(scans))
                try:
                    mask = _mask_of(chosen, store, request)
                    if request.scans:
                        _write_pictures(mask, open_stored(result, sources[result.name]), request.folder)
                except KeyError:
                    report.problems[result.name] = "--scans does not hold this scan"
                    continue
                except InputError as error:
                    report.problems[result.name] = str(error)
                    continue
                yield mask
                if result.name not in report.problems:
                    report.exported.append(result.name)
                    described[result.name] = _described(mask, request, row)

        if row.name == "coco":
            write_coco(
                request.folder / COCO_POLYGONS,
                request.folder / COCO_RUN_LENGTHS,
                _coco_images(masks()),
                _classes_of(scans),
            )
        else:
            for mask in masks():
                try:
                    _write(mask, request, row)
                except InputError as error:
                    report.problems[mask.chosen.result.name] = str(error)
    if done is not None:
        done(len(scans), len(scans))
    written = [name for name in sorted({*(earlier or ()), *files}) if (request.folder / name).is_file()]
    content = {
        "made_by": MADE_BY,
        "format": row.name,
        "labels": request.labels,
        "scans": described,
        "files": written,
    }
    write_text(request.folder / LABELS_FILE, json.dumps(content, indent=1) + "\n")
    return report


def _classes_of(scans: Sequence[Chosen]) -> ClassList:
    """The classes of the classifier that has judged the scans; one run has one."""
    return scans[0].result.classes if scans else SHIPPED_CLASSES


def as_seen(result: StoredResult, mask: Scan) -> Scan:
    """The stored mask of a volume, cut into slices as its source was.

    A NIfTI mask always has an affine. Where the source has none, its slices are not turned by it.
    """
    if not mask.volume:
        return mask
    about = result.content["scan"]
    if about["plane"] is not None and mask.affine is not None:
        try:
            return mask.with_plane(about["plane"])
        except InputError:  # a single slice
            return mask
    axes = (mask.slice_axis, 2, 1, 0)
    axis = next((axis for axis in axes if mask.voxels.shape[axis] == about["n_slices"]), axes[0])
    return replace(mask, affine=None, plane_axis=axis)


def held_mask(result: StoredResult, store: Store, about: Sequence[Decision]) -> Scan | None:
    """The mask that holds after decisions, with its place in space; None where the scan has none.

    Raises:
        InputError: The model's mask or the reviewers' file is damaged, or nothing says where the mask lies.
    """
    voxels = current_mask(result, store, about)
    if voxels is None:
        return None
    stored = result.mask(reviewed=False)
    if stored is None and voxels.ndim == 2:
        return Scan.from_array(voxels)
    if stored is None:  # a refused scan in which a reviewer has drawn: only the copy says where it lies
        with suppress(InputError):
            stored = result.mask()
        if stored is None or not np.array_equal(stored.voxels, voxels):
            raise InputError("the file of the corrected mask is gone; open the scan in `tumorlens serve` to restore it")
    if stored.voxels.shape != voxels.shape:
        raise InputError(f"the corrected mask has shape {voxels.shape}, the model's {stored.voxels.shape}")
    return replace(stored, voxels=voxels)


def mask_hash(mask: NDArray[np.uint8]) -> str:
    """SHA-256 of the lesion's voxels, by which the import knows a mask that was not touched."""
    return hashlib.sha256(str(mask.shape).encode() + np.packbits(mask != 0).tobytes()).hexdigest()


def _choose(result: StoredResult, store: Store, request: ExportRequest) -> Chosen | None:
    """What is exported of a result; None where it has no mask."""
    if result.failed:
        return None
    decisions = store.decisions(result.name)
    about = [] if request.original else decisions_about(result, decisions)
    path, corrected = result.mask_path(reviewed=False), last_correction(about)
    if path is not None:
        volume = path.name.endswith(".nii.gz")
    elif corrected is not None:
        drawn = store.mask(corrected.number)
        volume = drawn is not None and drawn.ndim == 3
    else:
        return None
    return Chosen(result, about, decisions[-1].number if decisions else 0, volume)


def _mask_of(chosen: Chosen, store: Store, request: ExportRequest) -> ScanMask:
    result = chosen.result
    mask = held_mask(result, store, chosen.about)
    if mask is None:
        raise InputError(f"{result.name}: the model's mask is gone")
    label = next((d.label for d in reversed(chosen.about) if d.label), result.label)
    if request.labels == "region":
        painted = result.region_mask()
        if painted is None or painted.shape != mask.voxels.shape:
            raise InputError(f"{result.name}: the segmenter has told no regions apart; give --labels lesion or class")
        values, labels = label_regions(mask.voxels, painted, result.regions, label, result.classes)
    else:
        values, labels = label_mask(number_lesions(mask.voxels, mask), label, request.labels, result.classes)
    folder = result.folder.relative_to(request.out).as_posix()
    return ScanMask(chosen, folder, mask, as_seen(result, mask), label, values, labels)


def _files_of(chosen: Chosen, request: ExportRequest, row: MaskFormat) -> list[str]:
    """The names of a scan's files, below the folder of the export."""
    folder = chosen.result.folder.relative_to(request.out).as_posix()
    slices = slice_names(folder, int(chosen.result.content["scan"]["n_slices"])) if chosen.volume else [folder]
    pictures = [f"{name}.png" for name in slices] if request.scans else []
    if row.name == "coco":
        return pictures
    names = slices if row.write_slice is not None else [folder]
    return [*pictures, *(f"{name}{end}" for name in names for end in (row.suffix, *row.also))]


def _write(mask: ScanMask, request: ExportRequest, row: MaskFormat) -> None:
    path = request.folder / f"{mask.folder}{row.suffix}"
    if row.write_volume is not None:
        values, scan = as_volume(mask.values, mask.scan)
        row.write_volume(path, values, scan, mask.labels)
    elif row.write_slice is not None:
        for name, values_hw in slices_of(mask.values, mask.seen, mask.folder):
            row.write_slice(request.folder / f"{name}{row.suffix}", values_hw, mask.labels)
    elif row.write_dicom is not None:
        _write_dicom(mask, path, request, row.write_dicom)


def _write_dicom(mask: ScanMask, path: Path, request: ExportRequest, write: DicomWriter) -> None:
    """Write what the Segmentation in OUT that holds this mask says, in the chosen colors and segments."""
    names = [REVIEWED["mask.dcm"]] if last_correction(mask.chosen.about) else []
    by_region = request.labels == "region" and bool(mask.labels)
    stored = [mask.chosen.result.folder / name for name in (["regions.dcm"] if by_region else [*names, "mask.dcm"])]
    if not any(file.is_file() for file in stored):
        raise InputError(NOT_DICOM)
    file = next((file for file in stored if _holds(file, mask.scan)), None)
    if file is None and by_region:
        raise InputError("the corrected mask has no regions in DICOM; give another --format, or --original")
    if file is None:
        raise InputError(
            f"the corrected mask has no {REVIEWED['mask.dcm']}; correct it again where its DICOM files are at hand "
            "(--scans), or give --original"
        )
    merged = (mask.labels[0].name, mask.labels[0].rgb) if request.labels == "class" and mask.labels else None
    colors = {label.value: label.rgb for label in mask.labels}
    if by_region:
        colors = {n: rgb_of(row.color) for n, row in enumerate(mask.chosen.result.regions.rows, start=1)}
    write(file, path, colors, merged)


def _holds(file: Path, mask: Scan) -> bool:
    """Whether a DICOM Segmentation says the same as a mask. A damaged one does not."""
    try:
        return file.is_file() and np.array_equal(read_mask_dicom(file, mask), mask.voxels)
    except InputError:
        return False


def _coco_images(masks: Iterator[ScanMask]) -> Iterator[CocoImage]:
    for mask in masks:
        for name, values_hw in slices_of(mask.values, mask.seen, mask.folder):
            yield CocoImage(f"{name}.png", values_hw, mask.labels)


def _write_pictures(mask: ScanMask, source: Scan, folder: Path) -> None:
    """Write the slices of the source as PNG of 8 bits, in the view of the mask's slices."""
    if source.voxels.shape[: mask.scan.voxels.ndim] != mask.scan.voxels.shape:
        raise InputError(f"the scan has shape {source.voxels.shape}, its mask {mask.scan.voxels.shape}")
    if not mask.seen.volume and source.voxels.dtype == np.uint8:
        write_png(folder / f"{mask.folder}.png", source.voxels)  # as it is, also in color
        return
    gray = gray_bytes(source.voxels, display_limits(source.voxels))
    for name, view in slices_of(gray, mask.seen, mask.folder):
        write_png(folder / f"{name}.png", view)


def _described(mask: ScanMask, request: ExportRequest, row: MaskFormat) -> dict[str, Any]:
    return {
        "label": mask.label,
        "files": _files_of(mask.chosen, request, row),
        "reviewed": last_correction(mask.chosen.about) is not None,
        "of": mask.chosen.result.identity,
        "decision": mask.chosen.decision,
        "mask_sha256": mask_hash(mask.scan.voxels),
        "values": {str(label.value): label.as_dict() for label in mask.labels},
    }


def read_labels(folder: Path) -> dict[str, Any] | None:
    """The content of a folder's ``labels.json``; None where there is none that `export_masks` wrote."""
    try:
        content = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(content, dict) and content.get("made_by") == MADE_BY
    return content if ours and isinstance(content.get("scans"), dict) else None


def _files_of_earlier(folder: Path) -> list[str] | None:
    """The files of an export that is in the folder already; None without one."""
    content = read_labels(folder)
    files = None if content is None else content.get("files")
    return [str(name) for name in files] if isinstance(files, list) else None


def _counted(reasons: dict[str, str]) -> str:
    refused = sum(reason == REFUSED for reason in reasons.values())
    return f"{refused} were refused, {len(reasons) - refused} have failed or have no mask"
