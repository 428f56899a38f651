"""Reports: complete, self-contained, without identifiers, and never at the cost of a result."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.pipeline.fixed import fixed_pipeline
from tests.scans.dicom import IDENTIFIERS, PATIENT
from tests.scans.pictures import save, table
from tests.scans.studies import SICK, series
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.batch import run
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import RESULT_FILES, report_html, report_pdf
from tumorlens.pipeline.outputs.report_batch import is_batch_report, write_batch_report
from tumorlens.pipeline.outputs.report_html import render_report, write_report
from tumorlens.pipeline.outputs.report_pdf import check_pdf, write_pdf
from tumorlens.pipeline.outputs.table import COLUMNS
from tumorlens.pipeline.outputs.write import write_result

PICTURE = phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image
HEALTHY = phantom_slice(1, "no_tumor", size=96, pixel_mm=2.3).image
CHROMIUM = report_pdf._browser()


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def result_in(folder, source=PICTURE, options=RunOptions(), **fixed):
    return write_result(fixed_pipeline(**fixed).run(source, options), folder, "p1/scan.png", options=options)


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volume")
    scan = phantom_volume(7, "meningioma", shape=(64, 75, 8), spacing_mm=(3, 3, 14)).scan
    pipeline = fixed_pipeline()
    result = pipeline.run(scan)
    heat = np.ones(scan.slice(0).shape[:2], np.float32)
    object.__setattr__(result, "heat", heat)
    return write_result(result, folder, "head.nii.gz"), folder


def words(page):
    return " ".join(page.text.split())


def test_a_report_says_everything_with_units(volume):
    content, folder = volume
    page = Page(render_report({**content, "sequence": "t1", "sequence_probability": 0.999}, folder))
    text = words(page)
    assert "sequence (as the picture looks)t1 (>0.99)" in text
    for said in (
        "For research only",
        "Not a medical device",
        "head.nii.gz",
        "The classifier sees a meningioma; it gives that a probability of 98",
        "A meningioma is usually benign.",
        "not a histological grade",
        "calibrated",
        f"{content['tumor_volume_mm3'] / 1000:.2f} ml",
        f"{content['tumor_area_mm2']:.0f} mm² ({content['tumor_area_px']} pixels)",
        "RANO",
        "3 x 3 x 14 mm",
        "Grad-CAM",
    ):
        assert said in text, said
    lesion = content["lesions"][0]
    assert f"{lesion['longest_diameter_mm']:.1f} x {lesion['perpendicular_diameter_mm']:.1f}" in text
    assert text.count("(counted from 0)") == 1 and f"slice {content['shown_slice']} (counted from 0)" in text
    assert len(page.all("img")) == 3  # overlay, montage, explanation


def test_a_report_needs_nothing_but_itself(volume, tmp_path):
    content, folder = volume
    refused = write_result(replace_label(fixed_pipeline().run(PICTURE)), tmp_path / "refused", "x.png")
    for html in (render_report(content, folder), render_report(refused, tmp_path / "refused")):
        page = Page(html)
        assert not page.all("script") and not page.all("link") and not page.all("iframe")
        assert not re.search(r"https?://|@import|url\(", html.split("<main>")[0])
        for _, attributes in page.tags:
            assert not any(name.startswith("on") for name in attributes)
            for name in ("src", "href"):
                assert attributes.get(name, "data:").startswith("data:")
        assert all(len(image["alt"]) > 5 and int(image["width"]) >= 64 for image in page.all("img"))
        assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html and "@media print" in html


def replace_label(result):
    from dataclasses import replace

    return replace(result, label="refused", probabilities={}, lesions=[], slices=[], review=["refused: looks odd"])


def test_a_refused_scan_has_a_report_without_figures(tmp_path):
    content = write_result(replace_label(fixed_pipeline().run(PICTURE)), tmp_path, "x.png")
    text = words(Page(render_report(content, tmp_path)))
    assert "not judged" in text and "refused: looks odd" in text
    assert "Probabilities" not in text and "Measurements" not in text


def test_doubts_are_prominent_and_healthy_scans_are_not_promised_health(tmp_path):
    content = result_in(tmp_path, tumor=0.4)
    html = render_report(content, tmp_path)
    assert content["review"] and all(reason in words(Page(html)) for reason in content["review"])
    assert html.index("Look at this scan") < html.index("Probabilities")
    sure = {**content, "review": []}
    assert "Small lesions can be missed" in words(Page(render_report(sure, tmp_path)))
    assert "Look at this scan" not in render_report(sure, tmp_path)


def test_names_are_escaped(tmp_path):
    content = result_in(tmp_path)
    content["scan"]["name"] = "<script>alert(1)</script>.png"
    assert "<script" not in render_report(content, tmp_path)


def test_classes_are_called_possible_only_where_the_card_knows_how(tmp_path):
    content = result_in(tmp_path)
    head = '<th scope="col">possible</th>'
    assert head in render_report({**content, "prediction_set": [content["label"]]}, tmp_path)
    assert head not in render_report({**content, "prediction_set": []}, tmp_path)


def test_weights_of_your_own_get_no_figures_of_ours(tmp_path):
    content = result_in(tmp_path)
    assert "not those that come with tumorlens" in render_report(content, tmp_path)
    shipped = {
        stage: {"sha256": card["sha256"]}
        for stage, card in zip(("classification", "segmentation"), cards(), strict=True)
    }
    text = words(Page(render_report({**content, "models": shipped}, tmp_path)))
    assert "92.4" in text and "Dice of 0.72" in text and "brisc" in text


def cards():
    from tumorlens.pipeline.outputs.report_html import _shipped_cards

    return _shipped_cards()


@pytest.mark.parametrize("kept", [False, True])
def test_a_report_of_dicom_names_nobody_unless_asked(tmp_path, kept):
    source = tmp_path / "Doe^Jane"
    series(source, SICK, SeriesNumber=5)
    options = RunOptions(keep_identifiers=kept)
    result = fixed_pipeline().run(source)
    content = write_result(result, tmp_path / "out", "Doe^Jane/DICOM", options=options)
    content["review"] += [
        "the scans of this study do not agree: Doe^Jane/DICOM#3: glioma 0.9, Doe^Jane/DICOM#5: no tumor 0.8",
        "2 DICOM files could not be read (Doe.dcm)",
    ]
    text = re.sub(r"base64,[^\"]*", "", render_report(content, tmp_path / "out"))
    assert "MR series 5" in text or kept
    assert "do not agree" in text and "could not be read" in text
    for word in (*IDENTIFIERS, "Doe^Jane"):
        assert (word in text) <= kept, word
    assert (PATIENT["PatientID"] in text) == kept


@pytest.mark.skipif(report_pdf._weasyprint() is None and CHROMIUM is None, reason="nothing makes PDFs here")
@pytest.mark.parametrize("printer", ["weasyprint", "chromium"])
def test_a_pdf_holds_the_label(volume, tmp_path, monkeypatch, printer):
    if (report_pdf._weasyprint() if printer == "weasyprint" else CHROMIUM) is None:
        pytest.skip(f"{printer} is not installed")
    if printer == "chromium":
        monkeypatch.setattr(report_pdf, "_weasyprint", lambda: None)
    content, folder = volume
    write_pdf(render_report(content, folder), tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert [p.name for p in tmp_path.iterdir()] == ["report.pdf"]
    if shutil.which("pdfinfo"):
        done = subprocess.run(["pdfinfo", tmp_path / "report.pdf"], capture_output=True, text=True, check=True)
        assert int(re.search(r"Pages: +(\d+)", done.stdout)[1]) <= 3
    if shutil.which("pdftotext"):
        done = subprocess.run(["pdftotext", tmp_path / "report.pdf", "-"], capture_output=True, text=True, check=True)
        assert "meningioma" in done.stdout and "For research only" in done.stdout


def test_without_a_printer_the_user_learns_it_before_the_run(tumorlens, tmp_path, monkeypatch):
    monkeypatch.setattr(report_pdf, "_weasyprint", lambda: None)
    monkeypatch.setattr(report_pdf, "_browser", lambda: None)
    with pytest.raises(InputError, match=r"tumorlens\[pdf\]"):
        check_pdf()
    save(tmp_path / "a.png", PICTURE)
    done = tumorlens("run", tmp_path / "a.png", "-o", tmp_path / "out", "--pdf")
    assert done.exit_code == 2 and "WeasyPrint" in done.stderr and not (tmp_path / "out").exists()


def test_a_browser_that_fails_is_reported(tmp_path, monkeypatch):
    browser = tmp_path / "chromium"
    browser.write_text("#!/bin/sh\nexit 3\n")
    browser.chmod(0o755)
    monkeypatch.setattr(report_pdf, "_weasyprint", lambda: None)
    monkeypatch.setattr(report_pdf, "_browser", lambda: str(browser))
    with pytest.raises(InputError, match="chromium made no PDF"):
        write_pdf("<p>x", tmp_path / "out" / "a.pdf")
    assert not list((tmp_path / "out").iterdir())


def test_reports_are_files_of_a_result():
    assert {"report.html", "report.pdf"} <= set(RESULT_FILES)


# --- of a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def scans(tmp_path):
    save(tmp_path / "in" / "sick.png", PICTURE)
    save(tmp_path / "in" / "healthy.png", HEALTHY)
    (tmp_path / "in" / "broken.png").write_text("broken")
    save(tmp_path / "in" / "noise.png", np.random.default_rng(0).integers(0, 255, (128, 128)).astype(np.uint8))
    return tmp_path / "in"


def test_a_run_has_a_report_that_links_those_of_its_scans(tumorlens, scans, tmp_path):
    out = tmp_path / "out"
    done = tumorlens("run", scans, "-o", out, "--report")
    assert done.exit_code == 1 and f"report: {out / 'report.html'}" in done.stdout
    html = (out / "report.html").read_text()
    page, rows = Page(html), table(out)
    links = [a["href"] for a in page.all("a")]
    assert sorted(links) == [f"{name}/report.html" for name in ("healthy", "noise", "sick")]
    assert all((out / link).is_file() for link in links)
    assert not page.all("script") and not re.search(r"https?:", html)
    text = words(page)
    assert "Run of 4 scans" in text and "broken.pngfailed" in text
    for row in rows:
        assert row["scan"] in text and (row["error"] or row["review"]) in text
    assert is_batch_report(out / "report.html")


def test_the_table_can_be_sorted_without_a_script(tmp_path):
    def row(scan, **known):
        return {**dict.fromkeys(COLUMNS, ""), "scan": scan, **known}

    rows = [
        row("b.png", label="glioma", confidence="0.9", tumor_area_px="10"),
        row("c.png", error="c.png: broken"),
        row("a.nii", label="no_tumor", confidence="0.8", review="low", tumor_volume_mm3="0"),
        row("d.nii", label="glioma", confidence="0.99", tumor_volume_mm3="30000"),
    ]
    write_batch_report(tmp_path, rows, {r["scan"]: r["scan"][0] for r in rows})
    html = (tmp_path / "report.html").read_text()
    placed = re.findall(r'style="(--look[^"]*)"><th[^>]*>([^<]*)', html)
    for key, order in (
        ("look", ["c.png", "a.nii", "b.png", "d.nii"]),
        ("scan", ["a.nii", "b.png", "c.png", "d.nii"]),
        ("confidence", ["a.nii", "b.png", "d.nii", "c.png"]),
        ("size", ["d.nii", "b.png", "a.nii", "c.png"]),
    ):
        ranks = {name: int(re.search(rf"--{key}:(\d+);", style)[1]) for style, name in placed}
        assert sorted(ranks, key=ranks.get)[:2] == order[:2], key
        assert f"#by-{key}:checked" in html and f'id="by-{key}"' in html
    assert [name for _, name in placed] == ["c.png", "a.nii", "b.png", "d.nii"]


def test_every_colored_row_counts_as_one_to_look_at_and_nothing_looks_certain(tmp_path):
    def row(scan, **known):
        return {**dict.fromkeys(COLUMNS, ""), "scan": scan, **known}

    rows = [
        row("a.png", error="a.png: broken"),
        row("b.png", label="refused", review="refused: looks odd"),
        row("c.png", label="glioma", confidence="0.6123", review="low"),
        row("d.png", label="glioma", confidence="0.9961"),
        row("e.png", label="glioma", confidence="0.9949"),
    ]
    write_batch_report(tmp_path, rows, {r["scan"]: r["scan"][0] for r in rows})
    page = Page((tmp_path / "report.html").read_text())
    colored = [a for a in page.all("tr") if a.get("class") in ("failed", "refused", "doubt")]
    assert len(colored) == 3 and "3 to look at" in words(page)
    assert ">0.99" in page.text and "1.00" not in page.text
    places = [re.search(r"--confidence:(\d)", a["style"])[1] for a in page.all("tr") if "style" in a]
    assert places == ["3", "4", "0", "2", "1"]  # by the figures, not by their texts


def test_asking_for_reports_later_runs_no_network(tumorlens, scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert tumorlens("run", scans / "sick.png", "-o", out).exit_code == 0
    before = (out / "sick" / "result.json").read_bytes()
    assert not (out / "sick" / "report.html").exists()

    def decide(*_):
        raise AssertionError("the networks ran again")

    monkeypatch.setattr(run, "_decide_cases", lambda pipeline, cases, options: decide() if cases else [])
    assert tumorlens("run", scans / "sick.png", "-o", out, "--continue", "--report").exit_code == 0
    assert (out / "sick" / "result.json").read_bytes() == before
    made = (out / "sick" / "report.html").stat().st_mtime_ns
    assert tumorlens("run", scans / "sick.png", "-o", out, "--continue", "--report").exit_code == 0
    assert (out / "sick" / "report.html").stat().st_mtime_ns == made  # it is as young as the result
    assert tumorlens("run", scans / "sick.png", "-o", out, "--continue", "--maps").exit_code == 1  # --maps needs them


def test_a_report_that_fails_costs_no_result(tumorlens, scans, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for error, reason in ((InputError("no ink"), "no report: no ink"), (KeyError("x"), "no report: KeyError")):

        def fail(*_, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(report_html, "write_report", fail)
            done = tumorlens("run", scans / "sick.png", "-o", out, "--report", "--overwrite")
        assert done.exit_code == 0
        (row,) = table(out)
        assert row["label"] == "meningioma" and row["review"] == reason
        assert json.loads((out / "sick" / "result.json").read_text())["review"] == [reason]
        assert (out / "report.html").is_file()
    assert tumorlens("run", scans / "sick.png", "-o", out, "--report", "--continue").exit_code == 0
    assert table(out)[0]["review"] == "" and (out / "sick" / "report.html").is_file()


def test_a_report_of_yours_is_left_alone(tumorlens, scans, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("mine")
    done = tumorlens("run", scans / "sick.png", "-o", out, "--report")
    assert done.exit_code == 2 and "leaves it alone" in done.stderr
    assert (out / "report.html").read_text() == "mine"
    assert tumorlens("run", scans / "sick.png", "-o", out).exit_code == 0


def test_overwrite_removes_reports_of_the_run_before(tumorlens, scans, tmp_path):
    out = tmp_path / "out"
    assert tumorlens("run", scans / "sick.png", "-o", out, "--report").exit_code == 0
    assert tumorlens("run", scans / "sick.png", "-o", out, "--overwrite").exit_code == 0
    assert not list(out.rglob("report.*"))


def test_a_missing_picture_is_an_error_of_the_report_only(tmp_path):
    content = result_in(tmp_path)
    (tmp_path / "overlay.png").unlink()
    with pytest.raises(InputError, match=r"overlay\.png: cannot be read"):
        write_report(content, tmp_path)
    assert not (tmp_path / "report.html").exists()
