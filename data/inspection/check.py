"""What is wrong with a data set: every file is looked at, and nothing stops at the first error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.duplicates import Pair, contradict, equal_files, of_one_volume, signatures, telling_pairs
from tumorlens.data.datasets.patients import patient_in_file
from tumorlens.data.datasets.sample import Sample, channel_of
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.inspection.findings import PROBLEMS, CheckReport
from tumorlens.data.inspection.listing import Listing, Row, list_rows, unnamed_files
from tumorlens.data.labels import CLASSES, NO_TUMOR, canonical_label
from tumorlens.data.masks.read import describe_values, open_mask, read_mask, read_volume_mask
from tumorlens.data.preprocessing.head import tissue_shares
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import ACQUISITION, Scan

MIN_SIDE_PX = 64  # below it a lesion of 10 mm in a head of 200 mm is three pixels wide
_MIN_TISSUE = 0.25  # of the fullest slice's share: slices with less head teach nothing and all look alike


def check_set(
    source: str | Path,
    label_map: Mapping[str, str] | None = None,
    channel: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Look at every row, file and mask of a data set, and at what lies on two sides of its folds and its split.

    Args:
        source: As in `data.datasets.load.load_samples`.
        label_map: The user's own label names -> classes.
        channel: Which channel of colour pictures to take, as in `load_samples`.
        progress: Called with the number of files done and of all.

    Raises:
        InputError: Nothing there that could be a data set, or a mapping that leads to no class.
    """
    for name in label_map or {}:
        canonical_label(name, label_map)
    listing = list_rows(source, label_map, channel)
    slices: list[Sample] = []
    marks: list[NDArray[np.float32]] = []
    for number, row in enumerate(listing.rows):
        for sample, image in _look_at(row, listing):
            slices.append(sample)
            marks.append(signatures(image[None])[0])
        if progress:
            progress(number + 1, len(listing.rows))
    _look_at_parts(slices, listing)
    if slices:
        _look_at_pairs(slices, telling_pairs(slices, np.stack(marks)), listing)
    _look_at_whole(slices, listing)
    if listing.refused and not any(finding.kind in PROBLEMS for finding in listing.findings):
        listing.say("bad_row", listing.refused)
    patients = {sample.patient for sample in slices if sample.patient and sample.patient != str(sample.image)}
    return CheckReport(str(source), len(listing.rows), len(slices), len(patients), tuple(listing.findings))


def _look_at(row: Row, listing: Listing) -> Iterator[tuple[Sample, NDArray[np.uint8]]]:
    """Check one file; yields its usable slices, prepared, each with the label that it has by itself."""
    sample = row.sample
    name = listing.name(sample.image)
    try:
        scan = open_scan(sample.image, constant=True)
        scan = scan if sample.plane == ACQUISITION else scan.with_plane(sample.plane)
        shown = scan.voxels if sample.channel is None else channel_of(scan, sample.channel)
    except InputError as error:
        listing.say("unreadable", str(error))
        return
    if shown.min() == shown.max():
        listing.say("constant", name)
        return
    if min(scan.slice(0).shape[:2]) < MIN_SIDE_PX:
        rows, columns = scan.slice(0).shape[:2]
        listing.say("tiny", f"{name}: {columns} x {rows} pixels")
    sample = _with_annotation(sample, scan, name, listing)
    masks = _masks(sample, scan, listing)
    _look_at_mask(sample, masks, scan, row, listing)
    several = scan.n_slices > 1  # a single slice of DICOM or NIfTI is a picture to training, too
    tissue = tissue_shares(scan) if several else np.ones(1)
    for k in np.flatnonzero((tissue >= _MIN_TISSUE * tissue.max()) & (tissue > 0)):
        label = sample.label
        if several and label and (masks is None or not masks[k].any()):
            label = CLASSES[NO_TUMOR]
        try:
            prepared = Preprocess()(scan.slice(int(k)) if sample.channel is None else shown, scan.pixel_aspect)
        except InputError as error:
            listing.say("unreadable", f"{name}: {error}")
            continue
        index = int(k) if several else None
        # An unknown patient of a volume is the volume: its slices must not part.
        patient = sample.patient or (str(sample.image) if several else "")
        yield replace(sample, label=label, patient=patient, slice_index=index), prepared.image


def _with_annotation(sample: Sample, scan: Scan, name: str, listing: Listing) -> Sample:
    """The sample with what the file itself says of label and patient."""
    said = (scan.annotation.label if scan.annotation is not None else None) or ""
    if said and sample.label and said != sample.label:
        listing.say("file_label", f"{name}: the file says {said}, the set {sample.label}")
    return replace(sample, label=sample.label or said, patient=sample.patient or patient_in_file(scan))


def _masks(sample: Sample, scan: Scan, listing: Listing) -> list[NDArray[np.uint8]] | None:
    """The mask of each slice of a scan, or none where there is none or it cannot be used."""
    if sample.mask is None:
        drawn = [scan.annotation_slice(k) for k in range(scan.n_slices)]
        masks = [mask for mask in drawn if mask is not None]
        return masks if len(masks) == len(drawn) else None
    try:
        if scan.volume:
            whole = read_volume_mask(sample.mask, scan)
            masks = [scan.view(whole, k) for k in range(scan.n_slices)]
        else:
            masks = [read_mask(sample.mask, scan)]
        told = describe_values(open_mask(sample.mask))
        if told:
            listing.say("mask_values", f"{listing.name(sample.mask)}: {told}")
        return masks
    except InputError as error:
        try:
            open_scan(sample.mask, constant=True)
        except InputError as unreadable:
            listing.say("unreadable", str(unreadable))
        else:
            listing.say("mask_shape", str(error))
        return None


def _look_at_mask(
    sample: Sample, masks: list[NDArray[np.uint8]] | None, scan: Scan, row: Row, listing: Listing
) -> None:
    """Does the mask say the same as the label?"""
    name = listing.name(sample.image)
    sick = sample.label not in ("", CLASSES[NO_TUMOR])
    drawn = masks is not None and any(mask.any() for mask in masks)
    named = f" ({listing.name(sample.mask)})" if sample.mask is not None else ""
    if sick and masks is not None and not drawn:
        listing.say("empty_mask", f"{name}: {sample.label}{named}")
    elif sample.label == CLASSES[NO_TUMOR] and drawn:
        pixels = sum(int(np.count_nonzero(mask)) for mask in masks or ())
        listing.say("healthy_mask", f"{name}: {pixels} pixels{named}")
    elif sick and sample.mask is None and masks is None and not row.mask_missing:
        listing.say("volume_without_mask" if scan.n_slices > 1 else "no_mask", f"{name}: {sample.label}")


def _look_at_parts(slices: Sequence[Sample], listing: Listing) -> None:
    """Patients in two folds or on both sides of the official split, and folds that do not make a set."""
    for kind, part_of in (("patient_in_two_splits", _split_of), ("patient_in_two_folds", _fold_of)):
        parts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for sample in slices:
            if sample.patient and part_of(sample):
                parts[sample.patient][part_of(sample)] += 1
        for patient, counts in sorted(parts.items()):
            if len(counts) > 1:
                where = ", ".join(f"{n} in {part}" for part, n in sorted(counts.items()))
                listing.say(kind, f"patient {_shown(patient, listing)}: {where}")
    folds = [row.sample.fold for row in listing.rows]
    given = sorted({fold for fold in folds if fold is not None})
    without = folds.count(None)
    if given and without:
        listing.say("folds", f"{without} of {len(folds)} rows have no fold, so training makes folds of its own")
    elif given and given != list(range(given[-1] + 1)):
        listing.say("folds", f"the folds are {', '.join(map(str, given))}; training counts them from 0 without a gap")
    elif given and len(given) < 3:
        listing.say("folds", f"{len(given)} folds are too few to train, validate and test; 3 are needed")


def _look_at_pairs(slices: Sequence[Sample], pairs: Sequence[Pair], listing: Listing) -> None:
    """The same picture under two labels, in two parts, under two patients."""
    for pair in pairs:
        first, second = slices[pair.first], slices[pair.second]
        if of_one_volume(first, second):
            continue
        told = f"{_told(first, listing)} and {_told(second, listing)}, " + ("mirrored" if pair.mirrored else "alike")
        told += f" (correlation {pair.likeness:.4f})"
        if contradict(first, second, pair):
            listing.say("label_conflict", f"{told}: {first.label} and {second.label}")
        apart = False
        for kind, part_of in (("copy_in_two_splits", _split_of), ("copy_in_two_folds", _fold_of)):
            a, b = part_of(first), part_of(second)
            if a and b and a != b:
                apart = True
                listing.say(kind, f"{told}: {a} and {b}")
        if not apart and first.image != second.image and not (first.patient and first.patient == second.patient):
            listing.say("copy", told)


def _look_at_whole(slices: Sequence[Sample], listing: Listing) -> None:
    """Notes on the set: what it lacks, equal files, files that nobody names."""
    files = list(dict.fromkeys(sample.image for sample in slices))
    first = {sample.image: sample for sample in reversed(slices)}
    for group in equal_files(files):
        parts = {(first[path].split, first[path].fold) for path in group}
        if len(parts) == 1:
            listing.say("equal_files", " = ".join(listing.name(path) for path in group))
    for sample in first.values():
        if not sample.label:
            listing.say("no_label", listing.name(sample.image))
        if not sample.patient:
            listing.say("no_patient", listing.name(sample.image))
    for path in unnamed_files(listing):
        listing.say("unnamed_file", listing.name(path))


def _split_of(sample: Sample) -> str:
    return sample.split


def _fold_of(sample: Sample) -> str:
    return "" if sample.fold is None else f"fold {sample.fold}"


def _told(sample: Sample, listing: Listing) -> str:
    name = listing.name(sample.image)
    return f"{name}[{sample.place}]" if sample.place else name


def _shown(patient: str, listing: Listing) -> str:
    """A patient's name; that of a volume is its path."""
    return listing.name(Path(patient)) if Path(patient).is_absolute() else patient
