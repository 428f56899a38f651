"""The addresses from which the viewer takes its slices, and to which it sends what was drawn."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import HTTPException, Request, Response
from nicegui import app, run

from tumorlens.data.errors import InputError
from tumorlens.pipeline.services.reviews.editor import Editor
from tumorlens.pipeline.services.views import View

_BASE = "/views"


@dataclass(frozen=True)
class _Shown:
    view: View
    editor: Editor | None
    may_edit: Callable[[], bool]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


_shown: dict[str, _Shown] = {}


def publish(view: View, editor: Editor | None = None, may_edit: Callable[[], bool] = lambda: True) -> str:
    """Make a view known to the browser and return its address, which nobody can guess.

    Args:
        view: The scan.
        editor: Takes what is drawn; None for a view to look at.
        may_edit: Whether drawing is allowed at the moment; may take a while.
    """
    key = secrets.token_urlsafe(16)
    _shown[key] = _Shown(view, editor, may_edit)
    return f"{_BASE}/{key}"


def withdraw(base_url: str) -> None:
    """Forget a view, and its memory."""
    _shown.pop(base_url.rpartition("/")[2], None)


def _find(key: str) -> _Shown:
    if key not in _shown:
        raise HTTPException(404, "this view is closed; reload the page")
    return _shown[key]


def _bytes(array: np.ndarray[Any, Any]) -> Response:
    return Response(np.ascontiguousarray(array).tobytes(), media_type="application/octet-stream")


@app.get(_BASE + "/{key}/slice/{axis}/{index}")
async def _slice(key: str, axis: int, index: int) -> Response:
    shown = _find(key)
    return await _answer(lambda: _bytes(shown.view.slice(axis, index)))


@app.get(_BASE + "/{key}/mask/{axis}/{index}")
async def _mask(key: str, axis: int, index: int) -> Response:
    shown = _find(key)
    return await _answer(lambda: _bytes(shown.view.mask_slice(axis, index)))


@app.get(_BASE + "/{key}/heat")
async def _heat(key: str) -> Response:
    shown = _find(key)
    return await _answer(lambda: _bytes(shown.view.heat_levels()))


@app.post(_BASE + "/{key}/draw/{tool}/{index}")
async def _draw(key: str, tool: str, index: int, request: Request) -> dict[str, Any]:
    """A drawn slice: one byte a pixel, 0 or 1, row by row."""
    shown = _find(key)
    pane = shown.view.describe_pane()
    drawn = bytearray()
    async for chunk in request.stream():
        drawn += chunk
        if len(drawn) > pane["rows"] * pane["columns"]:
            break
    if len(drawn) != pane["rows"] * pane["columns"]:
        raise HTTPException(400, "the drawn slice has another size than the scan's slices")
    mask = np.frombuffer(bytes(drawn), np.uint8).reshape(pane["rows"], pane["columns"])
    return await _edit(shown, lambda editor: editor.draw(tool, index, mask))


@app.post(_BASE + "/{key}/edit/{action}/{index}")
async def _act(key: str, action: str, index: int) -> dict[str, Any]:
    actions: dict[str, Callable[[Editor], list[int]]] = {
        "undo": lambda editor: editor.undo(),
        "redo": lambda editor: editor.redo(),
        "clear": lambda editor: editor.clear(),
        "copy-previous": lambda editor: editor.copy(index, -1),
        "copy-next": lambda editor: editor.copy(index, 1),
        "interpolate": lambda editor: editor.interpolate(index),
    }
    if action not in actions:
        raise HTTPException(404, f"there is no action {action!r}")
    return await _edit(_find(key), actions[action])


async def _edit(shown: _Shown, change: Callable[[Editor], list[int]]) -> dict[str, Any]:
    editor = shown.editor

    def work() -> dict[str, Any]:
        if editor is None or not shown.may_edit():
            raise InputError("you cannot draw here, because somebody else has this scan open")
        slices = [int(k) for k in change(editor)]
        return {"slices": slices, "undo": editor.n_undo, "redo": editor.n_redo, "voxels": editor.n_voxels}

    async with shown.lock:  # one change after the other
        answer: dict[str, Any] = await _answer(work)
    return answer


async def _answer(work: Callable[[], Any]) -> Any:
    """The answer of a function that takes time; an `InputError` becomes its sentence."""
    try:
        return await run.io_bound(work)
    except InputError as error:
        raise HTTPException(400, str(error)) from None
