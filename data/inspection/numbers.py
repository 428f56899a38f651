"""The numbers of a data report: from the survey to what JSON can hold, with nothing undefined but null."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.duplicates import Pair, labels_contradict, equal_files, group_by_likeness, of_one_volume
from tumorlens.data.datasets.folds import make_folds
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.survey import UNLABELED, Survey
from tumorlens.data.labels import CLASSES, NO_TUMOR

_PARTS = ("train", "validation", "test")
_TELLING = 0.8  # AUC from which a plain fact of the picture is called out for giving the class away


@dataclass(frozen=True)
class Folds:
    """A fold per slice, whose they are (``"given"`` or ``"made"``), or why there are none."""

    numbers: list[int] | None
    origin: str
    reason: str = ""


def folds_of(found: Survey) -> Folds:
    """The set's own folds where every slice has one, else those that training would make."""
    given = [sample.fold for sample in found.samples]
    known = [fold for fold in given if fold is not None]
    if len(known) == len(given):
        return Folds(known, "given")
    samples = found.samples
    if any(not sample.patient for sample in samples):
        samples = group_by_likeness(samples, found.marks)
    try:
        return Folds(make_folds(samples), "made")
    except InputError as error:
        return Folds(None, "none", str(error))


def numbers_of(found: Survey, pairs: Sequence[Pair], folds: Folds) -> dict[str, Any]:
    """Every figure of the report."""
    return {
        "slices": len(found.samples),
        "files": len({sample.image for sample in found.samples}),
        "left_out": found.failures,
        "classes": {name: _class(found, name) for name in found.classes},
        "patients": _patients(found.samples),
        "sizes": _sizes(found),
        "betrayal": betrayal(found),
        "folds": _folds(found, folds),
        "official_split": _table(found, [sample.split for sample in found.samples]),
        "copies": copies(found.samples, pairs, folds),
    }


def _class(found: Survey, name: str) -> dict[str, Any]:
    own = found.labels == name
    patients = Counter(s.patient for s, mine in zip(found.samples, own, strict=True) if mine and s.patient)
    drawn = own & (found.lesion_px > 0)
    return {
        "slices": int(own.sum()),
        "share": float(own.mean()),
        "patients": len(patients),
        "slices_without_patient": int(own.sum()) - sum(patients.values()),
        "color_slices": int(found.color[own].sum()),
        "rows": _spread(found.shape[own, 0]),
        "columns": _spread(found.shape[own, 1]),
        "aspect": _spread(found.aspect[own]),
        "mean_gray": _spread(found.gray[own]),
        "head_share_of_picture": _spread(found.head_fraction[own]),
        "masks": int(drawn.sum()),
        "masks_empty_at_this_size": int((own & (found.lesion_px == 0)).sum()),
        "lesion_share_of_head": _spread(found.lesion_px[drawn] / found.head_px[drawn]),
    }


def _spread(values: NDArray[Any]) -> dict[str, float] | None:
    """Least, median and greatest value and the quartiles; none of no values."""
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


def _sizes(found: Survey) -> list[dict[str, Any]]:
    """How often each size comes in each class, the most frequent first."""
    counts = Counter((int(r), int(c)) for r, c in found.shape)
    labels = found.labels
    table = []
    for (rows, columns), n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        own = (found.shape[:, 0] == rows) & (found.shape[:, 1] == columns)
        classes = {name: int((labels[own] == name).sum()) for name in found.classes}
        table.append({"rows": rows, "columns": columns, "slices": n, "classes": classes})
    return table


def betrayal(found: Survey) -> dict[str, float] | None:
    """How well each plain fact of the stored picture alone tells no_tumor from the tumors: the area under the ROC
    curve, 0.5 (not at all) to 1 (always); none where one side is missing."""
    from sklearn.metrics import roc_auc_score

    labels = found.labels
    known = labels != UNLABELED
    healthy = labels[known] == CLASSES[NO_TUMOR]
    if not healthy.any() or healthy.all():
        return None
    facts = {
        "rows": found.shape[:, 0],
        "columns": found.shape[:, 1],
        "aspect": found.aspect,
        "color": found.color,
        "mean gray": found.gray,
        "head's share of the picture": found.head_fraction,
    }
    areas = {name: float(roc_auc_score(healthy, np.asarray(v, float)[known])) for name, v in facts.items()}
    return {name: max(area, 1 - area) for name, area in areas.items()}


def _folds(found: Survey, folds: Folds) -> dict[str, Any]:
    names = [] if folds.numbers is None else [str(number) for number in folds.numbers]
    return {"origin": folds.origin, "reason": folds.reason or None, "table": _table(found, names)}


def _table(found: Survey, parts: Sequence[str]) -> dict[str, Any] | None:
    """Slices and patients of each class in each part; none where there are no parts."""
    if not any(parts):
        return None
    table: dict[str, Any] = {}
    labels = found.labels
    for part in sorted(set(parts), key=_order):
        own = np.array([p == part for p in parts])
        members = [sample for sample, mine in zip(found.samples, own, strict=True) if mine]
        table[part or "none"] = {
            "slices": len(members),
            "patients": len({s.patient for s in members if s.patient}),
            "classes": {name: int((labels[own] == name).sum()) for name in found.classes},
            "patients_of_class": {
                name: len({s.patient for s in members if s.patient and (s.label or UNLABELED) == name})
                for name in found.classes
            },
        }
    return table


def _order(part: str) -> tuple[int, int, str]:
    return _PARTS.index(part) if part in _PARTS else len(_PARTS), len(part), part


def copies(samples: Sequence[Sample], pairs: Sequence[Pair], folds: Folds) -> dict[str, Any]:
    """Equal files and look-alikes: how many, mirrored, of how many patients, across which borders."""
    groups = equal_files([sample.image for sample in samples])
    apart = [pair for pair in pairs if not of_one_volume(samples[pair.first], samples[pair.second])]
    known = [pair for pair in apart if samples[pair.first].patient and samples[pair.second].patient]
    strangers = [pair for pair in known if samples[pair.first].patient != samples[pair.second].patient]
    across_split = [p for p in apart if _differ(samples[p.first].split, samples[p.second].split)]
    numbers = folds.numbers
    across_folds = [p for p in apart if numbers is not None and numbers[p.first] != numbers[p.second]]
    in_test = {i for p in across_split for i in (p.first, p.second) if samples[i].split == "test"}
    labels = [p for p in apart if labels_contradict(samples[p.first], samples[p.second], p)]
    return {
        "equal_file_groups": len(groups),
        "equal_files": sum(len(group) for group in groups),
        "alike_pairs": len(apart),
        "alike_slices": len({i for pair in apart for i in (pair.first, pair.second)}),
        "mirrored_pairs": sum(pair.mirrored for pair in apart),
        "pairs_of_two_patients": len(strangers),
        "pairs_without_patient": len(apart) - len(known),
        "pairs_of_two_labels": len(labels),
        "pairs_across_folds": len(across_folds),
        "pairs_across_official_split": len(across_split),
        "test_slices_with_a_copy_in_training": len(in_test),
        "patients_across_official_split": _patients_across(samples, [sample.split for sample in samples]),
        "patients_across_folds": _patients_across(samples, [str(n) for n in numbers or [0] * len(samples)]),
    }


def _differ(first: str, second: str) -> bool:
    return bool(first and second and first != second)


def _patients_across(samples: Sequence[Sample], parts: Sequence[str]) -> int:
    seen = {(s.patient, part) for s, part in zip(samples, parts, strict=True) if s.patient and part}
    return sum(n > 1 for n in Counter(patient for patient, _ in seen).values())


def remarks(numbers: dict[str, Any]) -> list[str]:
    """What a person should know before training on this set, in plain sentences."""
    said = []
    if numbers["left_out"]:
        said.append(f"{len(numbers['left_out'])} slices could not be read and are in none of these figures.")
    classes = numbers["classes"]
    absent = [name for name in CLASSES if name not in classes]
    if absent and set(classes) != {UNLABELED}:
        said.append(f"No slice shows {', '.join(absent)}: a classifier cannot learn it from this set alone.")
    if UNLABELED in classes:
        said.append(f"{classes[UNLABELED]['slices']} slices have no label: they are of use to the segmenter only.")
    if not any(facts["masks"] for facts in classes.values()):
        said.append("No slice has a mask: the set is of use to the classifier only.")
    if numbers["patients"]["slices_without"]:
        n = numbers["patients"]["slices_without"]
        said.append(f"The patient of {n} slices is not known; only look-alikes can be kept on one side of a split.")
    if numbers["folds"]["reason"]:
        said.append(f"Training cannot make folds: {numbers['folds']['reason']}.")
    telling = {name: area for name, area in (numbers["betrayal"] or {}).items() if area >= _TELLING}
    if telling:
        how = ", ".join(f"{name} (AUC {area:.2f})" for name, area in sorted(telling.items(), key=lambda f: -f[1]))
        said.append(f"The stored picture alone tells healthy from sick by its {how}: preparing must take that away.")
    return said + _remarks_on_copies(numbers["copies"])


def _remarks_on_copies(found: dict[str, Any]) -> list[str]:
    said = []
    if found["patients_across_official_split"] or found["pairs_across_official_split"]:
        said.append(
            f"The official split leaks: {found['patients_across_official_split']} patients are on both sides, and "
            f"{found['test_slices_with_a_copy_in_training']} test slices are copies or mirror images from another part."
        )
    if found["patients_across_folds"] or found["pairs_across_folds"]:
        said.append(
            f"The folds leak: {found['patients_across_folds']} patients and {found['pairs_across_folds']} pairs of "
            "look-alikes lie in two folds."
        )
    if found["pairs_of_two_labels"]:
        said.append(f"{found['pairs_of_two_labels']} pairs of look-alikes have two labels; see `tumorlens data check`.")
    return said
