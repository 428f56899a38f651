"""Drawing at the review desk in a real browser: strokes reach the mask file, whatever happens to the server."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from tests.pipeline.web.desk import (
    SETTLED_MS,
    case,
    choose,
    mask_in,
    press,
    sign_in,
    stroke,
    strokes_of,
    wait_for_slice,
)
from tumorlens.pipeline.services.reviews.store import Store

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_stroke_is_in_the_mask_file_and_undo_takes_it_back(review, open_page, out, size):
    page = open_page(case(review(), "volume.nii.gz"), size)
    sign_in(page, "Ann")
    choose(page, "b", "Brush")
    stroke(page)
    stroke(page, (0.6, 0.7), (0.65, 0.7))
    press(page, "z")
    page.keyboard.press("s")
    page.wait_for_url(lambda url: "scan=volume" not in url)
    before, after = (mask_in(out / "volume" / f"mask{part}.nii.gz") for part in ("", ".reviewed"))
    added = after & ~before
    assert (before & ~after).sum() == 0 and 20 < added.sum() < 2000
    assert len(np.unique(np.argwhere(added)[:, 2])) == 1, "one slice"
    (decision,) = Store(out).decisions()
    assert (decision.reviewer, decision.action) == ("Ann", "correct")
    assert decision.after["mask_voxels"] == decision.before["mask_voxels"] + added.sum()


def test_the_stroke_is_where_the_pointer_was(review, open_page, out):
    page = open_page(case(review("--reviewer", "Ann"), "meningioma.png"))
    wait_for_slice(page)
    shape = mask_in(out / "meningioma" / "mask.png").shape
    choose(page, "b", "Brush")
    for _ in range(12):
        page.keyboard.press("[")  # the smallest brush
    page.locator('.tl-brush [role="slider"][aria-valuenow="1"]').wait_for()
    box = page.locator(".tl-viewer canvas").first.bounding_box()
    scale = min(box["width"] / shape[1], box["height"] / shape[0])
    row, column = 40, 70
    x = box["x"] + (box["width"] - shape[1] * scale) / 2 + (column + 0.5) * scale
    y = box["y"] + (box["height"] - shape[0] * scale) / 2 + (row + 0.5) * scale
    page.mouse.click(x, y)
    page.get_by_text("Saved").wait_for()
    page.keyboard.press("s")
    page.wait_for_url(lambda url: "scan=meningioma" not in url)
    before, after = (mask_in(out / "meningioma" / f"mask{part}.png") for part in ("", ".reviewed"))
    assert np.argwhere(before != after).tolist() == [[row, column]]


def test_a_killed_server_loses_no_stroke(review, open_page, out):
    first = review()
    page = open_page(case(first, "volume.nii.gz"), quiet=False)
    sign_in(page, "Ann")
    choose(page, "b", "Brush")
    stroke(page)
    stroke(page, (0.6, 0.7), (0.7, 0.7), release=False)
    first.process.send_signal(signal.SIGKILL)  # in the middle of the second stroke
    first.process.wait()
    page.mouse.up()
    page = open_page(case(review("--reviewer", "Ann"), "volume.nii.gz"))
    page.get_by_text("You have this scan open in another window").wait_for()  # nobody could release the claim
    page.get_by_role("button", name="Take it over").click()
    page.get_by_text("have not saved yet is still here").wait_for()
    assert page.get_by_role("button", name="Undo").is_enabled()
    strokes, _ = strokes_of(out, "volume.nii.gz", "Ann")
    assert len(strokes) == 1
    page.wait_for_timeout(SETTLED_MS)
    page.keyboard.press("s")
    page.wait_for_url(lambda url: "scan=volume" not in url)
    before, after = (mask_in(out / "volume" / f"mask{part}.nii.gz") for part in ("", ".reviewed"))
    ((before_stroke, after_stroke),) = strokes[0].slices.values()
    assert (after & ~before).sum() == (after_stroke != before_stroke).sum() > 0


def test_copy_interpolation_and_fill(review, open_page, out):
    page = open_page(case(review("--reviewer", "Ann"), "volume.nii.gz"))
    wait_for_slice(page)
    canvas = page.locator(".tl-viewer canvas").first
    canvas.focus()
    start = int(canvas.get_attribute("data-slice"))
    choose(page, "e", "Eraser")
    for _ in range(8):
        page.keyboard.press("]")
    page.wait_for_timeout(300)
    with page.expect_response(lambda answer: "/draw/eraser/" in answer.url):
        page.keyboard.press("Space")  # the cross is at the lesion's center
    emptied = strokes_of(out, "volume.nii.gz", "Ann")[0][0].slices[start][1].sum()
    press(page, "i" if emptied == 0 else "c")
    strokes, _ = strokes_of(out, "volume.nii.gz", "Ann")
    assert [stroke.kind for stroke in strokes] == ["eraser", "interpolate" if emptied == 0 else "copy"]
    assert strokes[1].slices[start][1].sum() > emptied


def test_brightness_zoom_and_planes_change_the_picture(review, open_page):
    page = open_page(case(review("--reviewer", "Ann"), "volume.nii.gz"))
    wait_for_slice(page)
    canvas = page.locator(".tl-viewer canvas").first
    shown = canvas.screenshot()
    for name, key in (("Brightness (window level)", "Home"), ("Contrast (window width)", "End")):
        page.get_by_label(name).focus()
        page.keyboard.press(key)
        page.wait_for_timeout(200)
        assert canvas.screenshot() != shown
        shown = canvas.screenshot()
    page.get_by_role("button", name="Reset window and zoom").click()
    page.get_by_role("button", name="Zoom in").click()
    page.wait_for_timeout(200)
    assert canvas.screenshot() != shown
    page.get_by_role("checkbox", name="Three planes").click()
    page.wait_for_function("document.querySelectorAll('.tl-viewer canvas').length === 3")


def test_a_stroke_on_a_slow_connection_is_waited_for(review, open_page, out):
    page = open_page(case(review("--reviewer", "Ann"), "meningioma.png"))
    wait_for_slice(page)
    page.wait_for_timeout(SETTLED_MS)

    choose(page, "b", "Brush")
    network = page.context.new_cdp_session(page)  # requests are late, keys are not
    network.send("Network.enable")
    slow = {"offline": False, "latency": 1500, "downloadThroughput": -1, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", slow)
    stroke(page, release=False)
    page.mouse.up()
    page.keyboard.press("s")
    page.wait_for_url(lambda url: "case?scan=meningioma" not in url)
    (decision,) = Store(out).decisions()
    assert decision.action == "correct" and decision.after["mask_voxels"] > decision.before["mask_voxels"]
