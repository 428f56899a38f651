"""Pictures that are not MRI of the brain get a row and a reason and no mask; --force judges them all the same."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.scans.dicom import IDENTIFIERS, save_series
from tests.scans.pictures import save
from tests.scans.studies import series
from tumorlens.data.labels import CLASSES, SHIPPED_CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.case import open_source, prepare


def photographs():
    """Pictures in the packages scikit-image and scikit-learn, on which the shipped weights were not trained."""
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
    """pydicom's test files of other modalities (CT, ultrasound, X-ray), one picture from each."""
    keys = set()
    for file in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        try:
            dataset = pydicom.dcmread(file)
            if dataset.Modality == "MR":
                continue
            pixels = dataset.pixel_array
        except Exception:  # files that are broken on purpose or need a decoder that is not installed
            continue
        while pixels.ndim > 2 and pixels.shape[-1] not in (3, 4):
            pixels = pixels[0]
        key = (dataset.Modality, pixels.shape, int(pixels.astype(float).sum()))
        if min(pixels.shape[:2]) < 32 or np.ptp(pixels) == 0 or key in keys:
            continue
        keys.add(key)
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


SOURCES = (photographs, other_scans, plots, pages, noise)


def refusals(pipeline, pictures):
    """Name -> whether the picture is refused."""
    return {name: pipeline.run(picture).refused for name, picture in pictures if np.ptp(picture)}


def test_pictures_that_are_not_brains_are_refused(pipeline):
    """Three of each source; `test_at_least_99_in_100_pictures_are_refused` takes all of them."""
    few = {name: one for source in SOURCES for name, one in itertools.islice(source(), 0, 12, 4)}
    refused = refusals(pipeline, few.items())
    assert len(refused) >= 14
    assert all(refused.values()), refused


@pytest.fixture(scope="module")
def all_refusals(pipeline):
    return refusals(pipeline, (picture for source in SOURCES for picture in source()))


@pytest.mark.slow
def test_at_least_99_in_100_pictures_are_refused(all_refusals):
    """Of 280 pictures that the shipped weights never saw."""
    judged = [name for name, refused in all_refusals.items() if not refused]
    assert len(all_refusals) > 270
    assert len(judged) <= 0.01 * len(all_refusals), judged


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["skimage", "sklearn", "digit", "pydicom", "plot", "page", "noise"])
def test_every_kind_is_refused(all_refusals, kind):
    of_kind = [refused for name, refused in all_refusals.items() if name.startswith(kind)]
    assert len(of_kind) >= 8
    assert np.mean(of_kind) >= 0.9


def test_phantoms_are_not_refused(pipeline):
    phantoms = [phantom_slice(seed, CLASSES[seed % 4]).image for seed in range(12)]
    cases = [prepare(open_source(image), pipeline.classifier.input_size) for image in phantoms]
    assert [pipeline.screen(*answer).doubt for answer in zip(cases, pipeline.classify(cases), strict=True)] == [
        None
    ] * 12


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


def test_a_refused_scan_is_not_an_error(tumorlens, folder):
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


def test_the_demonstration_shows_why_it_refuses(tumorlens, folder):
    done = tumorlens("demo", "--scan", folder / "scans" / "page.png", "--out", folder / "demo")
    assert done.exit_code == 0, done.output
    assert "label:   refused (" in done.output
    assert "mask:" not in done.output


def test_force_judges_it_and_notes_the_doubt(tumorlens, folder):
    done = tumorlens("run", folder / "scans" / "page.png", "-o", folder / "out", "--force")
    assert done.exit_code == 0, done.output
    (row,) = rows_of(folder / "out").values()
    assert row["label"] in SHIPPED_CLASSES.known
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


def test_one_channel_of_a_color_picture(tumorlens, tmp_path):
    """A model for one sequence was not trained on the brightness of three."""
    brain = phantom_slice(7, "meningioma").image
    page = np.random.default_rng(0).integers(0, 255, brain.shape, dtype=np.uint8)
    save(tmp_path / "three.png", np.stack([page, brain, page], axis=-1))
    for channel, label in (("1", "meningioma"), ("2", "refused")):
        out = tmp_path / channel
        assert tumorlens("run", tmp_path / "three.png", "-o", out, "--frame-channel", channel).exit_code == 0
        assert rows_of(out)["three"]["label"] == label
    save(tmp_path / "gray.png", brain)
    wrong = tumorlens("run", tmp_path / "gray.png", "-o", tmp_path / "out", "--frame-channel", "1")
    assert wrong.exit_code == 1
    assert "channel 1 was asked for, but the scan is gray" in rows_of(tmp_path / "out")["gray"]["error"]


def test_the_first_and_last_slices_of_a_head_do_not_refuse_it(pipeline):
    volume = phantom_volume(7, "meningioma", shape=(96, 112, 16), spacing_mm=(2, 2, 9))  # from neck to vertex
    assert not pipeline.run(volume.scan).refused


@pytest.mark.real
def test_real_brains_are_judged(pipeline, real):
    """At most one slice in a hundred of unseen patients is refused; `test_real` checks the labels of volumes."""
    from tumorlens.data.datasets.folds import split_by_fold
    from tumorlens.data.datasets.load import load_samples
    from tumorlens.data.datasets.sample import read_sample
    from tumorlens.data.preprocessing.preprocess import Preprocess

    samples = load_samples(real / "brisc")
    unseen = [samples[i] for i in split_by_fold(samples, 0).test][::9]
    preprocess = Preprocess(pipeline.classifier.input_size)
    refused = pipeline.classifier.judge([preprocess(read_sample(s).image) for s in unseen]) < 0
    assert refused.mean() <= 0.01
