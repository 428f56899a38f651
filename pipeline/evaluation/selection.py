"""Chooses the scans that a protocol measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tumorlens.data.datasets.duplicates import group_by_likeness, signatures
from tumorlens.data.datasets.folds import N_FOLDS, make_folds, split_by_fold
from tumorlens.data.datasets.index import find_index
from tumorlens.data.datasets.lgg import is_lgg_slice
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.datasets.sample import Sample, has_color, has_truth
from tumorlens.data.errors import InputError
from tumorlens.data.formats.open import open_scan
from tumorlens.data.labels import TUMOR, TUMOR_FREE, ClassList
from tumorlens.data.masks.truth import is_unreviewed
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.prepared import prepare
from tumorlens.pipeline.evaluation.leaks import has_unseen_patients, is_unseen_fold, measured_patients
from tumorlens.pipeline.evaluation.protocols import LEAKS, Progress, Protocol, Selection, find_protocol
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.tables import source_names

_BRISC_TEST = "brisc2025_test_"  # begins the names of its test pictures


def select(
    request: EvaluationRequest, card: dict[str, Any] | None = None, progress: Progress | None = None
) -> Selection:
    """The scans to measure.

    The folds are the data's own where every scan has one. Otherwise they are the folds that a training with the same
    data and seed makes, so that fold k holds exactly the patients that a training on fold k has not seen.

    Args:
        request: Data and protocol.
        card: The card of the weights. If the request names no folds, the test fold on this card is measured (of
            weights that were trained with ``--split holdout``: the held-out fold), or all scans as one set where that
            fold is not one of these data.
        progress: Called with the number of slices read and of all, where slices are read to look for copies.

    Raises:
        InputError: The data cannot be used, the protocol does not fit them, or a fold does not exist.
    """
    protocol = find_protocol(request.protocol, request.stage, request.folds)
    samples, loaded = _usable_samples(request, protocol)
    if request.stage == "segmentation":
        protocol = protocol.of_classes(ClassList.of_labels(s.label for s in loaded))
    else:
        protocol = protocol.of_classes(ClassList.from_card(card or {}))
        _check_classes(_as_answered(samples, protocol), protocol)
    notes = _notes(_as_answered(samples, protocol), loaded, request, protocol)
    if protocol.id == "p5":
        protocol = replace(protocol, title=f"{protocol.title}: {', '.join(source_names(request.data))}")
    if protocol.split == "all":
        return Selection(protocol, {None: _measured(samples, protocol)}, None, False, "all scans as one set", notes)
    if protocol.split == "official":
        return _official(samples, request, protocol, notes)
    own = all(s.fold is not None for s in samples)
    if request.folds is None:
        fold_on_card, whole = _unseen_fold(samples, request, card or {}, own, progress)
        if fold_on_card is None:
            return _one_set(samples, request, protocol, notes)
        request = replace(request, folds=(fold_on_card,))
        kind = "held-out" if (card or {})["training"].get("split") == "holdout" else "test"
        choice = f"the {kind} fold on the weights' card"
    else:
        whole = samples if own else assign_folds(samples, request.size, request.fold_seed, progress)
        choice = "as asked for"
    n_folds = 1 + max(s.fold for s in whole if s.fold is not None)
    chosen = chosen_folds(request, n_folds)
    choice = f"{_numbered(chosen)} of {n_folds}, {choice}"
    choice += "; folds of the data" if own else f"; folds made as training makes them, seed {request.fold_seed}"
    parts: dict[int | None, list[Sample]] = {}
    for fold in chosen:
        parts[fold] = _measured([whole[i] for i in split_by_fold(whole, fold).test], protocol)
        if not parts[fold]:
            raise InputError(f"{request.data_names}: no {_noun(protocol)} in fold {fold}")
    return Selection(protocol, parts, n_folds, own, choice, notes)


def _official(
    samples: list[Sample], request: EvaluationRequest, protocol: Protocol, notes: tuple[str, ...]
) -> Selection:
    """The selection of the test part of the data set's own split."""
    test = [s for s in samples if s.split == "test"]
    if not test:
        raise InputError(f"{request.data_names}: protocol p3 needs an official split, and the data have no test part")
    flaw = known_leaks(test)
    titled = replace(protocol, title=f"{protocol.title}; {flaw}") if flaw else protocol
    return Selection(titled, {None: _measured(test, protocol)}, None, False, "test part of the official split", notes)


def _unseen_fold(
    samples: list[Sample], request: EvaluationRequest, card: dict[str, Any], own: bool, progress: Progress | None
) -> tuple[int | None, list[Sample]]:
    """The fold that was left out of the weights' training, and the samples with their folds. The fold is None where it
    is not one of these data."""
    training = card.get("training")
    if not isinstance(training, dict) or "fold" not in training:
        return None, samples
    if training.get("split", "folds") not in ("folds", "holdout"):
        return None, samples
    if not own:
        if not has_unseen_patients(card, measured_patients(samples)):
            return None, samples  # saves reading all slices to make folds
        samples = assign_folds(samples, request.size, request.fold_seed, progress)
    members = [s for s in samples if s.fold == training["fold"]]
    return (training["fold"] if is_unseen_fold(card, measured_patients(members)) else None), samples


def known_leaks(test: Sequence[Sample]) -> str:
    """The known leaks of an official test part: BRISC's figure if all of its scans are BRISC's, else empty.

    A training writes the leaks that it counts to its card, see `pipeline.evaluation.leaks`.
    """
    return LEAKS if test and all(sample.image.name.startswith(_BRISC_TEST) for sample in test) else ""


def _one_set(
    samples: list[Sample], request: EvaluationRequest, protocol: Protocol, notes: tuple[str, ...]
) -> Selection:
    """All scans of the protocol's classes as one set, for weights that held out no fold of these data."""
    measured = _measured(samples, protocol)
    if not measured:
        raise InputError(f"{request.data_names}: no {_noun(protocol)}")
    whole = replace(protocol, title=protocol.title.replace("folds by patient", "all as one set"), split="all")
    choice = (
        "all scans as one set, as the weights' card names no test or held-out fold of these data (--folds takes folds)"
    )
    return Selection(whole, {None: measured}, None, False, choice, notes)


def _measured(samples: list[Sample], protocol: Protocol) -> list[Sample]:
    """The samples of the protocol's classes, with the labels of `_as_answered`."""
    samples = _as_answered(samples, protocol)
    if protocol.presence_only:
        return samples
    names = {protocol.class_list.names[c] for c in protocol.classes}
    names |= set() if protocol.tumors_only else {TUMOR}
    return [s for s in samples if not s.label or s.label in names]


def _as_answered(samples: list[Sample], protocol: Protocol) -> list[Sample]:
    """The samples without the tumors' types where the protocol, or the classifier, says only yes or no.

    Folds are made before: training makes them from the labels of the data.
    """
    if not (protocol.presence_only or protocol.class_list.binary):
        return samples
    return [replace(s, label=_presence(s.label), volume_label=_presence(s.volume_label)) for s in samples]


def _check_classes(samples: list[Sample], protocol: Protocol) -> None:
    """Raise an `InputError` if a sample that the protocol measures is of a class that the classifier lacks."""
    classes = protocol.class_list
    for label, sample in {sample.label: sample for sample in reversed(samples)}.items():
        if label == TUMOR_FREE and protocol.tumors_only:
            continue
        try:
            classes.index(label)
        except InputError as error:
            raise InputError(f"{sample.name}: {error}") from None


def _presence(label: str) -> str:
    return label if label in ("", TUMOR_FREE) else TUMOR


def _noun(protocol: Protocol) -> str:
    """The scans that a protocol measures, for messages."""
    return "scan of a tumor" if protocol.tumors_only else "scan"


def count_folds(request: EvaluationRequest) -> int:
    """The number of folds that the data have, or that training makes.

    Raises:
        InputError: The data cannot be used, or the protocol does not fit them.
    """
    samples, _ = _usable_samples(request, find_protocol(request.protocol, request.stage, request.folds))
    own = [s.fold for s in samples if s.fold is not None]
    return 1 + max(own) if own else N_FOLDS


def chosen_folds(request: EvaluationRequest, n_folds: int) -> list[int]:
    """The folds that a request names, or all of them.

    Raises:
        InputError: The data have no such fold.
    """
    chosen = sorted(set(request.folds or ())) or list(range(n_folds))
    for fold in chosen:
        if fold >= n_folds:
            raise InputError(f"{request.data_names}: no fold {fold}, the data have folds 0 to {n_folds - 1}")
    return chosen


def load_sets(request: EvaluationRequest) -> list[tuple[str, list[Sample]]]:
    """Each data set of a request with its samples."""
    return [(source, load_samples(source, dict(request.label_map), request.channel)) for source in request.data]


def _usable_samples(request: EvaluationRequest, protocol: Protocol) -> tuple[list[Sample], list[Sample]]:
    """The samples that training of the stage can use, and all samples.

    Raises:
        InputError: The data cannot be used, or the protocol does not fit them.
    """
    loaded: list[Sample] = []
    for number, (source, samples) in enumerate(load_sets(request)):
        flaw = lgg_flaw(source, samples) if protocol.id == "p4" else ""
        if protocol.id == "p6" and not any(s.sequence for s in samples):
            flaw = "needs the sequence of the scans; give an index with a column `sequence` (t1, t1c, t2 or flair)"
        if flaw:
            raise InputError(f"{source}: protocol {protocol.id} {flaw}")
        loaded += [replace(sample, source=number) for sample in samples]
    usable = [s for s in loaded if (has_truth(s) if request.stage == "segmentation" else s.label)]
    _check_use(usable, loaded, request)
    return usable, loaded


def lgg_flaw(source: str, samples: Sequence[Sample]) -> str:
    """Why the samples of a data set are not slices of an LGG folder in one sequence; empty if they are."""
    if not all(map(is_lgg_slice, samples)):
        return (
            "needs an LGG folder, a folder per patient with pictures and their *_mask files, or an index of one with "
            "its patients"
        )
    if find_index(source)[0] is None:
        return ""
    for sample in samples:
        if sample.channel is None and has_color(open_scan(sample.image, constant=True)):
            return (
                f"measures one sequence, but the index does not say which channel of the color picture "
                f"{sample.image.name} is FLAIR; give --frame-channel, or write the index with `tumorlens data split`"
            )
    return ""


def _check_use(samples: list[Sample], loaded: list[Sample], request: EvaluationRequest) -> None:
    needs_masks = request.stage == "segmentation"
    if not samples:
        raise InputError(f"{request.data_names}: no scan has a {'mask' if needs_masks else 'label or a mask'}")
    tumor_free = all(s.label == TUMOR_FREE for s in samples)
    if needs_masks and tumor_free and any(s.label not in ("", TUMOR_FREE) for s in loaded):
        raise InputError(f"{request.data_names}: no scan of a tumor has a mask")


def _notes(
    samples: list[Sample], loaded: list[Sample], request: EvaluationRequest, protocol: Protocol
) -> tuple[str, ...]:
    notes = []
    if len(samples) < len(loaded):
        lack = "without a true mask" if request.stage == "segmentation" else "with neither a label nor a mask"
        notes.append(f"{len(loaded) - len(samples)} slices {lack} were left out: their truth is not known")
    if any(not s.patient for s in samples):
        notes.append(
            "the data do not name every patient: a slice of unknown origin counts as a patient of its own unless "
            "it was found to be a copy, so intervals are too narrow where its patient has other slices"
        )
    unreviewed = {file for s in samples for file in (s.mask, s.volume_mask) if file is not None and is_unreviewed(file)}
    if unreviewed:
        notes.append(
            f"{len(unreviewed)} true masks are results that nobody has corrected: what a network draws is not the "
            "truth unless you have accepted it"
        )
    if request.stage != "pipeline" and any(s.from_volume for s in samples):
        notes.append(
            "of volumes only slices are measured that training takes: with at least 20 pixels of a lesion or none, and "
            "a quarter of the largest slice's tissue"
        )
    tumors = {s.label for s in samples} - {"", TUMOR_FREE}
    untyped = TUMOR in tumors and not protocol.class_list.binary
    if (untyped or protocol.presence_only) and request.stage != "segmentation":
        if protocol.tumors_only:
            notes.append("tumors of unknown type were left out")
        elif protocol.presence_only or tumors == {TUMOR}:
            notes.append("no tumor has a known type, or none is asked for: figures of the classes are left out")
        else:
            notes.append("some tumors have no known type: they count for presence, not for the type")
    measured = [protocol.class_list.names[c] for c in protocol.classes]
    absent = [name for name in measured if not any(s.label == name for s in samples)]
    if absent and protocol.id in ("p1", "p2", "p3"):
        notes.append(f"no scan shows {', '.join(absent)}")
    return tuple(notes)


def assign_folds(samples: Sequence[Sample], size: int, seed: int, progress: Progress | None = None) -> list[Sample]:
    """The samples with the folds, and the patients, that `data.training.partition.load_partition` gives them.

    Args:
        samples: The samples that training uses, in its order.
        size: Side of the network's input in pixels.
        seed: Of the folds.
        progress: Called with the number of slices read and of all. Slices are read only where a patient is unknown.
    """
    if any(not s.patient for s in samples):
        report = (lambda done: progress(done, len(samples))) if progress else None
        whole = prepare(samples, Preprocess(size), report)
        samples = whole.samples
        if any(not s.patient for s in samples):
            samples = group_by_likeness(samples, signatures(whole.images))
    own = [s.fold for s in samples]
    folds = own if all(fold is not None for fold in own) else make_folds(samples, seed=seed)
    return [replace(sample, fold=fold) for sample, fold in zip(samples, folds, strict=True)]


def _numbered(folds: Sequence[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"
