"""The protocols of a measurement, and the selection of scans that one of them measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tumorlens.data.datasets.sample import Sample, has_truth
from tumorlens.data.errors import InputError
from tumorlens.data.labels import NO_TUMOR, SHIPPED_CLASSES, ClassList

STAGES = ("classification", "segmentation", "pipeline")
LEAKS = "leaks: 57 % of test images are copies of training images"  # of BRISC's own parts
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Protocol:
    """A way to measure that a table can name.

    Attributes:
        id: ``p1`` to ``p7``, or ``none``.
        title: One line for the report.
        split: ``"folds"``, ``"official"``, or ``"all"`` scans as one set.
        stages: The stages that it can measure, ``pipeline`` among them.
        presence_only: Whether only tumor or no tumor is measured, not the type.
        tumors_only: Whether only tumors are measured.
        class_list: The classes of the classifier; of a segmenter alone, those of the labels.
    """

    id: str
    title: str
    split: str = "folds"
    stages: tuple[str, ...] = STAGES
    presence_only: bool = False
    tumors_only: bool = False
    class_list: ClassList = SHIPPED_CLASSES

    @property
    def classes(self) -> tuple[int, ...]:
        """The numbers of the classes that are measured, see `data.labels.ClassList.index`."""
        first = NO_TUMOR + 1 if self.tumors_only else self.class_list.offset
        return tuple(range(first, len(self.class_list)))

    def of_classes(self, class_list: ClassList) -> Protocol:
        """The protocol of a classifier of some classes, with their number in its title."""
        title = self.title
        if class_list.outputs != SHIPPED_CLASSES.outputs:
            title = title.replace("three classes", f"{len(class_list.tumors)} classes")
            title = title.replace("four classes", f"{len(class_list.outputs)} classes")
        return replace(self, title=title, class_list=class_list)


PROTOCOLS = {
    "p1": Protocol("p1", "P1: type of tumor (three classes) and mask, folds by patient", tumors_only=True),
    "p2": Protocol("p2", "P2: presence and type (four classes) and mask, folds by patient"),
    "p3": Protocol("p3", "P3: official split, to compare with papers only", split="official"),
    "p4": Protocol("p4", "P4: LGG folder, Dice of each patient's volume, folds by patient", stages=("segmentation",)),
    "p5": Protocol("p5", "P5: leave one source out", split="all"),
    "p6": Protocol("p6", "P6: presence and mask on each sequence, folds by patient"),
    "p7": Protocol(
        "p7",
        "P7: presence on pictures as people find them, folds by patient",
        stages=("classification", "pipeline"),
        presence_only=True,
    ),
}

NONE = Protocol("none", "no protocol: all scans as one set", split="all")
NONE_FOLDS = Protocol("none", "no protocol: all classes that the data have, folds by patient")


def folds_are_common(samples: Sequence[Sample]) -> bool:
    """Whether both stages make the same folds of these samples.

    Folds that are not the data's own depend on the samples that a stage can use, and on look-alikes where a patient is
    unknown.
    """
    used = [s for s in samples if s.label or has_truth(s)]
    return all(s.fold is not None for s in used) or all(s.label and s.patient and has_truth(s) for s in used)


@dataclass(frozen=True)
class Selection:
    """The scans that are measured.

    Attributes:
        protocol: How they are measured.
        parts: Fold -> its samples. The only key is None where the data are one set.
        n_folds: The number of folds, or None without folds.
        own_folds: Whether the data name the folds themselves.
        choice: How the folds were chosen, in words.
        notes: Remarks on the data for the reader of the report.
    """

    protocol: Protocol
    parts: dict[int | None, list[Sample]]
    n_folds: int | None
    own_folds: bool
    choice: str
    notes: tuple[str, ...]

    @property
    def samples(self) -> list[Sample]:
        return [sample for part in self.parts.values() for sample in part]


def find_protocol(name: str | None, stage: str, folds: tuple[int, ...] | None) -> Protocol:
    """The protocol of a name; without a name, all scans as one set, or the folds that are named.

    Raises:
        InputError: No such protocol, or not for this stage.
    """
    if name is None:
        return NONE if folds is None else NONE_FOLDS
    protocol = PROTOCOLS.get(name.lower())
    if protocol is None:
        raise InputError(f"protocol {name!r} is not one of {', '.join(PROTOCOLS)}")
    if stage not in protocol.stages:
        raise InputError(f"protocol {protocol.id} measures {' and '.join(protocol.stages)}, not {stage}")
    if folds is not None and protocol.split != "folds":
        raise InputError(f"protocol {protocol.id} has no folds; leave --folds out")
    return protocol
