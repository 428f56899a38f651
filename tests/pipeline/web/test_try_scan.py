"""The page on which people try a scan, in a real browser, with the shipped models."""

from __future__ import annotations

import http.client
import io
import os
import re
import time
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.web.conftest import NARROW, serious_faults
from tests.scans.studies import SICK, series
from tumorlens.data.phantom import phantom_slice, phantom_volume

pytestmark = [pytest.mark.browser, pytest.mark.slow]
GONE_S = 20.0  # the grace for a reload, and some more


@pytest.fixture
def page(serve, open_page):
    """The page with the server that most tests share."""
    return open_page(serve())


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "sick.png"
    Image.fromarray(phantom_slice(2, "meningioma").image).save(path)
    return path


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> Path:
    import nibabel as nib

    phantom = phantom_volume(7, "meningioma", (96, 112, 24), (2.0, 2.0, 5.0))
    path = tmp_path_factory.mktemp("volume") / "volume.nii.gz"
    nib.save(nib.Nifti1Image(phantom.image, phantom.affine), path)
    return path


def drop(page, *paths) -> None:
    page.locator("input[type=file]").set_input_files([str(path) for path in paths], timeout=120_000)


def answer(page) -> str:
    return page.locator(".tl-answer h2").inner_text()


def wait_for_slices(page) -> None:
    """Wait until every canvas shows something else than black."""
    page.wait_for_function(
        """() => document.querySelector('.tl-viewer canvas') &&
          [...document.querySelectorAll('.tl-viewer canvas')].every((c) => {
            const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            return c.width > 1 && pixels.some((v, i) => i % 4 === 0 && v > 60);
        })"""
    )


def shown(page, canvas: int = 0) -> bytes:
    return page.locator(".tl-viewer canvas").nth(canvas).screenshot()


def changes(page, act, canvas: int = 0) -> bool:
    """Whether an act changes the picture."""
    before = shown(page, canvas)
    act()
    for _ in range(50):
        page.wait_for_timeout(100)
        if shown(page, canvas) != before:
            return True
    return False


def reddish(page, canvas: int = 0) -> int:
    """Number of pixels under the mask's tint."""
    rgb = np.asarray(Image.open(io.BytesIO(shown(page, canvas))).convert("RGB")).astype(int)
    return int(((rgb[..., 0] - rgb[..., 1] > 20) & (rgb[..., 0] - rgb[..., 2] > 10)).sum())


def test_a_picture_gets_its_label_and_its_overlay(serve, open_page, picture, size):
    page = open_page(serve(), size)
    drop(page, picture)
    wait_for_slices(page)
    assert answer(page).lower().startswith("meningioma 0.9")
    assert page.locator(".tl-bars tr").count() == 4
    assert page.get_by_text("no other class remains possible").is_visible()
    assert reddish(page) > 100
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.get_by_text("Not a medical device").is_visible()


def test_mask_opacity_and_heat_change_the_picture(page, picture):
    drop(page, picture)
    wait_for_slices(page)
    opacity = page.get_by_role("slider", name="Opacity of the mask in percent")
    assert changes(page, lambda: (opacity.focus(), [page.keyboard.press("ArrowRight") for _ in range(20)]))
    page.get_by_role("switch", name="Mask").focus()
    assert changes(page, lambda: page.keyboard.press("Space"))
    assert reddish(page) == 0
    assert changes(page, lambda: page.get_by_role("switch", name="Where the classifier looked").click())


def test_slices_of_a_volume_by_wheel_keys_and_slider(page, volume):
    drop(page, volume)
    wait_for_slices(page)
    canvas = page.locator(".tl-viewer canvas").first
    assert page.locator(".tl-viewer canvas").count() == 3
    canvas.hover()
    assert changes(page, lambda: page.mouse.wheel(0, 100))
    canvas.focus()
    assert changes(page, lambda: page.keyboard.press("ArrowDown"))
    slider = page.get_by_role("slider", name="Slice, axial")
    here = slider.input_value()
    assert changes(page, lambda: (slider.focus(), page.keyboard.press("End")))
    assert slider.input_value() == "23" != here
    crossed = changes(page, lambda: canvas.click(position={"x": 60, "y": 60}), canvas=1)
    assert crossed, "a click in one plane moves the others"
    page.get_by_role("switch", name="Three planes").click()
    page.wait_for_function("document.querySelectorAll('.tl-viewer canvas').length === 1")


def test_the_first_slice_shows_the_lesion(page, volume):
    drop(page, volume)
    wait_for_slices(page)
    assert all(reddish(page, plane) > 50 for plane in range(3))


@pytest.mark.parametrize("name", ["Slice with glioma", "Volume with meningioma", "Healthy head"])
def test_a_phantom_is_one_click_away(page, name):
    page.get_by_role("button", name=name).click()
    wait_for_slices(page)
    page.locator(".tl-answer h2").wait_for()
    assert answer(page).lower().startswith({"S": "glioma", "V": "meningioma", "H": "no tumor"}[name[0]])


def test_a_zip_and_loose_files_of_dicom(page, tmp_path):
    files = series(tmp_path / "series", SICK)
    zipped = tmp_path / "study.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for file in files:
            archive.write(file, f"IMAGES/{file.name}")
    drop(page, zipped)
    page.locator(".tl-answer h2").wait_for()
    page.get_by_role("button", name="Delete all").click()
    page.locator(".tl-answer h2").wait_for(state="detached")
    drop(page, *files)
    page.locator(".tl-answer h2").wait_for()
    assert page.locator(".tl-job").count() == 1, "loose files of a series are one scan"
    assert page.locator(".tl-job").inner_text().startswith("MR series 5: ")


def test_several_files_are_a_list_and_a_wrong_one_has_its_sentence(page, picture, tmp_path):
    healthy, wrong, empty = tmp_path / "healthy.png", tmp_path / "broken.png", tmp_path / "notes.txt"
    Image.fromarray(phantom_slice(3, "no_tumor").image).save(healthy)
    wrong.write_bytes(b"\x89PNG no picture at all")
    empty.write_text("<b>no scan</b>")
    drop(page, picture, healthy, wrong, empty)
    page.wait_for_function("document.querySelectorAll('.tl-job progress:not(.hidden)').length === 0")
    page.locator(".tl-answer h2").wait_for()
    rows = page.locator(".tl-job").all_inner_texts()
    assert len(rows) == 4
    page.get_by_text("4 of 4 done").wait_for()
    failed = [row for row in rows if row.startswith(("broken.png", "notes.txt"))]
    assert len(failed) == 2 and not any("/" in row for row in failed), failed
    for name, label in (("sick.png", "meningioma"), ("healthy.png", "no tumor")):
        page.get_by_role("button", name=re.compile(f"^{name}")).click()
        page.wait_for_function(
            f"document.querySelector('.tl-answer h2')?.innerText.toLowerCase().startsWith('{label}')"
        )


def test_messages_keep_the_names_of_files(page, tmp_path):
    with zipfile.ZipFile(tmp_path / "zz.zip", "w") as archive:
        archive.writestr("notes.txt", "no scan")
    drop(page, tmp_path / "zz.zip")
    assert page.locator(".tl-alert").first.inner_text() == "zz.zip: the archive holds no scan."


def test_a_frame_of_a_4d_file_is_chosen_on_the_page(page, tmp_path):
    import nibabel as nib

    frames = np.stack([SICK.image, SICK.image], axis=-1)
    nib.save(nib.Nifti1Image(frames, SICK.affine), tmp_path / "echoes.nii.gz")
    drop(page, tmp_path / "echoes.nii.gz")
    page.get_by_text("4-D with 2 frames; choose frame 0 to 1").wait_for()
    page.locator(".q-loading-bar[aria-hidden=true]").wait_for()  # it has no name while it is there
    assert serious_faults(page) == []
    page.get_by_label("Frame", exact=True).fill("1")
    page.get_by_role("button", name="Use this frame").click()
    page.locator(".tl-answer h2").wait_for()
    assert page.locator(".tl-facts tr", has_text="Frame").inner_text().split() == ["Frame", "1"]


def test_deleting_clears_the_page_and_a_scan_can_be_removed(page, picture):
    status = page.locator("[role=status].tl-quiet")
    drop(page, picture)
    page.locator(".tl-answer h2").wait_for()
    assert status.inner_text() == "", "the list says it"
    assert page.locator(".tl-spoken").inner_text().startswith("sick.png: meningioma")
    assert page.locator(".tl-status").bounding_box()["height"] == 0
    assert (
        page.locator(".q-btn").evaluate_all("(all) => all.map((b) => getComputedStyle(b).textTransform)").count("none")
        == page.locator(".q-btn").count()
    )
    assert page.get_by_role("button", name="Cancel sick.png").count() == 0
    page.get_by_role("button", name="Remove sick.png").click()
    page.locator(".tl-answer h2").wait_for(state="detached")
    drop(page, picture)
    page.locator(".tl-answer h2").wait_for()
    page.get_by_role("button", name="Delete all").click()
    page.locator(".tl-answer h2").wait_for(state="detached")
    assert status.inner_text() == page.locator(".tl-spoken").inner_text() == ""


def test_a_long_list_scrolls_by_itself(page, tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(50)]
    for file in files:
        file.write_bytes(b"no picture")
    drop(page, *files)
    page.get_by_text("50 of 50 done").wait_for()
    jobs = page.get_by_role("list", name="Scans")
    assert jobs.bounding_box()["height"] < 400
    jobs.focus()
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('.tl-jobs').scrollTop > 100")


def test_a_scan_that_is_no_brain_says_why_and_can_be_forced(page, tmp_path):
    rng = np.random.default_rng(0)
    photo = tmp_path / "noise.png"
    Image.fromarray(rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(photo)
    drop(page, photo)
    page.get_by_text("Why it was refused").wait_for()
    assert answer(page).lower() == "refused"
    assert page.get_by_role("button", name="Mask", exact=True).count() == 0
    assert "--force" not in page.locator(".tl-result").inner_text()
    page.get_by_role("button", name="Judge it all the same").click()
    page.get_by_text("judged all the same, as you asked").wait_for()


def test_everything_can_be_saved(page, volume):
    drop(page, volume)
    page.locator(".tl-answer h2").wait_for()
    saved = {}
    for name in ("Mask", "Overlay", "Report", "All files (zip)"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=name, exact=True).click()
        saved[name] = (waiting.value.suggested_filename, Path(waiting.value.path()))
    assert {name for name, _ in saved.values()} == {
        "volume_mask.nii.gz",
        "volume_overlay.png",
        "volume_report.html",
        "volume.zip",
    }
    inside = set(zipfile.ZipFile(saved["All files (zip)"][1]).namelist())
    assert {"result.json", "overlay.png", "montage.png", "mask.nii.gz", "report.html"} <= inside
    assert Image.open(saved["Overlay"][1]).size[0] > 50


def test_200_files_at_once_are_refused_with_a_sentence(page, picture, tmp_path):
    files = [tmp_path / f"{n}.png" for n in range(200)]
    for file in files:
        os.link(picture, file) if hasattr(os, "link") else file.write_bytes(picture.read_bytes())
    drop(page, *files)
    page.get_by_text("200 files are more than the 50 that are allowed").wait_for()
    assert page.locator(".tl-job").count() == 0


def test_a_file_of_600_mb_is_refused_before_it_is_sent(page, tmp_path):
    large = tmp_path / "large.nii"
    with large.open("wb") as file:
        file.truncate(600_000_000)
    begun = time.monotonic()
    drop(page, large)
    page.get_by_text("600 MB are more than the 500 MB that are allowed").wait_for()
    assert time.monotonic() - begun < 20


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def send(url: str, address: str, n_bytes: int, chunked: bool) -> tuple[int, int]:
    """Send zeros; returns the status and how many bytes the server took."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.putrequest("POST", address)
    connection.putheader("X-File-Name", "zeros.nii")
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(n_bytes))))
    connection.endheaders()
    block, sent = bytes(1_000_000), 0
    try:
        while sent < n_bytes:
            connection.send(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            sent += len(block)
    except OSError:
        pass  # the server has closed the connection
    try:
        return connection.getresponse().status, sent
    except (OSError, http.client.HTTPException):
        return 0, sent
    finally:
        connection.close()


def test_the_server_itself_refuses_what_is_too_large(start_server, open_page):
    server = start_server("--upload-mb", "50")
    page = open_page(server.url, quiet=False)
    page.get_by_text("At most 50 files and 50 MB").wait_for()
    page.get_by_text("The models are loading").wait_for(state="hidden")  # they take memory of their own
    address = page.evaluate(
        "() => Object.values(mounted_app.elements).map((e) => e.props.url).find((u) => u && u.startsWith('/uploads/'))"
    )
    before = resident_mb(server.process.pid)
    for chunked in (False, True):
        status, sent = send(server.url, address, 600_000_000, chunked)
        assert status in (0, 413) and sent < 300_000_000
        page.get_by_text("more than the 50 MB that are allowed").first.wait_for()
    assert resident_mb(server.process.pid) - before < 60
    assert "zeros.nii" not in server.files
    server.stop()


def test_a_waiting_and_a_running_scan_can_be_cancelled(page, tmp_path):
    import nibabel as nib

    phantom = phantom_volume(5, "glioma", (96, 112, 200), (2.0, 2.0, 0.8))
    files = [tmp_path / f"{name}.nii.gz" for name in ("first", "second")]
    for file in files:
        nib.save(nib.Nifti1Image(phantom.image, phantom.affine), file)
    drop(page, *files)
    page.get_by_role("button", name="Cancel second.nii.gz").click()
    page.get_by_text("second.nii.gz: cancelled").wait_for()
    page.get_by_text("first.nii.gz: classifying").wait_for()
    page.get_by_role("button", name="Cancel first.nii.gz").click()
    page.get_by_text("first.nii.gz: cancelled").wait_for()
    page.get_by_role("button", name="Healthy head").click()
    page.locator(".tl-answer h2").wait_for()


def test_two_browsers_do_not_see_each_other(serve, open_page, picture, volume):
    one, other = open_page(serve()), open_page(serve())
    drop(one, picture)
    drop(other, volume)
    for page in (one, other):
        page.locator(".tl-answer h2").wait_for()
    assert one.locator(".tl-job").all_inner_texts()[0].startswith("sick.png")
    assert other.locator(".tl-job").all_inner_texts()[0].startswith("volume.nii.gz")
    assert one.locator(".tl-job").count() == other.locator(".tl-job").count() == 1


def test_a_reload_keeps_the_results_and_a_closed_page_leaves_nothing(start_server, open_page, picture):
    server = start_server()
    page = open_page(server.url)
    drop(page, picture)
    page.locator(".tl-answer h2").wait_for()
    assert "sick.png" in server.files
    page.reload()
    page.locator(".tl-answer h2").wait_for()
    page.wait_for_timeout(12_000)  # longer than the grace
    assert "sick.png" in server.files, "the page is still open"
    page.close()
    ends = time.monotonic() + GONE_S
    while server.files and time.monotonic() < ends:
        time.sleep(0.5)
    assert server.files == []
    page = open_page(server.url)
    drop(page, picture)
    page.locator(".tl-answer h2").wait_for()
    page.close()
    code, errors = server.stop()
    assert (code, errors) == (143, "tumorlens: stopped\n")
    assert list(server.folder.iterdir()) == [], "the server's folder goes with it"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(serve, open_page, volume, tmp_path, scheme, size):
    page = open_page(serve(), size, scheme)
    wrong = tmp_path / "notes.txt"
    wrong.write_text("no scan")
    assert serious_faults(page) == []
    drop(page, volume, wrong)
    wait_for_slices(page)
    assert serious_faults(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_the_keyboard_reaches_everything(serve, open_page, picture):
    page = open_page(serve(), NARROW)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    drop(page, picture)
    page.locator(".tl-answer h2").wait_for()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        words = page.evaluate(
            "(({ innerText, ariaLabel, tagName }) => innerText || ariaLabel || tagName)(document.activeElement)"
        )
        reached.add(" ".join(words.split()))
    wanted = ("Choose files", "Slice with glioma", "Delete all", "Mask", "Overlay", "Report", "All files (zip)")
    assert [name for name in wanted if not any(name in words for words in reached)] == []
    assert any(words.startswith("Scan, picture") for words in reached), "the picture"


@pytest.mark.real
def test_a_real_slice(page, real):
    file = next((real / "brisc").rglob("*.jpg"))
    drop(page, file)
    wait_for_slices(page)
    assert page.locator(".tl-bars tr").count() == 4 or "refused" in answer(page).lower()
    assert page.get_by_text("Computed").is_visible()


@pytest.mark.real
def test_a_real_dicom_series(page, real):
    drop(page, *sorted((real / "volumes" / "dicom" / "brainix_t1").glob("*")))
    wait_for_slices(page)
    assert page.locator(".tl-job").count() == 1
    assert page.locator(".tl-viewer canvas").count() == 3
