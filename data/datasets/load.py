"""Data sets on disk -> lists of `Sample`, in any of the layouts that users have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tumorlens.data.datasets.classes import spellings_of
from tumorlens.data.datasets.folders import (
    Place,
    class_named,
    classes_by_folder,
    is_mask_folder,
    is_mask_name,
    place_of,
    scans_below,
    with_masks,
)
from tumorlens.data.datasets.images_and_masks import find_pairs, label_drawn, list_pairs
from tumorlens.data.datasets.index import CHANNELS, find_index, read_index
from tumorlens.data.datasets.lgg import has_lgg_patients, is_lgg_set, list_lgg_folder
from tumorlens.data.datasets.listing import Listing, Row
from tumorlens.data.datasets.sample import Sample, slices_of
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.regions import NO_REGIONS, Regions


def load_samples(
    source: str | Path,
    label_map: Mapping[str, str] | None = None,
    channel: int | None = None,
    regions: Regions = NO_REGIONS,
) -> list[Sample]:
    """The samples of a data set. Its layout follows from the files on disk.

    Six layouts are known: an ``index.csv`` (``image, label`` and any of ``mask, patient, fold, official_split,
    channel, every, cut, sequence``; named itself or in the folder), a folder per class (``Training/glioma/1.jpg``), an
    image folder next to a folder of masks or of YOLO's boxes (``images/1.png``, ``masks/1.png``, ``labels/1.txt``),
    pictures with a COCO file (``_annotations.coco.json``; see `data.datasets.images_and_masks`), a folder per patient
    with pictures and their masks (``TCGA_CS_4941/7.tif``, ``TCGA_CS_4941/7_mask.tif``; see `data.datasets.lgg`), and a
    folder of MATLAB ``cjdata`` files, which carry their own labels. Classes may have any names, see
    `data.datasets.folders`.
    A volume stands for its slices: those with a mask have its label, the others are ``no_tumor``. In an index, the
    column ``every`` takes each n-th slice only, and ``cut`` the slices of a plane (axial, coronal, sagittal). An image
    may be a folder of DICOM files, and a mask what `data.masks.truth.read_truth` takes. Without a label, the
    classes that YOLO or COCO name say what a picture shows, and other masks whether there is a tumor; a scan with
    neither has no label.

    Args:
        source: The folder or the CSV file; ``index.csv@folder`` where the index's paths start at another folder.
        label_map: The user's own label names -> classes.
        channel: The channel of color pictures to take, 0 to 2. By default the one that an index names, FLAIR of a
            folder per patient, else the brightness.
        regions: The parts of a lesion that the masks are read for; by default their lesions are whole.

    Raises:
        InputError: The set has no usable scan, or a problem. The message names the first one.
    """
    listing = list_rows(source, label_map, channel)
    if regions:
        listing.rows = [replace(row, sample=replace(row.sample, regions=regions)) for row in listing.rows]
    return samples_of(listing)


def find_source(source: str | Path) -> tuple[Path | None, Path]:
    """The index and the folder that a user named as data, see `data.datasets.index.find_index`; reads neither.

    Raises:
        InputError: There is no such index or folder.
    """
    index, root = find_index(source)
    if index is None and not root.is_dir():
        raise InputError(f"{root}: no such data folder")
    return index, root


def list_rows(source: str | Path, label_map: Mapping[str, str] | None = None, channel: int | None = None) -> Listing:
    """The files of a data set in any layout of `load_samples`, and their problems.

    Raises:
        InputError: The source cannot be a data set, or the channel does not exist.
    """
    if channel not in (None, *range(CHANNELS)):
        raise InputError(f"channel {channel} is not one of 0, 1, 2")
    index, root = find_source(source)
    label_map = spellings_of(source) | dict(label_map or {})
    if index is not None:
        return label_drawn(read_index(index, root, label_map, channel), label_map)
    listing = Listing(root)
    scans = scans_below(root)
    pairs = find_pairs(root)
    if not pairs and not (is_lgg_set(scans, root, label_map) and has_lgg_patients(scans, root)):
        label_map = classes_by_folder(list(scans), root, label_map) | label_map
    if pairs:
        list_pairs(listing, pairs)
    elif is_lgg_set(scans, root, label_map):
        list_lgg_folder(listing, scans, channel)
    elif _is_matlab_set(scans, root, label_map):
        _list_matlab_files(listing, scans)
    else:
        _list_class_folders(listing, scans, label_map)
    if channel is not None:
        listing.rows = [replace(row, sample=replace(row.sample, channel=channel)) for row in listing.rows]
    return label_drawn(listing, label_map)


def samples_of(listing: Listing) -> list[Sample]:
    """The samples of a listing: its pictures, and the slices of its volumes.

    Raises:
        InputError: The listing has a problem that stops, or a volume cannot be read.
    """
    listing.raise_first()
    samples: list[Sample] = []
    for row in listing.rows:
        try:
            samples += slices_of(row.sample)[:: row.every]
        except InputError as error:
            raise listing.error_of(row, error) from None
    if not samples:
        raise InputError(f"{listing.index or listing.root}: no slice shows a lesion or enough of a head")
    return samples


def _list_class_folders(
    listing: Listing, scans: Mapping[Path, list[Path]], label_map: Mapping[str, str] | None
) -> None:
    """List a folder per class, with or without a folder per split above and folders per patient below (see
    `data.datasets.folders.place_of`), and with or without a mask next to each picture (``7.png``, ``7_mask.png``)."""
    has_classes = False
    for folder, files in scans.items():
        if folder == listing.root:
            continue
        has_classes |= any(class_named(part, label_map) for part in folder.relative_to(listing.root).parts)
        place = Place()
        try:
            place = place_of(folder, listing.root, label_map)
            if not place.label:
                raise InputError(
                    f"the folder {folder.name} is not named for a class (a folder with a number in its name is that of "
                    f"a patient, in one of a class); give a mapping for it (--map '{folder.name}=CLASS')"
                )
        except InputError as error:
            listing.report(folder, "unknown_label", str(error))
            if is_mask_folder(folder.name):
                continue
        masks = [file for file in files if is_mask_name(file)]
        images = [file for file in files if not is_mask_name(file)]
        for image, mask in with_masks(images, masks, listing):
            listing.rows.append(
                Row(Sample(image, place.label, place.patient, mask, split=place.split, sequence=place.sequence))
            )
    if not listing.rows and not listing.problems:
        raise InputError(
            f"{listing.root}: neither an index.csv, nor a folder for each class, nor images/ next to masks/ or "
            f"labels/, nor a COCO file, nor patient folders of pictures and their *_mask files"
            f"{_there_instead(listing.root, scans)}"
        )
    if not has_classes:
        listing.raise_first()  # of a data set, at least one folder is named for a class


def _there_instead(root: Path, scans: Mapping[Path, list[Path]]) -> str:
    """The end of a message: what a folder that is not a data set holds instead, and why that cannot be used."""
    tables = sorted(file for file in root.rglob("*") if file.suffix.lower() in (".csv", ".tsv", ".txt", ".xlsx"))
    loose = scans.get(root, [])
    if tables:
        return f"; it holds {tables[0].relative_to(root)}: if that is its index, name the file itself, as a CSV file"
    if loose:
        return f"; it holds {loose[0].name} ({len(loose)} scans in all), but no folder says of which class"
    others = sorted(file for file in root.rglob("*") if file.is_file() and file.name[0] != ".")
    return f"; it holds {others[0].relative_to(root)}, which is not called as a scan is" if others else "; it is empty"


def _list_matlab_files(listing: Listing, scans: Mapping[Path, list[Path]]) -> None:
    """List the figshare set as its author gives it: ``cjdata`` files with label and patient inside."""
    for file in sorted(file for files in scans.values() for file in files):
        try:
            annotation = open_scan(file).annotation
        except InputError as error:
            listing.rows.append(Row(Sample(file, ""), error=str(error)))
            continue
        if annotation is None or not annotation.label:
            error_text = f"{file}: cjdata.label is missing or is not 1, 2 or 3"
            listing.rows.append(Row(Sample(file, ""), error=error_text))
        else:
            listing.rows.append(Row(Sample(file, annotation.label, annotation.patient or "")))


def _is_matlab_set(scans: Mapping[Path, list[Path]], root: Path, label_map: Mapping[str, str] | None) -> bool:
    """Whether a folder, or folders in it that are not named for a class, hold MATLAB files and no other scans."""
    files = [file for files in scans.values() for file in files]
    if not files or any(file.suffix.lower() != ".mat" for file in files):
        return False
    folders = [folder for folder in scans if folder != root]
    try:
        return not folders or not all(place_of(folder, root, label_map).label for folder in folders)
    except InputError:
        return True
