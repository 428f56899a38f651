"""Scans of one study: do their answers fit together?"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tumorlens.data.files import write_text
from tumorlens.data.labels import TUMOR, TUMOR_FREE
from tumorlens.data.plotting import plain
from tumorlens.pipeline.batch.job import Job, split_extension
from tumorlens.pipeline.batch.resume import DAMAGE
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.outputs.write import result_text

_APART = "the scans of this study do not agree: "
_SEQUENCES = {"t1", "t1w", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "t2f", "flair"}  # as BIDS and BraTS name files


@dataclass(frozen=True)
class Answer:
    """The answer for a scan, as far as it is compared with others of its study."""

    folder: str
    name: str
    label: str
    confidence: float
    sequence: str | None

    def __str__(self) -> str:
        sequence = f" ({self.sequence})" if self.sequence else ""
        return f"{self.name}{sequence}: {plain(self.label)} {self.confidence:.2f}"


class Studies:
    """The answers of a batch by study, to be compared at its end."""

    def __init__(self) -> None:
        self._answers: defaultdict[str, list[Answer]] = defaultdict(list)

    def add(self, job: Job, content: Mapping[str, Any]) -> None:
        """Remember the answer in the content of a ``result.json``, if the scan belongs to a study."""
        study = study_of(job)
        if study and content["label"] != REFUSED:
            answer = Answer(job.folder, job.name, content["label"], content["confidence"], content["sequence"])
            self._answers[study].append(answer)

    def compare(self, out: Path) -> dict[str, list[str]]:
        """Write into ``review`` of every scan of a study whose answers contradict each other what all of them say.

        Args:
            out: The output folder.

        Returns:
            Name of each scan whose ``result.json`` changed -> its reasons to review.
        """
        changed = {}
        for answers in self._answers.values():
            if len(answers) < 2:
                continue  # what an earlier call found about it stays
            reasons = [_APART + ", ".join(map(str, answers))] if disagree(a.label for a in answers) else []
            for answer in answers:
                with suppress(*DAMAGE):  # the answer stands without it
                    review = _set_reasons(out / answer.folder / "result.json", reasons)
                    if review is not None:
                        changed[answer.name] = review
        return changed


def study_of(job: Job) -> str:
    """What the scans of one study have in common, or an empty string for a scan on its own.

    Of DICOM, the Study Instance UID. Of other files, the folder and the name without the sequence in it: ``01_t1c.nii``
    and ``01_flair.nii`` are of one study.
    """
    if job.study:
        return job.study
    path = Path(job.shown_path())
    words = re.split(r"[^a-z0-9]+", split_extension(path.name)[0].lower())
    others = [word for word in words if word not in _SEQUENCES]
    return str(path.parent.resolve() / "_".join(others)) if len(others) < len(words) else ""


def disagree(labels: Iterable[str]) -> bool:
    """Whether labels contradict each other: a tumor and none, or two types. ``tumor`` goes with every type."""
    different = set(labels)
    return len(different - {TUMOR}) > 1 or different == {TUMOR, TUMOR_FREE}


def _set_reasons(file: Path, reasons: list[str]) -> list[str] | None:
    """Replace the reasons of an earlier comparison in a ``result.json``; None if they are as they were."""
    content = json.loads(file.read_text(encoding="utf-8"))
    review = [reason for reason in content["review"] if not reason.startswith(_APART)] + reasons
    if review == content["review"]:
        return None
    content["review"] = review
    write_text(file, result_text(content))
    return review
