"""Fits the rule for volumes (`pipeline.volumes.rule`) on labeled volumes that the networks have not learned from."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.cards.card import stage_card
from tumorlens.data.datasets.sample import Sample, channel_of
from tumorlens.data.datasets.truth import true_mask
from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text
from tumorlens.data.formats.open import open_scan
from tumorlens.data.preprocessing.preprocess import to_gray
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import prepare
from tumorlens.pipeline.evaluation.evaluate import Say, completed, warnings_about
from tumorlens.pipeline.evaluation.protocols import Progress
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.selection import select
from tumorlens.pipeline.evaluation.weights import Weights
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.volumes.ask import find_suspicions
from tumorlens.pipeline.volumes.rule import Features, Rule

_LEAST_SHARE = 0.1  # of a suspicion's voxels that lie in the true mask: outlines of one lesion differ much
_MISSED = 3.0  # weight of a missed lesion against a false one: a person can reject a false one
_STRENGTH = 0.3  # of the regression (scikit-learn's C): a few hundred suspicions decide
_LEAST_SLICES = 8  # pictures of a patient that make a stack

# A picture's name with the number of its slice: what comes before, the number, and a word such as the sequence.
_NUMBERED = re.compile(r"(.+?)[_-](\d+)((?:_[a-z]\w*)?)")


@dataclass(frozen=True)
class Judged:
    """What the networks suspect in a volume.

    Attributes:
        features: Of each suspicion.
        real: Whether each lies on a true lesion.
        has_tumor: Whether the volume shows one.
    """

    features: list[Features]
    real: list[bool]
    has_tumor: bool


def calibrate(
    request: EvaluationRequest, card_of: Path, progress: Progress | None = None, warn: Say = print
) -> tuple[Rule, int]:
    """Fit the rule for volumes and write it to a classifier's card, as ``lesion_rule``.

    Args:
        request: Labeled volumes, or slices of whole heads as pictures (see `volumes_of`), and the weights. Folds are
            chosen as by `select`. With ``{fold}`` in the names of the weights, each volume is judged by the networks of
            its fold.
        card_of: The classifier whose card gets the rule.
        progress: Called with the number of volumes done and of all.
        warn: Gets a line for each reason to mistrust the rule.

    Returns:
        The rule, and the number of volumes.

    Raises:
        InputError: Data or weights cannot be used, or no volume shows a suspicion on a lesion and one beside it.
    """
    card = stage_card(card_of, "classification")
    request = replace(request, protocol="p7")  # the fold that the weights have not seen; the rule asks for no type
    weights = Weights(request)
    weights.check_names()
    first = weights.first_card()
    request = completed(request, weights, first)
    selection = select(request, first)
    weights.check_files(selection)
    for text in warnings_about(selection, weights):
        warn(text)
    judged: list[Judged] = []
    for fold, samples in selection.parts.items():
        pipeline = weights.load(fold)["pipeline"]
        volumes = list(volumes_of(samples))
        for done, members in enumerate(volumes, start=1):
            judged.append(_judge(pipeline, *_read(members)))
            if progress:
                progress(done, len(volumes))
    rule = fit_rule(judged)
    card["lesion_rule"] = {
        **{name: round(value, 4) for name, value in asdict(rule).items()},
        "method": f"logistic regression on what the networks suspect in {len(judged)} volumes",
    }
    write_text(card_of.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    return rule, len(judged)


def volumes_of(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """The samples of each volume, and the pictures of each stack, in the order of their slices.

    A stack is eight or more pictures of a patient whose names differ in one number only: the slices of a whole head.
    """
    files: dict[Any, list[Sample]] = defaultdict(list)
    stacked: dict[Any, list[tuple[int, Sample]]] = defaultdict(list)
    for sample in samples:
        if sample.from_volume:
            files[sample.image, sample.plane].append(sample)
        elif sample.patient and (name := _NUMBERED.fullmatch(sample.image.stem)):
            stacked[sample.image.parent, sample.patient, name[1], name[3]].append((int(name[2]), sample))
    yield from files.values()
    for numbered in stacked.values():
        if len(numbered) >= _LEAST_SLICES:
            yield [sample for _, sample in sorted(numbered, key=lambda pair: pair[0])]


def fit_rule(judged: Sequence[Judged]) -> Rule:
    """The rule that a logistic regression learns; a missed lesion counts as much as three false ones.

    Raises:
        InputError: No suspicion lies on a lesion, or all do.
    """
    from sklearn.linear_model import LogisticRegression

    rows = np.array([list(asdict(one).values()) for volume in judged for one in volume.features], np.float64)
    real = np.array([one for volume in judged for one in volume.real], bool)
    if not real.any() or real.all():
        raise InputError("the volumes need suspicions on lesions and beside them; give more volumes")
    mean, deviation = rows.mean(axis=0), rows.std(axis=0).clip(1e-6)
    regression = LogisticRegression(C=_STRENGTH, max_iter=5000)
    regression.fit((rows - mean) / deviation, real, sample_weight=np.where(real, _MISSED, 1.0))
    weights = regression.coef_[0] / deviation
    bias = float(regression.intercept_[0] - weights @ mean)
    # As if volumes with and without a tumor were equally frequent; one in ten, before any volume is seen.
    missed = (sum(v.has_tumor and not v.features for v in judged) + 0.2) / (sum(v.has_tumor for v in judged) + 2)
    free = (sum(not v.has_tumor and not v.features for v in judged) + 1.8) / (sum(not v.has_tumor for v in judged) + 2)
    nothing = missed / (missed + free)
    named = dict(zip(Features.__dataclass_fields__, map(float, weights), strict=True))
    return Rule(bias=bias, nothing=min(0.45, nothing), **named)


def _read(members: list[Sample]) -> tuple[Scan, NDArray[np.uint8]]:
    """A volume or a stack, and its true mask in the array order."""
    first = members[0]
    if first.from_volume:
        scan = open_scan(first.image)
        return scan.with_plane(first.plane), _truth(members, scan)
    scans = [open_scan(sample.image) for sample in members]
    if len({scan.slice(0).shape[:2] for scan in scans}) > 1:
        raise InputError(f"{first.image}: the slices of this patient have different sizes")
    masks = [_truth([sample], scan) for sample, scan in zip(members, scans, strict=True)]
    slices = [
        to_gray(scan.slice(0) if sample.channel is None else channel_of(scan, sample.channel))
        for sample, scan in zip(members, scans, strict=True)
    ]
    return Scan.from_array(np.stack(slices)).in_plane(0), np.stack(masks)


def _truth(members: list[Sample], scan: Scan) -> NDArray[np.uint8]:
    truth = true_mask(members, scan)
    if truth is None:
        raise InputError(f"{members[0].image}: a tumor without a mask; the rule for volumes needs one")
    return truth


def _judge(pipeline: Pipeline, scan: Scan, truth: NDArray[np.uint8]) -> Judged:
    case = prepare(scan, pipeline.classifier.input_size)
    scores = pipeline.classify([case])
    screenings = [pipeline.screen(case, scores[0], force=True)]
    (answers,) = pipeline.segment([case], scores, screenings)
    findings = find_suspicions(case, answers, pipeline.segmenter)
    numbers, suspicions = findings.numbers, findings.suspicions
    sizes = np.bincount(numbers.ravel(), minlength=len(suspicions) + 1)
    inside = np.bincount(numbers[truth != 0], minlength=len(suspicions) + 1)
    real = [bool(inside[n] >= _LEAST_SHARE * sizes[n]) for n in range(1, len(suspicions) + 1)]
    return Judged([suspicion.features for suspicion in suspicions], real, bool(truth.any()))
