"""Which scans a protocol measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from data.datasets import load_samples
from data.errors import InputError
from data.labels import CLASSES, NO_TUMOR
from data.lgg import is_lgg_slice
from data.loaders import prepare
from data.preprocess import Preprocess
from data.readers import open_scan
from data.samples import Sample, has_colour
from data.sources import find_index
from data.splits import N_FOLDS, group_by_likeness, make_folds, signatures, split_by_fold
from pipeline.leaks import tested_fold
from segmentation.train import has_truth

STAGES = ("classification", "segmentation", "pipeline")
LEAKS = "leaks: 57 % of test images are copies of training images"  # of BRISC's own parts
_BRISC_TEST = "brisc2025_test_"  # begins the names of its test pictures

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protocol:
    """A way to measure that a table can name.

    Attributes:
        id: ``p1`` to ``p4``, or ``none``.
        title: One line for the report.
        classes: Indices into `data.labels.CLASSES` that are measured.
        split: ``"folds"``, ``"official"``, or ``"all"`` scans as one set.
        stages: What it can measure.
    """

    id: str
    title: str
    classes: tuple[int, ...] = tuple(range(len(CLASSES)))
    split: str = "folds"
    stages: tuple[str, ...] = STAGES


PROTOCOLS = {
    "p1": Protocol("p1", "P1: type of tumor (three classes) and mask, folds by patient", (1, 2, 3)),
    "p2": Protocol("p2", "P2: presence and type (four classes) and mask, folds by patient"),
    "p3": Protocol("p3", "P3: official split, to compare with papers only", split="official"),
    "p4": Protocol("p4", "P4: LGG folder, Dice of each patient's volume, folds by patient", stages=("segmentation",)),
}
NONE = Protocol("none", "no protocol: all scans as one set", split="all")
NONE_FOLDS = Protocol("none", "no protocol: all classes that the data have, folds by patient")


@dataclass(frozen=True)
class DataRequest:
    """Which data to measure.

    Attributes:
        data: As for training.
        stage: One of `STAGES`.
        protocol: A key of `PROTOCOLS`, or none for all scans as one set.
        folds: Test folds; none leaves the choice to the card, an empty tuple takes all.
        label_map: The user's label names -> classes.
        channel: Which channel of colour pictures.
        seed: Of folds that the data do not have.
        size: Side of the network's input with which training looked for copies among slices of unknown patients.
    """

    data: tuple[str, ...]
    stage: str
    protocol: str | None = None
    folds: tuple[int, ...] | None = None
    label_map: tuple[tuple[str, str], ...] = ()
    channel: int | None = None
    seed: int = 0
    size: int = 224


@dataclass(frozen=True)
class Selection:
    """What is measured.

    Attributes:
        protocol: How.
        parts: Fold -> its samples; the only key is none where the data are one set.
        n_folds: How many folds there are, or none.
        own_folds: Whether the data name the folds themselves.
        choice: A sentence on how folds were chosen.
        notes: What a reader should know of the data.
        known: All samples of the data, also those of no use to the stage.
    """

    protocol: Protocol
    parts: dict[int | None, list[Sample]]
    n_folds: int | None
    own_folds: bool
    choice: str
    notes: tuple[str, ...]
    known: tuple[Sample, ...] = ()

    @cached_property
    def common_folds(self) -> bool:
        """See `folds_are_common`."""
        return folds_are_common(self.known)

    @property
    def samples(self) -> list[Sample]:
        return [sample for part in self.parts.values() for sample in part]


def find_protocol(name: str | None, stage: str, folds: tuple[int, ...] | None) -> Protocol:
    """The protocol of a name; without one, all scans, or the folds that were asked for.

    Raises:
        InputError: No such protocol, or not for this stage.
    """
    if name is None:
        return NONE if folds is None else NONE_FOLDS
    protocol = PROTOCOLS.get(name.lower())
    if protocol is None:
        raise InputError(f"protocol {name!r} is none of {', '.join(PROTOCOLS)}")
    if stage not in protocol.stages:
        raise InputError(f"protocol {protocol.id} measures {' and '.join(protocol.stages)}, not {stage}")
    if folds is not None and protocol.split != "folds":
        raise InputError(f"protocol {protocol.id} has no folds; leave --folds out")
    return protocol


def select(request: DataRequest, card: dict[str, Any] | None = None, progress: Progress | None = None) -> Selection:
    """The scans to measure. Folds are the data's own where all of them have one, else those that training with the same
    data and seed makes, so that fold k holds exactly the patients which training on fold k has not seen.

    Args:
        request: Data and protocol.
        card: Of the weights; unless the request names folds, the test fold on it is measured if the weights were
            trained on these data, else all scans as one set.
        progress: Called with the number of slices read and of all, where copies have to be looked for.

    Raises:
        InputError: Unusable data, a protocol that does not fit them, no such fold.
    """
    protocol = find_protocol(request.protocol, request.stage, request.folds)
    known = _load(request, protocol)
    samples = [s for s in known if _is_of_use(s, request.stage)]
    _check_use(samples, known, request, protocol)
    notes = _notes(samples, known, request, protocol)
    if protocol.split == "all":
        return Selection(protocol, {None: samples}, None, False, "all scans as one set", notes)
    if protocol.split == "official":
        test = [s for s in samples if s.split == "test"]
        if not test:
            raise InputError(f"{_names(request)}: protocol p3 needs an official split, and the data have no test part")
        flaw = known_leaks(test)
        told = replace(protocol, title=f"{protocol.title}; {flaw}") if flaw else protocol
        return Selection(told, {None: test}, None, False, "test part of the official split", notes)
    own = all(s.fold is not None for s in samples)
    if request.folds is None:
        fold = tested_fold(card or {}, request.data, request.seed, own)
        if fold is None:
            return _one_set(samples, request, protocol, notes)
        request = replace(request, folds=(fold,))
        choice = "the test fold on the weights' card"
    else:
        choice = "as asked for"
    if not own:
        samples = assign_folds(samples, request.size, request.seed, progress)
    n_folds = 1 + max(s.fold for s in samples if s.fold is not None)
    chosen = _chosen(request, n_folds)
    choice = f"{_numbered(chosen)} of {n_folds}, {choice}"
    choice += "; folds of the data" if own else f"; folds made as training makes them, seed {request.seed}"
    parts: dict[int | None, list[Sample]] = {}
    for fold in chosen:
        parts[fold] = _of_classes([samples[i] for i in split_by_fold(samples, fold).test], protocol)
        if not parts[fold]:
            raise InputError(f"{_names(request)}: no {_wanted(protocol)} in fold {fold}")
    return Selection(protocol, parts, n_folds, own, choice, notes, tuple(known))


def known_leaks(test: Sequence[Sample]) -> str:
    """What is known of an official test part's leaks: BRISC's figure if all of it is BRISC's own, else nothing. What a
    training counted is on its card, see `pipeline.leaks`."""
    return LEAKS if test and all(sample.image.name.startswith(_BRISC_TEST) for sample in test) else ""


def folds_are_common(samples: Sequence[Sample]) -> bool:
    """Whether both stages make the same folds of these samples. Folds that are made depend on the samples that a stage
    can use, and on look-alikes where a patient is unknown."""
    used = [s for s in samples if s.label or has_truth(s)]
    return all(s.fold is not None for s in used) or all(s.label and s.patient and has_truth(s) for s in used)


def _one_set(samples: list[Sample], request: DataRequest, protocol: Protocol, notes: tuple[str, ...]) -> Selection:
    """All scans of the protocol's classes, for weights that no fold of these data was kept from."""
    measured = _of_classes(samples, protocol)
    if not measured:
        raise InputError(f"{_names(request)}: no {_wanted(protocol)}")
    whole = replace(protocol, title=protocol.title.replace("folds by patient", "all as one set"), split="all")
    choice = "all scans as one set, as the weights' card names no test fold of these data (--folds takes folds)"
    return Selection(whole, {None: measured}, None, False, choice, notes)


def _of_classes(samples: list[Sample], protocol: Protocol) -> list[Sample]:
    return [s for s in samples if not s.label or CLASSES.index(s.label) in protocol.classes]


def _wanted(protocol: Protocol) -> str:
    return "scan" if NO_TUMOR in protocol.classes else "scan of a tumor"


def count_folds(request: DataRequest) -> int:
    """How many folds training finds in the data, or makes of them.

    Raises:
        InputError: Unusable data, or a protocol that does not fit them.
    """
    protocol = find_protocol(request.protocol, request.stage, request.folds)
    known = _load(request, protocol)
    samples = [s for s in known if _is_of_use(s, request.stage)]
    _check_use(samples, known, request, protocol)
    own = [s.fold for s in samples if s.fold is not None]
    return 1 + max(own) if len(own) == len(samples) else N_FOLDS


def _load(request: DataRequest, protocol: Protocol) -> list[Sample]:
    samples: list[Sample] = []
    for source in request.data:
        found = load_samples(source, dict(request.label_map), request.channel)
        flaw = lgg_flaw(source, found) if protocol.id == "p4" else ""
        if flaw:
            raise InputError(f"{source}: protocol p4 {flaw}")
        samples += found
    return samples


def lgg_flaw(source: str, samples: Sequence[Sample]) -> str:
    """Why the samples of a source are not slices of an LGG folder in one sequence; empty where they are."""
    if not all(map(is_lgg_slice, samples)):
        return (
            "needs an LGG folder, a folder per patient with pictures and their *_mask files, or an index of one with "
            "its patients"
        )
    if find_index(source)[0] is None:
        return ""
    for sample in samples:
        if sample.channel is None and has_colour(open_scan(sample.image, constant=True)):
            return (
                f"measures one sequence, but the index does not say which channel of the color picture "
                f"{sample.image.name} is FLAIR; give --frame-channel, or write the index with `tumorlens data split`"
            )
    return ""


def _is_of_use(sample: Sample, stage: str) -> bool:
    """The samples with which training of this stage works."""
    return has_truth(sample) if stage == "segmentation" else bool(sample.label)


def _check_use(samples: list[Sample], known: list[Sample], request: DataRequest, protocol: Protocol) -> None:
    masks = request.stage == "segmentation"
    if not samples:
        raise InputError(f"{_names(request)}: no {'scan with a mask' if masks else 'labelled scan'}")
    free = all(s.label == CLASSES[NO_TUMOR] for s in samples)
    if masks and free and any(s.label not in ("", CLASSES[NO_TUMOR]) for s in known):
        raise InputError(f"{_names(request)}: no scan of a tumor has a mask")
    if protocol.id in ("p1", "p2", "p3") and not any(s.label for s in samples):
        raise InputError(f"{_names(request)}: protocol {protocol.id} needs labels, and no scan has one")


def _notes(samples: list[Sample], known: list[Sample], request: DataRequest, protocol: Protocol) -> tuple[str, ...]:
    notes = []
    if len(samples) < len(known):
        lack = "mask" if request.stage == "segmentation" else "label"
        notes.append(f"{len(known) - len(samples)} slices without a {lack} were left out")
    if any(not s.patient for s in samples):
        notes.append(
            "the data do not name every patient: a slice of unknown origin counts as a patient of its own unless "
            "it was found to be a copy, so intervals are too narrow where its patient has other slices"
        )
    if request.stage != "pipeline" and any(s.from_volume for s in samples):
        notes.append(
            "of volumes only slices are measured that training takes: with at least 20 pixels of a lesion or none, and "
            "a quarter of the largest slice's tissue"
        )
    absent = [CLASSES[c] for c in protocol.classes if not any(s.label == CLASSES[c] for s in samples)]
    if absent and protocol.id in ("p1", "p2", "p3"):
        notes.append(f"no scan shows {', '.join(absent)}")
    return tuple(notes)


def assign_folds(samples: Sequence[Sample], size: int, seed: int, progress: Progress | None = None) -> list[Sample]:
    """The samples with the folds, and the patients, that `data.partition.load_partition` gives them.

    Args:
        samples: All that training would use, in its order.
        size: Side of the network's input.
        seed: Of the folds.
        progress: Called with the number of slices read and of all; they are read only where a patient is unknown.
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


def _chosen(request: DataRequest, n_folds: int) -> list[int]:
    chosen = sorted(set(request.folds or ())) or list(range(n_folds))
    for fold in chosen:
        if fold >= n_folds:
            raise InputError(f"{_names(request)}: no fold {fold}, the data have folds 0 to {n_folds - 1}")
    return chosen


def _numbered(folds: Sequence[int]) -> str:
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def _names(request: DataRequest) -> str:
    return ", ".join(request.data)
