"""Deciding at the review desk in a real browser: by mouse and keys, once, for good, and back into training."""

from __future__ import annotations

import csv
import json
import shutil
import signal

import pytest

from tests.data.training.runs import segmenter_config, train
from tests.pipeline.web.desk import SETTLED_MS, case, choose, mask_in, press, stroke, wait_for_slice
from tumorlens.pipeline.services.reviews.store import Store

pytestmark = [pytest.mark.browser, pytest.mark.slow]


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
