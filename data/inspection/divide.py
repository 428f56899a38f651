"""Divide a data set by patient into training, validation and test, or into folds, written as an index."""

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

from tumorlens.data.datasets.duplicates import CLUSTER, Pair, group_patients, signatures, telling_pairs
from tumorlens.data.datasets.folds import make_folds
from tumorlens.data.datasets.index import find_index
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Unread, sweep
from tumorlens.data.errors import InputError
from tumorlens.data.files import sha256_of, whole_file
from tumorlens.data.formats.open import source_files
from tumorlens.data.inspection.listing import Row, list_rows, load_listed, whole_files
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import ACQUISITION

PARTS = ("train", "validation", "test")
SHARES = (0.70, 0.15, 0.15)
MIN_FOLDS = 3  # one to test, one to validate, one to train
_COLUMNS = ["image", "mask", "label", "patient"]


@dataclass(frozen=True)
class Division:
    """A divided data set.

    Attributes:
        root: The folder that the index's paths start at.
        samples: Slices with patient, and with `split` or `fold` set. Where the set knows no patient, look-alikes
            share an invented one.
        rows: The files that they come from, with the label and the mask of the whole file.
        merged: How many patients were put together with another because slices of theirs show the same picture.
    """

    root: Path
    samples: list[Sample]
    rows: list[Row]
    merged: int

    def counts(self) -> dict[str, dict[str, int]]:
        """Slices of each class, and all patients, in each part."""
        table: dict[str, dict[str, int]] = {}
        parts = {_part(sample) for sample in self.samples}
        for part in [p for p in PARTS if p in parts] + sorted(parts - set(PARTS)):
            members = [sample for sample in self.samples if _part(sample) == part]
            labels = Counter(sample.label for sample in members)
            table[part] = {name: labels[name] for name in CLASSES if any(s.label == name for s in self.samples)}
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
    """Divide a data set so that no patient, and no copy or mirror image of a slice, is in two parts.

    Args:
        source: As in `data.datasets.load.load_samples`.
        label_map: The user's own label names -> classes.
        shares: Of training, validation and test; they sum to 1 (or 100). Without validation (0), training takes a
            fifth of the training patients for it.
        folds: Make this many folds of equal size instead.
        seed: Another seed, another division.
        channel: Which channel of colour pictures to take, as in `load_samples`; it decides what looks alike.
        progress: Called with the number of slices read and of all.

    Raises:
        InputError: Shares or folds that make no sense, an unusable set, two rows that contradict each other, or too few
            patients.
    """
    shares = _checked_shares(shares)
    if folds is not None and folds < MIN_FOLDS:
        raise InputError(f"{folds} folds are too few to train, validate and test; {MIN_FOLDS} are needed")
    samples = load_listed(source, label_map, channel)
    if not all(sample.label for sample in samples):
        raise InputError(f"{source}: the set gives no labels, and an index needs one in every row")
    index, root = find_index(source)
    rows = list_rows(source, label_map, channel).rows if index else [Row(sample) for sample in whole_files(samples)]
    _check_rows(rows, root)
    samples, marks_nd = _read(samples, progress)
    groups = group_patients(samples, [*telling_pairs(samples, marks_nd), *_of_one_file(samples)])
    named = _with_patients(samples, groups, root)
    grouped = [replace(sample, patient=str(group)) for sample, group in zip(samples, groups, strict=True)]
    if folds is None:
        parts = assign_parts(grouped, shares, seed)
        divided = [replace(s, split=part, fold=None) for s, part in zip(named, parts, strict=True)]
    else:
        numbers = make_folds(grouped, folds, seed)
        divided = [replace(s, split="", fold=number) for s, number in zip(named, numbers, strict=True)]
    merged = len({sample.patient for sample in named}) - len(set(groups))
    return Division(root, divided, rows, merged)


def assign_parts(samples: Sequence[Sample], shares: Sequence[float], seed: int = 0) -> list[str]:
    """The part of each sample: whole patients, each class in every part by its share, in slices and in patients.

    The patients are dealt out from the largest to the smallest, each to the part where it lessens the chi-squared
    distance to the wanted counts most; that is what scikit-learn's StratifiedGroupKFold does for equal shares.

    Args:
        samples: Every one with a patient and a label.
        shares: Of training, validation and test, summing to 1.

    Raises:
        InputError: Fewer patients than parts.
    """
    patients = sorted({sample.patient for sample in samples})
    wanted = [part for part, share in zip(PARTS, shares, strict=True) if share > 0]
    if len(patients) < len(wanted):
        raise InputError(f"{len(patients)} patients are too few for {' and '.join(wanted)}")
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
        if empty.sum() == len(order) - position:  # no part may go without
            gain[~empty] = -np.inf
        best = int(gain.argmax())
        filled_sc[best] = after[best]
        part_of[patients[i]] = wanted[best]
    return [part_of[sample.patient] for sample in samples]


def write_index(division: Division, path: Path, overwrite: bool = False) -> None:
    """Write ``image, mask, label, patient, split`` (and ``fold``, ``every``, ``channel``, ``cut`` where there are any).

    A file has one row, and more where the set has: a volume for each plane that it is cut in, a picture for each of its
    channels or masks. Rows that are the same but for patient and part are written once.

    Raises:
        InputError: The file is there already, and is none that this function wrote or need not be replaced.
    """
    check_index(path, overwrite)
    first = {(sample.image, sample.plane): sample for sample in reversed(division.samples)}
    contents: dict[tuple[Any, ...], Row] = {}
    for row in division.rows:
        if _place(row) in first:
            contents.setdefault(_content(row), row)
    rows = list(contents.values())
    columns = [*_COLUMNS, "split"]
    columns += ["fold"] if any(sample.fold is not None for sample in division.samples) else []
    columns += ["every"] if any(row.every > 1 for row in rows) else []
    columns += ["channel"] if any(sample.channel is not None for sample in division.samples) else []
    columns += ["cut"] if any(sample.plane != ACQUISITION for sample in division.samples) else []
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            divided = first[_place(row)]
            own = row.sample.patient  # of a volume in a folder it is the file, which says where the user keeps it
            writer.writerow(
                {
                    "image": _below(row.sample.image, division.root),
                    "mask": "" if row.sample.mask is None else _below(row.sample.mask, division.root),
                    "label": row.sample.label,
                    "patient": divided.patient if own in ("", str(row.sample.image)) else own,
                    "split": divided.split,
                    "fold": divided.fold,
                    "every": row.every,
                    "channel": row.sample.channel,
                    "cut": "" if row.sample.plane == ACQUISITION else row.sample.plane,
                }
            )


def check_index(path: Path, overwrite: bool = False) -> None:
    """Raise an `InputError` unless `path` may be written: it is not there, or is an index of ours to be replaced."""
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; -o takes the name of a CSV file")
    if not path.exists():
        return
    with path.open("rb") as file:
        header = file.readline(200).decode("utf-8", "replace").strip().split(",")
    ours = header[:5] == [*_COLUMNS, "split"] and set(header[5:]) <= {"fold", "every", "channel", "cut"}
    if not ours:
        raise InputError(f"{path}: this file was not written by this command and is left alone; choose another name")
    if not overwrite:
        raise InputError(f"{path}: an index is here already; give --overwrite to replace it, or another name")


def _checked_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    train, validation, test = (float(share) for share in shares)
    total = train + validation + test
    said = " ".join(f"{share:g}" for share in shares)
    if not (train > 0 and validation >= 0 and test > 0):
        raise InputError(f"shares {said}: training and test need more than 0, validation at least 0")
    if not any(abs(total - whole) < 1e-3 * whole for whole in (1, 100)):
        raise InputError(f"shares {said} sum to {total:g}, not to 1")
    return train / total, validation / total, test / total


def _read(
    samples: list[Sample], progress: Callable[[int, int], None] | None
) -> tuple[list[Sample], NDArray[np.float32]]:
    """The samples, with the patients that the files themselves name, and their signatures ``(n, 576)``."""
    known, marks = [], []
    for slice_ in sweep(samples, Preprocess(), progress):
        if isinstance(slice_, Unread):
            raise InputError(f"{slice_.reason}; `tumorlens data check` lists all that is wrong")
        known.append(slice_.reading.sample)
        marks.append(signatures(slice_.prepared.image[None])[0])
    return known, np.stack(marks)


def _check_rows(rows: Sequence[Row], root: Path) -> None:
    """Raise an `InputError` if two rows of an image give it two labels or two patients."""
    first: dict[tuple[Path, str], Row] = {}
    for row in rows:
        for what, said in (("label", row.sample.label), ("patient", row.sample.patient)):
            other = first.setdefault((row.sample.image, what), row) if said else row
            known = getattr(other.sample, what)
            if known != said:
                raise InputError(
                    f"{_below(row.sample.image, root)} has the {what} {known} in {other.where} of the index and {said} "
                    f"in {row.where}"
                )


def _of_one_file(samples: Sequence[Sample]) -> list[Pair]:
    """Each sample with the first of its file: two channels of a picture are one head, even if they do not look so."""
    first: dict[Path, int] = {}
    pairs = [(first.setdefault(sample.image, i), i) for i, sample in enumerate(samples)]
    return [Pair(i, j, 1.0, False) for i, j in pairs if i < j]


def _place(row: Row) -> tuple[Path, str]:
    return row.sample.image, row.sample.plane


def _content(row: Row) -> tuple[Any, ...]:
    """What a row says besides patient and part."""
    return row.sample.image, row.sample.plane, row.sample.channel, row.sample.mask, row.every


def _with_patients(samples: Sequence[Sample], groups: Sequence[int], root: Path) -> list[Sample]:
    """The samples, each with a patient: its own, or the group's; a volume without one is named by its path in the set.

    Both names end with a hash of a file, lest a patient of another set, divided by itself, have the same name.
    """
    hashes: dict[Path, str] = {}
    first: dict[int, Path] = {}
    named = []
    for sample, group in zip(samples, groups, strict=True):
        volume = sample.patient == str(sample.image)
        if sample.patient and not volume:
            named.append(sample)
            continue
        file = sample.image if volume else first.setdefault(group, sample.image)
        if file not in hashes:
            hashes[file] = _hash(file)
        begin = f"{_below(file, root)}-" if volume else CLUSTER
        named.append(replace(sample, patient=begin + hashes[file]))
    return named


def _hash(path: Path) -> str:
    """Of a scan's content, whichever files hold it."""
    return hashlib.sha256("".join(sha256_of(file) for file in source_files(path)).encode()).hexdigest()[:12]


def _class_counts(samples: Sequence[Sample], patients: Sequence[str]) -> NDArray[np.float64]:
    """Slices of each class that there is, and whether there are any, ``(patients, 2 * classes)``."""
    row = {patient: i for i, patient in enumerate(patients)}
    column = {label: i for i, label in enumerate(sorted({sample.label for sample in samples}))}
    slices = np.zeros((len(row), len(column)))
    for sample in samples:
        slices[row[sample.patient], column[sample.label]] += 1
    return np.hstack([slices, slices > 0])


def _below(path: Path, root: Path) -> str:
    """The path from the root on, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def _part(sample: Sample) -> str:
    return sample.split or f"fold {sample.fold}"
