"""The review desk in a real browser: drawing, deciding, crashes, two reviewers, and the way back into training."""

from __future__ import annotations

import csv
import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from tests.data.training.runs import segmenter_config, train
from tests.pipeline.web.conftest import serious_faults
from tumorlens.pipeline.batch.stored import read_results
from tumorlens.pipeline.services.reviews.store import Store

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SAVED = "Saved"
SETTLED_MS = 1000  # a scan that has just opened takes no decision by key


@pytest.fixture
def out(finished_batch, tmp_path):
    shutil.copytree(finished_batch[1], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def review(start_server, finished_batch, out):
    """`review() -> Server` for the batch; calls stop nothing, so that two servers may share it."""
    servers = []

    def start(*arguments):
        servers.append(start_server(out, "--scans", finished_batch[0], *arguments))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


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
        page.get_by_text(SAVED).wait_for()


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
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj) != 0


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
    page.get_by_text(SAVED).wait_for()
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


def test_a_decision_survives_reload_and_kill(review, open_page, out):
    server = review("--reviewer", "Ann")
    page = open_page(case(server, "meningioma.png"), quiet=False)
    wait_for_slice(page)
    page.get_by_label("Comment").fill("a clear case")
    page.get_by_role("button", name="Accept").click()
    page.wait_for_url(lambda url: "scan=meningioma" not in url)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    again = review()
    page = open_page(f"{again.url}review")
    page.get_by_text("1 of 5 scans decided: 1 accepted; 1 failed").wait_for()
    page.reload()
    page.get_by_text("1 of 5 scans decided").wait_for()
    page.goto(case(again, "meningioma.png"))
    page.get_by_text("a clear case").wait_for()
    assert json.loads((out / "meningioma" / "result.json").read_text())["label"] == "meningioma"


def test_two_reviewers_see_each_other(review, open_page, out):
    server = review()
    ann = open_page(case(server, "volume.nii.gz"))
    sign_in(ann, "Ann")
    bob = open_page(case(server, "volume.nii.gz"), quiet=False)
    bob.get_by_text("Type your name").wait_for()
    bob.get_by_label("Your name").fill("Bob")
    bob.get_by_role("button", name="Go on").click()
    bob.get_by_text("Ann has it open").wait_for()
    wait_for_slice(bob)
    choose(bob, "b", "Brush")
    box = bob.locator(".tl-viewer canvas").first.bounding_box()
    bob.mouse.click(box["x"] + 100, box["y"] + 100)
    bob.wait_for_timeout(SETTLED_MS)
    bob.keyboard.press("a")
    bob.get_by_text("not yours at the moment").wait_for()
    assert Store(out).decisions() == [] and strokes_of(out, "volume.nii.gz", "Bob") == ([], 0)
    lists = open_page(f"{server.url}review")
    lists.get_by_text("Ann has it open").wait_for()
    bob.get_by_role("button", name="Take it over").first.click()
    bob.get_by_text("Ann has it open").wait_for(state="hidden")
    wait_for_slice(bob)
    bob.wait_for_timeout(SETTLED_MS)
    bob.keyboard.press("a")
    bob.wait_for_url(lambda url: "scan=volume" not in url)
    ann.keyboard.press("a")  # Ann has not looked at Bob's decision
    ann.get_by_text("Bob has").first.wait_for()
    assert [d.reviewer for d in Store(out).decisions()] == ["Bob"]


def test_a_case_by_keyboard_alone(review, open_page, out):
    page = open_page(f"{review('--reviewer', 'Ann').url}review")
    page.get_by_role("link", name="volume.nii.gz").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/review/case?scan=volume.nii.gz")
    wait_for_slice(page)
    canvas = page.locator(".tl-viewer canvas").first
    canvas.focus()
    before = int(canvas.get_attribute("data-slice"))
    page.keyboard.press("ArrowUp")
    page.wait_for_function(f"document.querySelector('.tl-viewer canvas').dataset.slice === '{before + 1}'")
    choose(page, "b", "Brush")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowLeft")
    with page.expect_response(lambda answer: "/draw/brush/" in answer.url):
        page.keyboard.press("Space")
    press(page, "z")
    press(page, "y")
    page.keyboard.press("2")  # glioma
    page.wait_for_timeout(300)
    page.keyboard.press("s")
    page.wait_for_url(lambda url: "scan=volume" not in url)
    (decision,) = Store(out).decisions()
    assert (decision.action, decision.label) == ("correct", "glioma")
    assert decision.after["mask_voxels"] != decision.before["mask_voxels"]


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


def test_filters_and_search(review, open_page):
    page = open_page(f"{review().url}review")
    page.get_by_role("link", name="noise.png").wait_for()
    assert page.locator(".tl-list tbody tr").first.inner_text().startswith("broken.png")
    page.get_by_label("Search name or reason").fill("does not look like")
    page.get_by_text("1 to 1 of 1").wait_for()
    assert page.get_by_role("link", name="noise.png").is_visible()
    page.get_by_label("Search name or reason").fill("nothing of the kind")
    page.get_by_text("No scan fits the filter").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(review, open_page, size, scheme):
    server = review("--reviewer", "Ann")
    page = open_page(f"{server.url}review", size, scheme)
    page.get_by_role("link", name="noise.png").wait_for()
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    page.goto(case(server, "volume.nii.gz"))
    wait_for_slice(page)
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_a_scan_that_is_not_there_gets_its_sentence(review, open_page):
    page = open_page(case(review("--reviewer", "Ann"), "../../etc/passwd"), quiet=False)
    page.get_by_text("is not a scan in").wait_for()


def test_a_comment_is_typed_and_decides_nothing(review, open_page, out):
    page = open_page(case(review("--reviewer", "Ann"), "meningioma.png"))
    wait_for_slice(page)
    page.keyboard.type("/a rim, seen rarely")  # its letters are keys of the desk
    page.keyboard.press("Escape")
    page.wait_for_timeout(500)
    assert page.locator(".tl-comment textarea").input_value() == "a rim, seen rarely"
    assert Store(out).decisions() == [] and "meningioma" in page.url
    page.keyboard.press("a")
    page.wait_for_url(lambda url: "case?scan=meningioma" not in url)
    page.get_by_text("Recorded: meningioma.png, accept as meningioma").wait_for()
    (decision,) = Store(out).decisions()
    assert decision.comment == "a rim, seen rarely"


def test_a_key_or_click_too_many_decides_once(review, open_page, out):
    page = open_page(case(review("--reviewer", "Ann"), "meningioma.png"))
    wait_for_slice(page)
    page.wait_for_timeout(SETTLED_MS)
    page.keyboard.type("aaa", delay=5)
    page.wait_for_url(lambda url: "case?scan=meningioma" not in url)
    page.wait_for_timeout(500)
    assert [(d.scan, d.action) for d in Store(out).decisions()] == [("meningioma.png", "accept")]
    page.get_by_role("link", name="Look at it again").click()
    page.wait_for_url(lambda url: "case?scan=meningioma" in url)
    wait_for_slice(page)
    page.get_by_role("button", name="Reject").dblclick()
    page.wait_for_url(lambda url: "case?scan=meningioma" not in url)
    assert [d.action for d in Store(out).decisions()] == ["accept", "reject"]


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


def test_a_window_that_has_lost_the_scan_can_do_nothing_more(review, open_page, out):
    server = review("--reviewer", "Ann")
    first = open_page(case(server, "meningioma.png"), quiet=False)
    wait_for_slice(first)
    with first.context.expect_page() as opened:
        first.evaluate("window.open(location.href)")  # as "Duplicate tab" does
    second = opened.value
    second.get_by_text("open in another window").wait_for()
    second.get_by_role("button", name="Take it over").click()
    second.get_by_text("open in another window").wait_for(state="hidden")
    choose(first, "b", "Brush")
    box = first.locator(".tl-viewer canvas").first.bounding_box()
    first.mouse.click(box["x"] + 150, box["y"] + 150)
    first.get_by_text("Not saved").wait_for()
    assert Store(out).decisions() == []
    first.keyboard.press("a")
    first.get_by_text("so nothing was recorded").wait_for()
    assert Store(out).decisions() == []
    second.close()
    first.get_by_text("open in another window").wait_for(state="hidden")  # it is free again


def test_the_browser_remembers_the_name(review, open_page):
    server = review()
    page = open_page(f"{server.url}review")
    page.get_by_role("link", name="noise.png").wait_for()
    page.get_by_label("Your name").fill("Ann")
    page.get_by_label("Search name or reason").focus()
    page.wait_for_timeout(500)
    page.reload()
    page.wait_for_function("[...document.querySelectorAll('input')].some((input) => input.value === 'Ann')")
    page.goto(case(server, "meningioma.png"))
    wait_for_slice(page)
    assert not page.get_by_text("Type your name").is_visible()


def test_a_scan_that_failed_has_nothing_to_decide_on(review, open_page, out):
    page = open_page(case(review("--reviewer", "Ann"), "broken.png"))
    page.get_by_text("no result to decide on").wait_for()
    page.keyboard.press("a")
    page.wait_for_timeout(500)
    assert Store(out).decisions() == []


def without_folds(data, folder):
    """A copy of a data set whose index leaves the folds to `train`."""
    shutil.copytree(data, folder)
    rows = list(csv.DictReader((data / "index.csv").open()))
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("image", "mask", "label", "patient"), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_the_loop_closes(review, open_page, out, finished_batch, command, phantom_set, tmp_path):
    """Run, correct in the browser, export, train: the network is better on that case than before."""
    server = review("--reviewer", "Ann")
    page = open_page(case(server, "meningioma.png"))
    wait_for_slice(page)
    choose(page, "b", "Brush")
    for _ in range(8):
        page.keyboard.press("]")
    page.wait_for_timeout(300)
    for height in (0.45, 0.5, 0.55):  # a large area that no network would mark
        stroke(page, (0.3, height), (0.45, height))
    page.keyboard.press("s")
    page.wait_for_url(lambda url: "scan=meningioma" not in url)
    reviewed = tmp_path / "reviewed"
    done = command("review", "export", out, "-o", reviewed, "--scans", finished_batch[0])
    assert done.exit_code == 0, done.output
    (row,) = list(csv.DictReader((reviewed / "index.csv").open()))
    assert mask_in(reviewed / row["mask"]).sum() == mask_in(out / "meningioma" / "mask.reviewed.png").sum()

    def dice_of(weights, name):
        folder = tmp_path / name
        done = command("evaluate", "segmentation", "--data", reviewed, "--segmenter", weights, "-o", folder, "-q")
        assert done.exit_code == 0, done.output
        return json.loads((folder / "report.json").read_text())["groups"][0]["dice_tumor"]["value"]

    phantoms = without_folds(phantom_set, tmp_path / "phantoms")
    before = tmp_path / "before"
    train(segmenter_config(phantoms, epochs=2, split="holdout"), before)
    more = {"init": str(before / "segmenter.safetensors"), "rate": (0.2, 40.0), "duplicates": "drop"}
    plain = {"augment": 0.0, "turn": 0.0, "transplant": 0.0, "learning_rate": 2e-3, "epochs": 6, "validate_every": 6}
    dices = []
    for fold in (0, 1):  # one of them may hold the case out
        after = tmp_path / f"after-{fold}"
        train(segmenter_config(phantoms, reviewed, split="holdout", fold=fold, **plain, **more), after)
        dices.append(dice_of(after / "segmenter.safetensors", f"report-{fold}"))
    assert max(dices) > dice_of(before / "segmenter.safetensors", "report") + 0.2
