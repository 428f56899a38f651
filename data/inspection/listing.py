"""The files of a data set, one row each, listed without stopping at the first that is wrong."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tumorlens.data.datasets.folders import SPLIT_FOLDERS, Place, bare, is_mask_name, place_of, stem
from tumorlens.data.datasets.index import CHANNELS, find_index, whole_number
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import SCAN_SUFFIXES
from tumorlens.data.inspection.findings import Finding
from tumorlens.data.labels import canonical_label
from tumorlens.data.scan import ACQUISITION


@dataclass(frozen=True)
class Row:
    """One scan file of a set: a picture, or a volume with all its slices.

    Attributes:
        sample: The file; its `slice_index` is none, its label empty where it is unknown.
        where: Where it stands: ``"line 7"`` of the index, else empty.
        every: The index takes each n-th slice of the volume only.
        mask_missing: Whether a mask is named that is not there.
    """

    sample: Sample
    where: str = ""
    every: int = 1
    mask_missing: bool = False


@dataclass
class Listing:
    """The rows of a set and what was wrong on the way to them.

    Attributes:
        root: The folder that the paths start at.
        index: The index file, or none.
        rows: What can be looked at.
        findings: What cannot, and why.
        refused: Why `data.datasets.load.load_samples` does not take the folder; empty where it does, or was not asked.
    """

    root: Path
    index: Path | None = None
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    refused: str = ""

    def say(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, text))

    def name(self, path: Path) -> str:
        """A path as it starts at the root."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def list_rows(source: str | Path, label_map: Mapping[str, str] | None = None, channel: int | None = None) -> Listing:
    """The files of a data set in any layout that `data.datasets.load.load_samples` knows.

    An index is read row by row. A folder is listed by `load_samples` where that succeeds; where it does not, every scan
    below the folder is a row, its label told by its folder's name.

    Raises:
        InputError: Nothing there that could be a data set.
    """
    index, root = find_index(source)
    if index is not None:
        return _rows_of_index(Listing(root, index), index, label_map, channel)
    listing = Listing(root)
    try:
        samples = load_samples(source, label_map, channel)
    except InputError as error:
        if not root.is_dir() or not any(_scans_below(root)):
            raise
        listing.refused = str(error)
        return _rows_of_folder(listing, label_map)
    listing.rows = [Row(sample) for sample in whole_files(samples)]
    _tell_unmasked(listing)
    return listing


def load_listed(
    source: str | Path, label_map: Mapping[str, str] | None = None, channel: int | None = None
) -> list[Sample]:
    """`data.datasets.load.load_samples`, whose complaint about one row of an index also says how to hear of all."""
    try:
        return load_samples(source, label_map, channel)
    except InputError as error:
        if find_index(source)[0] is None:
            raise
        raise InputError(f"{error}; `tumorlens data check` lists all that is wrong") from None


def whole_files(samples: list[Sample]) -> list[Sample]:
    """One sample per file: of a volume's slices, the label and the mask are those of its lesion."""
    files: dict[tuple[Path, str], Sample] = {}
    for sample in samples:
        known = files.get((sample.image, sample.plane))
        if known is None or (known.mask is None and sample.mask is not None):
            files[sample.image, sample.plane] = replace(sample, slice_index=None)
    return list(files.values())


def _rows_of_index(listing: Listing, index: Path, label_map: Mapping[str, str] | None, channel: int | None) -> Listing:
    first: dict[tuple[Path, str, int | None], str] = {}
    for number, row in _table(index):
        if not any(row.values()):
            continue
        where = f"line {number}"
        if not row["image"]:
            listing.say("bad_row", f"{where}: image is empty")
            continue
        image = listing.root / row["image"]
        cut = row.get("cut") or ACQUISITION
        label = _label(listing, row["label"], where, label_map)
        fold, every = (_number(listing, row, column, least, where) for column, least in (("fold", 0), ("every", 1)))
        own_channel = _number(listing, row, "channel", 0, where, CHANNELS - 1)
        taken = own_channel if channel is None else channel
        if (image, cut, taken) in first:
            listing.say("repeated_row", f"{where}: {row['image']} stands in {first[image, cut, taken]} already")
        first.setdefault((image, cut, taken), where)
        split = _split(listing, row, where)
        mask = listing.root / row["mask"] if row.get("mask") else None
        mask_missing = mask is not None and not mask.is_file()
        if mask_missing:
            listing.say("missing_file", f"{where}: no mask {row['mask']}")
        if not image.is_file():
            listing.say("missing_file", f"{where}: no image {row['image']}")
            continue
        sample = Sample(
            image, label, row.get("patient", ""), None if mask_missing else mask, fold, split, channel=taken, plane=cut
        )
        listing.rows.append(Row(sample, where, every or 1, mask_missing))
    return listing


def _table(index: Path) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows of an index; a cell that is not there is empty.

    Raises:
        InputError: No CSV file, a missing column, or no rows.
    """
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="more cells than columns", restval="")
            missing = {"image", "label"} - set(reader.fieldnames or ())
            rows = [(reader.line_num, {k: v for k, v in row.items() if isinstance(v, str)}) for row in reader]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{index}: this is no CSV file in UTF-8") from None
    if missing:
        raise InputError(f"{index}: the column {' and '.join(sorted(missing))} is missing")
    if not any(any(row.values()) for _, row in rows):
        raise InputError(f"{index}: the index has no rows")
    return rows


def _label(listing: Listing, name: str, where: str, label_map: Mapping[str, str] | None) -> str:
    if not name:
        listing.say("bad_row", f"{where}: label is empty")
        return ""
    try:
        return canonical_label(name, label_map)
    except InputError as error:
        listing.say("unknown_label", f"{where}: {error}")
        return ""


def _number(
    listing: Listing, row: Mapping[str, str], column: str, least: int, where: str, most: int | None = None
) -> int | None:
    try:
        return whole_number(row.get(column, "").strip(), column, least, most)
    except InputError as error:
        listing.say("bad_row", f"{where}: {error}")
        return None


def _split(listing: Listing, row: Mapping[str, str], where: str) -> str:
    name = row.get("official_split") or row.get("split") or ""
    if name and name.lower() not in SPLIT_FOLDERS:
        listing.say("bad_row", f"{where}: split {name!r} is none of train, validation, test and counts as train")
    return SPLIT_FOLDERS.get(name.lower(), "")


def _rows_of_folder(listing: Listing, label_map: Mapping[str, str] | None) -> Listing:
    """Rows of a folder that `load_samples` refuses."""
    root = listing.root
    files = list(_scans_below(root))
    masks = [file for file in files if _in_mask_folder(file, root) or is_mask_name(file)]
    known = set(masks)
    images = [file for file in files if file not in known]
    places, reasons = {}, {}
    for folder in sorted({file.parent for file in images}):
        try:
            places[folder] = place_of(folder, root, label_map)
        except InputError as error:
            places[folder], reasons[folder] = Place(), str(error)
    named = bool(reasons) or any(place.label for place in places.values())
    if not images or not (named or masks or all(file.suffix.lower() == ".mat" for file in images)):
        raise InputError(listing.refused)  # neither labels nor masks: this is no data set
    for folder, place in places.items():
        if not place.label and named:
            why = reasons.get(folder, "its name is no class").removeprefix(f"{folder}: ")
            listing.say("unknown_label", f"folder {listing.name(folder)}: {why}")
    beside = {(file.parent, bare(file)): file for file in masks}
    apart = {bare(file): file for file in masks if _in_mask_folder(file, root)}
    patient_folders = not named and any(not _in_mask_folder(file, root) for file in masks)
    for file in images:
        place = places[file.parent]
        mask = beside.get((file.parent, stem(file))) or apart.get(stem(file))
        patient = file.parent.name if patient_folders else place.patient
        listing.rows.append(Row(Sample(file, place.label, patient, mask, split=place.split)))
    if patient_folders:
        for file in [row.sample.image for row in listing.rows if row.sample.mask is None]:
            listing.say("missing_file", f"{listing.name(file)}: no mask beside it")
    elif not named:
        _tell_unmasked(listing)
    used = {row.sample.mask for row in listing.rows}
    for file in [file for file in masks if file not in used]:
        listing.say("missing_file", f"{listing.name(file)}: no picture of this mask's name")
    return listing


def _tell_unmasked(listing: Listing) -> None:
    """Note the images without a mask of a set that gives masks and no labels."""
    for row in listing.rows:
        if row.sample.mask is None and not row.sample.label:
            listing.say("unmasked", listing.name(row.sample.image))


def _in_mask_folder(file: Path, root: Path) -> bool:
    return any(part.lower() in ("masks", "mask", "labels") for part in file.relative_to(root).parts[:-1])


def unnamed_files(listing: Listing) -> Iterator[Path]:
    """Scans below the root that an index does not name; beside an index of its own only in the folders it names."""
    if listing.index is None:
        return
    named = {path for row in listing.rows for path in (row.sample.image, row.sample.mask) if path is not None}
    whole = listing.index == listing.root / "index.csv"
    folders = [listing.root] if whole else sorted({path.parent for path in named})
    for folder in folders:
        for file in _scans_below(folder) if whole else _scans_in(folder):
            if file not in named:
                yield file


def _scans_below(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.rglob("*")) if _is_scan(p))


def _scans_in(folder: Path) -> Iterator[Path]:
    return (p for p in sorted(folder.iterdir()) if _is_scan(p))


def _is_scan(path: Path) -> bool:
    return path.name.lower().endswith(SCAN_SUFFIXES) and path.name[0] != "." and path.is_file()
