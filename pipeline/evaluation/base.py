"""The base of the three evaluations: cases of each fold, batches of slices or of scans, worst cases, the report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.datasets.picture_hashes import PictureHashes
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.datasets.sweep import Swept, sweep
from tumorlens.data.datasets.truth import true_mask, true_regions
from tumorlens.data.errors import InputError
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.case import Case, open_source, prepare
from tumorlens.pipeline.evaluation.protocols import Progress, Protocol
from tumorlens.pipeline.evaluation.tables import CaseT, Table, groups_of
from tumorlens.pipeline.evaluation.worst_cases import Worst
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.read_ahead import AT_ONCE


@dataclass(frozen=True)
class SliceCase:
    """A measured slice.

    Attributes:
        sample: The slice.
        fold: The fold that it belongs to, or None.
        known: Whether the weights have learned from it, or from a copy of it.
    """

    sample: Sample
    fold: int | None
    known: bool = field(default=False, kw_only=True)

    @property
    def n_known(self) -> tuple[int, int]:
        """How many slices the weights know, and of how many."""
        return int(self.known), 1

    @property
    def patient(self) -> str:
        """The patient, or the slice's own name where the data name no patient."""
        return self.sample.patient or self.sample.name

    @property
    def source(self) -> int:
        """Number of its data set."""
        return self.sample.source

    @property
    def sequence(self) -> str:
        """Its MRI sequence, empty where it is not known."""
        return self.sample.sequence

    @property
    def row(self) -> dict[str, Any]:
        """The columns of ``cases.csv`` that identify the slice."""
        place = {"file": str(self.sample.image), "slice": self.sample.place}
        origin = {"source": self.source, "sequence": self.sequence}
        truth = {"label": self.sample.label, "training_slice": self.known}
        return place | {"patient": self.patient, "fold": self.fold} | origin | truth


class Evaluation(ABC, Generic[CaseT]):
    """Measures models, a part of the data at a time, and provides the contents of a report.

    Args:
        protocol: The classes that count.
        seed: Of the bootstrap.

    Attributes:
        learned: The pictures from which the weights have learned that are measured next.
        regions: What the segmenter tells apart in a lesion, once it has been measured.
        headline: Dotted path of a figure -> its title, for the table on the screen and that of the folds.
        group_titles: Figure of a group -> its title.
    """

    headline: ClassVar[dict[str, str]]
    group_titles: ClassVar[dict[str, str]]

    def __init__(self, protocol: Protocol, seed: int) -> None:
        self.protocol, self.seed = protocol, seed
        self.cases: list[CaseT] = []
        self.worst = Worst()
        self.learned = PictureHashes.from_text("")
        self.regions = NO_REGIONS

    @property
    def titles(self) -> dict[str, str]:
        """The `headline`, and the figures of each region."""
        return self.headline

    @property
    @abstractmethod
    def policy(self) -> str:
        """How the figures are to be read."""

    @abstractmethod
    def measure(
        self, models: dict[str, Any], samples: Sequence[Sample], fold: int | None, progress: Progress | None = None
    ) -> None:
        """Predict every scan once and keep the cases.

        Args:
            models: The stage's name -> its model, as `pipeline.evaluation.weights.Weights.load` gives it.
            samples: Slices that the stage can use.
            fold: Their fold, or None where the data are one set.
            progress: Called with the number of slices or scans done and of all.

        Raises:
            InputError: A scan or a mask cannot be used.
        """

    def knows(self, images_nhw: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Whether the weights have learned from each of some prepared slices, or from a copy, ``(n,)``."""
        return self.learned.hold(PictureHashes.of(images_nhw))

    def known_slices(self) -> tuple[int, int]:
        """How many of the measured slices the weights know, and of how many."""
        known, measured = np.array([case.n_known for case in self.cases]).sum(axis=0).tolist()
        return known, measured

    def figures(self, fold: int | None = None) -> dict[str, Any]:
        """All figures of one fold, or of all cases together."""
        cases = [case for case in self.cases if fold in (None, case.fold)]
        counts = {"n": len(cases), "n_patients": len({case.patient for case in cases})}
        return counts | self.figures_of(cases)

    @abstractmethod
    def figures_of(self, cases: Sequence[CaseT]) -> dict[str, Any]:
        """All figures of some cases, with 95 % intervals by bootstrap over patients."""

    def groups(self, sources: Sequence[str]) -> list[dict[str, Any]]:
        """The figures of each group of the cases, a row each, see `pipeline.evaluation.tables`.

        Args:
            sources: The name of each data set.
        """
        return [
            {
                "by": group.by,
                "group": group.name,
                "kind": kind,
                "n": len(members),
                "n_patients": len({case.patient for case in members}),
                **self.group_figures(members),
            }
            for group in groups_of(self.cases, sources)
            for kind, members in self.kinds(group.cases).items()
        ]

    def kinds(self, cases: Sequence[CaseT]) -> dict[str, list[CaseT]]:
        """The cases by what is counted, without empty kinds."""
        return {"slices": list(cases)}

    @abstractmethod
    def group_figures(self, cases: Sequence[CaseT]) -> dict[str, Any]:
        """The figures of a group: every key of `group_titles`, and counts."""

    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``cases.csv``."""
        return [row for case in self.cases for row in self.rows_of(case)]

    @abstractmethod
    def rows_of(self, case: CaseT) -> list[dict[str, Any]]:
        """The rows of one case."""

    @abstractmethod
    def plots(self) -> dict[str, Callable[[Path], None]]:
        """File name -> the function that writes the picture."""

    @abstractmethod
    def tables(self, figures: dict[str, Any]) -> list[Table]:
        """The tables of ``report.md`` for the figures of all cases."""


def batches(
    samples: Sequence[Sample], preprocess: Preprocess, size: int, progress: Progress | None
) -> Iterator[list[Swept]]:
    """Slices, read and prepared, some at a time.

    Raises:
        InputError: A slice cannot be used. A measurement leaves no slice out.
    """
    batch: list[Swept] = []
    for swept in sweep(samples, preprocess, progress):
        if not isinstance(swept, Swept):
            raise InputError(swept.reason)
        batch.append(swept)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@dataclass(frozen=True)
class LabeledScan:
    """A scan that was read as a run reads it, with its truth.

    Attributes:
        members: Its samples.
        case: Ready for the networks.
        truth: Its true mask in the array order of the scan, or None.
        regions: Its true regions as bits, or None.
    """

    members: list[Sample]
    case: Case
    truth: NDArray[np.uint8] | None
    regions: NDArray[np.uint8] | None


def scan_batches(scans: Iterable[list[Sample]], size: int, regions: Regions) -> Iterator[list[LabeledScan]]:
    """Scans, read as a run reads them, that share a batch: at least one, and not more slices than `AT_ONCE`.

    Args:
        scans: The samples of each scan.
        size: Side of the classifier's input in pixels.
        regions: What the segmenter tells apart in a lesion.
    """
    group: list[LabeledScan] = []
    slices = 0
    for members in scans:
        opened = _open(members, size, regions)
        n = len(opened.case.chosen)
        if group and slices + n > AT_ONCE:
            yield group
            group, slices = [], 0
        group.append(opened)
        slices += n
    if group:
        yield group


def _open(members: list[Sample], size: int, regions: Regions) -> LabeledScan:
    scan = open_source(members[0].image, RunOptions(channel=members[0].channel))
    truth = true_mask(members, scan)
    bits = None if truth is None else true_regions(members, scan, regions)
    return LabeledScan(members, prepare(scan, size), truth if bits is None else (bits != 0).astype(np.uint8), bits)
