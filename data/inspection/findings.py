"""The report of a check: the kinds of findings in their order, the list that a person reads, the JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tumorlens.data.files import claim, write_text

KIND = "tumorlens data check"

PROBLEMS: dict[str, str] = {
    "bad_row": "rows of the index that cannot be used",
    "missing_file": "files that are named but not there",
    "unknown_label": "labels and folders that cannot be the name of a class (see --map)",
    "repeated_row": "files that are listed more than once",
    "unreadable": "files that cannot be read",
    "constant": "pictures with the same value everywhere",
    "tiny": "pictures too small to show a head",
    "ambiguous_mask": "masks that could belong to two pictures, and pictures with two masks",
    "repeated_patient": "patients with two folders",
    "mask_shape": "masks that do not fit their scan",
    "bad_drawing": "boxes and outlines that cannot be read, or do not fit their picture",
    "empty_mask": "tumor slices with an empty mask",
    "healthy_mask": "no_tumor slices with a mask that is not empty",
    "volume_without_mask": "tumor volumes without a mask that says in which slices",
    "file_label": "files whose own label differs from the set's",
    "label_conflict": "the same picture under two labels",
    "patient_in_two_splits": "patients on both sides of the official split",
    "patient_in_two_folds": "patients in two folds",
    "copy_in_two_splits": "the same picture on both sides of the official split",
    "copy_in_two_folds": "the same picture in two folds",
    "folds": "fold numbers that training cannot use",
}

NOTES: dict[str, str] = {
    "no_mask": "tumor pictures without a mask: of use to the classifier only",
    "doubtful_label": "labels that may be typing errors",
    "no_label": "files without a label: their mask says whether there is a tumor, of unknown type",
    "mask_values": "masks with more than one value besides 0, and the values that count as lesion",
    "boxes": "images whose lesions have boxes: they teach the segmenter less than outlines, and measure boxes only",
    "unmasked": "images without a mask in the mask folder: they count for nothing; an empty mask says that there is no "
    "lesion",
    "no_patient": "files without a patient: only look-alikes can be kept together",
    "equal_files": "files with the same bytes within one part",
    "copy": "the same picture under two patients, or without a patient, within one part",
    "unnamed_file": "files of the folder that the index does not name",
}


@dataclass(frozen=True)
class Finding:
    """One problem, or a fact worth knowing.

    Attributes:
        kind: A key of `PROBLEMS` or `NOTES`.
        text: The problem and its place, in one sentence.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class CheckReport:
    """The result of a check.

    Attributes:
        data: The data set, as the user named it.
        files: How many scans the set lists.
        slices: How many slices of them could be read.
        patients: How many patients are named.
        findings: Problems and notes.
    """

    data: str
    files: int
    slices: int
    patients: int
    findings: tuple[Finding, ...]

    def of(self, kind: str) -> list[str]:
        """The texts of one kind."""
        return [finding.text for finding in self.findings if finding.kind == kind]

    @property
    def problems(self) -> int:
        """How many findings are more than notes."""
        return sum(finding.kind in PROBLEMS for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """All findings as JSON can hold them."""
        return {
            "kind": KIND,
            "data": self.data,
            "files": self.files,
            "slices": self.slices,
            "patients": self.patients,
            "problems": self._by_kind(PROBLEMS),
            "notes": self._by_kind(NOTES),
        }

    def as_text(self, examples: int = 5) -> str:
        """The findings by kind, with their number and the first few of each."""
        head = f"{self.data}: {_count(self.files, 'file')}, {_count(self.slices, 'slice')} read, "
        head += _count(self.patients, "patient") if self.patients else "patients not known"
        lines = [head]
        for title, kinds in (("problems", PROBLEMS), ("notes", NOTES)):
            present = [kind for kind in kinds if self.of(kind)]
            if present:
                lines += ["", title]
            for kind in present:
                lines += _listed(f"  {kinds[kind]}: {len(self.of(kind))}", self.of(kind), examples)
        n_kinds = len({f.kind for f in self.findings if f.kind in PROBLEMS})
        end = f"{_count(self.problems, 'problem')} of {_count(n_kinds, 'kind')}" if self.problems else "no problems"
        return "\n".join([*lines, "", end])

    def _by_kind(self, kinds: dict[str, str]) -> dict[str, Any]:
        return {
            kind: {"title": title, "count": len(self.of(kind)), "items": self.of(kind)}
            for kind, title in kinds.items()
            if self.of(kind)
        }


def write_findings(report: CheckReport, path: Path, overwrite: bool = False) -> None:
    """Write all findings as JSON.

    Raises:
        InputError: See `check_out`.
    """
    check_out(path, overwrite)
    write_text(path, json.dumps(report.as_dict(), indent=1) + "\n")


def check_out(path: Path, overwrite: bool = False) -> None:
    """Raise an `InputError` unless findings may be written to a file, see `data.files.claim`."""
    claim([path], "a list of findings", _is_ours, overwrite)


def _is_ours(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["kind"] == KIND)
    except (ValueError, KeyError, TypeError):
        return False


def _listed(title: str, items: Sequence[str], examples: int) -> list[str]:
    shown = [f"    {item}" for item in items[:examples]]
    more = len(items) - len(shown)
    return [title, *shown, *([f"    ... and {more} more"] if more else [])]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
