"""Finds the problems of a data set. Every file is checked: the first error does not stop the check."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.classes import doubtful_names, merged_folders
from tumorlens.data.datasets.duplicates import (
    Pair,
    copy_pairs,
    equal_files,
    labels_contradict,
    of_one_volume,
    signatures,
)
from tumorlens.data.datasets.folders import scans_below, scans_in
from tumorlens.data.datasets.listing import Listing, Row
from tumorlens.data.datasets.load import list_rows
from tumorlens.data.datasets.patients import patient_in_file
from tumorlens.data.datasets.sample import Sample, channel_of, slices_with_head
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.inspection.findings import PROBLEMS, CheckReport, Finding
from tumorlens.data.labels import TUMOR_FREE, labels_agree
from tumorlens.data.masks.drawings import is_drawing
from tumorlens.data.masks.truth import describe_truth, read_truth
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import ACQUISITION, Scan
from tumorlens.data.spellings import canonical_label

MIN_SIDE_PX = 64  # below it a lesion of 10 mm in a head of 200 mm is three pixels wide


@dataclass
class _Check:
    """A check on its way: the listed files, and the findings so far."""

    listing: Listing
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: str, text: str) -> None:
        self.findings.append(Finding(kind, text))

    def name(self, path: Path) -> str:
        return self.listing.name(path)

    def slice_name(self, sample: Sample) -> str:
        name = self.name(sample.image)
        return f"{name}[{sample.place}]" if sample.place else name

    def patient_name(self, patient: str) -> str:
        """A patient's name. The patient of a volume without one is its path."""
        return self.name(Path(patient)) if Path(patient).is_absolute() else patient


def check_set(
    source: str | Path,
    label_map: Mapping[str, str] | None = None,
    channel: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """All problems of a data set: of its rows, its files and masks, its folds and its official split.

    Args:
        source: As in `data.datasets.load.load_samples`.
        label_map: The user's own label names -> classes.
        channel: The channel of color pictures to take, as in `load_samples`.
        progress: Called with the number of files done and of all.

    Raises:
        InputError: The source cannot be a data set, or a mapping does not lead to a class.
    """
    for name in label_map or {}:
        canonical_label(name, label_map)
    listing = list_rows(source, label_map, channel)
    check = _Check(listing)
    for problem in listing.problems:
        place = check.name(problem.place) if isinstance(problem.place, Path) else problem.place
        check.add(problem.kind, f"{place}: {problem.text}" if problem.text else place)
    slices: list[Sample] = []
    signature_rows: list[NDArray[np.float32]] = []
    for number, row in enumerate(listing.rows):
        findings_before = len(check.findings)
        for sample, image in _check_file(row, check):
            slices.append(sample)
            signature_rows.append(signatures(image[None])[0])
        if row.error and not any(finding.kind in PROBLEMS for finding in check.findings[findings_before:]):
            check.add("unreadable", row.error)
        if progress:
            progress(number + 1, len(listing.rows))
    _check_parts(slices, check)
    if slices:
        _check_pairs(slices, copy_pairs(slices, np.stack(signature_rows)), check)
    _check_whole(slices, check)
    patients = {sample.patient for sample in slices if sample.patient and sample.patient != str(sample.image)}
    return CheckReport(str(source), len(listing.rows), len(slices), len(patients), tuple(check.findings))


def _check_file(row: Row, check: _Check) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
    """Check one file. Yields its usable slices, each with its own label, and its prepared picture."""
    sample = row.sample
    name = check.name(sample.image)
    try:
        scan = open_scan(sample.image, constant=True)
        scan = scan if sample.plane == ACQUISITION else scan.with_plane(sample.plane)
        shown = scan.voxels if sample.channel is None else channel_of(scan, sample.channel)
    except InputError as error:
        check.add("unreadable", str(error))
        return
    if shown.min() == shown.max():
        check.add("constant", name)
        return
    if min(scan.slice(0).shape[:2]) < MIN_SIDE_PX:
        rows, columns = scan.slice(0).shape[:2]
        check.add("tiny", f"{name}: {columns} x {rows} pixels")
    sample = _with_annotation(sample, scan, check)
    masks = _masks(sample, scan, check)
    _check_mask(sample, masks, scan, row, check)
    several = scan.n_slices > 1  # training, too, takes a single slice of DICOM or NIfTI as a picture
    for k in slices_with_head(scan) if several else [0]:
        label = sample.label
        if several and label and (masks is None or not masks[k].any()):
            label = TUMOR_FREE
        try:
            prepared = Preprocess()(scan.slice(k) if sample.channel is None else shown, scan.pixel_aspect)
        except InputError as error:
            check.add("unreadable", f"{name}: {error}")
            continue
        index = k if several else None
        # A volume of an unknown patient is a patient of its own, so that its slices stay together.
        patient = sample.patient or (str(sample.image) if several else "")
        yield replace(sample, label=label, patient=patient, slice_index=index), prepared.image


def _with_annotation(sample: Sample, scan: Scan, check: _Check) -> Sample:
    """The sample with the label and the patient that the file itself names, where the set names none."""
    label = (scan.annotation.label if scan.annotation is not None else None) or ""
    if label and sample.label and not labels_agree(label, sample.label):
        check.add("file_label", f"{check.name(sample.image)}: the file says {label}, the set {sample.label}")
    return replace(sample, label=sample.label or label, patient=sample.patient or patient_in_file(scan))


def _masks(sample: Sample, scan: Scan, check: _Check) -> list[NDArray[np.uint8]] | None:
    """The mask of each slice of a scan; None where there is none or it cannot be used."""
    if sample.mask is None:
        own = [scan.annotation_slice(k) for k in range(scan.n_slices)]
        masks = [mask for mask in own if mask is not None]
        return masks if len(masks) == len(own) else None
    try:
        truth = read_truth(sample.mask, scan)
        masks = [scan.view(truth, k) for k in range(scan.n_slices)] if scan.volume else [truth]
        values = describe_truth(sample.mask)
        if sample.weak:
            check.add("boxes", check.name(sample.image))
        elif values:
            check.add("mask_values", f"{check.name(sample.mask)}: {values}")
        return masks
    except InputError as error:
        if is_drawing(sample.mask):
            check.add("bad_drawing", str(error))
            return None
        try:
            open_scan(sample.mask, constant=True)
        except InputError as unreadable:
            check.add("unreadable", str(unreadable))
        else:
            check.add("mask_shape", str(error))
        return None


def _check_mask(sample: Sample, masks: list[NDArray[np.uint8]] | None, scan: Scan, row: Row, check: _Check) -> None:
    """Check whether the mask says the same as the label."""
    name = check.name(sample.image)
    sick = sample.label not in ("", TUMOR_FREE)
    has_lesion = masks is not None and any(mask.any() for mask in masks)
    mask_name = f" ({check.name(sample.mask)})" if sample.mask is not None else ""
    if sick and masks is not None and not has_lesion:
        check.add("empty_mask", f"{name}: {sample.label}{mask_name}")
    elif sample.label == TUMOR_FREE and has_lesion:
        pixels = sum(int(np.count_nonzero(mask)) for mask in masks or ())
        check.add("healthy_mask", f"{name}: {pixels} pixels{mask_name}")
    elif sick and sample.mask is None and masks is None and not row.mask_missing:
        check.add("volume_without_mask" if scan.n_slices > 1 else "no_mask", f"{name}: {sample.label}")


def _check_parts(slices: Sequence[Sample], check: _Check) -> None:
    """Check for patients in two parts of the split or in two folds, and for fold numbers that are of no use."""
    for kind, part_of in (("patient_in_two_splits", _split_of), ("patient_in_two_folds", _fold_of)):
        parts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for sample in slices:
            if sample.patient and part_of(sample):
                parts[sample.patient][part_of(sample)] += 1
        for patient, counts in sorted(parts.items()):
            if len(counts) > 1:
                where = ", ".join(f"{n} in {part}" for part, n in sorted(counts.items()))
                check.add(kind, f"patient {check.patient_name(patient)}: {where}")
    folds = [row.sample.fold for row in check.listing.rows]
    numbers = sorted({fold for fold in folds if fold is not None})
    without = folds.count(None)
    if numbers and without:
        check.add("folds", f"{without} of {len(folds)} rows have no fold, so training makes folds of its own")
    elif numbers and numbers != list(range(numbers[-1] + 1)):
        listed = ", ".join(map(str, numbers))
        check.add("folds", f"the folds are {listed}; training counts them from 0 without a gap")
    elif numbers and len(numbers) < 3:
        check.add("folds", f"{len(numbers)} folds are too few to train, validate and test; 3 are needed")


def _check_pairs(slices: Sequence[Sample], pairs: Sequence[Pair], check: _Check) -> None:
    """Check for the same picture under two labels, in two parts, under two patients."""
    for pair in pairs:
        first, second = slices[pair.first], slices[pair.second]
        if of_one_volume(first, second):
            continue
        how = "mirrored" if pair.mirrored else "alike"
        text = f"{check.slice_name(first)} and {check.slice_name(second)}, {how} (correlation {pair.likeness:.4f})"
        if labels_contradict(first, second, pair):
            check.add("label_conflict", f"{text}: {first.label} and {second.label}")
        apart = False
        for kind, part_of in (("copy_in_two_splits", _split_of), ("copy_in_two_folds", _fold_of)):
            a, b = part_of(first), part_of(second)
            if a and b and a != b:
                apart = True
                check.add(kind, f"{text}: {a} and {b}")
        if not apart and first.image != second.image and not (first.patient and first.patient == second.patient):
            check.add("copy", text)


def _check_whole(slices: Sequence[Sample], check: _Check) -> None:
    """Note what the set lacks, which files are equal, and which files the index does not name."""
    files = list(dict.fromkeys(sample.image for sample in slices))
    first = {sample.image: sample for sample in reversed(slices)}
    for group in equal_files(files):
        parts = {(first[path].split, first[path].fold) for path in group}
        if len(parts) == 1:
            check.add("equal_files", " = ".join(check.name(path) for path in group))
    merged = merged_folders({path: sample.label for path, sample in first.items()})
    for line in [*doubtful_names(Counter(sample.label for sample in slices)), *merged]:
        check.add("doubtful_label", line)
    for sample in first.values():
        if not sample.label:
            check.add("no_label", check.name(sample.image))
        if not sample.patient:
            check.add("no_patient", check.name(sample.image))
    for path in _unnamed_files(check.listing):
        check.add("unnamed_file", check.name(path))


def _unnamed_files(listing: Listing) -> Iterator[Path]:
    """The scans that an index does not name, below the folder of an ``index.csv`` or in the folders that it names."""
    if listing.index is None:
        return
    in_index = {path for row in listing.rows for path in (row.sample.image, row.sample.mask) if path is not None}
    if listing.index == listing.root / "index.csv":
        files = sorted(file for files in scans_below(listing.root).values() for file in files)
    else:
        files = [file for folder in sorted({path.parent for path in in_index}) for file in scans_in(folder)]
    folders = {path for path in in_index if path.is_dir()}  # DICOM series, results
    yield from (file for file in files if file not in in_index and folders.isdisjoint(file.parents))


def _split_of(sample: Sample) -> str:
    return sample.split


def _fold_of(sample: Sample) -> str:
    return "" if sample.fold is None else f"fold {sample.fold}"
