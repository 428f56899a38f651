"""The picture of a scan on the desk, with the tools that change its mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from nicegui import ui

from tumorlens.pipeline.services.reviews.desk import OpenCase, size_of
from tumorlens.pipeline.web.viewer import Viewer

_TOOLS = {"look": ("Look", "l"), "brush": ("Brush", "b"), "eraser": ("Eraser", "e"), "fill": ("Fill", "f")}
_EDITS = {
    "undo": ("Undo", "z"),
    "redo": ("Redo", "y"),
    "copy-previous": ("Copy previous slice", "c"),
    "copy-next": ("Copy next slice", "v"),
    "interpolate": ("Interpolate", "i"),
    "clear": ("Clear all", "x"),
}
_OF_PICTURES = ("undo", "redo", "clear")  # edits that need no neighboring slice


class Drawing:
    """The viewer of a scan below its tools, in the element that is open.

    Attributes:
        viewer: The picture.

    Args:
        case: A scan with its slices and an editor of its mask.
        base_url: From `pipeline.web.views.publish`.
        may_draw: Whether the scan is this window's.
        say: Shows a sentence above the scan.
    """

    viewer: Viewer

    def __init__(self, case: OpenCase, base_url: str, may_draw: Callable[[], bool], say: Callable[[str], None]) -> None:
        assert case.view is not None and case.editor is not None
        self._case, self._may_draw = case, may_draw
        facts = case.view.describe()
        with ui.element("div").classes("tl-tools").props('role="toolbar" aria-label="Tools"'):
            self._tools = {
                tool: ui.button(f"{text} ({key.upper()})", on_click=partial(self._choose, tool))
                for tool, (text, key) in _TOOLS.items()
            }
            with ui.element("span").classes("tl-brush"):
                ui.label("Size")
                self._size = ui.slider(min=1, max=80, value=12).props('aria-label="Brush size"')
                self._size.on_value_change(lambda e: self.viewer.set_brush(float(e.value)))
        with ui.element("div").classes("tl-tools").props('role="toolbar" aria-label="Changes"'):
            self._edits = {
                action: ui.button(f"{text} ({key.upper()})", on_click=partial(self._edit, action)).props("outline")
                for action, (text, key) in _EDITS.items()
                if case.view.scan.n_slices > 1 or action in _OF_PICTURES
            }
        self.viewer = Viewer(base_url, facts, "one", editable=may_draw())
        self.viewer.on("edited", lambda e: self._count(*(int(e.args[name]) for name in ("undo", "redo", "voxels"))))
        self.viewer.on("failed", lambda e: say(str(e.args["message"])))
        with ui.element("div").classes("tl-controls"):
            self._mask_on = ui.checkbox("Mask (M)", value=True)
            self._mask_on.on_value_change(lambda e: self.viewer.set_mask_visible(e.value))
            with ui.element("span").classes("tl-opacity"):
                ui.label("Opacity")
                slider = ui.slider(min=0, max=1, step=0.05, value=0.35).props('aria-label="Opacity of the mask"')
                slider.on_value_change(lambda e: self.viewer.set_opacity(float(e.value)))
            self._three = ui.checkbox("Three planes (T)") if len(facts["panes"]) > 1 else None
            if self._three is not None:
                self._three.on_value_change(lambda e: self.viewer.set_panes("all" if e.value else "one"))
        self._size_now = ui.label().props('role="status"').classes("tl-quiet")
        self._choose("look")
        self._count(case.editor.n_undo, case.editor.n_redo, case.editor.n_voxels)
        if case.editor.n_undo:
            say("What you drew here before and have not saved yet is still here.")

    def press(self, key: str) -> None:
        """Do what a key stands for, if it is one of the drawing's."""
        tool = next((tool for tool, (_, letter) in _TOOLS.items() if letter == key), None)
        action = next((action for action in self._edits if _EDITS[action][1] == key), None)
        if tool:
            self._choose(tool)
        elif action:
            self._edit(action)
        elif key in "[]":
            step = max(1, round(self._size.value / 5))
            self._size.value = min(80, max(1, self._size.value + (step if key == "]" else -step)))
        elif key == "m":
            self._mask_on.value = not self._mask_on.value
        elif key == "t" and self._three is not None:
            self._three.value = not self._three.value

    def _choose(self, tool: str) -> None:
        for name, button in self._tools.items():
            chosen = name == tool
            button.props(remove="outline aria-pressed" if chosen else "aria-pressed")
            button.props(f'aria-pressed="{str(chosen).lower()}"' + ("" if chosen else " outline"))
        self.viewer.set_tool(tool)

    def _edit(self, action: str) -> None:
        if self._may_draw():
            self.viewer.edit(action)

    def _count(self, undo: int, redo: int, voxels: int) -> None:
        """Show how large the mask is, and what can be undone and done again."""
        self._edits["undo"].set_enabled(undo > 0)
        self._edits["redo"].set_enabled(redo > 0)
        scan, base = self._case.measured, self._case.base
        if scan is not None and base is not None:
            now, before = size_of(voxels, scan), size_of(int(np.count_nonzero(base)), scan)
            self._size_now.text = f"Mask: {now}" + ("" if now == before else f", before {before}")
