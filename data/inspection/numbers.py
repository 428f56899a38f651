"""The numbers of a data report for its JSON file: tables and remarks, made of the statistics of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.config import PARTS
from tumorlens.data.datasets.classes import doubtful_names
from tumorlens.data.datasets.duplicates import (
    Pair,
    equal_files,
    group_by_likeness,
    labels_contradict,
    of_one_volume,
)
from tumorlens.data.datasets.folds import make_folds
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.statistics import UNLABELED, Statistics
from tumorlens.data.labels import TUMOR, TUMOR_FREE

_HIGH_AUC = 0.8  # from which a remark warns that a plain fact of the picture reveals the class


@dataclass(frozen=True)
class Folds:
    """The fold of each slice.

    Attributes:
        numbers: The folds, or None where there are too few patients.
        origin: ``"given"`` by the set, ``"made"`` as training makes them, or ``"none"``.
        reason: Why there are no folds, or empty.
    """

    numbers: list[int] | None
    origin: str
    reason: str = ""


def folds_of(stats: Statistics) -> Folds:
    """The set's own folds where every slice has one, else the folds that training makes."""
    own_folds = [sample.fold for sample in stats.samples if sample.fold is not None]
    if len(own_folds) == len(stats.samples):
        return Folds(own_folds, "given")
    samples = stats.samples
    if any(not sample.patient for sample in samples):
        samples = group_by_likeness(samples, stats.signatures)
    try:
        return Folds(make_folds(samples), "made")
    except InputError as error:
        return Folds(None, "none", str(error))


def numbers_of(stats: Statistics, pairs: Sequence[Pair], folds: Folds) -> dict[str, Any]:
    """Every number of the report."""
    return {
        "slices": len(stats.samples),
        "files": len({sample.image for sample in stats.samples}),
        "left_out": stats.failures,
        "classes": {name: _class(stats, name) for name in stats.classes},
        "patients": _patients(stats.samples),
        "sizes": _sizes(stats),
        "source_auc": source_auc(stats),
        "folds": _folds(stats, folds),
        "official_split": _table(stats, [sample.split for sample in stats.samples]),
        "copies": count_copies(stats.samples, pairs, folds),
    }


def _class(stats: Statistics, name: str) -> dict[str, Any]:
    of_class = stats.labels == name
    patients = Counter(s.patient for s, inside in zip(stats.samples, of_class, strict=True) if inside and s.patient)
    has_lesion = of_class & (stats.lesion_px > 0)
    return {
        "slices": int(of_class.sum()),
        "share": float(of_class.mean()),
        "patients": len(patients),
        "slices_without_patient": int(of_class.sum()) - sum(patients.values()),
        "color_slices": int(stats.color[of_class].sum()),
        "rows": _spread(stats.shape[of_class, 0]),
        "columns": _spread(stats.shape[of_class, 1]),
        "aspect": _spread(stats.aspect[of_class]),
        "mean_gray": _spread(stats.gray[of_class]),
        "head_share_of_picture": _spread(stats.head_fraction[of_class]),
        "masks": int(has_lesion.sum()),
        "masks_empty_at_this_size": int((of_class & (stats.lesion_px == 0)).sum()),
        "lesion_share_of_head": _spread(stats.lesion_px[has_lesion] / stats.head_px[has_lesion]),
    }


def _spread(values: NDArray[Any]) -> dict[str, float] | None:
    """Minimum, quartiles, median and maximum of some values; None without values."""
    if not values.size:
        return None
    names = ("min", "q25", "median", "q75", "max")
    return {name: float(v) for name, v in zip(names, np.percentile(values, (0, 25, 50, 75, 100)), strict=True)}


def _patients(samples: Sequence[Sample]) -> dict[str, Any]:
    counts = Counter(sample.patient for sample in samples if sample.patient)
    return {
        "n": len(counts),
        "slices_without": sum(not sample.patient for sample in samples),
        "slices_each": _spread(np.array(list(counts.values()))),
    }


def _sizes(stats: Statistics) -> list[dict[str, Any]]:
    """The number of slices of each size, in all and of each class, the most frequent size first."""
    counts = Counter((int(r), int(c)) for r, c in stats.shape)
    labels = stats.labels
    table = []
    for (rows, columns), n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        of_size = (stats.shape[:, 0] == rows) & (stats.shape[:, 1] == columns)
        classes = {name: int((labels[of_size] == name).sum()) for name in stats.classes}
        table.append({"rows": rows, "columns": columns, "slices": n, "classes": classes})
    return table


def source_auc(stats: Statistics) -> dict[str, float] | None:
    """The AUC with which each plain fact of the stored picture, such as its size, separates no_tumor from tumor.

    0.5 means that the fact says nothing of the class, 1 that it always reveals it. None where one of the two is
    missing. A high value means that healthy and sick slices come from different sources, which a classifier can learn
    instead of the tumor.
    """
    from sklearn.metrics import roc_auc_score

    labels = stats.labels
    labeled = labels != UNLABELED
    healthy = labels[labeled] == TUMOR_FREE
    if not healthy.any() or healthy.all():
        return None
    facts = {
        "rows": stats.shape[:, 0],
        "columns": stats.shape[:, 1],
        "aspect": stats.aspect,
        "color": stats.color,
        "mean gray": stats.gray,
        "head's share of the picture": stats.head_fraction,
    }
    areas = {name: float(roc_auc_score(healthy, np.asarray(v, float)[labeled])) for name, v in facts.items()}
    return {name: max(area, 1 - area) for name, area in areas.items()}


def _folds(stats: Statistics, folds: Folds) -> dict[str, Any]:
    names = [] if folds.numbers is None else [str(number) for number in folds.numbers]
    return {"origin": folds.origin, "reason": folds.reason or None, "table": _table(stats, names)}


def _table(stats: Statistics, parts: Sequence[str]) -> dict[str, Any] | None:
    """Slices and patients of each class in each part; None without parts."""
    if not any(parts):
        return None
    table: dict[str, Any] = {}
    labels = stats.labels
    for part in sorted(set(parts), key=_order):
        in_part = np.array([p == part for p in parts])
        members = [sample for sample, inside in zip(stats.samples, in_part, strict=True) if inside]
        table[part or "none"] = {
            "slices": len(members),
            "patients": len({s.patient for s in members if s.patient}),
            "classes": {name: int((labels[in_part] == name).sum()) for name in stats.classes},
            "patients_of_class": {
                name: len({s.patient for s in members if s.patient and (s.label or UNLABELED) == name})
                for name in stats.classes
            },
        }
    return table


def _order(part: str) -> tuple[int, int, str]:
    return PARTS.index(part) if part in PARTS else len(PARTS), len(part), part


def count_copies(samples: Sequence[Sample], pairs: Sequence[Pair], folds: Folds) -> dict[str, Any]:
    """The numbers of equal files and of slices that look alike: mirrored, of two patients, in two parts."""
    groups = equal_files([sample.image for sample in samples])
    apart = [pair for pair in pairs if not of_one_volume(samples[pair.first], samples[pair.second])]
    with_patients = [pair for pair in apart if samples[pair.first].patient and samples[pair.second].patient]
    two_patients = [pair for pair in with_patients if samples[pair.first].patient != samples[pair.second].patient]
    across_split = [p for p in apart if _differ(samples[p.first].split, samples[p.second].split)]
    numbers = folds.numbers
    across_folds = [p for p in apart if numbers is not None and numbers[p.first] != numbers[p.second]]
    in_test = {i for p in across_split for i in (p.first, p.second) if samples[i].split == "test"}
    two_labels = [p for p in apart if labels_contradict(samples[p.first], samples[p.second], p)]
    return {
        "equal_file_groups": len(groups),
        "equal_files": sum(len(group) for group in groups),
        "alike_pairs": len(apart),
        "alike_slices": len({i for pair in apart for i in (pair.first, pair.second)}),
        "mirrored_pairs": sum(pair.mirrored for pair in apart),
        "pairs_of_two_patients": len(two_patients),
        "pairs_without_patient": len(apart) - len(with_patients),
        "pairs_of_two_labels": len(two_labels),
        "pairs_across_folds": len(across_folds),
        "pairs_across_official_split": len(across_split),
        "test_slices_with_a_copy_in_training": len(in_test),
        "patients_across_official_split": _patients_across(samples, [sample.split for sample in samples]),
        "patients_across_folds": _patients_across(samples, [str(n) for n in numbers or [0] * len(samples)]),
    }


def _differ(first: str, second: str) -> bool:
    return bool(first and second and first != second)


def _patients_across(samples: Sequence[Sample], parts: Sequence[str]) -> int:
    places = {(s.patient, part) for s, part in zip(samples, parts, strict=True) if s.patient and part}
    return sum(n > 1 for n in Counter(patient for patient, _ in places).values())


def remarks(numbers: dict[str, Any]) -> list[str]:
    """Warnings to read before you train on this set, one sentence each."""
    lines = []
    if numbers["left_out"]:
        lines.append(f"{len(numbers['left_out'])} slices could not be read and are in none of these figures.")
    classes = numbers["classes"]
    named = [name for name in classes if name != UNLABELED]
    if len(named) == 1:
        lines.append(f"Every label is {named[0]}: a classifier needs a second class, such as {TUMOR_FREE}.")
    elif named and TUMOR_FREE not in named:
        lines.append(f"No slice shows {TUMOR_FREE}: a classifier of this set alone calls every scan a tumor.")
    lines += [f"{line}." for line in doubtful_names({name: classes[name]["slices"] for name in named})]
    if TUMOR in classes and not set(named) - {TUMOR, TUMOR_FREE}:
        lines.append("No type of tumor is known: a classifier of this set says only whether there is one.")
    elif TUMOR in classes:
        n = classes[TUMOR]["slices"]
        lines.append(f"The tumor's type is not known in {n} slices: they only teach and test whether there is a tumor.")
    if UNLABELED in classes:
        lines.append(f"{classes[UNLABELED]['slices']} slices have no label: they are of use to the segmenter only.")
    if not any(facts["masks"] for facts in classes.values()):
        lines.append("No slice has a mask: the set is of use to the classifier only.")
    if numbers["patients"]["slices_without"]:
        n = numbers["patients"]["slices_without"]
        lines.append(f"The patient of {n} slices is not known; only look-alikes can be kept on one side of a split.")
    if numbers["folds"]["reason"]:
        lines.append(f"Training cannot make folds: {numbers['folds']['reason']}.")
    high = {name: area for name, area in (numbers["source_auc"] or {}).items() if area >= _HIGH_AUC}
    if high:
        how = ", ".join(f"{name} (AUC {area:.2f})" for name, area in sorted(high.items(), key=lambda f: -f[1]))
        lines.append(f"The stored picture alone tells healthy from sick by its {how}: preprocessing must remove that.")
    return lines + _remarks_on_copies(numbers["copies"])


def _remarks_on_copies(copies: dict[str, Any]) -> list[str]:
    lines = []
    if copies["patients_across_official_split"] or copies["pairs_across_official_split"]:
        lines.append(
            f"The official split leaks: {copies['patients_across_official_split']} patients are on both sides, and "
            f"{copies['test_slices_with_a_copy_in_training']} test slices are copies or mirror images of others."
        )
    if copies["patients_across_folds"] or copies["pairs_across_folds"]:
        lines.append(
            f"The folds leak: {copies['patients_across_folds']} patients and {copies['pairs_across_folds']} pairs of "
            "look-alikes lie in two folds."
        )
    if copies["pairs_of_two_labels"]:
        lines.append(
            f"{copies['pairs_of_two_labels']} pairs of look-alikes have two labels; see `tumorlens data check`."
        )
    return lines
