"""How far reviewers and models agree, and reviewers with each other: Cohen's kappa of labels, Dice of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.pipeline.batch.stored import StoredResult
from tumorlens.pipeline.services.reviews.state import decisions_about, final_decision
from tumorlens.pipeline.services.reviews.store import ACCEPT, CORRECT, REJECT, Decision, Store

MODEL = "the models"
_MASKS = (ACCEPT, CORRECT)  # decisions that say that a mask is right


@dataclass(frozen=True)
class Agreement:
    """How far two agree.

    Attributes:
        first: A reviewer.
        second: Another one, or `MODEL`.
        n: Scans on which both have a label.
        same: Those on which the labels are equal.
        kappa: Cohen's kappa of the labels (J. Cohen, Educational and Psychological Measurement 20, 1960); None where
            both give one and the same label throughout, or where there are fewer than two scans.
        n_masks: Scans on which both have a mask, and at least one of the masks is not empty.
        dice: Mean Dice coefficient of these masks; None without such scans.
        rejected: Scans that the reviewer has rejected without naming the right label; they are not in `n`.
    """

    first: str
    second: str
    n: int
    same: int
    kappa: float | None
    n_masks: int
    dice: float | None
    rejected: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self)}


Known = dict[tuple[str, int, int], float | None]  # scan and decisions that drew two masks (0: the model) -> Dice


def measure_agreement(results: Sequence[StoredResult], store: Store, known: Known | None = None) -> list[Agreement]:
    """The agreement of every reviewer with the models, then of every two reviewers on the scans of both.

    Who accepts a scan agrees with the mask that it had at that time: the model's, or that of an earlier reviewer.

    Args:
        results: The results of the output folder.
        store: The reviewers' file.
        known: Dice coefficients of an earlier call, to which those of this call are added.
    """
    known = {} if known is None else known
    by_scan: dict[str, list[Decision]] = {}
    for decision in store.decisions():
        by_scan.setdefault(decision.scan, []).append(decision)
    judged = {r.name: r for r in results if not r.failed and r.name in by_scan}
    by_scan = {name: decisions_about(result, by_scan[name]) for name, result in judged.items()}
    answers: dict[str, dict[str, Decision]] = {}
    for name, decisions in by_scan.items():
        for reviewer in {d.reviewer for d in decisions}:
            last = final_decision(decisions, reviewer)
            if last is not None:
                answers.setdefault(reviewer, {})[name] = last

    def dice(name: str, *drawn: int) -> float | None:
        """Dice of two masks of a scan, which two decisions have drawn, or the model (0)."""
        first, second = sorted(drawn)
        if (name, first, second) not in known:
            masks = [_mask(judged[name], store, number) for number in (first, second)]
            known[name, first, second] = _dice(*masks)
        return known[name, first, second]

    agreements = []
    for reviewer, own in sorted(answers.items()):
        pairs = [(d.label, judged[name].label) for name, d in own.items() if d.label is not None]
        dices = [dice(name, _drawn(d, by_scan[name]), 0) for name, d in own.items() if d.action in _MASKS]
        rejected = sum(d.action == REJECT for d in own.values())
        agreements.append(_agreement(reviewer, MODEL, pairs, dices, rejected))
    for (first, ones), (second, others) in combinations(sorted(answers.items()), 2):
        both = [(name, ones[name], others[name]) for name in ones if name in others]
        if both:
            pairs = [(a.label, b.label) for _, a, b in both if a.label is not None and b.label is not None]
            dices = [
                dice(name, _drawn(a, by_scan[name]), _drawn(b, by_scan[name]))
                for name, a, b in both
                if a.action in _MASKS and b.action in _MASKS
            ]
            agreements.append(_agreement(first, second, pairs, dices))
    return agreements


def _drawn(decision: Decision, decisions: Sequence[Decision]) -> int:
    """Number of the decision that drew the mask which a decision agrees with; 0 is the model."""
    return max((d.number for d in decisions if d.has_mask and d.number <= decision.number), default=0)


def _mask(result: StoredResult, store: Store, number: int) -> NDArray[np.uint8] | None:
    if number:
        return store.mask(number)
    try:
        stored = result.mask(reviewed=False)
    except InputError:  # a damaged file is not a reason to show nothing
        return None
    return None if stored is None else stored.voxels


def _agreement(
    first: str, second: str, pairs: list[tuple[str, str]], dices: list[float | None], rejected: int = 0
) -> Agreement:
    scores = [dice for dice in dices if dice is not None]
    same = sum(a == b for a, b in pairs)
    mean = round(float(np.mean(scores)), 4) if scores else None
    return Agreement(first, second, len(pairs), same, _kappa(pairs), len(scores), mean, rejected)


def _kappa(pairs: list[tuple[str, str]]) -> float | None:
    if len(pairs) < 2 or len({label for pair in pairs for label in pair}) < 2:
        return None
    firsts, seconds = (Counter(labels) for labels in zip(*pairs, strict=True))
    same = sum(first == second for first, second in pairs) / len(pairs)
    by_chance = sum(firsts[label] * seconds[label] for label in firsts) / len(pairs) ** 2
    return round((same - by_chance) / (1 - by_chance), 4)


def _dice(first: NDArray[np.uint8] | None, second: NDArray[np.uint8] | None) -> float | None:
    """Dice coefficient of two masks; None where one is missing or both are empty."""
    if first is None or second is None or first.shape != second.shape:
        return None
    total = int(np.count_nonzero(first)) + int(np.count_nonzero(second))
    return 2 * int(np.count_nonzero((first != 0) & (second != 0))) / total if total else None
