"""Divides a data set by patient into training, validation and test, or into folds, and writes that as an index."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.config import PARTS
from tumorlens.data.datasets.duplicates import Pair, copy_pairs, group_patients, signatures
from tumorlens.data.datasets.folds import CLUSTER, make_folds
from tumorlens.data.datasets.listing import HINT, Row
from tumorlens.data.datasets.load import list_rows, samples_of
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Unread, sweep
from tumorlens.data.errors import InputError
from tumorlens.data.files import claim, safe_cell, sha256_of, whole_file
from tumorlens.data.formats.open import source_files
from tumorlens.data.labels import ClassList
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import ACQUISITION

SHARES = (0.70, 0.15, 0.15)
MIN_FOLDS = 3  # one to test, one to validate, one to train
_COLUMNS = ["image", "mask", "label", "patient", "split"]
_MORE_COLUMNS = {"sequence", "fold", "every", "channel", "cut"}


@dataclass(frozen=True)
class Division:
    """A divided data set.

    Attributes:
        root: The folder at which the paths of the index start.
        samples: Slices with their patient, and with `split` or `fold` set. Where the set knows no patient, look-alikes
            share an invented one.
        rows: The files of these slices, with the label and the mask of the whole file.
        merged: How many patients were kept together with another because they have slices of the same picture.
        left_out: How many slices have neither a label nor a mask, and are in no part.
    """

    root: Path
    samples: list[Sample]
    rows: list[Row]
    merged: int
    left_out: int = 0

    def counts(self) -> dict[str, dict[str, int]]:
        """Slices of each class, and all patients, in each part."""
        table: dict[str, dict[str, int]] = {}
        present = {sample.label for sample in self.samples}
        names = [name for name in ClassList.of_labels(present).known if name in present]
        parts = {_part(sample) for sample in self.samples}
        for part in [p for p in PARTS if p in parts] + sorted(parts - set(PARTS)):
            members = [sample for sample in self.samples if _part(sample) == part]
            labels = Counter(sample.label for sample in members)
            table[part] = {name: labels[name] for name in names}
            table[part]["slices"] = len(members)
            table[part]["patients"] = len({sample.patient for sample in members})
        return table


def divide(
    source: str | Path,
    label_map: Mapping[str, str] | None = None,
    shares: Sequence[float] = SHARES,
    folds: int | None = None,
    seed: int = 0,
    channel: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Division:
    """A division of a data set in which no patient, and no copy or mirror image of a slice, is in two parts.

    Slices with neither a label nor a mask are left out.

    Args:
        source: As in `data.datasets.load.load_samples`.
        label_map: The user's own label names -> classes.
        shares: Shares of training, validation and test, which sum to 1 (or 100). With 0 for validation, training
            validates on a fifth of the training patients.
        folds: Make this many folds of equal size instead.
        seed: Another seed, another division.
        channel: The channel of color pictures to take, as in `load_samples`. It decides what looks alike.
        progress: Called with the number of slices read and of all.

    Raises:
        InputError: The shares or folds make no sense, the set cannot be used, two rows contradict each other, or there
            are too few patients.
    """
    shares = _checked_shares(shares)
    if folds is not None and folds < MIN_FOLDS:
        raise InputError(f"{folds} folds are too few to train, validate and test; {MIN_FOLDS} are needed")
    listing = list_rows(source, label_map, channel)
    found = samples_of(listing)
    samples = [sample for sample in found if sample.label]
    if not samples:
        raise InputError(f"{source}: none of the {len(found)} slices has a label or a mask; give them one")
    rows = [row for row in listing.rows if row.sample.label or row.sample.mask]
    _check_rows(rows, listing.root)
    samples, signatures_nd = _read(samples, progress)
    groups = group_patients(samples, [*copy_pairs(samples, signatures_nd), *_pairs_of_one_file(samples)])
    with_patients = _with_patients(samples, groups, listing.root)
    grouped = [replace(sample, patient=str(group)) for sample, group in zip(samples, groups, strict=True)]
    if folds is None:
        parts = assign_parts(grouped, shares, seed)
        divided = [replace(s, split=part, fold=None) for s, part in zip(with_patients, parts, strict=True)]
    else:
        numbers = make_folds(grouped, folds, seed)
        divided = [replace(s, split="", fold=number) for s, number in zip(with_patients, numbers, strict=True)]
    merged = len({sample.patient for sample in with_patients}) - len(set(groups))
    return Division(listing.root, divided, rows, merged, len(found) - len(divided))


def assign_parts(samples: Sequence[Sample], shares: Sequence[float], seed: int = 0) -> list[str]:
    """The part of each sample. Patients stay whole, and a part gets its share of each class, in slices and patients.

    Patients are assigned from the largest to the smallest, each to the part where it reduces the chi-squared distance
    to the target counts most. scikit-learn's StratifiedGroupKFold does the same for equal shares.

    Args:
        samples: All slices. Each needs a patient and a label.
        shares: Shares of training, validation and test, which sum to 1.
        seed: Another seed, another division.

    Raises:
        InputError: There are fewer patients than parts.
    """
    patients = sorted({sample.patient for sample in samples})
    names = [part for part, share in zip(PARTS, shares, strict=True) if share > 0]
    if len(patients) < len(names):
        raise InputError(f"{len(patients)} patients are too few for {' and '.join(names)}")
    counts_pc = _class_counts(samples, patients)
    share_of = np.array([share for share in shares if share > 0])
    target_sc = share_of[:, None] * counts_pc.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(patients))
    order = order[np.argsort(-counts_pc[order].max(axis=1), kind="stable")]
    filled_sc = np.zeros_like(target_sc)
    part_of: dict[str, str] = {}
    for position, i in enumerate(order):
        after = filled_sc + counts_pc[i]
        gain = (((filled_sc - target_sc) ** 2 - (after - target_sc) ** 2) / target_sc).sum(axis=1)
        empty = filled_sc.sum(axis=1) == 0
        if empty.sum() == len(order) - position:  # no part may stay empty
            gain[~empty] = -np.inf
        best = int(gain.argmax())
        filled_sc[best] = after[best]
        part_of[patients[i]] = names[best]
    return [part_of[sample.patient] for sample in samples]


def write_index(division: Division, path: Path, overwrite: bool = False) -> None:
    """Write ``image, mask, label, patient, split`` (and ``sequence``, ``fold``, ``every``, ``channel``, ``cut`` where
    they are used).

    A file has one row, or as many as the set has for it: a volume one for each plane, a picture one for each channel or
    mask. Rows that differ only in patient and part are written once.

    Raises:
        InputError: The file must not be replaced, see `check_index`.
    """
    check_index(path, overwrite)
    first = {(sample.image, sample.plane): sample for sample in reversed(division.samples)}
    contents: dict[tuple[Any, ...], Row] = {}
    for row in division.rows:
        if _place(row) in first:
            contents.setdefault(_content(row), row)
    rows = list(contents.values())
    columns = [*_COLUMNS]
    columns += ["sequence"] if any(row.sample.sequence for row in rows) else []
    columns += ["fold"] if any(sample.fold is not None for sample in division.samples) else []
    columns += ["every"] if any(row.every > 1 for row in rows) else []
    columns += ["channel"] if any(sample.channel is not None for sample in division.samples) else []
    columns += ["cut"] if any(sample.plane != ACQUISITION for sample in division.samples) else []
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            divided = first[_place(row)]
            own = row.sample.patient
            writer.writerow(
                {
                    "image": _path_cell(row.sample.image, division.root),
                    "mask": "" if row.sample.mask is None else _path_cell(row.sample.mask, division.root),
                    "label": row.sample.label,
                    "patient": safe_cell(own or divided.patient),
                    "split": divided.split,
                    "sequence": row.sample.sequence,
                    "fold": divided.fold,
                    "every": row.every,
                    "channel": row.sample.channel,
                    "cut": "" if row.sample.plane == ACQUISITION else row.sample.plane,
                }
            )


def check_index(path: Path, overwrite: bool = False) -> None:
    """Raise an `InputError` unless an index may be written to a file, see `data.files.claim`."""
    if path.is_file() and not _is_ours(path):
        raise InputError(
            f"{path}: tumorlens did not write this file and leaves it alone, because it does not begin with the "
            f"columns {','.join(_COLUMNS)}; choose another -o"
        )
    claim([path], "an index", _is_ours, overwrite)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        header = file.readline(200).decode("utf-8", "replace").strip().split(",")
    return header[: len(_COLUMNS)] == _COLUMNS and set(header[len(_COLUMNS) :]) <= _MORE_COLUMNS


def _checked_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    train, validation, test = (float(share) for share in shares)
    total = train + validation + test
    listed = " ".join(f"{share:g}" for share in shares)
    if not (train > 0 and validation >= 0 and test > 0):
        raise InputError(f"shares {listed}: training and test need more than 0, validation at least 0")
    if not any(abs(total - whole) < 1e-3 * whole for whole in (1, 100)):
        raise InputError(f"shares {listed} sum to {total:g}, not to 1")
    return train / total, validation / total, test / total


def _read(
    samples: list[Sample], progress: Callable[[int, int], None] | None
) -> tuple[list[Sample], NDArray[np.float32]]:
    """The samples, with the patients that the files themselves name, and their signatures ``(n, 576)``."""
    read, signature_rows = [], []
    for slice_ in sweep(samples, Preprocess(), progress):
        if isinstance(slice_, Unread):
            raise InputError(f"{slice_.reason}; {HINT}")
        read.append(slice_.reading.sample)
        signature_rows.append(signatures(slice_.prepared.image[None])[0])
    return read, np.stack(signature_rows)


def _check_rows(rows: Sequence[Row], root: Path) -> None:
    """Raise an `InputError` if two rows of an image give it different labels or patients."""
    first: dict[tuple[Path, str], Row] = {}
    for row in rows:
        for column, value in (("label", row.sample.label), ("patient", row.sample.patient)):
            other = first.setdefault((row.sample.image, column), row) if value else row
            other_value = getattr(other.sample, column)
            if other_value != value:
                raise InputError(
                    f"{_below(row.sample.image, root)} has the {column} {other_value} in {other.where} of the index "
                    f"and {value} in {row.where}"
                )


def _pairs_of_one_file(samples: Sequence[Sample]) -> list[Pair]:
    """Each sample with the first of its file. Two channels of a picture show one head, even if they look different."""
    first: dict[Path, int] = {}
    pairs = [(first.setdefault(sample.image, i), i) for i, sample in enumerate(samples)]
    return [Pair(i, j, 1.0, False) for i, j in pairs if i < j]


def _place(row: Row) -> tuple[Path, str]:
    return row.sample.image, row.sample.plane


def _content(row: Row) -> tuple[Any, ...]:
    """All that a row says besides patient and part."""
    return row.sample.image, row.sample.plane, row.sample.channel, row.sample.mask, row.every


def _with_patients(samples: Sequence[Sample], groups: Sequence[int], root: Path) -> list[Sample]:
    """The samples, each with a patient: its own or that of its group. A volume without one is named by its path.

    Both invented names end with a hash of a file, so that they differ from those of another set that is divided alone.
    """
    hashes: dict[Path, str] = {}
    first: dict[int, Path] = {}
    with_patients = []
    for sample, group in zip(samples, groups, strict=True):
        volume = sample.patient == str(sample.image)
        if sample.patient and not volume:
            with_patients.append(sample)
            continue
        file = sample.image if volume else first.setdefault(group, sample.image)
        if file not in hashes:
            hashes[file] = _hash(file)
        begin = f"{_below(file, root)}-" if volume else CLUSTER
        with_patients.append(replace(sample, patient=begin + hashes[file]))
    return with_patients


def _hash(path: Path) -> str:
    """A hash of a scan's content, in all of its files."""
    return hashlib.sha256("".join(sha256_of(file) for file in source_files(path)).encode()).hexdigest()[:12]


def _class_counts(samples: Sequence[Sample], patients: Sequence[str]) -> NDArray[np.float64]:
    """Slices of each class, then 1 where there are any and 0 elsewhere, ``(patients, 2 * classes)``."""
    row = {patient: i for i, patient in enumerate(patients)}
    column = {label: i for i, label in enumerate(sorted({sample.label for sample in samples}))}
    slices = np.zeros((len(row), len(column)))
    for sample in samples:
        slices[row[sample.patient], column[sample.label]] += 1
    return np.hstack([slices, slices > 0])


def _below(path: Path, root: Path) -> str:
    """The path relative to the root, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def _path_cell(path: Path, root: Path) -> str:
    """The path relative to the root, written so that no spreadsheet program takes it for a formula."""
    below = _below(path, root)
    return below if below == safe_cell(below) else f"./{below}"


def _part(sample: Sample) -> str:
    return sample.split or f"fold {sample.fold}"
