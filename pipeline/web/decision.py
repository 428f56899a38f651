"""What a run says about a scan on the desk, and the form of the reviewer's decision about it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from nicegui import ui

from tumorlens.data.errors import printable
from tumorlens.data.plotting import plain, shown_probability
from tumorlens.pipeline.batch.stored import StoredResult
from tumorlens.pipeline.services.facts import stored_sizes_html
from tumorlens.pipeline.services.reviews.desk import OpenCase, labels_for
from tumorlens.pipeline.services.reviews.store import ACCEPT, COMMENT, CORRECT, REJECT, Decision
from tumorlens.pipeline.web.theme import text
from tumorlens.pipeline.web.worklist import address_of

STILLS = ("overlay.png", "montage.png", "explanation.png")


class DecisionForm:
    """The result of a scan, the fields and buttons of the decision, and the decisions before, in the open element.

    Args:
        case: The scan.
        decide: Called with the action of the button.
        show_slice: Goes to a slice of the picture; None without a picture that has slices.
    """

    def __init__(
        self, case: OpenCase, decide: Callable[[str], object], show_slice: Callable[[int], None] | None
    ) -> None:
        _show_result(case, show_slice)
        text("h2", "Your decision")
        self._labels = labels_for(case.result)
        options = {label: f"{n}  {plain(label)}" for n, label in enumerate(self._labels, start=1)}
        with ui.element("div").classes("tl-form"):
            self._label = ui.select(options, value=case.item.label, label="Label").props("outlined dense")
            self._comment = ui.textarea("Comment").props("outlined dense autogrow").classes("tl-comment")
        with ui.element("div").classes("tl-decide"):
            ui.button("Accept (A)", on_click=partial(decide, ACCEPT))
            ui.button("Save correction (S)", on_click=partial(decide, CORRECT))
            ui.button("Reject (R)", on_click=partial(decide, REJECT)).props("outline")
            ui.button("Comment only", on_click=partial(decide, COMMENT)).props("flat")
        _show_history(case.decisions)

    @property
    def label(self) -> str:
        """The label that is chosen."""
        return str(self._label.value)

    @property
    def comment(self) -> str:
        """The comment, or an empty string."""
        return str(self._comment.value or "").strip()

    def choose(self, number: int) -> None:
        """Choose a label by its number, from 1; others choose none."""
        if 1 <= number <= len(self._labels):
            self._label.value = self._labels[number - 1]


def show_last(decision: Decision) -> None:
    """What became of the scan before, with the way back to it."""
    with ui.element("div").classes("tl-row tl-last").props('role="status"'):
        change = f" as {plain(decision.label)}" if decision.label else ""
        ui.label(printable(f"Recorded: {decision.scan}, {decision.action}{change}."))
        ui.link("Look at it again", address_of(decision.scan))


def stills_of(result: StoredResult) -> list[str]:
    """The names of the pictures that a run has drawn of a scan."""
    return [name for name in STILLS if (result.folder / name).is_file()]


def show_stills(result: StoredResult) -> None:
    """The pictures that a run has drawn of a scan."""
    for name in stills_of(result):
        address = f"/review/picture/{name}{address_of(result.name).removeprefix('/review/case')}"
        image = ui.element("img").classes("tl-still").props('loading="lazy"')
        image.props["src"], image.props["alt"] = address, f"{name.removesuffix('.png')} of the result"


def _show_result(case: OpenCase, show_slice: Callable[[int], None] | None) -> None:
    content = case.result.content
    text("h2", "Result")
    confidence = content.get("confidence")
    shown = plain(case.result.label) + ("" if confidence is None else f", {shown_probability(confidence)}")
    ui.label(f"Predicted: {shown}")
    if case.item.label != case.result.label:
        ui.label(f"After review: {plain(case.item.label)}")
    _show_probabilities(content)
    if case.item.reasons:
        with ui.element("ul").classes("tl-alert tl-notes"):
            for reason in case.item.reasons:
                with ui.element("li"):
                    ui.label(printable(reason))
    lesions = content.get("lesions") or []
    if lesions:
        text("h3", "Lesions")
        ui.html(stored_sizes_html(content), sanitize=False)
        if show_slice is not None and len(content["slices"]) > 1:
            with ui.element("div").classes("tl-tools"):
                for lesion in lesions:
                    show = partial(show_slice, lesion["slice_index"])
                    ui.button(f"Show lesion {lesion['number']}", on_click=show).props("flat dense")


def _show_probabilities(content: dict[str, Any]) -> None:
    """The probability of each class, and the classes that remain possible."""
    probabilities = content.get("probabilities") or {}
    if probabilities:
        parts = [f"{plain(str(name))} {shown_probability(float(p))}" for name, p in probabilities.items()]
        ui.label(", ".join(parts)).classes("tl-quiet")
    possible = [plain(str(name)) for name in content["prediction_set"]]
    if len(possible) > 1:
        ui.label(f"Cannot be told apart at 95 %: {', '.join(possible)}").classes("tl-quiet")


def _show_history(decisions: list[Decision]) -> None:
    text("h3", "History")
    with ui.element("ol").classes("tl-history"):
        for decision in decisions:
            with ui.element("li"):
                change = f": {plain(decision.label)}" if decision.label else ""
                line = f"{decision.at[:16].replace('T', ' ')} UTC, {decision.reviewer}, {decision.action}{change}"
                ui.label(printable(line + (f". {decision.comment}" if decision.comment else "")))
    if not decisions:
        ui.label("Nobody has decided yet.").classes("tl-quiet")
