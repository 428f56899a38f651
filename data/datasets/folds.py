"""Patient-grouped, stratified folds, and the check that no patient is on both sides of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.config import MAX_SEED
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import TUMOR_FREE

N_FOLDS = 5
CLUSTER = "alike-"  # begins the name of a group of look-alikes that stands in for an unknown patient
_DIVIDE = "`tumorlens data split` divides the set by patient anew"
REMEDY = f"--duplicates drop takes them out of the earlier part, and {_DIVIDE}"


@dataclass(frozen=True)
class Split:
    """The three parts of a data set, as indices into a list of samples."""

    train: list[int]
    validation: list[int]
    test: list[int]

    @property
    def parts(self) -> dict[str, list[int]]:
        """The parts by the names that messages give them."""
        return {"training": self.train, "validation": self.validation, "test": self.test}


def share_of_patients(samples: Sequence[Sample], members: Sequence[int], share: float, seed: int = 0) -> list[int]:
    """The slices of a random share of the patients. A larger share holds all of a smaller one.

    Args:
        samples: All slices. Each needs a patient.
        members: Indices of the slices to choose from.
        share: Above 0, at most 1; at least one patient of each class stays.
        seed: Another seed, another choice.
    """
    if share >= 1:
        return list(members)
    labels: dict[str, str] = {}  # a patient with tumor and healthy slices counts as the tumor
    for i in members:
        labels[samples[i].patient] = max(labels.get(samples[i].patient, ""), samples[i].label, key=_is_tumor)
    chosen: set[str] = set()
    for label in sorted(set(labels.values())):
        patients = sorted(patient for patient, own_label in labels.items() if own_label == label)
        order = np.random.default_rng((seed, len(patients))).permutation(len(patients))
        chosen |= {patients[i] for i in order[: max(1, round(share * len(patients)))]}
    return [i for i in members if samples[i].patient in chosen]


def _is_tumor(label: str) -> bool:
    return label not in ("", TUMOR_FREE)


def split_by_fold(samples: Sequence[Sample], fold: int, seed: int = 0) -> Split:
    """The split that tests on fold k, validates on fold k+1 and trains on the others (docs: protocols P1 and P2).

    The folds are those of `make_folds`: the data sets' own where they have any.

    Raises:
        InputError: There is no such fold, or a patient lies in two of the parts.
    """
    numbers = _fold_numbers(samples, fold, seed)
    validation = (fold + 1) % (int(numbers.max()) + 1)
    return _split_of(samples, (numbers != fold) & (numbers != validation), numbers == validation, numbers == fold)


def hold_out_fold(samples: Sequence[Sample], fold: int, seed: int = 0) -> Split:
    """The split that validates on a fold and trains on all others, without a test part; folds and errors as in
    `split_by_fold`."""
    numbers = _fold_numbers(samples, fold, seed)
    return _split_of(samples, numbers != fold, numbers == fold, np.zeros(len(numbers), bool))


def _fold_numbers(samples: Sequence[Sample], fold: int, seed: int) -> NDArray[np.int64]:
    numbers = np.array(make_folds(samples, seed=seed))
    n_folds = int(numbers.max()) + 1
    if not 0 <= fold < n_folds:
        raise InputError(f"fold {fold} does not exist, the data have folds 0 to {n_folds - 1}")
    return numbers


def _split_of(samples: Sequence[Sample], *parts: NDArray[np.bool_]) -> Split:
    split = Split(*([int(i) for i in np.flatnonzero(part)] for part in parts))
    check_patients(samples, split)
    return split


def split_official(
    samples: Sequence[Sample], seed: int = 0, drop: bool = False, check: bool = True
) -> tuple[Split, list[int]]:
    """The split into the data set's own parts. Where it has no validation part, a fifth of the training patients is it.

    Args:
        samples: All slices.
        seed: Another seed, another validation part.
        drop: Take patients who lie in two parts out of the earlier one, as
            `data.datasets.duplicates.drop_near_duplicates` does.
        check: Whether patients who still lie in two parts are an error.

    Returns:
        The split, and the indices that were taken out.

    Raises:
        InputError: The set has no official split, or a patient lies in two of the parts.
    """
    test = [i for i, s in enumerate(samples) if s.split == "test"]
    train = [i for i, s in enumerate(samples) if s.split in ("train", "")]
    validation = [i for i, s in enumerate(samples) if s.split == "validation"]
    if not test or not train:
        raise InputError("the data have no official train and test parts; use --split folds")
    if not validation:
        folds = make_folds([samples[i] for i in train], N_FOLDS, seed)
        validation = [i for i, f in zip(train, folds, strict=True) if f == 0]
        train = [i for i, f in zip(train, folds, strict=True) if f != 0]
    removed: set[int] = set()
    if drop:
        tested = {samples[i].patient for i in test if samples[i].patient}
        validated = {samples[i].patient for i in validation if samples[i].patient}
        removed |= {i for i in validation if samples[i].patient in tested}
        removed |= {i for i in train if samples[i].patient in tested | validated}
    split = Split(*([i for i in part if i not in removed] for part in (train, validation, test)))
    if check:
        check_patients(samples, split, REMEDY)
    return split, sorted(removed)


def make_folds(samples: Sequence[Sample], n_folds: int | None = None, seed: int = 0) -> list[int]:
    """A fold per sample: grouped by patient, stratified by label (scikit-learn's StratifiedGroupKFold).

    A sample without a patient is a group of its own; merge near-duplicates first with
    `data.datasets.duplicates.group_by_likeness`.

    Args:
        samples: All slices.
        n_folds: Make this many, whatever folds the samples have. By default the folds of a data set stand. A set
            without any gets as many as the others have, where a patient of another set takes the fold from there. If
            no set has folds, `N_FOLDS` are made.
        seed: Another seed, other folds.

    Raises:
        InputError: There are fewer patients than folds, or fewer slices of every class, or the seed is out of range. By
            default also: a set has folds for some of its slices only, or the folds leave a number out.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed {seed} is not a number from 0 to {MAX_SEED}")
    if n_folds is None:
        return _completed_folds(samples, seed)
    shortage = _shortage(samples, n_folds)
    if shortage:
        raise InputError(shortage)
    return _stratified_folds(samples, n_folds, seed)


def _completed_folds(samples: Sequence[Sample], seed: int) -> list[int]:
    """The folds of the data sets that have any, and folds for the samples of the others."""
    given = _given_folds(samples)
    if not given:
        return make_folds(samples, N_FOLDS, seed)
    n_folds = max(given) + 1
    gaps = sorted(set(range(n_folds)) - given)
    if gaps:
        raise InputError(f"the data have folds up to {n_folds - 1}, but none is {gaps[0]}: folds are counted from 0")
    fold_of = {s.patient: s.fold for s in samples if s.patient and s.fold is not None}
    folds = [fold_of.get(s.patient) if s.fold is None else s.fold for s in samples]
    others = [s for s, fold in zip(samples, folds, strict=True) if fold is None]
    if others:  # a few patients need not fill all folds: the other sets do
        spread = _spread_folds if _shortage(others, n_folds) else _stratified_folds
        made = iter(spread(others, n_folds, seed))
        return [next(made) if fold is None else fold for fold in folds]
    return [fold for fold in folds if fold is not None]


def _given_folds(samples: Sequence[Sample]) -> set[int]:
    """The numbers of the folds that the data sets have."""
    sources: dict[int, list[Sample]] = {}
    for sample in samples:
        sources.setdefault(sample.source, []).append(sample)
    for members in sources.values():
        lacking = [s for s in members if s.fold is None]
        if 0 < len(lacking) < len(members):
            raise InputError(
                f"{len(lacking)} of {len(members)} slices have no fold; give one to all or to none "
                f"(`tumorlens data split --folds 5` makes them). The first without is {lacking[0].name}"
            )
    return {s.fold for s in samples if s.fold is not None}


def _groups(samples: Sequence[Sample]) -> list[str]:
    return [s.patient or f"sample-{i}" for i, s in enumerate(samples)]


def _strata(samples: Sequence[Sample]) -> list[str]:
    return [s.label or str(s.mask is not None) for s in samples]


def _shortage(samples: Sequence[Sample], n_folds: int) -> str:
    """What the samples have too little of for that many folds; empty if they are enough."""
    n_groups = len(set(_groups(samples)))
    if n_groups < n_folds:
        return f"{n_groups} patients are too few for {n_folds} folds"
    if max(Counter(_strata(samples)).values()) < n_folds:
        return f"{len(samples)} slices are too few: {n_folds} folds need {n_folds} of a class"
    return ""


def _stratified_folds(samples: Sequence[Sample], n_folds: int, seed: int) -> list[int]:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = [0] * len(samples)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for number, (_, members) in enumerate(splitter.split(np.zeros(len(samples)), _strata(samples), _groups(samples))):
        for i in members:
            folds[i] = number
    return folds


def _spread_folds(samples: Sequence[Sample], n_folds: int, seed: int) -> list[int]:
    """Folds of few patients: one after the other in random order."""
    groups = _groups(samples)
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[i]: place % n_folds for place, i in enumerate(order)}
    return [fold_of[group] for group in groups]


def check_patients(samples: Sequence[Sample], split: Split, remedy: str = _DIVIDE) -> None:
    """Raise an `InputError` that names two samples, and what to do, if a patient lies in two parts of a split."""
    first: dict[str, tuple[str, Sample]] = {}
    across: dict[str, str] = {}
    for part, members in split.parts.items():
        for i in members:
            sample = samples[i]
            if not sample.patient:
                continue
            other_part, other = first.setdefault(sample.patient, (part, sample))
            if other_part != part:
                places = f"{other_part} ({other.name}) and in {part} ({sample.name})"
                # A group of look-alikes stands in for a patient whom the set does not name.
                alike = sample.patient.startswith(CLUSTER)
                who = "slices that look alike are" if alike else f"patient {sample.patient} is"
                across.setdefault(sample.patient, f"{who} in {places}")
    if across:
        others = f", and so are {len(across) - 1} more" if len(across) > 1 else ""
        raise InputError(f"{next(iter(across.values()))}{others}; {remedy}")
