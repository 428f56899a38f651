"""Folds keep patients together, and a patient on both sides of a split is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tumorlens.data.datasets.folds import (
    Split,
    check_patients,
    hold_out_fold,
    make_folds,
    share_of_patients,
    split_by_fold,
    split_official,
)
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES


def samples_of(patients, **fields):
    return [Sample(Path(f"{i}.png"), "glioma", patient=p, **fields) for i, p in enumerate(patients)]


def test_folds_keep_patients_together_and_labels_balanced():
    rng = np.random.default_rng(0)
    samples = []
    for patient in range(60):
        label = ("no_tumor", "glioma", "meningioma")[patient % 3]
        samples += [Sample(Path(f"{patient}-{k}"), label, f"p{patient}") for k in range(int(rng.integers(1, 9)))]
    folds = make_folds(samples, seed=3)
    assert folds == make_folds(samples, seed=3)
    for patient in {s.patient for s in samples}:
        assert len({f for s, f in zip(samples, folds, strict=True) if s.patient == patient}) == 1
    for label in ("no_tumor", "glioma", "meningioma"):
        counts = np.bincount([f for s, f in zip(samples, folds, strict=True) if s.label == label], minlength=5)
        assert counts.min() > 0.5 * counts.mean()


def test_too_few_patients():
    with pytest.raises(InputError, match="3 patients are too few for 5 folds"):
        make_folds(samples_of(["a", "b", "c", "a"]))


def test_too_few_slices_of_every_class():
    samples = [Sample(Path(f"{i}.png"), CLASSES[i % 4], patient=str(i)) for i in range(16)]
    with pytest.raises(InputError, match="16 slices are too few: 5 folds need 5 of a class"):
        make_folds(samples)


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(InputError, match=r"^seed 4294967296 is not a number from 0 to 4294967295$"):
        make_folds(samples_of([f"p{i}" for i in range(20)]), seed=2**32)


def test_split_uses_the_next_fold_for_validation():
    samples = [Sample(Path(f"{i}"), "glioma", f"p{i}", fold=i % 5) for i in range(20)]
    split = split_by_fold(samples, 4)
    assert {samples[i].fold for i in split.test} == {4}
    assert {samples[i].fold for i in split.validation} == {0}
    assert {samples[i].fold for i in split.train} == {1, 2, 3}
    with pytest.raises(InputError, match="fold 5 does not exist"):
        split_by_fold(samples, 5)


def test_a_share_of_the_patients_is_one_of_each_class_and_grows():
    samples = [
        Sample(Path(f"{label}{patient}-{k}"), label, f"{label}{patient}")
        for label, patients in (("no_tumor", 4), ("glioma", 20), ("meningioma", 3))
        for patient in range(patients)
        for k in range(2)
    ]
    samples.append(Sample(Path("a tumor-free slice"), "no_tumor", "glioma7"))
    whole = list(range(len(samples)))
    assert share_of_patients(samples, whole, 1.0) == whole
    kept = {share: share_of_patients(samples, whole, share) for share in (0.05, 0.25, 0.5)}
    assert set(kept[0.05]) < set(kept[0.25]) < set(kept[0.5]) < set(whole)
    for share, members in kept.items():
        patients = {samples[i].patient for i in members}
        assert members == [i for i in whole if samples[i].patient in patients]  # all slices of each, in order
        counts = [sum(p.startswith(label) for p in patients) for label in ("no_tumor", "glioma", "meningioma")]
        assert counts == [max(1, round(share * n)) for n in (4, 20, 3)]


def test_a_patient_on_both_sides_is_named():
    samples = samples_of(["a", "b", "a"])
    with pytest.raises(InputError, match=r"patient a is in training \(0\.png\) and in test \(2\.png\); `tumorlens"):
        check_patients(samples, Split([0, 1], [], [2]))
    samples = samples_of(["a", "b", "alike-7", "a", "b", "alike-7"])
    with pytest.raises(InputError, match=r"patient a .*, and so are 2 more; `tumorlens data split` divides the set"):
        check_patients(samples, Split([0, 1, 2], [], [3, 4, 5]))
    alike = r"slices that look alike are in training \(2\.png\) and in test \(5\.png\)"
    with pytest.raises(InputError, match=alike):
        check_patients(samples, Split([0, 1, 2], [], [5]))


def test_an_overlap_in_a_given_fold_column_raises():
    samples = [Sample(Path(f"{i}"), "glioma", "one" if i < 2 else f"p{i}", fold=i % 5) for i in range(10)]
    with pytest.raises(InputError, match="patient one"):
        split_by_fold(samples, 0)


def test_official_split():
    samples = [Sample(Path(f"{i}"), "glioma", f"p{i}", split="test" if i > 14 else "train") for i in range(20)]
    split, gone = split_official(samples)
    assert gone == []
    assert split.test == [15, 16, 17, 18, 19]
    assert len(split.validation) == 3
    with pytest.raises(InputError, match="no official"):
        split_official(samples[:10])


def test_patients_in_two_official_parts_give_way_where_duplicates_are_dropped():
    parts = ["train"] * 6 + ["validation"] * 3 + ["test"] * 3
    patients = ["a", "b", "c", "d", "e", "a", "f", "b", "g", "h", "c", "g"]
    samples = [Sample(Path(f"{i}"), "glioma", p, split=s) for i, (p, s) in enumerate(zip(patients, parts, strict=True))]
    with pytest.raises(InputError, match="patient"):
        split_official(samples)
    split, gone = split_official(samples, drop=True)
    assert split == Split([0, 3, 4, 5], [6, 7], [9, 10, 11])  # c is tested, b validated, g tested
    assert gone == [1, 2, 8]


def test_missing_folds_are_reported():
    some = [Sample(Path(f"{i}.png"), "glioma", f"p{i}", fold=None if i == 3 else i % 5) for i in range(10)]
    with pytest.raises(InputError, match="1 of 10 slices have no fold; give one to all or to none"):
        split_by_fold(some, 0)
    two_sets = [*some, *(Sample(Path(f"new-{i}.png"), "glioma", f"q{i}", source=1) for i in range(10))]
    with pytest.raises(InputError, match=r"1 of 10 slices have no fold.*The first without is 3\.png"):
        split_by_fold(two_sets, 0)
    gap = [Sample(Path(f"{i}.png"), "glioma", f"p{i}", fold=(0, 2, 3)[i % 3]) for i in range(9)]
    with pytest.raises(InputError, match="folds up to 3, but none is 1"):
        split_by_fold(gap, 0)


def test_a_set_without_folds_gets_as_many_as_the_others_have():
    old = [Sample(Path(f"old-{i}.png"), "glioma", f"p{i // 2}", fold=i // 2 % 4) for i in range(24)]
    new = [Sample(Path(f"new-{i}.png"), CLASSES[i % 2], f"q{i // 3}", source=1) for i in range(36)]
    new += [Sample(Path("again.png"), "glioma", "p6", source=2), Sample(Path("unknown.png"), "glioma", source=2)]
    samples = [*old, *new]
    folds = make_folds(samples, seed=3)
    assert folds == make_folds(samples, seed=3)
    assert folds[:24] == [s.fold for s in old]
    assert folds[-2] == 2  # patient p6 lies there in the other set
    assert min(np.bincount(folds[24:], minlength=4)) >= 6 and max(folds) == 3
    for fold in range(4):
        split = split_by_fold(samples, fold, seed=3)  # checks the patients, too
        assert split.test == [i for i, f in enumerate(folds) if f == fold]
        assert hold_out_fold(samples, fold, seed=3).validation == split.test
    with pytest.raises(InputError, match="fold 4 does not exist"):
        split_by_fold(samples, 4)
    assert sorted(set(make_folds(samples, 3))) == [0, 1, 2]  # as `data split --folds 3` makes them


@pytest.mark.parametrize("n", [1, 3, 6])
def test_a_set_of_few_patients_joins_one_with_folds(n):
    old = [Sample(Path(f"old-{i}.png"), "glioma", f"p{i}", fold=i % 5) for i in range(20)]
    few = [Sample(Path(f"new-{i}.png"), CLASSES[i // 2 % 4], f"q{i // 2}", source=1) for i in range(2 * n)]
    folds = make_folds([*old, *few])
    assert folds[:20] == [s.fold for s in old]
    folds = folds[20:]
    assert folds[::2] == folds[1::2] and len(set(folds)) == min(n, 5)
