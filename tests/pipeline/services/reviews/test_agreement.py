"""Cohen's kappa and Dice between reviewers and models."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tumorlens.pipeline.services.reviews.agreement import MODEL, _kappa, measure_agreement


def _decide(desk, name, reviewer, action, label="", square=0):
    case = desk.open(name, reviewer)
    if square:
        axis, index = case.view.axes[0], case.view.start
        drawn = case.view.mask_slice(axis, index).copy()
        drawn[:square, :square] = 1
        case.editor.draw("brush", index, drawn)
    desk.decide(case, reviewer, action, label)
    return case


def test_figures_by_hand(desk):
    _decide(desk, "meningioma.png", "Ann", "accept")
    _decide(desk, "healthy.png", "Ann", "accept")
    _decide(desk, "dicom", "Ann", "relabel", "glioma")
    case = _decide(desk, "volume.nii.gz", "Ann", "correct", square=20)
    added = int(np.count_nonzero(case.view.mask)) - int(np.count_nonzero(case.base))
    dice = 2 * np.count_nonzero(case.base) / (2 * np.count_nonzero(case.base) + added)
    (agreement,) = measure_agreement(desk.results(), desk.store)
    assert (agreement.first, agreement.second, agreement.n, agreement.same) == ("Ann", MODEL, 4, 3)
    # Labels (Ann, models): m-m, n-n, g-m, m-m. By chance they agree on (2*3 + 1*1)/16: kappa = (3/4 - 7/16)/(9/16).
    assert agreement.kappa == pytest.approx((3 / 4 - 7 / 16) / (9 / 16), abs=1e-4)
    assert agreement.n_masks == 2 and agreement.dice == pytest.approx((1 + dice) / 2, abs=1e-4)


def test_two_reviewers_are_compared_on_the_scans_of_both(desk):
    _decide(desk, "meningioma.png", "Ann", "accept")
    _decide(desk, "volume.nii.gz", "Ann", "correct", square=20)
    _decide(desk, "meningioma.png", "Bob", "relabel", "glioma")
    _decide(desk, "volume.nii.gz", "Bob", "accept")
    _decide(desk, "healthy.png", "Bob", "reject")
    between = measure_agreement(desk.results(), desk.store)[-1]
    assert (between.first, between.second, between.n, between.same) == ("Ann", "Bob", 2, 1)
    by_model = next(a for a in measure_agreement(desk.results(), desk.store) if a.first == "Bob")
    assert by_model.rejected == 1 and by_model.n == 2


def test_who_accepts_a_corrected_mask_agrees_with_its_reviewer(desk):
    _decide(desk, "volume.nii.gz", "Ann", "correct", square=20)
    _decide(desk, "volume.nii.gz", "Bob", "accept")
    ann, bob, between = measure_agreement(desk.results(), desk.store)
    assert between.dice == 1 and bob.dice == ann.dice < 1


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    pairs = [tuple(pair) for pair in np.array(["a", "b", "c", "d"])[rng.integers(0, 2 + seed % 3, (25, 2))].tolist()]
    assert _kappa(pairs) == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)), abs=1e-4)
    assert _kappa([("a", "b")] * 3) == 0


def test_one_label_throughout_has_no_kappa(desk):
    _decide(desk, "meningioma.png", "Ann", "accept")
    _decide(desk, "dicom", "Ann", "accept")
    (agreement,) = measure_agreement(desk.results(), desk.store)
    assert agreement.same == agreement.n == 2 and agreement.kappa is None
