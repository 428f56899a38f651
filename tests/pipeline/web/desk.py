"""What a reviewer does at the desk in a browser, for the tests of its pages."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from PIL import Image

from tumorlens.pipeline.batch.stored import read_results
from tumorlens.pipeline.services.reviews.store import Store

SETTLED_MS = 1000  # a scan that has just opened takes no decision by key


def case(server, name):
    return f"{server.url}review/case?scan={name}"


def sign_in(page, name):
    """Type a name, as a reviewer does on the first visit."""
    page.get_by_text("Type your name").wait_for()
    page.get_by_label("Your name").fill(name)
    page.get_by_role("button", name="Go on").click()
    page.get_by_text("Type your name").wait_for(state="hidden")
    wait_for_slice(page)


def wait_for_slice(page):
    page.wait_for_function(
        """() => { const c = document.querySelector('.tl-viewer canvas');
        return c && c.width > 1 && c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(
            (v, i) => i % 4 === 0 && v > 60); }"""
    )


def strokes_of(out, name, reviewer):
    """The strokes in the file that no decision has used."""
    (result,) = [result for result in read_results(out) if result.name == name]
    return Store(out).strokes(name, reviewer, result.identity)


def stroke(page, start=(0.3, 0.6), end=(0.4, 0.65), release=True):
    """Draw a line; places are shares of the canvas."""
    canvas = page.locator(".tl-viewer canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=8)
    if release:
        with page.expect_response(lambda answer: "/draw/" in answer.url):
            page.mouse.up()
        page.get_by_text("Saved").wait_for()


def choose(page, key, tool):
    """Choose a tool by its key."""
    page.keyboard.press(key)
    page.locator(f'.tl-tools [aria-pressed="true"]:has-text("{tool}")').wait_for()


def press(page, key):
    """Press a key of the desk and wait for what it does to the mask."""
    with page.expect_response(lambda answer: "/edit/" in answer.url):
        page.keyboard.press(key)


def mask_in(path):
    if path.suffix == ".png":
        return np.asarray(Image.open(path)) != 0
    return np.asarray(nib.load(path).dataobj) != 0
