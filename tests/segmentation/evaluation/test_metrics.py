"""Scores of masks against distance transforms and labels by hand, known shapes, and the policy for empty masks."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.data.training.runs import fake_set
from tumorlens.data.errors import InputError
from tumorlens.pipeline.evaluation.segmentation import SegmentationEvaluation, mask_tables
from tumorlens.pipeline.evaluation.tables import cell
from tumorlens.pipeline.evaluation.tables import leaves as leaf_figures
from tumorlens.segmentation.evaluation.boxes import box_report
from tumorlens.segmentation.evaluation.metrics import (
    SliceScores,
    segmentation_metrics,
    segmentation_report,
    slice_scores,
    volume_dice,
)
from tumorlens.segmentation.evaluation.plots import plot_dice_by_size


def square(top, left, side, shape=(64, 80)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def disk(row, column, radius, shape=(128, 128)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - row) ** 2 + (x - column) ** 2 <= radius**2).astype(np.uint8)


def blobs(seed, shape=(90, 70), level=0.6):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    return (noise > level * noise.max()).astype(np.uint8)


def by_hand(guess, truth):
    """The four scores on the whole picture: borders by erosion, distances by scipy's distance transform."""
    guess, truth = guess > 0, truth > 0
    both, either = (guess & truth).sum(), (guess | truth).sum()
    edges = [m & ~ndimage.binary_erosion(m) for m in (guess, truth)]
    far = [ndimage.distance_transform_edt(~e) for e in edges]
    there, back = far[1][edges[0]], far[0][edges[1]]
    return {
        "dice": 2 * both / (guess.sum() + truth.sum()),
        "iou": both / either,
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "nsd": ((there <= 2).sum() + (back <= 2).sum()) / (len(there) + len(back)),
    }


def agreement(score):
    return {name: getattr(score, name) for name in ("dice", "iou", "hd95", "nsd")}


PAIRS = {
    "shifted squares": (square(10, 12, 20), square(13, 12, 20)),
    "disks": (disk(60, 60, 20), disk(64, 57, 23)),
    "apart": (square(0, 0, 5), square(59, 75, 5)),
    "single pixels": (square(5, 5, 1), square(8, 9, 1)),
    "a pixel in a square": (square(20, 20, 1), square(10, 10, 30)),
    "touching the border": (square(0, 0, 20), square(0, 3, 20)),
    "the whole picture": (np.ones((30, 40)), square(5, 5, 20, (30, 40))),
    "thin": (square(30, 0, 80)[:, ::-1], square(31, 0, 40)),
    "one row": (np.ones((1, 9)), np.array([[0, 0, 1, 1, 1, 0, 0, 0, 0]])),
    **{f"blobs {k}": (blobs(k), blobs(k + 100, level=0.5)) for k in range(8)},
    **{f"near blobs {k}": (blobs(k), np.roll(blobs(k), (1, 2), (0, 1))) for k in range(4)},
}


@pytest.mark.parametrize("name", PAIRS)
def test_scores_equal_those_by_hand_on_the_whole_picture(name):
    """Also the proof that the crop to the masks' box changes nothing."""
    guess, truth = PAIRS[name]
    assert agreement(slice_scores(guess, truth)) == pytest.approx(by_hand(guess, truth), abs=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_the_frame_around_the_masks_changes_nothing(name):
    guess, truth = (np.pad(mask, ((40, 7), (3, 60))) for mask in PAIRS[name])
    assert agreement(slice_scores(guess, truth)) == pytest.approx(by_hand(*PAIRS[name]), abs=1e-5)


def test_known_values_of_shifted_squares():
    """A 20-square moved by 3 rows: overlap 340 of 400, every border pixel within 3, the moved sides 3 apart."""
    score = slice_scores(square(10, 10, 20), square(13, 10, 20))
    assert (score.dice, score.iou) == pytest.approx((340 / 400, 340 / 460))
    assert score.hd95 == 3
    assert (score.truth_px, score.guess_px, score.overlap_px, score.picture_px) == (400, 400, 340, 64 * 80)
    assert slice_scores(square(10, 10, 20), square(12, 10, 20)).nsd == 1
    assert slice_scores(square(10, 10, 20), square(13, 10, 20)).nsd < 1


def test_known_values_of_disks_and_pixels():
    inner, outer = (slice_scores(disk(64, 64, r), disk(64, 64, 40)) for r in (10, 39))
    assert inner.hd95 == pytest.approx(30, abs=0.5)
    assert (inner.nsd, outer.nsd) == (0, 1)
    pixels = slice_scores(square(5, 5, 1), square(8, 9, 1))
    assert (pixels.dice, pixels.iou, pixels.hd95, pixels.nsd) == (0, 0, 5, 0)


def test_equal_masks_are_perfect():
    score = slice_scores(blobs(1), 255 * blobs(1))
    assert (score.dice, score.iou, score.hd95, score.nsd, score.false_lesions) == (1, 1, 0, 1, 0)
    assert score.found == score.lesions > 0


def test_empty_masks():
    none, some = np.zeros((30, 40)), square(5, 5, 6, (30, 40))
    assert slice_scores(none, none) == SliceScores(1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1200)
    assert slice_scores(some, none) == SliceScores(0, 0, 50, 0, 0, 36, 0, 0, 1, 0, 1200)
    assert slice_scores(none, some) == SliceScores(0, 0, 50, 0, 36, 0, 1, 0, 0, 0, 1200)


@pytest.mark.parametrize("shapes", [((4, 4), (4, 5)), ((2, 4, 4), (2, 4, 4)), ((0, 4), (0, 4))])
def test_masks_that_do_not_fit(shapes):
    with pytest.raises(InputError, match="the predicted mask has shape"):
        slice_scores(np.zeros(shapes[0]), np.zeros(shapes[1]))


def test_lesions_found_and_false():
    truth = square(0, 0, 5) + square(30, 30, 5) + square(35, 35, 5)  # the last two touch at a corner: one lesion
    guess = square(4, 4, 3) + square(34, 34, 1) + square(50, 0, 4) + square(0, 70, 2)
    score = slice_scores(guess, truth)
    assert (score.lesions, score.found, score.false_lesions) == (2, 2, 2)
    missed = slice_scores(square(5, 5, 3), truth)  # touches the first lesion's corner, overlaps nothing
    assert (missed.lesions, missed.found, missed.false_lesions) == (2, 0, 1)


@pytest.mark.parametrize("seed", range(10))
def test_lesions_equal_scipys(seed):
    guess, truth = blobs(seed, level=0.3), blobs(seed + 50, level=0.3)
    eight = np.ones((3, 3))
    (truth_n, n_truth), (guess_n, n_guess) = (ndimage.label(m, eight) for m in (truth, guess))
    found = sum(bool(guess[truth_n == i].any()) for i in range(1, n_truth + 1))
    false = sum(not truth[guess_n == i].any() for i in range(1, n_guess + 1))
    score = slice_scores(guess, truth)
    assert (score.lesions, score.found, score.false_lesions) == (n_truth, found, false)


def test_no_warning_and_no_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for guess, truth in [*PAIRS.values(), (np.zeros((9, 9)), square(1, 1, 2, (9, 9)))]:
            score = slice_scores(guess, truth)
            assert all(np.isfinite(getattr(score, f.name)) for f in fields(score))


def test_all_scores_of_a_slice_take_no_longer_than_one_distance_transform_of_scipy():
    guess, truth = disk(250, 240, 60, (512, 512)), disk(260, 250, 55, (512, 512))

    def seconds(call, *masks):
        start = time.thread_time()
        call(*masks)
        return time.thread_time() - start

    ours = min(seconds(slice_scores, guess, truth) for _ in range(10))
    assert ours < min(seconds(ndimage.distance_transform_edt, truth) for _ in range(10))


def score(dice, truth=100, guess=100, hd95=1.0, lesions=None, found=None, false=0, picture=1000):
    lesions = int(truth > 0) if lesions is None else lesions
    found = int(dice > 0 and truth > 0) if found is None else found
    overlap = round(dice * (truth + guess) / 2)
    return SliceScores(dice, dice / 2, hd95, dice, truth, guess, lesions, found, false, overlap, picture)


CASES = [  # three patients: three slices, two slices, one slice
    (score(0.9), "glioma", "a"),
    (score(0.6, lesions=3, found=1), "glioma", "a"),
    (score(1.0, truth=0, guess=0), "no_tumor", "a"),
    (score(0.0, guess=0, hd95=50), "meningioma", "b"),
    (score(0.0, truth=0, guess=9, hd95=50, false=2), "no_tumor", "b"),
    (score(0.8), "meningioma", "c"),
]


def report_of(cases, **more):
    scores, labels, patients = map(list, zip(*cases, strict=True)) if cases else ([], [], [])
    return segmentation_report(scores, labels, patients, **more)


def test_report_per_slice():
    report = report_of(CASES)
    assert (report["n"], report["n_patients"], report["n_tumor"], report["n_lesions"]) == (6, 3, 4, 6)
    values = {name: e["value"] for name, e in report["slice"].items() if name != "dice_by_label"}
    assert values == pytest.approx(
        {
            "dice_all": 3.3 / 6,
            "dice_tumor": 2.3 / 4,
            "iou_all": 3.3 / 12,
            "iou_tumor": 2.3 / 8,
            "hd95_all": 104 / 6,
            "hd95_tumor": 53 / 4,
            "nsd_all": 3.3 / 6,
            "nsd_tumor": 2.3 / 4,
            "dice_tumor_median": 0.7,
            "lesion_recall": 3 / 6,
            "false_lesions": 2 / 6,
            "missed": 1 / 4,
            "false_masks": 1 / 2,
        }
    )
    by_label = {name: e["value"] for name, e in report["slice"]["dice_by_label"].items()}
    assert by_label == pytest.approx({"glioma": 0.75, "meningioma": 0.4})


def test_report_per_patient():
    values = {name: e["value"] for name, e in report_of(CASES)["patient"].items()}
    assert values["dice_all"] == pytest.approx(np.mean([2.5 / 3, 0, 0.8]))
    assert values["dice_tumor"] == pytest.approx(np.mean([0.75, 0, 0.8]))
    assert values["hd95_tumor"] == pytest.approx(np.mean([1, 50, 1]))
    healthy = [*CASES, (score(1.0, truth=0, guess=0), "no_tumor", "d")]
    assert report_of(healthy)["patient"]["dice_tumor"]["value"] == pytest.approx(np.mean([0.75, 0, 0.8]))


def test_lesions_per_patient():
    """A patient's recall is of all lesions of the slices; one without lesions counts for false lesions alone."""
    healthy = (score(1.0, truth=0, guess=9, false=1), "no_tumor", "d")
    report = report_of([*CASES, healthy])
    patient, slices = report["patient"], report["slice"]
    assert patient["lesion_recall"]["value"] == pytest.approx(np.mean([2 / 4, 0 / 1, 1 / 1]))
    assert patient["false_lesions"]["value"] == pytest.approx(np.mean([0 / 3, 2 / 2, 0 / 1, 1 / 1]))
    assert slices["lesion_recall"]["value"] == pytest.approx(3 / 6)
    assert slices["false_lesions"]["value"] == pytest.approx(3 / 7)
    for name in ("lesion_recall", "false_lesions"):
        assert patient[name]["low"] < patient[name]["value"] < patient[name]["high"]
    none = report_of([healthy])["patient"]
    assert (none["lesion_recall"], none["false_lesions"]["value"]) == (None, 1)
    assert report_of([])["patient"]["false_lesions"] is None


def test_tables_show_lesions_per_slice_and_per_patient():
    figures = report_of(CASES)
    rows = {row[0]: row[1:] for row in mask_tables(figures)[0].rows}
    for title, key in (("lesions found", "lesion_recall"), ("false lesions per slice", "false_lesions")):
        assert rows[title] == (cell(figures["slice"][key]), cell(figures["patient"][key]))
    shown = set(SegmentationEvaluation.headline) - {"volume.mean", "volume.median"}
    assert shown <= dict(leaf_figures(figures | {"boxes": box_report([], [])})).keys()


def test_intervals_are_over_patients():
    random = np.random.default_rng(0)
    many = [(score(float(d)), "glioma", f"p{i}") for i, d in enumerate(random.uniform(0, 1, 40)) for _ in range(10)]
    report = report_of(many)
    for part, name in (("slice", "dice_tumor"), ("patient", "dice_tumor"), ("slice", "dice_tumor_median")):
        estimate = report[part][name]
        assert estimate["low"] < estimate["value"] < estimate["high"]
    slices, patients = report["slice"]["dice_tumor"], report["patient"]["dice_tumor"]
    assert slices == pytest.approx(patients)  # as many slices each
    spread = np.array([c[0].dice for c in many[::10]]).std() / np.sqrt(40)
    assert slices["high"] - slices["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert report_of(many) == report
    assert report_of(many, seed=1)["slice"]["dice_tumor"] != slices


def leaves(node):
    return [leaf for child in node.values() for leaf in leaves(child)] if isinstance(node, dict) else [node]


def test_undefined_figures_are_none():
    healthy = report_of([(score(1.0, truth=0, guess=0), "no_tumor", "a")])
    assert [healthy["slice"][n] for n in ("dice_tumor", "dice_tumor_median", "lesion_recall", "missed")] == [None] * 4
    assert healthy["slice"]["dice_by_label"] == {}
    assert healthy["patient"]["dice_tumor"] is None
    sick = report_of([(score(0.5), "", "a")])
    assert sick["slice"]["false_masks"] is None
    assert sick["slice"]["dice_by_label"]["tumor"]["value"] == 0.5
    nothing = report_of([])
    assert nothing["n"] == nothing["n_patients"] == 0
    assert nothing["slice"]["dice_all"] is nothing["patient"]["hd95_all"] is None
    for report in (healthy, sick, nothing):
        json.dumps(report, allow_nan=False)


def test_unknown_patients_are_not_one():
    cases = [(score(d), "glioma", "") for d in (0.2, 0.9, 0.4, 0.7)]
    report = report_of(cases)
    assert report["n_patients"] == 4
    assert report["slice"]["dice_all"]["low"] < report["slice"]["dice_all"]["high"]


def test_lists_of_other_lengths_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        segmentation_report([score(1.0)], [], ["a"])


def test_volume_dice_counts_voxels_of_all_slices():
    random = np.random.default_rng(0)
    scores, patients, expected = [], [], {}
    for patient in ("a", "b", "c"):
        truth, guess = (random.random((5, 20, 30)) > t for t in (0.6, 0.5))
        expected[patient] = 2 * (truth & guess).sum() / (truth.sum() + guess.sum())
        scores += [slice_scores(g, t) for g, t in zip(guess, truth, strict=True)]
        patients += [patient] * 5
    scores.append(slice_scores(np.ones((4, 4)), np.zeros((4, 4))))
    patients.append("false alarm")
    scores.append(slice_scores(np.zeros((4, 4)), np.zeros((4, 4))))
    patients.append("healthy")
    expected |= {"false alarm": 0.0, "healthy": 1.0}
    report = volume_dice(scores, patients)
    assert report["by_patient"] == pytest.approx(expected)
    values = list(expected.values())
    assert report["n_patients"] == 5
    assert report["mean"]["value"] == pytest.approx(np.mean(values))
    assert report["median"]["value"] == pytest.approx(np.median(values))
    assert report["sd"] == pytest.approx(np.std(values, ddof=1))
    assert report["mean"]["low"] < report["mean"]["value"] < report["mean"]["high"]


def test_volume_dice_of_one_patient_and_of_none():
    one = volume_dice([slice_scores(square(0, 0, 4), square(0, 0, 4))], ["a"])
    assert (one["mean"]["value"], one["sd"]) == (1, None)
    assert volume_dice([], []) == {"n_patients": 0, "mean": None, "median": None, "sd": None, "by_patient": {}}


def test_segmentation_metrics_count_false_masks_and_misses():
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:2, :4] = 1
    guess = truth.copy()
    guess[1] = 0
    guess[3, 0, 0] = 1
    metrics = segmentation_metrics(fake_set([1, 1, 0, 0], truth), guess)
    assert (metrics["missed"], metrics["false_masks"]) == (0.5, 0.5)
    named = segmentation_metrics(fake_set([1, 1, 0, 0], truth), guess, ["a"])
    assert named["by_source"] == {"a": {"dice_tumor": metrics["dice_tumor"], "false_masks": 0.5}}
    assert metrics["dice_all"] == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert metrics["dice_tumor"] == 0.5


def test_plots_are_drawn_for_any_set(tmp_path):
    random = np.random.default_rng(0)
    scores = [
        score(float(d), truth=int(t)) for d, t in zip(random.random(80), random.integers(0, 500, 80), strict=True)
    ]
    labels = ["glioma", "meningioma", "pituitary", ""] * 20
    plot_dice_by_size(scores, labels, tmp_path / "size.png", "t", [f"p{i // 3}" for i in range(80)])
    plot_dice_by_size(scores[:3], labels[:3], tmp_path / "few.png", "t")
    plot_dice_by_size([], [], tmp_path / "none.png", "t")
    plot_dice_by_size([score(1.0, truth=0, guess=0)], ["no_tumor"], tmp_path / "healthy.png", "t")
    for name in ("size", "few", "none", "healthy"):
        assert Image.open(tmp_path / f"{name}.png").size > (300, 200)
