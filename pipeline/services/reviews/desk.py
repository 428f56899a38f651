"""The review desk: which scans need a person most, one of them with its pictures, and the decision about it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import TUMOR, TUMOR_FREE
from tumorlens.data.scan import Scan
from tumorlens.data.scratch import ScratchFolder
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.sources import find_sources, open_stored
from tumorlens.pipeline.batch.stored import StoredResult, read_results
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.measurements.lesions import LOW_CONFIDENCE
from tumorlens.pipeline.measurements.size import without_lengths
from tumorlens.pipeline.outputs import TABLE
from tumorlens.pipeline.services.reviews.corrections import write_correction
from tumorlens.pipeline.services.reviews.editor import Editor
from tumorlens.pipeline.services.reviews.state import (
    current_mask,
    decisions_about,
    final_decision,
    last_correction,
    models_of,
)
from tumorlens.pipeline.services.reviews.store import ACCEPT, COMMENT, CORRECT, REJECT, RELABEL, Claim, Decision, Store
from tumorlens.pipeline.services.views import View

STATES = {ACCEPT: "accepted", REJECT: "rejected", RELABEL: "relabeled", CORRECT: "corrected"}
OPEN, FAILED = "open", "failed"
_LARGE_ML = 30.0
_MANY_LESIONS = 3


@dataclass(frozen=True)
class WorkItem:
    """One line of the worklist.

    Attributes:
        result: The stored result.
        need: How much a person is needed; the worklist begins with the largest.
        reasons: Why, in words.
        state: `OPEN`, `FAILED`, or one of the values of `STATES`.
        reviewers: Who has decided, in order.
        claim: Who has it open now, or None.
        label: The label that holds: the last reviewer's, else the predicted one.
    """

    result: StoredResult
    need: float
    reasons: tuple[str, ...]
    state: str = OPEN
    reviewers: tuple[str, ...] = ()
    claim: Claim | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """The scan's name in ``results.csv``."""
        return self.result.name


@dataclass
class OpenCase:
    """A scan on the desk.

    Attributes:
        result: The stored result.
        item: Its line of the worklist.
        decisions: All decisions about it.
        scan: The source, or None where it is not at hand.
        problem: Why the source is not shown, or empty.
        view: Its slices, or None without the source.
        editor: Draws on the mask of the view.
    """

    result: StoredResult
    item: WorkItem
    decisions: list[Decision]
    scan: Scan | None = None
    problem: str = ""
    view: View | None = None
    editor: Editor | None = None
    base: NDArray[np.uint8] | None = field(default=None, repr=False)

    @property
    def seen(self) -> int:
        """Number of the latest decision when it was opened."""
        return self.decisions[-1].number if self.decisions else 0

    @property
    def measured(self) -> Scan | None:
        """The source, without its spacing where the run did not believe it."""
        if self.scan is None:
            return None
        size = self.result.content["tumor_volume_mm3" if self.scan.volume else "tumor_area_mm2"]
        return without_lengths(self.scan) if size is None else self.scan


class Desk:
    """The results of an output folder and what reviewers say about them.

    Args:
        out: The output folder.
        inputs: Where its scans lie; by default where `tumorlens run` found them on this machine.
        reviewer: The name that the pages fill in.

    Raises:
        InputError: The folder has no results, or its reviews cannot be read.
    """

    def __init__(self, out: Path, inputs: Sequence[str] = (), reviewer: str = "") -> None:
        self.out, self.reviewer = out, reviewer
        self.store = Store(out)
        self._results = {result.name: result for result in read_results(out)}
        self._read_at = _time_of(out)
        self._lock = threading.Lock()
        self._scratch = ScratchFolder()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sources")  # headers of many files take a while
        self._sources: Future[dict[str, Job]] = self._pool.submit(
            find_sources, list(self._results.values()), out, inputs, Path(self._scratch.name)
        )
        if inputs:
            self._sources.result()  # what you named must be there

    def close(self) -> None:
        """Delete what was unpacked from archives."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._scratch.cleanup()

    def results(self) -> list[StoredResult]:
        """The results in the order of the table, read again where a run has added some."""
        with self._lock:
            now = _time_of(self.out)
            if now != self._read_at:
                self._results = {result.name: result for result in read_results(self.out)}
                self._read_at = now
            return list(self._results.values())

    def worklist(self) -> list[WorkItem]:
        """All scans, those first that need a person most."""
        claims = self.store.claims()
        decided: dict[str, list[Decision]] = {}
        for decision in self.store.decisions():
            decided.setdefault(decision.scan, []).append(decision)
        items = [
            _item(result, decisions_about(result, decided.get(result.name, [])), claims.get(result.name))
            for result in self.results()
        ]
        return sorted(items, key=lambda item: (-item.need, item.name))

    def state(self) -> tuple[object, ...]:
        """A value that changes whenever the worklist or the agreement may have."""
        return (*self.store.state(), _time_of(self.out))

    def next_open(self, after: str, reviewer: str) -> str | None:
        """The next scan in the worklist that nobody has open and this reviewer has not decided on; None if all are."""
        items = self.worklist()
        names = [item.name for item in items]
        start = names.index(after) + 1 if after in names else 0
        for item in [*items[start:], *items[:start]]:
            taken = item.claim is not None and item.claim.reviewer != reviewer
            if item.name != after and not taken and reviewer not in item.reviewers and not item.result.failed:
                return item.name
        return None

    def open(self, name: str, reviewer: str) -> OpenCase:
        """A scan with its slices and the mask as the reviewer has left it.

        Raises:
            InputError: There is no such scan in the folder.
        """
        result = self._result(name)
        decisions = decisions_about(result, self.store.decisions(name))
        case = OpenCase(result, _item(result, decisions, self.store.claims().get(name)), decisions)
        try:
            case.scan = self.read_scan(result)
            self.restore_files(result, case.scan)
            mask = self.mask_on(case.scan, result, decisions)
        except (InputError, OSError) as error:
            case.problem, case.scan = str(error), None
            return case
        case.base = mask
        lesions = result.content["lesions"]
        case.view = View(
            case.scan,
            case.base.copy(),
            start=int(result.content.get("shown_slice") or 0),
            center=lesions[0]["centroid_index"] if lesions else None,
        )
        case.editor = Editor(case.view, self.store, name, reviewer, result.identity)
        return case

    def mask_on(self, scan: Scan, result: StoredResult, decisions: Sequence[Decision]) -> NDArray[np.uint8]:
        """The mask that holds, in the order of the scan; empty where there is none."""
        shape = scan.voxels.shape[: 3 if scan.volume else 2]
        mask = (
            current_mask(result, self.store, decisions) if last_correction(decisions) else result.mask_on(scan, False)
        )
        if mask is None:
            return np.zeros(shape, np.uint8)
        if mask.size != np.prod(shape):
            raise InputError(f"the mask has shape {mask.shape}, the scan {shape}")
        return mask.reshape(shape)

    def decide(self, case: OpenCase, reviewer: str, action: str, label: str = "", comment: str = "") -> list[str]:
        """Record a decision, write the corrected mask if there is one, and return what could not be written.

        Args:
            case: From `open`.
            reviewer: Who decides.
            action: One of `pipeline.services.reviews.store.ACTIONS`. A comment alone leaves the scan open.
            label: The label that holds from now on; by default the one so far.
            comment: Free text.

        Raises:
            ConflictError: Another reviewer has decided since.
            InputError: The action and what was drawn contradict each other, or the scan was run again since.
        """
        if self._result(case.result.name).identity != case.result.identity:
            raise InputError("this scan was run again since you opened it, so nothing was recorded; open it again")
        before_label = case.item.label
        label = label or before_label
        labels = labels_for(case.result)
        if label not in labels:
            raise InputError(f"label {label!r} is not one of {', '.join(labels)}")
        drawn = case.editor is not None and case.editor.changed
        if drawn and action in (ACCEPT, REJECT):
            raise InputError("you have changed the mask: save the correction, or take your strokes back")
        empty = case.view is None or case.view.mask is None or not case.view.mask.any()
        if label == TUMOR_FREE and not empty and action in (RELABEL, CORRECT):
            raise InputError("you call it free of tumor, but there is a mask: clear it (X), or choose another label")
        if action == ACCEPT and label != before_label:
            raise InputError("you have chosen another label: save it, or choose the old one")
        if action == CORRECT and not drawn:
            if label == before_label:
                raise InputError("nothing has changed; accept the result, or correct its mask or label")
            action = RELABEL
        mask = case.view.mask if case.view is not None and action == CORRECT else None
        number = self.store.decide(
            case.result.name,
            reviewer,
            action,
            None if action in (REJECT, COMMENT) else label,
            comment,
            {"label": before_label, "of": case.result.identity, **_facts(case.base, case.measured)},
            {"label": label, **_facts(case.base if mask is None else mask, case.measured)},
            models_of(case.result),
            mask,
            case.seen,
            case.result.identity,
        )
        if mask is None:
            return []
        try:
            problems = write_correction(case.result, mask, case.scan, reviewer, label)[1]
            self.store.mark_written(number)
        except OSError as error:
            return [f"your correction is recorded, but its file cannot be written now ({error.strerror or error})"]
        return problems

    def restore_files(self, result: StoredResult, scan: Scan | None) -> None:
        """Write the corrected mask again where a crash has come between the decision and its files."""
        last = last_correction(decisions_about(result, self.store.decisions(result.name)))
        if last is None:
            return
        mask = self.store.mask(last.number)
        try:
            stored = result.mask()
            same = stored is not None and mask is not None and np.array_equal(stored.voxels, mask)
        except InputError:  # the copy is damaged
            same = False
        if mask is not None and not (same and self.store.is_written(last.number)):
            write_correction(result, mask, scan, last.reviewer, last.label)
            self.store.mark_written(last.number)

    def source_of(self, name: str) -> Job | None:
        """The job that reads a scan, or None where its files are not at hand."""
        return self._sources.result().get(name)

    def result(self, name: str) -> StoredResult:
        """The stored result of a scan.

        Raises:
            InputError: There is no such scan in the folder.
        """
        return self._result(name)

    def _result(self, name: str) -> StoredResult:
        found = next((result for result in self.results() if result.name == name), None)
        if found is None:
            raise InputError(f"{name!r} is not a scan in {self.out / TABLE}")
        return found

    def read_scan(self, result: StoredResult) -> Scan:
        """The scan of a result, as it was judged.

        Raises:
            InputError: It is not at hand, cannot be read, or has changed since.
        """
        if result.failed:
            raise InputError(result.row["error"] or "the result.json of this scan is missing or damaged; run it again")
        job = self.source_of(result.name)
        if job is None:
            raise InputError("the scan is not at hand; start with --scans INPUT to see its slices and correct its mask")
        return open_stored(result, job)


def labels_for(result: StoredResult) -> tuple[str, ...]:
    """What a reviewer may call a scan: a class of its classifier, a tumor of no type, free of tumor, or refused."""
    return (*result.classes.known, REFUSED)


def describe_progress(items: Sequence[WorkItem]) -> str:
    """How many scans are decided, and how, in words. A scan that failed has nothing to decide on."""
    judged = [item for item in items if not item.result.failed]
    counts = Counter(item.state for item in judged if item.state != OPEN)
    parts = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    failed = len(items) - len(judged)
    text = f"{counts.total()} of {len(judged)} scans decided" + (f": {parts}" if parts else "")
    return text + (f"; {failed} failed" if failed else "")


def _item(result: StoredResult, decisions: Sequence[Decision], claim: Claim | None) -> WorkItem:
    need, reasons = _need(result)
    last = final_decision(decisions)
    named = next((d.label for d in reversed(decisions) if d.label), None)
    reviewers = tuple(dict.fromkeys(d.reviewer for d in decisions if d.action != COMMENT))
    state = FAILED if result.failed else STATES[last.action] if last else OPEN
    return WorkItem(result, need, tuple(reasons), state, reviewers, claim, named or result.label)


def _need(result: StoredResult) -> tuple[float, list[str]]:
    """How much a scan needs a person, and why. Every reason counts one; the worst ones count more."""
    if result.failed:
        return 5.0, [f"failed: {result.row['error'] or 'its result.json is missing or damaged'}"]
    content = result.content
    reasons = [str(text) for text in content["review"]]
    need = float(len(reasons))
    if result.label == REFUSED:
        return need + 4, reasons
    lesions, confidence = content["lesions"], float(content["confidence"] or 0)
    need += 2 * max(0.0, 1 - confidence)
    need += confidence < LOW_CONFIDENCE
    positive = result.label != TUMOR_FREE
    if positive != bool(lesions):  # the stages are at odds
        need += 2
    need += result.label == TUMOR
    need += any((lesion["confidence"] or 1) < LOW_CONFIDENCE for lesion in lesions)
    if len(lesions) >= _MANY_LESIONS:
        need += 1
        reasons.append(f"{len(lesions)} lesions")
    volume_ml = float(content["tumor_volume_mm3"] or 0) / 1000
    if volume_ml >= _LARGE_ML:
        need += 1
        reasons.append(f"large: {volume_ml:.0f} ml")
    return round(need, 3), reasons


def _facts(mask: NDArray[np.uint8] | None, scan: Scan | None) -> dict[str, Any]:
    if mask is None:
        return {}
    facts: dict[str, Any] = {"mask_voxels": int(np.count_nonzero(mask))}
    if scan is not None and scan.volume and scan.spacing_mm is not None:
        facts["mask_ml"] = round(facts["mask_voxels"] * float(np.prod(scan.spacing_mm[:3])) / 1000, 4)
    return facts


def size_of(n_voxels: int, scan: Scan) -> str:
    """The size of a mask in words: ml of a volume, mm2 of a picture, voxels or pixels where their size is not known."""
    if scan.spacing_mm is None:
        return f"{n_voxels} {'voxels' if scan.volume else 'pixels'}"
    one = float(np.prod(scan.spacing_mm[: 3 if scan.volume else 2]))
    return f"{n_voxels * one / 1000:.2f} ml" if scan.volume else f"{n_voxels * one:.0f} mm²"


def _time_of(out: Path) -> float:
    try:
        return (out / TABLE).stat().st_mtime
    except OSError:
        return 0.0
