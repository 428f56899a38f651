"""The frame of every page: header, navigation, the notice, colors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nicegui import app, ui
from nicegui.elements.mixins.text_element import TextElement

NOTICE = "For research only. Not a medical device."
TRY, REVIEW = ("Try a scan", "/"), ("Review", "/review")
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#12324a"/>'
    '<circle cx="14" cy="14" r="8" fill="none" stroke="#fff" stroke-width="3"/>'
    '<path d="M20 20l7 7" stroke="#fff" stroke-width="4" stroke-linecap="round"/>'
    '<circle cx="16" cy="12" r="3" fill="#ffd866"/></svg>'
)
_FOLDER = Path(__file__).parent
_navigation: list[tuple[str, str]] = []


def install(*pages: tuple[str, str]) -> None:
    """Serve the style sheets, and set the pages of the navigation: titles and paths."""
    _navigation[:] = pages
    for sheet in sorted(_FOLDER.glob("*.css")):
        url = f"/style/{sheet.name}"
        app.add_static_file(local_file=sheet, url_path=url)
        ui.add_head_html(f'<link rel="stylesheet" href="{url}">', shared=True)


@contextmanager
def frame(title: str, path: str) -> Iterator[None]:
    """The frame of a page, around what is built inside.

    Args:
        title: Of the page; its only ``h1``, and the browser's title.
        path: The entry of the navigation that the page belongs to.
    """
    ui.page_title(f"{title} - tumorlens")
    with ui.header(wrap=False).classes("tl-header"), ui.element("div").classes("tl-bar-in"):
        ui.link("tumorlens", "/").classes("tl-brand")
        with ui.element("nav").props('aria-label="Pages"'):
            for name, target in _navigation:
                here = 'aria-current="page"' if target == path else ""
                ui.link(name, target).props(here)
        ui.label(NOTICE).classes("tl-notice")
    with ui.element("div").classes("tl-main") as main:
        text("h1", title)
        yield
    ui.skip_link("Skip to the content", target=main)


def text(tag: str, words: str) -> TextElement:
    """An HTML element with text, such as ``h2`` or ``p``."""
    return TextElement(tag=tag, text=words)
