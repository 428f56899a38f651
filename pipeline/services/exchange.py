"""The masks of an output folder -> files for other programs: `tumorlens masks export`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.files import claim, write_text
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.masks.coco import CocoImage, write_coco
from tumorlens.data.masks.export import FORMATS, DicomWriter, MaskFormat, as_volume, slice_names, slices_of
from tumorlens.data.masks.labeling import MaskLabel, label_mask
from tumorlens.data.masks.placed import read_mask_dicom
from tumorlens.data.scan import Scan
from tumorlens.pipeline.batch.sources import find_sources, open_stored
from tumorlens.pipeline.batch.stored import StoredResult, read_results
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.measurements.lesions import number_lesions
from tumorlens.pipeline.outputs import REVIEWED
from tumorlens.pipeline.outputs.overlay import display_limits, gray_bytes
from tumorlens.pipeline.services.reviews.store import Store

LABELS_FILE = "labels.json"  # says of every file of an export which value is what
COCO_POLYGONS, COCO_RUN_LENGTHS = "annotations.json", "annotations_rle.json"
_SEGMENTATIONS = (REVIEWED["mask.dcm"], "mask.dcm")


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        out: The output folder of `tumorlens run`.
        folder: Where the files go.
        format: A name of `data.masks.export.FORMATS`.
        labels: One of `data.masks.labeling.BY`.
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
class ScanMask:
    """The mask of a scan on its way out.

    Attributes:
        result: The stored result.
        folder: The scan's folder below OUT, which names its files.
        scan: The mask as it is stored.
        seen: The same, cut into slices as the source was.
        label: The label, the reviewer's if there is one.
        values: The mask with a value for each label.
        labels: The labels.
    """

    result: StoredResult
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
    results = []
    for result in read_results(request.out):
        if result.mask_path() is not None and not result.failed:
            results.append(result)
        else:
            report.without_mask[result.name] = result.row["error"] or (
                REFUSED if result.label == REFUSED else "no mask"
            )
    if not results:
        raise InputError(f"{request.out}: no scan here has a mask; {_counted(report.without_mask)}")
    files = [name for result in results for name in _files_of(result, request, row)]
    if row.name == "coco":
        files += [COCO_POLYGONS, COCO_RUN_LENGTHS]
    earlier = _files_of_earlier(request.folder)
    claim(
        [request.folder / name for name in (*files, LABELS_FILE)],
        "an export",
        lambda path: path.relative_to(request.folder).as_posix() in (*earlier, LABELS_FILE) and bool(earlier),
        request.overwrite,
    )
    described: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tumorlens-") as scratch:
        sources = find_sources(results, request.out, request.scans, Path(scratch)) if request.scans else {}

        def masks() -> Iterator[ScanMask]:
            for number, result in enumerate(results):
                if done is not None:
                    done(number, len(results))
                try:
                    mask = _mask_of(result, request)
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
            write_coco(request.folder / COCO_POLYGONS, request.folder / COCO_RUN_LENGTHS, _coco_images(masks()))
        else:
            for mask in masks():
                try:
                    _write(mask, request, row)
                except InputError as error:
                    report.problems[mask.result.name] = str(error)
    if done is not None:
        done(len(results), len(results))
    written = [name for name in sorted({*earlier, *files}) if (request.folder / name).is_file()]
    content = {"format": row.name, "labels": request.labels, "scans": described, "files": written}
    write_text(request.folder / LABELS_FILE, json.dumps(content, indent=1) + "\n")
    return report


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


def _mask_of(result: StoredResult, request: ExportRequest) -> ScanMask:
    mask = result.mask(reviewed=not request.original)
    if mask is None:
        raise InputError(f"{result.name}: the model's mask is gone")
    named = [] if request.original else [d.label for d in Store(request.out).decisions(result.name) if d.label]
    label = named[-1] if named else result.label
    values, labels = label_mask(number_lesions(mask.voxels, mask), label, request.labels)
    folder = result.folder.relative_to(request.out).as_posix()
    return ScanMask(result, folder, mask, as_seen(result, mask), label, values, labels)


def _files_of(result: StoredResult, request: ExportRequest, row: MaskFormat) -> list[str]:
    """The names of a scan's files, below the folder of the export."""
    folder = result.folder.relative_to(request.out).as_posix()
    slices = [folder]
    path = result.mask_path(reviewed=not request.original)
    if path is not None and path.name.endswith(".nii.gz"):
        slices = slice_names(folder, int(result.content["scan"]["n_slices"]))
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
    stored = [mask.result.folder / name for name in _SEGMENTATIONS if (mask.result.folder / name).is_file()]
    if not stored:
        raise InputError("there is no DICOM Segmentation, because the scan was not read from a DICOM series")
    same = (file for file in stored if np.array_equal(read_mask_dicom(file, mask.scan), mask.scan.voxels))
    file = next(same, None)
    if file is None:
        raise InputError(
            f"the corrected mask has no {REVIEWED['mask.dcm']}; import it again with --scans naming its DICOM files, "
            "or give --original"
        )
    merged = (mask.labels[0].name, mask.labels[0].rgb) if request.labels == "class" and mask.labels else None
    write(file, path, {label.value: label.rgb for label in mask.labels}, merged)


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
        "files": _files_of(mask.result, request, row),
        "reviewed": mask.result.mask_path(reviewed=not request.original) != mask.result.mask_path(reviewed=False),
        "values": {str(label.value): label.as_dict() for label in mask.labels},
    }


def _files_of_earlier(folder: Path) -> list[str]:
    """The files of an export that is in the folder already."""
    try:
        content = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))
        return [str(name) for name in content["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _counted(reasons: dict[str, str]) -> str:
    refused = sum(reason == REFUSED for reason in reasons.values())
    return f"{refused} were refused, {len(reasons) - refused} have failed or have no mask"
