"""The page `/review/case`: one scan to look at, to correct and to decide on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from html import escape

from fastapi import HTTPException
from fastapi.responses import FileResponse
from nicegui import app, run, ui
from nicegui.events import GenericEventArguments, KeyEventArguments

from tumorlens.data.errors import InputError, printable
from tumorlens.data.plotting import plain
from tumorlens.pipeline.services.reviews.desk import LABELS, Desk, OpenCase
from tumorlens.pipeline.services.reviews.store import ACCEPT, CLAIM_S, COMMENT, CORRECT, REJECT, ConflictError
from tumorlens.pipeline.web.reviewer import PATIENCE_S, Reviewer
from tumorlens.pipeline.web.theme import REVIEW, frame, text
from tumorlens.pipeline.web.viewer import Viewer
from tumorlens.pipeline.web.views import publish, withdraw
from tumorlens.pipeline.web.worklist import address_of

_STILLS = ("overlay.png", "montage.png", "explanation.png")
_RENEW_S = CLAIM_S / 4
# A window has one name until it is closed, however often it is reloaded.
_WINDOW = """
sessionStorage.getItem("tumorlens-window") || (() => {
  const name = Math.random().toString(36).slice(2) + Date.now().toString(36);
  sessionStorage.setItem("tumorlens-window", name);
  return name;
})()
"""
_windows: Counter[tuple[str, str]] = Counter()  # window and scan -> pages that show it, two during a reload
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

    @ui.page("/review/case", title="Review - tumorlens")
    async def case(scan: str = "") -> None:
        with frame(printable(scan) or "No scan", REVIEW[1]):
            page = _CasePage(desk, scan)
        await page.open()


class _CasePage:
    """A scan on the desk in one window."""

    def __init__(self, desk: Desk, scan: str) -> None:
        self._desk, self._scan = desk, scan
        self._window = ""
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
        ui.keyboard(on_key=self._on_key, repeating=False, ignore=["input", "select", "textarea"])
        ui.timer(_RENEW_S, self._renew)
        ui.context.client.on_delete(self._close)

    # Opening -----------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Read the scan and show it."""
        await ui.context.client.connected()
        name = await self._reviewer.recall()
        if not self._window:
            self._window = await ui.run_javascript(_WINDOW, timeout=PATIENCE_S)
            _windows[self._window, self._scan] += 1
        try:
            self._case = await run.io_bound(self._desk.open, self._scan, name)
        except InputError as error:
            self._body.clear()
            self._say(printable(str(error)))
            return
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
            self._say(f"{printable(str(error))}. You can look, but not draw or decide.", alert=self._access)
            return
        self._mine = other is None
        if self._closed:
            await run.io_bound(self._desk.store.release, self._scan, self._window)
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

    async def _renew(self) -> None:
        if self._case is not None and self._mine and not self._closed:
            before = self._mine
            await self._claim()
            if before and not self._mine and self._viewer:
                self._viewer.set_editable(False)

    def _close(self) -> None:
        self._closed = True
        withdraw(self._base)
        _windows[self._window, self._scan] -= 1
        if not _windows[self._window, self._scan]:  # else it was only reloaded
            with suppress(InputError):  # it lapses by itself
                self._desk.store.release(self._scan, self._window)

    # The page ----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        case = self._case
        assert case is not None
        self._body.clear()
        self._message.set_visibility(False)
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
        self._base = publish(case.view, case.editor, lambda: self._mine)
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
        self._choose("look")
        self._count(case.editor.n_undo, case.editor.n_redo)
        if case.editor.n_undo:
            self._say("What you drew here before and have not saved yet is still here.")

    def _build_stills(self, case: OpenCase) -> None:
        self._viewer = None
        ui.label(printable(case.problem)).classes("tl-alert")
        for name in _STILLS:
            if (case.result.folder / name).is_file():
                address = f"/review/picture/{name}{address_of(case.result.name).removeprefix('/review/case')}"
                image = ui.element("img").classes("tl-still")
                image.props["src"], image.props["alt"] = address, f"{name.removesuffix('.png')} of the result"

    def _build_decision(self, case: OpenCase) -> None:
        content = case.result.content
        text("h2", "Result")
        confidence = content.get("confidence")
        shown = plain(case.result.label) + ("" if confidence is None else f", {confidence:.2f}")
        ui.label(f"Predicted: {shown}")
        if case.item.label != case.result.label:
            ui.label(f"After review: {plain(case.item.label)}")
        if case.item.reasons:
            with ui.element("ul").classes("tl-alert tl-notes"):
                for reason in case.item.reasons:
                    with ui.element("li"):
                        ui.label(printable(reason))
        lesions = content.get("lesions") or []
        if lesions:
            text("h3", "Lesions")
            ui.html(_lesion_table(lesions), sanitize=False)
            if self._viewer is not None and len(case.result.content["slices"]) > 1:
                with ui.element("div").classes("tl-tools"):
                    for lesion in lesions:
                        show = partial(self._viewer.set_slice, lesion["slice_index"])
                        ui.button(f"Show lesion {lesion['number']}", on_click=show).props("flat dense")
        text("h2", "Your decision")
        options = {label: f"{n}  {plain(label)}" for n, label in enumerate(LABELS, start=1)}
        with ui.element("div").classes("tl-form"):
            self._label = ui.select(options, value=case.item.label, label="Label").props("outlined dense")
            self._comment = ui.textarea("Comment").props("outlined dense autogrow")
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
        self._count(int(event.args["undo"]), int(event.args["redo"]))

    def _count(self, undo: int, redo: int) -> None:
        self._edits["undo"].set_enabled(undo > 0)
        self._edits["redo"].set_enabled(redo > 0)

    def _show_planes(self, three: bool) -> None:
        self._need_viewer().set_panes("all" if three else "one")

    # Deciding ----------------------------------------------------------------------------------------------------

    async def decide(self, action: str, insist: bool = False) -> None:
        """Record the decision and go on to the next scan."""
        case, name = self._case, await self._reviewer.ask()
        if case is None or not name:
            return
        if not self._mine:
            self._say("This scan is not yours at the moment, so nothing was recorded.", self._take_over, "Take it over")
            return
        if action == COMMENT and not (self._comment.value or "").strip():
            self._say("There is no comment to record.")
            return
        label = "" if action == REJECT else str(self._label.value)
        comment = str(self._comment.value or "").strip()
        try:
            problems = await run.io_bound(self._desk.decide, case, name, action, label, comment, insist)
        except ConflictError as error:
            self._say(f"{printable(str(error))}. Nothing was recorded.", self._reopen, "Look at it")
            return
        except InputError as error:
            self._say(printable(str(error)))
            return
        if problems:
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
        ui.navigate.to(address_of(following) if following else REVIEW[1])

    # Keys --------------------------------------------------------------------------------------------------------

    async def _on_key(self, event: KeyEventArguments) -> None:
        if not event.action.keydown or self._case is None:
            return
        key = str(event.key).lower()
        held = event.modifiers
        if (held.ctrl or held.meta or held.alt) and not (held.ctrl and key in ("z", "y")):
            return  # the browser's own
        decisions = {"a": ACCEPT, "r": REJECT, "s": CORRECT}
        if key in decisions:
            await self.decide(decisions[key])
        elif key == "n":
            await self.go_on()
        elif key == "p":
            ui.navigate.to(REVIEW[1])
        elif key == "/":
            self._comment.run_method("focus")
        elif key.isdecimal() and 1 <= int(key) <= len(LABELS):
            self._label.value = LABELS[int(key) - 1]
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


def _lesion_table(lesions: list[dict[str, object]]) -> str:
    rows = []
    for lesion in lesions:
        ml, longest = lesion.get("volume_ml"), lesion.get("longest_diameter_mm")
        size = f"{ml:.1f} ml" if isinstance(ml, float) else f"{lesion['voxels']} pixels"
        across = f"{longest:.0f} mm" if isinstance(longest, float) else ""
        confidence = lesion.get("confidence")
        sure = f"{confidence:.2f}" if isinstance(confidence, float) else ""
        rows.append(
            f"<tr><td>{lesion['number']}</td><td>{size}</td><td>{across}</td><td>{sure}</td>"
            f"<td>{lesion['slice_index']}</td></tr>"
        )
    head = "".join(f'<th scope="col">{t}</th>' for t in ("Lesion", "Size", "Longest", "Confidence", "Slice"))
    return f'<table class="tl-facts"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
