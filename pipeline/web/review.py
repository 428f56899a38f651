"""The page `/review/case`: one scan to look at, to correct and to decide on."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from html import escape
from typing import Any

import numpy as np
from fastapi import HTTPException
from fastapi.responses import FileResponse
from nicegui import app, run, ui
from nicegui.events import GenericEventArguments, KeyEventArguments

from tumorlens.data.errors import InputError, printable
from tumorlens.data.plotting import plain, shown_probability
from tumorlens.pipeline.services.facts import stored_sizes_html
from tumorlens.pipeline.services.reviews.desk import Desk, OpenCase, labels_for, size_of
from tumorlens.pipeline.services.reviews.state import final_decision
from tumorlens.pipeline.services.reviews.store import ACCEPT, CLAIM_S, COMMENT, CORRECT, REJECT, ConflictError
from tumorlens.pipeline.web.reviewer import PATIENCE_S, Reviewer
from tumorlens.pipeline.web.theme import REVIEW, frame, text
from tumorlens.pipeline.web.viewer import Viewer
from tumorlens.pipeline.web.views import publish, withdraw
from tumorlens.pipeline.web.worklist import address_of

_STILLS = ("overlay.png", "montage.png", "explanation.png")
_RENEW_S = CLAIM_S / 12
_LEAVING_S = 3.0
# Seconds in which keys do not decide on a scan that has opened by itself: they were meant for the scan before.
_SETTLE_S = 0.8
# What the browser does by itself, at once: the comment takes the focus before the next letter, Escape leaves it, and a
# page that goes away frees its scan.
_SCRIPT = """<script>
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName) && event.target.type !== "range";
  if (event.key === "Escape" && typing) event.target.blur();
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const comment = document.querySelector(".tl-comment textarea");
    if (comment) { comment.focus(); event.preventDefault(); }
  }
});
window.addEventListener("pagehide", () => navigator.sendBeacon("/review/release/WINDOW"));
</script>"""
_TOOLS = {"look": ("Look", "l"), "brush": ("Brush", "b"), "eraser": ("Eraser", "e"), "fill": ("Fill", "f")}
_EDITS = {
    "undo": ("Undo", "z"),
    "redo": ("Redo", "y"),
    "copy-previous": ("Copy previous slice", "c"),
    "copy-next": ("Copy next slice", "v"),
    "interpolate": ("Interpolate", "i"),
    "clear": ("Clear all", "x"),
}
_HELP = (
    ("A", "accept"),
    ("R", "reject"),
    ("S", "save the corrected mask or label"),
    ("1 to 6", "choose a label"),
    ("N, P", "next open scan, worklist"),
    ("L, B, E, F", "look, brush, eraser, fill"),
    ("[, ]", "smaller, larger brush"),
    ("Z, Y", "undo, redo"),
    ("C, V", "copy the mask of the previous, next slice"),
    ("I", "interpolate between the outlines below and above"),
    ("X", "clear the mask in all slices"),
    ("/", "write a comment"),
    ("M", "mask on or off"),
    ("T", "three planes or one"),
    ("Arrows, Page, Home, End", "slices, while the picture has the focus"),
    ("Shift and arrows, Space", "move the cross, paint there"),
    ("+, -, 0", "zoom, reset"),
)


def register(desk: Desk) -> None:
    """Add the page, and the pictures of results, to the application."""

    @app.get("/review/picture/{picture}")
    def still(picture: str, scan: str) -> FileResponse:
        try:
            path = desk.result(scan).folder / picture
        except InputError as error:
            raise HTTPException(404, str(error)) from None
        if picture not in _STILLS or not path.is_file():
            raise HTTPException(404, "there is no such picture")
        return FileResponse(path, headers={"cache-control": "no-store"})

    @app.post("/review/release/{window}")
    def release(window: str) -> None:
        with suppress(InputError):  # the claim lapses by itself
            desk.store.release(window)

    @ui.page("/review/case", title="Review - tumorlens")
    async def case(scan: str = "", after: str = "") -> None:
        with frame(printable(scan) or "No scan", REVIEW[1]):
            page = _CasePage(desk, scan, after)
        await page.open()


class _CasePage:
    """A scan on the desk in one window."""

    def __init__(self, desk: Desk, scan: str, after: str) -> None:
        self._desk, self._scan, self._after = desk, scan, after
        self._window = secrets.token_urlsafe(8)
        self._as = ""  # the reviewer whose strokes are shown
        self._built_at = 0.0
        self._deciding = False
        self._case: OpenCase | None = None
        self._base = ""
        self._viewer: Viewer | None = None
        self._mine = False
        self._closed = False
        with ui.element("div").classes("tl-row"):
            self._reviewer = Reviewer(desk.reviewer)
            ui.link("Worklist", REVIEW[1])
            ui.button("Next open scan", on_click=self.go_on).props("flat")
        self._access, self._message = (ui.element("div").classes("tl-alert").props('role="alert"') for _ in range(2))
        for alert in (self._access, self._message):
            alert.set_visibility(False)
        self._body = ui.element("div")
        with self._body:
            ui.label("The scan is being read ...").props('role="status"')
        ui.add_body_html(_SCRIPT.replace("WINDOW", self._window))
        ui.keyboard(on_key=self._on_key, repeating=False, ignore=["input", "select", "textarea"])
        ui.timer(_RENEW_S, self._renew)
        ui.context.client.on_delete(self._close)

    # Opening -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the scan and show it."""
        await ui.context.client.connected(timeout=PATIENCE_S)
        self._as = await self._reviewer.recall()
        try:
            case = await run.io_bound(self._desk.open, self._scan, self._as)
        except InputError as error:
            self._body.clear()
            self._say(printable(str(error)), self._reopen, "Try again")
            return
        if case is None or self._closed:  # the server is stopping, or the window has gone
            return
        if case.result.failed:
            self._body.clear()
            text = f"This scan has no result to decide on: {case.problem}"
            self._say(printable(text), self.go_on, "Next open scan")
            return
        self._case = case
        await self._claim()
        self._build()

    async def _claim(self, take_over: bool = False) -> None:
        """Claim the scan for this window, or say who has it open."""
        name = self._reviewer.name
        if not name:
            self._mine = False
            text = "Type your name above to decide and to correct. It goes into the record."
            self._say(text, self._named, alert=self._access)
            return
        try:
            other = await run.io_bound(self._desk.store.claim, self._scan, name, self._window, take_over)
        except InputError as error:
            self._mine = False
            text = f"{printable(str(error))}. You can look, but not draw or decide."
            self._say(text, self._reopen, "Try again", self._access)
            return
        self._mine = other is None
        if self._closed:
            await run.io_bound(self._desk.store.release, self._window)
        elif other is not None:
            whose = (
                "You have this scan open in another window"
                if other.reviewer == name
                else f"{other.reviewer} has it open"
            )
            text = f"{whose}. You can look, but not draw or decide."
            self._say(text, self._take_over, "Take it over", self._access)
        else:
            self._access.set_visibility(False)
        if self._viewer:
            self._viewer.set_editable(self._mine)

    async def _named(self) -> None:
        if await self._reviewer.ask():
            await self._reopen()

    async def _take_over(self) -> None:
        await self._claim(take_over=True)
        await self._reopen()

    async def _reopen(self) -> None:
        """Read the scan again, with the strokes of the reviewer and the latest decisions."""
        withdraw(self._base)
        await self.open()

    def _may_edit(self) -> bool:
        """Whether the scan is this window's at this moment: another may have taken it over a second ago."""
        return self._mine and self._desk.store.claim(self._scan, self._as, self._window) is None

    async def _renew(self) -> None:
        if self._case is None or self._closed or not self._as or self._deciding:
            return
        had = self._mine
        if had:
            await self._claim()
        elif await run.io_bound(self._desk.store.claim, self._scan, self._as, self._window) is None:
            await self._reopen()  # the other one has left: begin with what holds now

    def _close(self) -> None:
        self._closed = True
        withdraw(self._base)
        with suppress(InputError):  # it lapses by itself
            self._desk.store.release(self._window)

    # The page ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        case = self._case
        assert case is not None
        self._body.clear()
        self._message.set_visibility(False)
        self._built_at = self._built_at or time.monotonic()
        with self._body, ui.element("div").classes("tl-desk"):
            with ui.element("div").classes("tl-card"):
                if case.view is not None and case.editor is not None:
                    self._build_viewer(case)
                else:
                    self._build_stills(case)
            with ui.element("div").classes("tl-card"):
                self._build_decision(case)

    def _build_viewer(self, case: OpenCase) -> None:
        assert case.view is not None and case.editor is not None
        self._base = publish(case.view, case.editor, self._may_edit)
        facts = case.view.describe()
        with ui.element("div").classes("tl-tools").props('role="toolbar" aria-label="Tools"'):
            self._tools = {
                tool: ui.button(f"{text} ({key.upper()})", on_click=partial(self._choose, tool))
                for tool, (text, key) in _TOOLS.items()
            }
            with ui.element("span").classes("tl-brush"):
                ui.label("Size")
                self._size = ui.slider(min=1, max=80, value=12, on_change=self._resize).props('aria-label="Brush size"')
        with ui.element("div").classes("tl-tools").props('role="toolbar" aria-label="Changes"'):
            edits = _EDITS if case.view.scan.n_slices > 1 else {k: _EDITS[k] for k in ("undo", "redo", "clear")}
            self._edits = {
                action: ui.button(f"{text} ({key.upper()})", on_click=partial(self._edit, action)).props("outline")
                for action, (text, key) in edits.items()
            }
        several = len(facts["panes"]) > 1
        self._viewer = Viewer(self._base, facts, "one", editable=self._mine)
        self._viewer.on("edited", self._on_edited)
        self._viewer.on("failed", lambda event: self._say(str(event.args["message"])))
        with ui.element("div").classes("tl-controls"):
            self._mask_on = ui.checkbox(
                "Mask (M)", value=True, on_change=lambda e: self._need_viewer().set_mask_visible(e.value)
            )
            with ui.element("span").classes("tl-opacity"):
                ui.label("Opacity")
                slider = ui.slider(min=0, max=1, step=0.05, value=0.35).props('aria-label="Opacity of the mask"')
                slider.on_value_change(lambda e: self._need_viewer().set_opacity(float(e.value)))
            if several:
                self._three = ui.checkbox(
                    "Three planes (T)", value=False, on_change=lambda e: self._show_planes(e.value)
                )
        self._size_now = ui.label().props('role="status"').classes("tl-quiet")
        self._choose("look")
        self._count(case.editor.n_undo, case.editor.n_redo, case.editor.n_voxels)
        if case.editor.n_undo:
            self._say("What you drew here before and have not saved yet is still here.")

    def _build_stills(self, case: OpenCase) -> None:
        self._viewer = None
        ui.label(printable(case.problem)).classes("tl-alert")
        self._stills(case, [name for name in _STILLS if (case.result.folder / name).is_file()])

    def _stills(self, case: OpenCase, pictures: list[str]) -> None:
        for name in pictures:
            address = f"/review/picture/{name}{address_of(case.result.name).removeprefix('/review/case')}"
            image = ui.element("img").classes("tl-still").props('loading="lazy"')
            image.props["src"], image.props["alt"] = address, f"{name.removesuffix('.png')} of the result"

    def _build_last(self) -> None:
        """What became of the scan before, with the way back to it."""
        last = final_decision(self._desk.store.decisions(self._after))
        if last is not None:
            with ui.element("div").classes("tl-row tl-last").props('role="status"'):
                change = f" as {plain(last.label)}" if last.label else ""
                ui.label(printable(f"Recorded: {last.scan}, {last.action}{change}."))
                ui.link("Look at it again", address_of(last.scan))

    def _build_decision(self, case: OpenCase) -> None:
        content = case.result.content
        if self._after:
            self._build_last()
        text("h2", "Result")
        confidence = content.get("confidence")
        shown = plain(case.result.label) + ("" if confidence is None else f", {shown_probability(confidence)}")
        ui.label(f"Predicted: {shown}")
        if case.item.label != case.result.label:
            ui.label(f"After review: {plain(case.item.label)}")
        _probabilities(content)
        if case.item.reasons:
            with ui.element("ul").classes("tl-alert tl-notes"):
                for reason in case.item.reasons:
                    with ui.element("li"):
                        ui.label(printable(reason))
        lesions = content.get("lesions") or []
        if lesions:
            text("h3", "Lesions")
            ui.html(stored_sizes_html(content), sanitize=False)
            if self._viewer is not None and len(case.result.content["slices"]) > 1:
                with ui.element("div").classes("tl-tools"):
                    for lesion in lesions:
                        show = partial(self._viewer.set_slice, lesion["slice_index"])
                        ui.button(f"Show lesion {lesion['number']}", on_click=show).props("flat dense")
        text("h2", "Your decision")
        self._labels = labels_for(case.result)
        options = {label: f"{n}  {plain(label)}" for n, label in enumerate(self._labels, start=1)}
        with ui.element("div").classes("tl-form"):
            self._label = ui.select(options, value=case.item.label, label="Label").props("outlined dense")
            self._comment = ui.textarea("Comment").props("outlined dense autogrow").classes("tl-comment")
        with ui.element("div").classes("tl-decide"):
            ui.button("Accept (A)", on_click=partial(self.decide, ACCEPT))
            ui.button("Save correction (S)", on_click=partial(self.decide, CORRECT))
            ui.button("Reject (R)", on_click=partial(self.decide, REJECT)).props("outline")
            ui.button("Comment only", on_click=partial(self.decide, COMMENT)).props("flat")
        text("h3", "History")
        with ui.element("ol").classes("tl-history"):
            for decision in case.decisions:
                with ui.element("li"):
                    change = f": {plain(decision.label)}" if decision.label else ""
                    line = f"{decision.at[:16].replace('T', ' ')} UTC, {decision.reviewer}, {decision.action}{change}"
                    ui.label(printable(line + (f". {decision.comment}" if decision.comment else "")))
        if not case.decisions:
            ui.label("Nobody has decided yet.").classes("tl-quiet")
        pictures = [name for name in _STILLS if (case.result.folder / name).is_file()]
        if case.view is not None and pictures:
            with ui.expansion("Pictures of the result").classes("w-full"):
                self._stills(case, pictures)
        with ui.expansion("Keys").classes("w-full"):
            rows = "".join(
                f"<tr><th scope='row'><kbd>{escape(k)}</kbd></th><td>{escape(v)}</td></tr>" for k, v in _HELP
            )
            ui.html(f'<table class="tl-facts">{rows}</table>', sanitize=False)

    def _say(
        self,
        words: str,
        action: Callable[[], object] | None = None,
        button: str = "Go on",
        alert: ui.element | None = None,
    ) -> None:
        alert = alert or self._message
        alert.clear()
        with alert, ui.element("div").classes("tl-row"):
            ui.label(words)
            if action is not None:
                ui.button(button, on_click=action).props("flat dense")
        alert.set_visibility(True)

    # Drawing -----------------------------------------------------------------------------------------------------

    def _need_viewer(self) -> Viewer:
        assert self._viewer is not None
        return self._viewer

    def _choose(self, tool: str) -> None:
        for name, button in self._tools.items():
            chosen = name == tool
            button.props(remove="outline aria-pressed" if chosen else "aria-pressed")
            button.props(f'aria-pressed="{str(chosen).lower()}"' + ("" if chosen else " outline"))
        self._need_viewer().set_tool(tool)

    def _resize(self) -> None:
        if self._viewer:
            self._viewer.set_brush(float(self._size.value))

    def _edit(self, action: str) -> None:
        if self._mine:
            self._need_viewer().edit(action)

    def _on_edited(self, event: GenericEventArguments) -> None:
        self._count(*(int(event.args[name]) for name in ("undo", "redo", "voxels")))

    def _count(self, undo: int, redo: int, voxels: int) -> None:
        self._edits["undo"].set_enabled(undo > 0)
        self._edits["redo"].set_enabled(redo > 0)
        case = self._case
        if case is not None and case.scan is not None and case.base is not None:
            now, before = (size_of(n, case.measured or case.scan) for n in (voxels, int(np.count_nonzero(case.base))))
            self._size_now.text = f"Mask: {now}" + ("" if now == before else f", before {before}")

    def _show_planes(self, three: bool) -> None:
        self._need_viewer().set_panes("all" if three else "one")

    # Deciding ----------------------------------------------------------------------------------------------------

    async def decide(self, action: str) -> None:
        """Record the decision and go on to the next scan."""
        if self._deciding:  # a double click is one decision
            return
        self._deciding = True
        try:
            await self._decide(action)
        finally:
            self._deciding = False

    async def _decide(self, action: str) -> None:
        case, name = self._case, await self._reviewer.ask()
        if case is None or not name:
            return
        if name != self._as:
            await self._reopen()
            self._say(f"You are {name} now. Nothing was recorded; look at the scan, and decide.")
            return
        if not await run.io_bound(self._may_edit):
            self._mine = False
            self._say("This scan is not yours at the moment, so nothing was recorded.", self._take_over, "Take it over")
            return
        if self._viewer is not None and not await self._viewer.settled():
            self._say("What you drew last is not saved, so nothing was recorded. Draw it again.")
            return
        if action == COMMENT and not (self._comment.value or "").strip():
            self._say("There is no comment to record.")
            return
        label = "" if action == REJECT else str(self._label.value)
        comment = str(self._comment.value or "").strip()
        try:
            problems = await run.io_bound(self._desk.decide, case, name, action, label, comment)
        except ConflictError as error:
            self._say(f"{printable(str(error))}. Nothing was recorded.", self._reopen, "Look at it")
            return
        except InputError as error:
            self._say(printable(str(error)))
            return
        if problems:
            self._case = None  # it is decided
            self._say(printable("; ".join(problems)), self.go_on, "Next open scan")
            return
        if action == COMMENT:
            await self._reopen()
        else:
            await self.go_on()

    async def go_on(self) -> None:
        """Open the next scan that waits for this reviewer, or the worklist if none does."""
        name = await self._reviewer.ask()
        if not name:
            return
        following = await run.io_bound(self._desk.next_open, self._scan, name)
        ui.navigate.to(address_of(following, self._scan) if following else REVIEW[1])
        await asyncio.sleep(_LEAVING_S)  # until the next page is there, nothing more is decided here

    # Keys --------------------------------------------------------------------------------------------------------

    async def _on_key(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or self._case is None:
            return
        key = str(event.key).lower()
        held = event.modifiers
        if (held.ctrl or held.meta or held.alt) and not (held.ctrl and key in ("z", "y")):
            return  # the browser's own
        decisions = {"a": ACCEPT, "r": REJECT, "s": CORRECT}
        if key in decisions and self._after and time.monotonic() - self._built_at < _SETTLE_S:
            return
        if key in decisions:
            await self.decide(decisions[key])
        elif key == "n":
            await self.go_on()
        elif key == "p":
            ui.navigate.to(REVIEW[1])
        elif key.isdecimal() and 1 <= int(key) <= len(self._labels):
            self._label.value = self._labels[int(key) - 1]
        elif self._viewer is not None:
            self._draw_key(key)

    def _draw_key(self, key: str) -> None:
        tool = next((tool for tool, (_, letter) in _TOOLS.items() if letter == key), None)
        action = next((action for action, (_, letter) in _EDITS.items() if letter == key), None)
        if tool:
            self._choose(tool)
        elif action in self._edits:
            self._edit(str(action))
        elif key in "[]":
            step = max(1, round(self._size.value / 5))
            self._size.value = min(80, max(1, self._size.value + (step if key == "]" else -step)))
        elif key == "m":
            self._mask_on.value = not self._mask_on.value
        elif key == "t" and len(self._need_viewer().props["facts"]["panes"]) > 1:
            self._three.value = not self._three.value


def _probabilities(content: dict[str, Any]) -> None:
    """The probability of each class, and the classes that remain possible."""
    probabilities = content.get("probabilities") or {}
    if probabilities:
        parts = [f"{plain(str(name))} {shown_probability(float(p))}" for name, p in probabilities.items()]
        ui.label(", ".join(parts)).classes("tl-quiet")
    possible = [plain(str(name)) for name in content["prediction_set"]]
    if len(possible) > 1:
        ui.label(f"Cannot be told apart at 95 %: {', '.join(possible)}").classes("tl-quiet")
