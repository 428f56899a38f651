"""The page `/review/case`: one scan to look at, to correct and to decide on."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from html import escape

from fastapi import HTTPException
from fastapi.responses import FileResponse
from nicegui import app, run, ui
from nicegui.events import KeyEventArguments

from tumorlens.data.errors import InputError, printable
from tumorlens.pipeline.services.reviews.desk import Desk, OpenCase
from tumorlens.pipeline.services.reviews.state import final_decision
from tumorlens.pipeline.services.reviews.store import ACCEPT, CLAIM_S, COMMENT, CORRECT, REJECT, ConflictError
from tumorlens.pipeline.web.decision import STILLS, DecisionForm, show_last, show_stills, stills_of
from tumorlens.pipeline.web.drawing import Drawing
from tumorlens.pipeline.web.reviewer import PATIENCE_S, Reviewer
from tumorlens.pipeline.web.theme import REVIEW, frame
from tumorlens.pipeline.web.views import publish, withdraw
from tumorlens.pipeline.web.worklist import address_of

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
_DECISIONS = {"a": ACCEPT, "r": REJECT, "s": CORRECT}
_KEYS = (
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
        if picture not in STILLS or not path.is_file():
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
        self._drawing: Drawing | None = None
        self._form: DecisionForm | None = None
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
        self._build(case)

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
        if self._drawing:
            self._drawing.viewer.set_editable(self._mine)

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

    def _build(self, case: OpenCase) -> None:
        self._body.clear()
        self._message.set_visibility(False)
        self._built_at = self._built_at or time.monotonic()
        self._drawing = None
        with self._body, ui.element("div").classes("tl-desk"):
            with ui.element("div").classes("tl-card"):
                if case.view is not None and case.editor is not None:
                    self._base = publish(case.view, case.editor, self._may_edit)
                    self._drawing = Drawing(case, self._base, lambda: self._mine, self._say)
                else:
                    ui.label(printable(case.problem)).classes("tl-alert")
                    show_stills(case.result)
            with ui.element("div").classes("tl-card"):
                last = final_decision(self._desk.store.decisions(self._after)) if self._after else None
                if last is not None:
                    show_last(last)
                show_slice = self._drawing.viewer.set_slice if self._drawing else None
                self._form = DecisionForm(case, self.decide, show_slice)
                if self._drawing and stills_of(case.result):
                    with ui.expansion("Pictures of the result").classes("w-full"):
                        show_stills(case.result)
                with ui.expansion("Keys").classes("w-full"):
                    rows = "".join(
                        f"<tr><th scope='row'><kbd>{escape(k)}</kbd></th><td>{escape(v)}</td></tr>" for k, v in _KEYS
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
        case, form, name = self._case, self._form, await self._reviewer.ask()
        if case is None or form is None or not name:
            return
        if name != self._as:
            await self._reopen()
            self._say(f"You are {name} now. Nothing was recorded; look at the scan, and decide.")
            return
        if not await run.io_bound(self._may_edit):
            self._mine = False
            self._say("This scan is not yours at the moment, so nothing was recorded.", self._take_over, "Take it over")
            return
        if self._drawing and not await self._drawing.viewer.settled():
            self._say("What you drew last is not saved, so nothing was recorded. Draw it again.")
            return
        if action == COMMENT and not form.comment:
            self._say("There is no comment to record.")
            return
        label = "" if action == REJECT else form.label
        try:
            problems = await run.io_bound(self._desk.decide, case, name, action, label, form.comment)
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
        if not event.action.keydown or self._case is None or self._form is None:
            return
        key = str(event.key).lower()
        held = event.modifiers
        if (held.ctrl or held.meta or held.alt) and not (held.ctrl and key in ("z", "y")):
            return  # the browser's own
        if key in _DECISIONS:
            if not self._after or time.monotonic() - self._built_at >= _SETTLE_S:
                await self.decide(_DECISIONS[key])
        elif key == "n":
            await self.go_on()
        elif key == "p":
            ui.navigate.to(REVIEW[1])
        elif key.isdecimal():
            self._form.choose(int(key))
        elif self._drawing:
            self._drawing.press(key)
