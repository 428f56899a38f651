"""Metrics of a classifier on unseen patients, per slice and per patient, each with an interval over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.bootstrap import Draws, Patients, ratio, sum_of_magnitudes, weighted_mean, with_bounds
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, NO_TUMOR, SHIPPED_CLASSES, ClassList
from tumorlens.data.training.prepared import PreparedSet

ECE_BINS = 15
_DRAWS_AT_ONCE = 100  # of the AUC: 100 draws of 5000 slices take 4 MB an array
_ROUNDING = 0.01  # by which the probabilities of a slice may miss a sum of 1
Labels = NDArray[np.int64]
Probabilities = NDArray[Any]


def classification_metrics(part: PreparedSet, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro-F1 and recall per class, per slice and per patient.

    A patient's probabilities are the mean over the patient's slices, the label is the commonest tumor among them.
    Tumors of unknown type do not count.

    Returns:
        ``{"slice": {...}, "patient": {...}}``, each with ``n``. Without a tumor of a known type, ``n`` is 0 and the
        figures are None.
    """
    patients = np.array([s.patient for s in part.samples])
    _, truth, by_patient = per_patient(part.labels, probabilities, patients)
    return {
        "slice": _metrics(part.labels, probabilities, part.classes),
        "patient": _metrics(truth, by_patient, part.classes),
    }


def _metrics(labels: NDArray[np.int64], probabilities: NDArray[np.floating[Any]], classes: ClassList) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score

    known = has_known_type(labels, len(classes))
    if not known.any():
        return {"n": 0, **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1")), "recall": {}}
    truth, guess = labels[known], probabilities[known].argmax(axis=1)
    present = sorted(set(truth.tolist()))
    recall = recall_score(truth, guess, labels=present, average=None, zero_division=0)
    return {
        "n": len(truth),
        "accuracy": float(accuracy_score(truth, guess)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, guess)),
        "macro_f1": float(f1_score(truth, guess, labels=present, average="macro")),
        "recall": {classes.names[c]: float(r) for c, r in zip(present, recall, strict=True)},
    }


def gate_metrics(
    labels: NDArray[np.int64], probabilities: NDArray[np.float32], threshold: float | NDArray[np.float32]
) -> dict[str, Any]:
    """Sensitivity and specificity of tumor against no tumor, and accuracy of the classes, at a tumor threshold.

    Args:
        labels: ``(n,)`` number of each label, see `data.labels.ClassList.index`.
        probabilities: ``(n, c)``, calibrated.
        threshold: One for all slices, or ``(n,)``.
    """
    positive = 1 - probabilities[:, NO_TUMOR] >= threshold
    guess = np.where(positive, 1 + probabilities[:, 1:].argmax(axis=1), NO_TUMOR)
    outcomes = _outcomes(labels, guess, probabilities.shape[1])
    figures = {name: outcomes[name] for name in ("sensitivity", "specificity", "accuracy")}
    return {name: float(right[counts].mean()) if counts.any() else None for name, (right, counts) in figures.items()}


def has_known_type(labels_n: Labels, untyped: int = len(CLASSES)) -> NDArray[np.bool_]:
    """The slices that figures of the classes count, ``(n,)``: healthy ones, and tumors whose type is known.

    Where no tumor has a known type it is none of them: a figure of healthy slices alone says nothing about classes.

    Args:
        labels_n: ``(n,)`` number of each label.
        untyped: The number of a tumor whose type is not known, which is that of the classes.
    """
    known = labels_n != untyped
    return known if known.all() or (known & (labels_n != NO_TUMOR)).any() else np.zeros_like(known)


def _outcomes(
    labels_n: Labels, guess_n: Labels, untyped: int
) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Figure of the decisions -> whether each slice is right, and whether it counts, ``(n,)`` each."""
    sick, right = labels_n != NO_TUMOR, guess_n == labels_n
    return {
        "sensitivity": (guess_n > NO_TUMOR, sick),
        "specificity": (guess_n == NO_TUMOR, ~sick),
        "accuracy": (right, has_known_type(labels_n, untyped)),
        "type_accuracy": (right, sick & (labels_n != untyped) & (guess_n > NO_TUMOR)),
    }


def decision_report(
    labels_n: Labels,
    guess_n: Labels,
    tumor_n: NDArray[Any],
    patients: Patients,
    seed: int = 0,
    untyped: int = len(CLASSES),
) -> dict[str, Any]:
    """How well decisions separate tumor from no tumor, and name the type where they find a tumor.

    Tumors of unknown type count for presence only. ``accuracy`` is of the classes. ``type_accuracy`` is over the
    typed pictures: tumors that have a known type and were found. The answer "a tumor of unknown type" is a tumor, with
    the wrong type. A refused slice is wrong and ranks behind all others in the AUC. ECE (15 bins of the likelier of
    the two) and log-loss leave it out, because it has no probability.

    Args:
        labels_n: ``(n,)`` number of each label, see `data.labels.ClassList.index`.
        guess_n: ``(n,)`` the same of the answers, -1 where refused.
        tumor_n: ``(n,)`` calibrated tumor probability, NaN where refused.
        patients: ``(n,)``.
        seed: Of the intervals.
        untyped: The number of a tumor whose type is not known, which is that of the classes.

    Returns:
        The counts ``n_tumor``, ``n_healthy`` and ``n_typed``, and ``auc``, ``sensitivity``, ``specificity``,
        ``accuracy``, ``type_accuracy``, ``unnamed`` and ``refused`` (shares of such answers), ``ece`` and
        ``log_loss`` as ``{"value", "low", "high"}``, or None where undefined.
    """
    patients = np.asarray(patients)
    outcomes = _outcomes(labels_n, guess_n, untyped)
    outcomes["unnamed"] = (guess_n == untyped, np.ones(len(labels_n), bool))
    outcomes["refused"] = (guess_n < 0, np.ones(len(labels_n), bool))
    sick, answered = labels_n != NO_TUMOR, np.isfinite(tumor_n)
    tumor_n = np.asarray(tumor_n, float)
    ranked = np.where(answered, tumor_n, np.where(sick, -1.0, 2.0))  # below and above every probability
    pair_n2 = np.stack([1 - tumor_n, tumor_n], axis=1)[answered]
    truth, owners = sick[answered].astype(np.int64), patients[answered]
    return {
        "n_tumor": int(sick.sum()),
        "n_healthy": int((~sick).sum()),
        "n_typed": int(outcomes["type_accuracy"][1].sum()),
        "auc": with_bounds(*_auc_of(sick, ranked, Draws.of(patients, seed))),
        **{name: weighted_mean(right, counts, patients, seed) for name, (right, counts) in outcomes.items()},
        "ece": _ece(truth, pair_n2, Draws.of(owners, seed)) if len(truth) else None,
        "log_loss": weighted_mean(_surprise(truth, pair_n2), np.ones(len(truth)), owners, seed),
    }


def classification_report(
    labels_n: Labels,
    probabilities_nc: Probabilities,
    patients: Patients,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    class_list: ClassList = SHIPPED_CLASSES,
) -> dict[str, Any]:
    """All metrics of the classes per slice and per patient, with intervals of `data.bootstrap` over 1000 draws.

    A patient's probabilities are the mean over the patient's slices, the label is the commonest tumor among them.
    Tumors of unknown type do not count (see `has_known_type`). A class that the truth lacks has neither recall nor AUC
    and is left out of the averages over classes (balanced accuracy, macro-F1, mean AUC), in the whole set as in each
    draw. ECE is over the largest probability, in 15 bins of equal width (C. Guo et al., ICML 2017). Brier is the
    squared error summed over the classes, 0 to 2.

    Args:
        labels_n: ``(n,)`` number of each true label, see `data.labels.ClassList.index`.
        probabilities_nc: ``(n, c)``.
        patients: ``(n,)``.
        seed: Of the draws.
        classes: Numbers of the classes of the task, if not all answers. Probabilities are renormalized to them. Other
            labels raise.
        class_list: The classes of the columns.

    Returns:
        ``{"classes": names, "slice": {...}, "patient": {...}}``. Either part has ``n``; ``accuracy``,
        ``balanced_accuracy``, ``macro_f1``, ``roc_auc_mean``, ``log_loss``, ``ece`` and ``brier`` as
        ``{"value", "low", "high"}`` or None; ``recall`` and ``roc_auc`` (one against rest) as such per class name; and
        ``confusion``, counts with a row per true class, in the order of ``classes``.

    Raises:
        InputError: Shapes do not fit, a label is outside the classes, or a row does not hold probabilities.
    """
    chosen = tuple(classes) if classes is not None else tuple(range(class_list.offset, len(class_list)))
    names = [class_list.names[c] for c in chosen]
    labels_n, probabilities_nc = np.asarray(labels_n), np.asarray(probabilities_nc, float)
    _check(labels_n, probabilities_nc, len(patients), chosen, len(class_list))
    # Dividing all of them by a sum that a rounding error keeps from 1 would separate equal scores, and change the AUC.
    whole = classes is None and class_list.gate
    shares = probabilities_nc if whole else restrict(probabilities_nc, chosen)
    people, truth, guess = per_patient(labels_n, shares, patients, len(class_list))
    place = {c: k for k, c in enumerate(chosen)}

    def part(labels: Labels, probabilities: Probabilities, owners: Patients) -> dict[str, Any]:
        known = has_known_type(labels, len(class_list))
        columns = np.array([place[int(c)] for c in labels[known]], np.int64)
        return _figures(columns, probabilities[known], np.asarray(owners)[known], seed, names)

    return {"classes": names, "slice": part(labels_n, shares, patients), "patient": part(truth, guess, people)}


def _check(
    labels: Labels, probabilities: Probabilities, n_patients: int, chosen: Sequence[int], n_classes: int
) -> None:
    if probabilities.shape != (len(labels), n_classes) or n_patients != len(labels):
        raise InputError(
            f"{len(labels)} labels and {n_patients} patients do not fit probabilities of shape {probabilities.shape}, "
            f"where ({len(labels)}, {n_classes}) is needed"
        )
    strange = sorted(set(labels.tolist()) - {*chosen, n_classes})
    if strange:
        raise InputError(f"label {strange[0]} is not one of the classes {list(chosen)}")
    good = np.isfinite(probabilities).all(axis=1) & (probabilities >= 0).all(axis=1)
    good &= abs(probabilities.sum(axis=1) - 1) <= _ROUNDING
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise InputError(f"row {row}: {probabilities[row].tolist()} are not probabilities that sum to 1")


def restrict(probabilities_nc: Probabilities, classes: Sequence[int]) -> NDArray[np.float64]:
    """Probabilities of some classes, scaled to sum to 1; equal ones where all of them are 0."""
    shares = np.asarray(probabilities_nc, float)[:, list(classes)]
    total = shares.sum(axis=1, keepdims=True)
    return np.divide(shares, total, out=np.full_like(shares, 1 / len(classes)), where=total > 0)


def per_patient(
    labels_n: Labels, probabilities_nc: Probabilities, patients: Patients, untyped: int = 0
) -> tuple[NDArray[Any], Labels, NDArray[np.float64]]:
    """Names ``(p,)``, labels ``(p,)`` and mean probabilities ``(p, c)`` of the patients, sorted by name.

    `untyped`, the number of a tumor whose type is not known, is by default that of the columns.
    """
    names, number = np.unique(np.asarray(patients), return_inverse=True)
    sums = np.zeros((len(names), probabilities_nc.shape[1]))
    np.add.at(sums, number, probabilities_nc)
    truth = [patient_label(labels_n[number == p], untyped or probabilities_nc.shape[1]) for p in range(len(names))]
    return names, np.array(truth, np.int64), sums / np.bincount(number, minlength=len(names))[:, None]


def patient_label(labels: Labels, untyped: int = len(CLASSES)) -> int:
    """The commonest tumor of a patient's slices, of unknown type if none has a type; no tumor only if all slices are
    tumor-free."""
    count = np.bincount(labels, minlength=untyped)
    typed = count[NO_TUMOR + 1 : untyped]
    if typed.any():
        return NO_TUMOR + 1 + int(typed.argmax())
    return untyped if (labels == untyped).any() else NO_TUMOR


def _figures(
    labels: Labels, probabilities: Probabilities, patients: Patients, seed: int, names: list[str]
) -> dict[str, Any]:
    """One part of the report; labels are columns of the probabilities."""
    from sklearn.metrics import confusion_matrix

    n = len(labels)
    if not n:
        return _no_figures(names)
    draws = Draws.of(patients, seed)
    guess = probabilities.argmax(axis=1)
    recall, f1 = _recall_and_f1(labels, guess, names, draws)
    auc = _auc(labels, probabilities, names, draws)
    error = ((probabilities - np.eye(len(names))[labels]) ** 2).sum(axis=1)
    return {
        "n": n,
        "accuracy": weighted_mean(guess == labels, np.ones(n), patients, seed),
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(f1),
        "recall": {name: with_bounds(*recall[name]) for name in names},
        "roc_auc": {name: with_bounds(*auc[name]) for name in names},
        "roc_auc_mean": _mean_of_defined(auc),
        "log_loss": weighted_mean(_surprise(labels, probabilities), np.ones(n), patients, seed),
        "ece": _ece(labels, probabilities, draws),
        "brier": weighted_mean(error, np.ones(n), patients, seed),
        "confusion": confusion_matrix(labels, guess, labels=range(len(names))).tolist(),
    }


def _no_figures(names: list[str]) -> dict[str, Any]:
    single = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc_mean", "log_loss", "ece", "brier")
    by_class: dict[str, Any] = {key: dict.fromkeys(names) for key in ("recall", "roc_auc")}
    return {"n": 0, **dict.fromkeys(single), **by_class, "confusion": [[0] * len(names) for _ in names]}


# A metric of one class: its value (None where undefined), and its value in each draw (NaN where undefined).
_Figure = tuple[float | None, NDArray[np.float64]]


def _recall_and_f1(
    labels: Labels, guess: Labels, names: list[str], draws: Draws
) -> tuple[dict[str, _Figure], dict[str, _Figure]]:
    """Values by scikit-learn, draws from confusion matrices summed over the drawn patients."""
    from sklearn.metrics import precision_recall_fscore_support

    k = len(names)
    _, recall, f1, support = precision_recall_fscore_support(labels, guess, labels=range(k), zero_division=0)
    counts_rkk = draws.totals(np.eye(k * k)[labels * k + guess]).reshape(-1, k, k)
    hits, true, called = counts_rkk.diagonal(axis1=1, axis2=2), counts_rkk.sum(axis=2), counts_rkk.sum(axis=1)
    recall_rk = ratio(hits, true)
    f1_rk = np.where(true > 0, ratio(2 * hits, true + called), np.nan)

    def figures(values: NDArray[np.float64], draws_rk: NDArray[np.float64]) -> dict[str, _Figure]:
        return {name: (float(values[c]) if support[c] else None, draws_rk[:, c]) for c, name in enumerate(names)}

    return figures(recall, recall_rk), figures(f1, f1_rk)


def _auc(labels: Labels, probabilities: Probabilities, names: list[str], draws: Draws) -> dict[str, _Figure]:
    """Area under the ROC curve of each class against the rest; undefined where one side is empty."""
    return {name: _auc_of(labels == c, probabilities[:, c], draws) for c, name in enumerate(names)}


def _auc_of(positive_n: NDArray[np.bool_], score_n: NDArray[np.float64], draws: Draws) -> _Figure:
    from sklearn.metrics import roc_auc_score

    if positive_n.all() or not positive_n.any():
        return None, np.full(len(draws.times_rp), np.nan)
    return float(roc_auc_score(positive_n, score_n)), _auc_of_draws(positive_n, score_n, draws)


def _auc_of_draws(positive_n: NDArray[np.bool_], score_n: NDArray[np.float64], draws: Draws) -> NDArray[np.float64]:
    """The exact AUC of each draw, in linear time after one sort.

    It is the share of pairs in which the positive slice has the higher score; equal scores count half (J. Hanley and
    B. McNeil, Radiology 1982).
    """
    order = np.argsort(score_n, kind="stable")
    score, positive, patient = score_n[order], positive_n[order].astype(float), draws.patient_n[order]
    starts = np.flatnonzero(np.r_[True, score[1:] > score[:-1]])  # of each run of equal scores
    areas = []
    for first in range(0, max(len(draws.times_rp), 1), _DRAWS_AT_ONCE):
        times = draws.times_rp[first : first + _DRAWS_AT_ONCE][:, patient]
        above = np.add.reduceat(times * positive, starts, axis=1)
        rest = np.add.reduceat(times * (1 - positive), starts, axis=1)
        pairs = (above * (rest.cumsum(axis=1) - rest / 2)).sum(axis=1)
        areas.append(ratio(pairs, above.sum(axis=1) * rest.sum(axis=1)))
    return np.concatenate(areas)


def _mean_of_defined(figures: dict[str, _Figure]) -> dict[str, Any] | None:
    """Mean over the classes with a value; in each draw, over the classes with a value in that draw."""
    values = [value for value, _ in figures.values() if value is not None]
    draws_rk = np.stack([draws for _, draws in figures.values()], axis=1)
    defined = np.isfinite(draws_rk)
    means = ratio(np.where(defined, draws_rk, 0).sum(axis=1), defined.sum(axis=1))
    return with_bounds(float(np.mean(values)) if values else None, means)


def _surprise(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """Minus the logarithm of the truth's probability, ``(n,)``; labels are columns."""
    eps = np.finfo(float).eps  # scikit-learn's bound: an error with probability 1 costs 36, not infinity
    return np.asarray(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], eps, 1 - eps)))


def _ece(labels: Labels, probabilities: Probabilities, draws: Draws) -> dict[str, Any] | None:
    gaps = _signed_gaps(labels, probabilities)
    draws_rk = ratio(draws.totals(gaps), draws.totals(np.ones(len(labels)))[:, None])
    return sum_of_magnitudes(expected_calibration_error(labels, probabilities), gaps.mean(axis=0), draws_rk)


def expected_calibration_error(labels: Labels, probabilities: Probabilities) -> float:
    """Mean distance of confidence and accuracy over bins of equal width, by torchmetrics (l1); labels are columns."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    shares, truth = torch.from_numpy(np.asarray(probabilities, float)), torch.from_numpy(np.asarray(labels))
    return float(multiclass_calibration_error(shares, truth, shares.shape[1], n_bins=ECE_BINS, norm="l1"))


def _signed_gaps(labels: Labels, probabilities: Probabilities) -> NDArray[np.float64]:
    """Each slice's confidence minus its correctness, ``(n, bins + 1)``, in the column of its bin.

    ECE is the sum of the columns' magnitudes, divided by n. As in torchmetrics, a confidence of exactly 1 has a bin of
    its own.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    return np.eye(ECE_BINS + 1)[_bin_of(confidence)] * (confidence - correct)[:, None]


def _bin_of(confidence: NDArray[Any]) -> NDArray[np.int64]:
    """Number of each confidence's bin ``[k / bins, (k + 1) / bins)``, in float32 as in torchmetrics."""
    edges = np.linspace(0, 1, ECE_BINS + 1, dtype=np.float32)
    return np.searchsorted(edges, confidence.astype(np.float32), side="right") - 1


def reliability(labels: Labels, probabilities: Probabilities) -> list[dict[str, Any]]:
    """The accuracy at each confidence (A. Niculescu-Mizil and R. Caruana, ICML 2005).

    Args:
        labels: ``(n,)`` columns of the probabilities.
        probabilities: ``(n, c)``.

    Returns:
        A row for each of 15 bins of equal width over 0 .. 1, of which the last one includes 1:
        ``{"low", "high", "confidence", "accuracy", "count"}``; means are None if the count is 0.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    number = _bin_of(confidence).clip(max=ECE_BINS - 1)
    rows = []
    for k in range(ECE_BINS):
        inside = number == k
        filled = bool(inside.any())
        rows.append(
            {
                "low": k / ECE_BINS,
                "high": (k + 1) / ECE_BINS,
                "confidence": float(confidence[inside].mean()) if filled else None,
                "accuracy": float(correct[inside].mean()) if filled else None,
                "count": int(inside.sum()),
            }
        )
    return rows
