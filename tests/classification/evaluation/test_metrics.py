"""Metrics of a classifier against scikit-learn and torchmetrics, their intervals against a loop, and edge cases."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from tests.data.training.runs import fake_set
from tumorlens.classification.evaluation.metrics import (
    classification_metrics,
    classification_report,
    decision_report,
    expected_calibration_error,
    gate_metrics,
    patient_label,
    per_patient,
    reliability,
    restrict,
)
from tumorlens.classification.evaluation.plots import plot_confusion, plot_reliability, plot_roc
from tumorlens.data.bootstrap import interval
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, SHIPPED_CLASSES


def made_up(seed=0, n=240, n_patients=36, classes=(0, 1, 2, 3), digits=2):
    """Labels by patient, probabilities that lean to the truth; rounded, so that many are equal."""
    random = np.random.default_rng(seed)
    number = random.integers(0, n_patients, n)
    labels = np.array(classes)[number % len(classes)]
    logits = random.normal(size=(n, 4)) + 1.3 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = np.maximum(probabilities.round(digits), 10.0**-digits)
    return labels, probabilities / probabilities.sum(1, keepdims=True), np.array([f"p{k:02}" for k in number])


@pytest.fixture(scope="module")
def case():
    return made_up()


@pytest.fixture(scope="module")
def report(case):
    return classification_report(*case, seed=4)


def values(figures):
    return {name: None if f is None else f["value"] for name, f in figures.items()}


def test_values_per_slice_are_those_of_scikit_learn(case, report):
    labels, probabilities, _ = case
    guess, part = probabilities.argmax(1), report["slice"]
    assert part["n"] == 240
    assert part["accuracy"]["value"] == pytest.approx(sk.accuracy_score(labels, guess))
    assert part["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(labels, guess))
    assert part["macro_f1"]["value"] == pytest.approx(sk.f1_score(labels, guess, average="macro"))
    assert list(values(part["recall"]).values()) == pytest.approx(sk.recall_score(labels, guess, average=None))
    assert part["roc_auc_mean"]["value"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert part["log_loss"]["value"] == pytest.approx(sk.log_loss(labels, probabilities))
    assert part["brier"]["value"] == pytest.approx(
        sum(sk.brier_score_loss(labels == c, probabilities[:, c]) for c in range(4))
    )
    assert part["confusion"] == sk.confusion_matrix(labels, guess).tolist()
    assert report["classes"] == list(CLASSES)


def ece_by_hand(labels, probabilities, bins=15):
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for k in range(bins):
        inside = (confidence >= k / bins) & (confidence < (k + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return total


def test_ece_is_the_gap_weighted_by_bin():
    labels, probabilities, patients = made_up(digits=5)
    measured = classification_report(labels, probabilities, patients)["slice"]["ece"]["value"]
    assert measured == pytest.approx(ece_by_hand(labels, probabilities), abs=1e-6)
    assert measured == pytest.approx(expected_calibration_error(labels, probabilities))


def test_ece_of_known_cases():
    sure = np.eye(4)[[0, 1, 2, 3]]
    assert expected_calibration_error(np.array([0, 1, 2, 3]), sure) == 0
    assert expected_calibration_error(np.array([1, 2, 3, 0]), sure) == 1
    # 0.8 sure and right three times in four
    shares = np.tile([0.8, 0.2, 0, 0], (4, 1))
    assert expected_calibration_error(np.array([0, 0, 0, 1]), shares) == pytest.approx(0.05)


def pairwise_auc(positive, score):
    """Share of pairs in order, equal ones half; scikit-learn's would take seconds for 4000 draws."""
    gap = score[positive][:, None] - score[~positive][None]
    return ((gap > 0) + 0.5 * (gap == 0)).mean() if gap.size else None


def statistics(labels, probabilities):
    """Each figure as a function of indices, by the libraries."""

    def on(function):
        return lambda i: function(labels[i], probabilities[i])

    def present(y):
        return sorted(set(y.tolist()))

    def mean_auc(y, p):
        measured = [a for c in range(4) if (a := pairwise_auc(y == c, p[:, c])) is not None]
        return np.mean(measured) if measured else None

    return {
        "accuracy": on(lambda y, p: sk.accuracy_score(y, p.argmax(1))),
        "balanced_accuracy": on(
            lambda y, p: sk.recall_score(y, p.argmax(1), labels=present(y), average="macro", zero_division=0)
        ),
        "macro_f1": on(lambda y, p: sk.f1_score(y, p.argmax(1), labels=present(y), average="macro", zero_division=0)),
        "log_loss": on(lambda y, p: sk.log_loss(y, p, labels=range(p.shape[1]))),
        "ece": on(expected_calibration_error),
        "recall": on(lambda y, p: (p.argmax(1) == y)[y == 0].mean() if (y == 0).any() else None),
        "roc_auc": on(lambda y, p: pairwise_auc(y == 2, p[:, 2])),
        "roc_auc_mean": on(mean_auc),
    }


@pytest.mark.parametrize(
    "name", ["accuracy", "balanced_accuracy", "macro_f1", "log_loss", "recall", "roc_auc", "roc_auc_mean"]
)
def test_fast_intervals_equal_the_libraries_in_every_draw(name):
    """Five patients of four classes: classes are missing in many draws."""
    labels, probabilities, patients = made_up(seed=1, n=50, n_patients=5)
    part = classification_report(labels, probabilities, patients, seed=4)["slice"]
    measured = {"recall": part["recall"]["no_tumor"], "roc_auc": part["roc_auc"]["meningioma"]}.get(
        name, part.get(name)
    )
    expected = interval(statistics(labels, probabilities)[name], patients, seed=4)
    assert measured == pytest.approx(expected, abs=2e-6)
    assert expected["low"] <= expected["value"] <= expected["high"] and expected["low"] < expected["high"]


def test_the_draws_of_ece_equal_the_library_and_its_interval_holds_it():
    labels, probabilities, patients = made_up(seed=1, n=50, n_patients=5, digits=5)
    measured = classification_report(labels, probabilities, patients, seed=4)["slice"]["ece"]
    drawn = []

    def keep(indices):
        drawn.append(statistics(labels, probabilities)["ece"](indices))
        return drawn[-1]

    interval(keep, patients, seed=4)
    value, *draws = drawn  # of all slices, then of each draw
    assert measured["value"] == pytest.approx(value)
    assert measured["high"] == pytest.approx(value + 1.96 * np.std(draws), abs=2e-6)
    assert 0 <= measured["low"] < value


def test_auc_by_pairs_is_that_of_scikit_learn(case, report):
    labels, probabilities, _ = case
    for c, name in enumerate(CLASSES):
        expected = pairwise_auc(labels == c, probabilities[:, c])
        assert expected == pytest.approx(sk.roc_auc_score(labels == c, probabilities[:, c]))
        assert report["slice"]["roc_auc"][name]["value"] == pytest.approx(expected)


def test_patient_part_is_the_slice_part_of_mean_probabilities(case, report):
    labels, probabilities, patients = case
    names = np.unique(patients)
    means = np.stack([probabilities[patients == p].mean(axis=0) for p in names])
    truth = np.array([labels[patients == p][0] for p in names])
    expected = classification_report(truth, means, names, seed=4)["slice"]
    measured = report["patient"]
    assert measured["n"] == len(names) and measured["confusion"] == expected["confusion"]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc_mean", "log_loss", "ece", "brier"):
        assert measured[name] == pytest.approx(expected[name]), name
    assert values(measured["recall"]) == pytest.approx(values(expected["recall"]))


def test_label_of_a_patient():
    assert patient_label(np.array([0, 0, 0, 2])) == 2
    assert patient_label(np.array([3, 1, 3, 0, 0, 0])) == 3
    assert patient_label(np.array([0, 0])) == 0
    names, truth, means = per_patient(np.array([0, 2, 0]), np.eye(4)[[0, 2, 1]], ["b", "b", "a"])
    assert list(names) == ["a", "b"] and truth.tolist() == [0, 2]
    assert means.tolist() == [[0, 1, 0, 0], [0.5, 0, 0.5, 0]]


def test_three_classes_are_renormalized():
    labels, probabilities, patients = made_up(classes=(1, 2, 3))
    measured = classification_report(labels, probabilities, patients, classes=(1, 2, 3))
    shares = probabilities[:, 1:] / probabilities[:, 1:].sum(1, keepdims=True)
    part = measured["slice"]
    assert measured["classes"] == ["glioma", "meningioma", "pituitary"]
    assert set(part["recall"]) == set(measured["classes"])
    assert part["confusion"] == sk.confusion_matrix(labels - 1, shares.argmax(1)).tolist()
    assert part["log_loss"]["value"] == pytest.approx(sk.log_loss(labels, shares))
    assert part["accuracy"]["value"] > (probabilities.argmax(1) == labels).mean()


def test_nothing_left_of_a_row_is_shared_equally():
    assert restrict(np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]), (1, 2)).tolist() == [[0.5, 0.5], [1, 0]]


def test_a_class_that_the_truth_lacks_is_left_out_but_errors_count():
    """No healthy slice, yet some are called healthy: no recall of it, and each is an error of another class."""
    labels, probabilities, patients = made_up(classes=(1, 2, 3))
    part = classification_report(labels, probabilities, patients)["slice"]
    guess = probabilities.argmax(1)
    assert (guess == 0).any()
    assert part["recall"]["no_tumor"] is None and part["roc_auc"]["no_tumor"] is None
    recall = sk.recall_score(labels, guess, labels=[1, 2, 3], average=None)
    assert part["balanced_accuracy"]["value"] == pytest.approx(recall.mean())
    assert part["macro_f1"]["value"] == pytest.approx(sk.f1_score(labels, guess, labels=[1, 2, 3], average="macro"))
    assert part["roc_auc_mean"]["value"] == pytest.approx(
        np.mean([sk.roc_auc_score(labels == c, probabilities[:, c]) for c in (1, 2, 3)])
    )


def test_one_class_one_patient_and_nothing():
    one = classification_report(np.full(3, 1), np.tile([0, 1.0, 0, 0], (3, 1)), ["a"] * 3)
    assert one["slice"]["accuracy"] == {"value": 1, "low": None, "high": None}
    assert one["slice"]["roc_auc_mean"] is None and one["slice"]["balanced_accuracy"]["value"] == 1
    assert one["patient"]["n"] == 1
    two = classification_report(np.array([0, 1]), np.eye(4)[[0, 1]], ["a"] * 2)
    assert two["slice"]["roc_auc_mean"] == {"value": 1, "low": None, "high": None}
    none = classification_report(np.zeros(0, int), np.zeros((0, 4)), [])
    assert none["slice"]["n"] == none["patient"]["n"] == 0 and none["slice"]["accuracy"] is None
    assert none["slice"].keys() == one["slice"].keys()
    for measured in (one, none):
        json.dumps(measured, allow_nan=False)


def test_a_certain_error_costs_much_but_not_infinitely_much():
    wrong = classification_report(np.array([1]), np.array([[1.0, 0, 0, 0]]), ["a"])["slice"]
    assert wrong["log_loss"]["value"] == pytest.approx(36.04, abs=0.01)
    assert wrong["brier"]["value"] == 2


@pytest.mark.parametrize(
    ("labels", "probabilities", "patients", "message"),
    [
        ([1, 2], [[0, 1, 0, 0]], ["a", "b"], "2 labels"),
        ([1], [[0, 1, 0, 0]], ["a", "b"], "2 patients"),
        ([1], [[0, 1, 0]], ["a"], r"\(1, 3\)"),
        ([5], [[0, 1, 0, 0]], ["a"], "label 5"),
        ([-1], [[0, 1, 0, 0]], ["a"], "label -1"),
        ([1, 1], [[0, 1, 0, 0], [0, np.nan, 0, 0]], ["a", "b"], "row 1"),
        ([1], [[2.0, 3, -1, -3]], ["a"], "row 0"),
    ],
)
def test_wrong_predictions_are_refused(labels, probabilities, patients, message):
    with pytest.raises(InputError, match=message):
        classification_report(np.array(labels), np.array(probabilities, float), patients)


def test_a_label_outside_the_task_is_refused():
    with pytest.raises(InputError, match="label 0 is not one of the classes"):
        classification_report(np.array([0]), np.eye(4)[[0]], ["a"], classes=(1, 2, 3))


def test_reliability_counts_every_slice_once(case):
    labels, probabilities, _ = case
    rows = reliability(labels, probabilities)
    assert len(rows) == 15 and sum(r["count"] for r in rows) == len(labels)
    right = sum(r["accuracy"] * r["count"] for r in rows if r["count"])
    assert right == pytest.approx((probabilities.argmax(1) == labels).sum())
    for row in rows:
        if row["count"]:
            assert row["low"] - 1e-6 <= row["confidence"] <= row["high"] + 1e-6
        else:
            assert row["confidence"] is None and row["accuracy"] is None


def test_certainty_lies_in_the_last_bin():
    rows = reliability(np.array([0, 1]), np.eye(4)[[0, 0]])
    assert rows[-1] == {"low": 14 / 15, "high": 1.0, "confidence": 1.0, "accuracy": 0.5, "count": 2}


def test_plots_are_written_for_any_classes(tmp_path, case):
    labels, probabilities, _ = case
    cases = {"all": (labels, probabilities), "one": (labels[labels == 2], probabilities[labels == 2])}
    for name, (truth, shares) in cases.items():
        plot_confusion(truth, shares.argmax(1), tmp_path / f"{name}_confusion.png", name)
        plot_roc(truth, shares, tmp_path / f"{name}_roc.png", name)
        plot_reliability(truth, shares, shares**2 / (shares**2).sum(1, keepdims=True), tmp_path / f"{name}_r.png", name)
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 300 and len(set(picture.convert("L").tobytes())) > 20
    assert len(list(tmp_path.iterdir())) == 6


def test_metrics_per_slice_and_per_patient():
    part = fake_set([1, 1, 1, 2], patients=["a", "a", "a", "b"])
    p = np.array([[0, 0.9, 0.1, 0], [0, 0.4, 0.6, 0], [0, 0.8, 0.2, 0], [0, 0.1, 0.9, 0]], np.float32)
    metrics = classification_metrics(part, p)
    assert metrics["slice"]["accuracy"] == 0.75
    assert metrics["patient"]["accuracy"] == 1.0
    assert metrics["slice"]["recall"] == pytest.approx({"glioma": 2 / 3, "meningioma": 1.0})


def test_tumor_free_slices_do_not_make_a_patient_healthy():
    part = fake_set([0, 0, 0, 1], patients=["a"] * 4)
    p = np.array([[0.1, 0.9, 0, 0]] * 4, np.float32)
    assert classification_metrics(part, p)["patient"]["accuracy"] == 1


def unlike(labels, untyped):
    """Labels in which some tumors have no known type."""
    return np.where(untyped & (labels > 0), SHIPPED_CLASSES.untyped, labels)


def test_tumors_of_unknown_type_have_no_part_in_figures_of_classes(case):
    labels, probabilities, patients = case
    odd = np.array([int(name[1:]) % 3 == 0 for name in patients])
    kept = ~odd | (labels == 0)
    mixed = classification_report(unlike(labels, odd), probabilities, patients)
    assert mixed == classification_report(labels[kept], probabilities[kept], patients[kept])
    none = classification_report(unlike(labels, np.ones(len(odd), bool)), probabilities, patients)
    assert none["slice"]["n"] == none["patient"]["n"] == 0
    assert none["slice"]["accuracy"] is None


def test_a_patient_with_a_tumor_of_unknown_type_is_not_healthy():
    assert patient_label(np.array([0, 0, SHIPPED_CLASSES.untyped])) == SHIPPED_CLASSES.untyped
    assert patient_label(np.array([SHIPPED_CLASSES.untyped, SHIPPED_CLASSES.untyped, 2, 0])) == 2
    shares = np.array([[0.9, 0.1, 0, 0], [0.2, 0.8, 0, 0], [0.3, 0.7, 0, 0]])
    report = classification_report(np.array([0, SHIPPED_CLASSES.untyped, 1]), shares, ["a", "a", "b"])
    assert (report["slice"]["n"], report["patient"]["n"]) == (2, 1)


def test_training_metrics_take_tumors_of_unknown_type():
    part = fake_set(np.array([0, 1, SHIPPED_CLASSES.untyped, 2]), patients=["a", "b", "c", "d"])
    shares = np.array([[0.9, 0.1, 0, 0], [0.2, 0.8, 0, 0], [0.7, 0.3, 0, 0], [0.1, 0.8, 0.1, 0]], np.float32)
    assert classification_metrics(part, shares)["slice"]["accuracy"] == pytest.approx(2 / 3)
    assert gate_metrics(part.labels, shares, 0.5) == {
        "sensitivity": pytest.approx(2 / 3),
        "specificity": 1,
        "accuracy": pytest.approx(2 / 3),
    }
    untyped = unlike(part.labels, np.ones(4, bool))
    assert gate_metrics(untyped, shares, 0.5)["accuracy"] is None
    alone = classification_metrics(replace(part, labels=untyped), shares)
    assert (
        alone["slice"]
        == alone["patient"]
        == {
            "n": 0,
            "accuracy": None,
            "balanced_accuracy": None,
            "macro_f1": None,
            "recall": {},
        }
    )


def test_decisions_against_scikit_learn(case):
    labels, probabilities, patients = case
    truth = unlike(labels, np.arange(len(labels)) % 2 == 0)
    tumor = 1 - probabilities[:, 0]
    answers = np.where(tumor >= 0.6, 1 + probabilities[:, 1:].argmax(1), 0)
    sick, typed = truth > 0, (truth > 0) & (truth < SHIPPED_CLASSES.untyped) & (answers > 0)
    figures = decision_report(truth, answers, tumor, patients, seed=4)
    assert figures["n_typed"] == typed.sum()
    found = values({k: v for k, v in figures.items() if not k.startswith("n_")})
    assert found["auc"] == pytest.approx(sk.roc_auc_score(sick, tumor))
    assert found["sensitivity"] == pytest.approx(sk.recall_score(sick, answers > 0))
    assert found["specificity"] == pytest.approx(sk.recall_score(~sick, answers == 0))
    assert found["type_accuracy"] == pytest.approx((answers == truth)[typed].mean())
    assert found["log_loss"] == pytest.approx(sk.log_loss(sick, tumor))
    assert found["ece"] == pytest.approx(ece_by_hand(sick.astype(int), np.stack([1 - tumor, tumor], 1)), abs=1e-6)
    assert figures["auc"]["low"] < found["auc"] < figures["auc"]["high"]


def test_a_refusal_is_wrong_and_an_unnamed_tumor_is_found():
    answers, tumor = np.array([SHIPPED_CLASSES.untyped, -1, -1, 0]), np.array([0.9, np.nan, np.nan, 0.2])
    figures = values(
        {
            k: v
            for k, v in decision_report(np.array([1, 1, 0, 0]), answers, tumor, list("abcd")).items()
            if k[:2] != "n_"
        }
    )
    assert figures["sensitivity"] == figures["specificity"] == figures["refused"] == 0.5
    assert (figures["unnamed"], figures["type_accuracy"], figures["accuracy"]) == (0.25, 0, 0.25)
    assert figures["auc"] == 0.25  # only the two that were answered are in order
    assert figures["ece"] == pytest.approx(0.15)


def test_the_confusion_leaves_out_what_has_no_class(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "tumorlens.classification.evaluation.plots.save_figure",
        lambda figure, path: titles.append(figure.axes[0].get_title()),
    )
    plot_confusion(
        np.array([0, SHIPPED_CLASSES.untyped, 1]),
        np.array([0, 1, SHIPPED_CLASSES.untyped]),
        tmp_path / "c.png",
        "slices",
    )
    plot_confusion(np.array([SHIPPED_CLASSES.untyped]), np.array([1]), tmp_path / "c.png", "slices")
    assert titles == ["slices, n = 1", "slices, n = 0"]
