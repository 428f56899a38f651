"""Pictures that are no brains get a row, a reason, no mask, and --force; prediction sets and explanations of scans."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.scans.dicom import IDENTIFIERS, save_series
from tests.scans.pictures import save, save_volume
from tests.scans.studies import series
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume


def photographs():
    """Pictures that come inside scikit-image's and scikit-learn's packages; the shipped weights were not taught with
    them."""
    import skimage
    from sklearn.datasets import load_digits, load_sample_images

    folder = Path(skimage.__file__).parent / "data"
    for file in sorted(folder.iterdir()):
        if file.suffix in (".png", ".jpg", ".gif"):
            picture = np.asarray(Image.open(file).convert("RGB"))
            yield f"skimage {file.name}", picture
    for number, picture in enumerate(load_sample_images().images):
        yield f"sklearn {number}", picture
        for k in range(8):
            rng = np.random.default_rng(k)
            top, left = rng.integers(0, 200), rng.integers(0, 400)
            yield f"sklearn {number} crop {k}", picture[top : top + 220, left : left + 220]
    for k, digit in enumerate(load_digits().images[:40]):
        yield f"digit {k}", cv2.resize((digit * 15).astype(np.uint8), (256, 256), interpolation=cv2.INTER_LINEAR)


def other_scans():
    """pydicom's test files that are no MR of a head: CT, ultrasound, X-ray, of one picture each."""
    seen = set()
    for file in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        try:
            dataset = pydicom.dcmread(file)
            if dataset.Modality == "MR":
                continue
            pixels = dataset.pixel_array
        except Exception:  # files that are broken on purpose, or need a decoder that is not here
            continue
        while pixels.ndim > 2 and pixels.shape[-1] not in (3, 4):
            pixels = pixels[0]
        key = (dataset.Modality, pixels.shape, int(pixels.astype(float).sum()))
        if min(pixels.shape[:2]) < 32 or np.ptp(pixels) == 0 or key in seen:
            continue
        seen.add(key)
        yield f"pydicom {file.name}", pixels


def plots():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for k in range(60):
        rng = np.random.default_rng(k)
        figure = Figure(figsize=(3, 3), dpi=80)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot(projection="polar" if k % 6 == 5 else None)
        x = np.arange(30)
        draw = (axes.plot, axes.scatter, axes.bar, axes.step, axes.fill_between, axes.plot)[k % 6]
        draw(x, rng.normal(0, 1, 30).cumsum())
        axes.set_title(f"figure {k}")
        canvas.draw()
        yield f"plot {k}", np.asarray(canvas.buffer_rgba())[..., :3]


def pages():
    from PIL import ImageDraw, ImageFont

    for k in range(60):
        rng = np.random.default_rng(k)
        white = k % 3 != 0
        page = Image.new("L", (400, 300 + 5 * k), 255 if white else 0)
        font = ImageFont.load_default(size=float(8 + k % 30))
        words = ["patient", "no", "tumor", "seen", "MRI", "T1", "report", "2026", "page", "brain"]
        for y in range(5, page.height, 12 + k % 40):
            ImageDraw.Draw(page).text((5, y), " ".join(rng.choice(words, 9)), fill=0 if white else 255, font=font)
        yield f"page {k}", np.asarray(page)


def noise():
    for k in range(60):
        rng = np.random.default_rng(k)
        grain = rng.normal(0, 1, (200 + k, 220)).astype(np.float32)
        if k % 3:
            grain = cv2.GaussianBlur(grain, (0, 0), 0.5 * (k % 12) + 0.5)
        yield f"noise {k}", cv2.normalize(grain, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.fixture(scope="module")
def judged(pipeline):
    """Of each picture whether it is refused."""
    found = {}
    for source in (photographs, other_scans, plots, pages, noise):
        for name, picture in source():
            if np.ptp(picture):
                found[name] = pipeline.run(picture).refused
    return found


def test_pictures_that_are_no_brains_are_refused(judged):
    """At least 99 in a hundred, of 280 that the shipped weights never saw."""
    let_in = [name for name, refused in judged.items() if not refused]
    assert len(judged) > 270
    assert len(let_in) <= 0.01 * len(judged), let_in


@pytest.mark.parametrize("kind", ["skimage", "sklearn", "digit", "pydicom", "plot", "page", "noise"])
def test_every_kind_is_refused(judged, kind):
    of_kind = [refused for name, refused in judged.items() if name.startswith(kind)]
    assert len(of_kind) >= 8
    assert np.mean(of_kind) >= 0.9


def test_phantoms_are_not_refused(pipeline):
    for seed in range(12):
        label = ("no_tumor", "glioma", "meningioma", "pituitary")[seed % 4]
        assert not pipeline.run(phantom_slice(seed, label).image).refused


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    page = np.full((256, 256), 255, np.uint8)
    for y in range(20, 256, 22):
        cv2.putText(page, "no brain here at all", (4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 0, 1)
    save(tmp_path / "scans" / "page.png", page)
    save(tmp_path / "scans" / "brain.png", phantom_slice(7, "meningioma").image)
    save(tmp_path / "scans" / "noise.png", rng.integers(0, 255, (256, 256), dtype=np.uint8))
    return tmp_path


def rows_of(out):
    return {Path(row["scan"]).stem: row for row in csv.DictReader(io.StringIO((out / "results.csv").read_text()))}


def test_a_refused_scan_is_no_error(tumorlens, folder):
    out = folder / "out"
    done = tumorlens("run", folder / "scans", "-o", out)
    assert done.exit_code == 0, done.output
    rows = rows_of(out)
    assert {name: row["label"] for name, row in rows.items()} == {
        "page": "refused",
        "brain": "meningioma",
        "noise": "refused",
    }
    page = rows["page"]
    assert page["error"] == page["confidence"] == page["p_glioma"] == page["prediction_set"] == page["malignancy"] == ""
    assert page["tumor_area_px"] == ""
    assert "does not look like an MRI of the brain" in page["review"] or "no head" in page["review"]
    assert "--force" in page["review"]
    assert "meningioma" in rows["brain"]["prediction_set"].split("|")
    assert "2 refused" in done.output
    assert sorted(p.name for p in (out / "page").iterdir()) == ["overlay.png", "result.json"]
    content = json.loads((out / "page" / "result.json").read_text())
    assert (content["probabilities"], content["confidence"], content["lesions"]) == (None, None, [])


def test_the_demonstration_says_why_it_refuses(tumorlens, folder):
    done = tumorlens("demo", "--scan", folder / "scans" / "page.png", "--out", folder / "demo")
    assert done.exit_code == 0, done.output
    assert "label:   refused (" in done.output
    assert "mask:" not in done.output


def test_force_judges_it_and_says_so(tumorlens, folder):
    done = tumorlens("run", folder / "scans" / "page.png", "-o", folder / "out", "--force")
    assert done.exit_code == 0, done.output
    (row,) = rows_of(folder / "out").values()
    assert row["label"] in ("no_tumor", "glioma", "meningioma", "pituitary")
    assert "judged all the same" in row["review"]
    assert (folder / "out" / "page" / "mask.png").is_file()


def test_continue_judges_again_when_force_is_added(tumorlens, folder):
    assert tumorlens("run", folder / "scans", "-o", folder / "out").exit_code == 0
    again = tumorlens("run", folder / "scans", "-o", folder / "out", "--continue", "--force")
    assert again.exit_code == 0
    assert "refused" not in {row["label"] for row in rows_of(folder / "out").values()}
    back = tumorlens("run", folder / "scans", "-o", folder / "out", "--continue")
    assert "2 refused" in back.output
    assert not (folder / "out" / "page" / "mask.png").exists()


def test_a_volume_of_noise_is_refused_and_writes_no_mask(tumorlens, tmp_path):
    import nibabel as nib

    noise = np.random.default_rng(0).integers(0, 1000, (96, 96, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(noise, np.eye(4)), tmp_path / "noise.nii.gz")
    done = tumorlens("run", tmp_path / "noise.nii.gz", "-o", tmp_path / "out")
    assert done.exit_code == 0
    (row,) = rows_of(tmp_path / "out").values()
    assert row["label"] == "refused"
    assert sorted(p.name for p in (tmp_path / "out" / "noise").iterdir()) == ["overlay.png", "result.json"]


def test_a_refused_dicom_series_leaves_no_dicom_objects_and_no_identifiers(tumorlens, tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (96, 96, 8)).astype(np.int16)
    save_series(tmp_path / "study", noise, np.diag([2.0, 2, 5, 1]))
    sick = series(tmp_path / "sick")[0].parent
    out = tmp_path / "out"
    assert tumorlens("run", sick, "-o", out, "--secondary-capture").exit_code == 0
    assert {"mask.dcm", "overlay.dcm"} <= {p.name for p in out.rglob("*.dcm")}
    done = tumorlens("run", tmp_path / "study", "-o", out, "--secondary-capture", "--overwrite", "--json", "--explain")
    assert done.exit_code == 0, done.output
    (row,) = rows_of(out).values()
    assert row["label"] == "refused"
    assert not list(out.rglob("*.dcm"))
    assert {p.name for p in out.rglob("*") if p.is_file()} == {"results.csv", "overlay.png", "result.json"}
    texts = done.output + "".join(p.read_text() for p in out.rglob("*.[jc]s*"))
    assert not [word for word in IDENTIFIERS if word in texts]


def test_one_channel_of_a_colour_picture(tumorlens, tmp_path):
    """What a model for one sequence was trained on is not the brightness of three."""
    brain = phantom_slice(7, "meningioma").image
    page = np.random.default_rng(0).integers(0, 255, brain.shape, dtype=np.uint8)
    save(tmp_path / "three.png", np.stack([page, brain, page], axis=-1))
    for channel, label in (("1", "meningioma"), ("2", "refused")):
        out = tmp_path / channel
        assert tumorlens("run", tmp_path / "three.png", "-o", out, "--frame-channel", channel).exit_code == 0
        assert rows_of(out)["three"]["label"] == label
    save(tmp_path / "grey.png", brain)
    wrong = tumorlens("run", tmp_path / "grey.png", "-o", tmp_path / "out", "--frame-channel", "1")
    assert wrong.exit_code == 1
    assert "channel 1 was asked for, but the scan is gray" in rows_of(tmp_path / "out")["grey"]["error"]


def test_a_network_that_cannot_be_explained_still_gives_its_result(pipeline, monkeypatch):
    from tumorlens.classification.predict import Classifier

    def no_maps(*_):
        raise InputError("this network has no feature maps")

    monkeypatch.setattr(Classifier, "explain", no_maps)
    result = pipeline.run(phantom_slice(7, "meningioma").image, explain=True)
    assert result.label == "meningioma"
    assert result.heat is None
    assert "no explanation: this network has no feature maps" in result.review


def test_the_first_and_last_slices_of_a_head_do_not_refuse_it(pipeline):
    assert not pipeline.run(phantom_volume(7, "meningioma").scan).refused


@pytest.mark.parametrize("volume", [False, True])
def test_an_explanation_is_drawn_where_it_is_asked_for(tumorlens, tmp_path, volume):
    if volume:
        source = tmp_path / "a.nii.gz"
        save_volume(source, phantom_volume(7, "meningioma"))
    else:
        source = tmp_path / "a.png"
        save(source, phantom_slice(7, "meningioma").image)
    assert tumorlens("run", source, "-o", tmp_path / "out", "--explain").exit_code == 0
    picture = np.asarray(Image.open(tmp_path / "out" / "a" / "explanation.png"))
    overlay = np.asarray(Image.open(tmp_path / "out" / "a" / "overlay.png"))
    assert picture.shape == overlay.shape
    assert (picture.astype(int).max(axis=2) - picture.min(axis=2) > 40).mean() > 0.005, "no heat to be seen"
    assert "explanation.png" in json.loads((tmp_path / "out" / "a" / "result.json").read_text())["files"]
    assert tumorlens("run", source, "-o", tmp_path / "plain").exit_code == 0
    assert not (tmp_path / "plain" / "a" / "explanation.png").exists()


def test_heat_lies_on_the_scans_own_grid(pipeline):
    image = np.pad(phantom_slice(7, "meningioma").image, ((0, 0), (300, 0)))
    heat = pipeline.run(image, explain=True).heat
    assert heat.shape == image.shape
    assert heat[:, :250].max() == 0 < heat.max() <= 1


def test_without_a_request_there_is_no_heat(pipeline):
    from tumorlens.pipeline.outputs.overlay import draw_heat

    result = pipeline.run(phantom_slice(3, "no_tumor").image)
    assert result.heat is None
    with pytest.raises(InputError, match="explain=True"):
        draw_heat(result)


def test_the_label_is_in_its_set_at_any_threshold(pipeline):
    from dataclasses import replace

    image = phantom_slice(7, "meningioma").image
    for threshold in (0.0, 0.5, 1.0):
        result = replace(pipeline, threshold=threshold).run(image)
        assert result.label in result.prediction_set


@pytest.mark.real
def test_real_brains_are_let_in(pipeline, real):
    """Of unseen patients at most one slice in a hundred is refused; volumes: `test_real` asks for their labels."""
    from tumorlens.data.datasets.folds import split_by_fold
    from tumorlens.data.datasets.load import load_samples
    from tumorlens.data.datasets.sample import read_sample
    from tumorlens.data.preprocessing.preprocess import Preprocess

    samples = load_samples(real / "brisc")
    unseen = [samples[i] for i in split_by_fold(samples, 0).test][::9]
    preprocess = Preprocess(pipeline.classifier.input_size)
    refused = pipeline.classifier.judge([preprocess(read_sample(s).image) for s in unseen]) < 0
    assert refused.mean() <= 0.01
