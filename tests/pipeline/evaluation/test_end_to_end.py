"""End to end: what counts as a hit, a miss, a refusal and a false mask, and that intervals draw patients."""

from __future__ import annotations

import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.pipeline.evaluation.test_evaluate import measure
from tests.scans.pictures import save_volume
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.evaluation.end_to_end import PipelineEvaluation, ScanCase, dice
from tumorlens.pipeline.evaluation.protocols import NONE
from tumorlens.pipeline.pipeline import Pipeline


def test_the_pipeline_end_to_end(phantom_set, weights, tmp_path):
    measured = measure(tmp_path, "pipeline", phantom_set, protocol="p2", **weights)
    figures = measured.report["figures"]["slices"]
    rows = measured.rows
    assert len(rows) == 8
    assert figures["accuracy"]["value"] == pytest.approx(np.mean([r["label"] == r["predicted"] for r in rows]))
    assert figures["dice_all"]["value"] == pytest.approx(np.mean([float(r["dice"]) for r in rows]), abs=1e-6)
    missed = [r for r in rows if r["label"] != "no_tumor" and r["predicted"] == "no_tumor"]
    assert all(float(r["dice"]) == 0 and int(r["guess_px"]) == 0 for r in missed)
    assert figures["masks"]["n"] == 8
    assert figures["masks"]["slice"]["hd95_all"] is not None
    assert {"confusion.png", "dice_by_size.png", "worst.png"} <= set(measured.report["files"])


def test_a_missed_or_refused_tumor_has_dice_0(phantom_set, weights, tmp_path, monkeypatch):
    real = Pipeline.conclude

    def refuse(self, case, decision, **rest):
        result = real(self, case, decision, **rest)
        return replace(result, label="refused", mask=np.zeros_like(result.mask))

    monkeypatch.setattr(Pipeline, "conclude", refuse)
    measured = measure(tmp_path, "pipeline", phantom_set, protocol="p2", **weights)
    figures = measured.report["figures"]["slices"]
    assert figures["refused"]["value"] == 1
    assert figures["accuracy"]["value"] == figures["sensitivity"]["value"] == figures["specificity"]["value"] == 0
    assert figures["dice_tumor"]["value"] == 0
    assert figures["masks"]["slice"]["missed"]["value"] == 1
    assert {row["predicted"] for row in measured.rows} == {"refused"}


def case(patient, label, guess, score, free=0, marked=0, volume=False):
    return ScanCase("x", patient, volume, label, guess, score, free, marked)


def figures_of(cases):
    return PipelineEvaluation(NONE, 0).figures_of(cases)


def cases_of(pipeline, folder):
    evaluation = PipelineEvaluation(NONE, 0)
    evaluation.measure({"pipeline": pipeline}, load_samples(folder), None)
    return evaluation.cases


def test_dice_of_empty_masks():
    empty, full = np.zeros((3, 3)), np.ones((3, 3))
    assert (dice(empty, empty), dice(empty, full), dice(full, empty), dice(full, full)) == (1, 0, 0, 1)
    assert dice(np.eye(3), full) == pytest.approx(2 * 3 / 12)


def test_figures_count_misses_and_false_masks():
    cases = [
        case("a", "glioma", "glioma", 0.8),
        case("a", "glioma", "no_tumor", 0.0),
        case("b", "meningioma", "glioma", 0.6),
        case("c", "no_tumor", "no_tumor", 1.0, 1, 0),
        case("d", "no_tumor", "pituitary", 0.0, 1, 1),
        case("e", "glioma", "glioma", 0.5, 10, 2, volume=True),
    ]
    figures = figures_of(cases)
    slices = figures["slices"]
    assert (slices["n"], slices["n_patients"], slices["n_tumor_free_slices"]) == (5, 4, 2)
    assert slices["accuracy"]["value"] == pytest.approx(2 / 5)
    assert slices["sensitivity"]["value"] == pytest.approx(2 / 3)
    assert slices["specificity"]["value"] == slices["false_masks"]["value"] == 0.5
    assert slices["dice_tumor"]["value"] == pytest.approx((0.8 + 0 + 0.6) / 3)
    assert slices["dice_all"]["value"] == pytest.approx((0.8 + 0 + 0.6 + 1 + 0) / 5)
    assert {k: v["value"] for k, v in slices["recall"].items()} == {"no_tumor": 0.5, "glioma": 0.5, "meningioma": 0.0}
    assert slices["dice_tumor_median"]["value"] == pytest.approx(0.6)
    assert slices["dice_by_label"]["glioma"]["value"] == pytest.approx(0.4)
    assert figures["volumes"]["false_masks"]["value"] == pytest.approx(0.2)
    assert figures["volumes"]["specificity"] is None


def test_a_tumor_without_a_type_is_found_and_a_refusal_ranks_last():
    cases = [
        replace(case("a", "glioma", "tumor", 0.5), probabilities={"no_tumor": 0.2}),
        replace(case("b", "glioma", "glioma", 0.5), probabilities={"no_tumor": 0.1}),
        replace(case("c", "tumor", "meningioma", None), probabilities={"no_tumor": 0.3}),
        case("d", "no_tumor", "refused", 1.0, 1),
        replace(case("e", "no_tumor", "no_tumor", 1.0, 1), probabilities={"no_tumor": 0.9}),
    ]
    slices = figures_of(cases)["slices"]
    assert slices["sensitivity"]["value"] == 1
    assert slices["specificity"]["value"] == 0.5
    assert slices["type_accuracy"]["value"] == 0.5 and slices["n_typed"] == 2
    assert slices["accuracy"]["value"] == 0.5  # of a, b, d and e
    assert slices["unnamed"]["value"] == slices["refused"]["value"] == 0.2
    assert slices["auc"]["value"] == 0.5  # the refused scan ranks above every tumor
    assert slices["ece"]["value"] == pytest.approx((0.1 + 0.1 + 0.2 + 0.3) / 4)
    only = figures_of([replace(c, label="tumor") for c in cases[:3]] + cases[4:])["slices"]
    assert only["accuracy"] is None and only["auc"]["value"] == 1


def test_pictures_and_volumes_are_grouped_by_source_and_sequence():
    evaluation = PipelineEvaluation(NONE, 0)
    evaluation.cases = [
        replace(case("a", "glioma", "glioma", 0.8), sequence="flair"),
        replace(case("b", "glioma", "glioma", 0.6, volume=True), source=1, sequence="t1"),
        replace(case("c", "no_tumor", "no_tumor", 0.0, 1, 1), source=1),
    ]
    groups = {(row["group"], row["kind"]): row for row in evaluation.groups(["own", "web"])}
    assert list(groups) == [
        ("0 own", "slices"),
        ("1 web", "slices"),
        ("1 web", "volumes"),
        ("t1", "volumes"),
        ("flair", "slices"),
        ("0 own, flair", "slices"),
        ("1 web, t1", "volumes"),
    ]
    assert groups["1 web", "slices"]["false_masks"]["value"] == 1
    assert groups["1 web", "volumes"]["dice_tumor"]["value"] == pytest.approx(0.6)


def test_a_tumor_that_nobody_outlined_counts_for_the_label_only():
    cases = [case("a", "glioma", "glioma", None), case("b", "glioma", "glioma", 0.5)]
    cases.append(case("c", "no_tumor", "no_tumor", 1, 1))
    slices = figures_of(cases)["slices"]
    assert (slices["n"], slices["n_outlined"]) == (3, 2)
    assert slices["accuracy"]["value"] == 1
    assert slices["dice_tumor"]["value"] == 0.5
    assert figures_of(cases[:1])["slices"]["dice_tumor"] is None


def test_the_interval_is_over_patients_not_slices():
    """A hundred slices of four patients are four draws."""
    right = [case(p, "glioma", "glioma", 1.0) for p in "ab" for _ in range(50)]
    wrong = [case(p, "glioma", "meningioma", 0.0) for p in "cd" for _ in range(50)]
    few = figures_of(right + wrong)["slices"]["accuracy"]
    apart = [case(str(i), c.label, c.guess, c.dice) for i, c in enumerate(right + wrong)]
    many = figures_of(apart)["slices"]["accuracy"]
    assert few["value"] == many["value"] == 0.5
    assert (few["low"], few["high"]) == (0, 1)
    assert many["high"] - many["low"] < 0.2


def test_a_set_is_measured_from_its_files(pipeline, tmp_path):
    rows = ["image,mask,label,patient,fold"]
    for seed, label in ((7, "meningioma"), (3, "no_tumor"), (5, "meningioma")):
        phantom = phantom_slice(seed, label)
        Image.fromarray(phantom.image).save(tmp_path / f"{seed}.png")
        Image.fromarray(phantom.mask * np.uint8(255)).save(tmp_path / f"{seed}_mask.png")
        rows.append(f"{seed}.png,{seed}_mask.png,{label},p{seed},{int(seed == 5)}")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    cases = cases_of(pipeline, tmp_path)
    assert [c.scan for c in cases] == ["7.png", "3.png", "5.png"]
    assert cases[0].dice > 0.6
    assert cases[0].scores[0].dice == pytest.approx(cases[0].dice)
    assert cases[1].free_slices == 1


def test_a_volume_keeps_a_lesion_that_none_of_its_training_slices_shows(pipeline, tmp_path):
    """Training takes no slices with fewer than 20 pixels of a lesion; the truth of the volume has them all the same."""
    phantom = phantom_volume(7, "meningioma", (64, 64, 12), (3.6, 3.6, 12.0))
    save_volume(tmp_path / "v.nii.gz", phantom)
    mask = np.zeros_like(phantom.mask)
    mask[30:33, 30:33, 5] = 1
    nib.save(nib.Nifti1Image(mask, phantom.scan.affine), tmp_path / "m.nii.gz")
    (tmp_path / "index.csv").write_text("image,mask,label,patient\nv.nii.gz,m.nii.gz,meningioma,a\n")
    samples = load_samples(tmp_path)
    assert {s.label for s in samples} == {"no_tumor"} and not any(s.mask for s in samples)
    (case,) = cases_of(pipeline, tmp_path)
    assert case.label == "meningioma"
    assert sum(s.truth_px for s in case.scores) == 9


def test_a_volume_is_one_scan_and_its_slices_are_listed(weights, tmp_path):
    phantom = phantom_volume(7, "meningioma", (64, 64, 12), (3.6, 3.6, 12.0))
    save_volume(tmp_path / "v.nii.gz", phantom)
    nib.save(nib.Nifti1Image(phantom.mask, phantom.scan.affine), tmp_path / "m.nii.gz")
    (tmp_path / "index.csv").write_text("image,mask,label,patient\nv.nii.gz,m.nii.gz,meningioma,a\n")
    measured = measure(tmp_path / "out", "pipeline", tmp_path, **weights)
    volumes = measured.report["figures"]["volumes"]
    assert [row["kind"] for row in measured.rows] == ["volume"] + ["slice"] * 12
    overlap = sum(int(row["overlap_px"]) for row in measured.rows[1:])
    total = sum(int(row["truth_px"]) + int(row["guess_px"]) for row in measured.rows[1:])
    assert volumes["dice_all"]["value"] == pytest.approx(2 * overlap / total)
    assert "slices" not in measured.report["figures"]


def set_of_volumes(folder):
    """Volumes and masks of equal names, without labels: one with a lesion, one without, and one without a mask."""
    for name, phantom in (
        ("sick", phantom_volume(7, "meningioma", (64, 64, 12), (3.6, 3.6, 12.0))),
        ("healthy", phantom_volume(1, "no_tumor", (64, 64, 12), (3.6, 3.6, 12.0))),
        ("unknown", phantom_volume(3, "glioma", (64, 64, 12), (3.6, 3.6, 12.0))),
    ):
        save_volume(folder / "images" / f"{name}.nii.gz", phantom)
        (folder / "masks").mkdir(exist_ok=True)
        if name != "unknown":
            nib.save(nib.Nifti1Image(phantom.mask, phantom.affine), folder / "masks" / f"{name}.nii.gz")
    return folder


@pytest.mark.parametrize("stage", ["pipeline", "segmentation", "classification"])
def test_volumes_with_masks_and_without_labels_have_the_truth_of_their_masks(weights, tmp_path, stage):
    """The type is not known. A volume with neither counts for nothing, which is said."""
    measured = measure(tmp_path / "out", stage, set_of_volumes(tmp_path / "set"), **weights)
    of_scans = [row for row in measured.rows if row.get("kind") in (None, "volume")]
    labels = {}
    for row in of_scans:
        labels.setdefault(row["file"].rpartition("/")[2], set()).add(row["label"])
    sick = {"tumor"} if stage == "pipeline" else {"tumor", "no_tumor"}
    assert labels == {"sick.nii.gz": sick, "healthy.nii.gz": {"no_tumor"}}
    note = r"note: \d+ slices with(out a true| neither a label nor a) mask were left out: their truth is not known"
    assert any(re.fullmatch(note, text) for text in measured.messages)
    if stage == "pipeline":
        volumes = measured.report["figures"]["volumes"]
        assert volumes["n_tumor"] == volumes["n_healthy"] == 1
        assert volumes["accuracy"] is None and volumes["dice_tumor"] is not None  # no type is known


def test_a_set_without_masks_has_no_dice(phantom_set, weights, tmp_path):
    index = (phantom_set / "index.csv").read_text()
    (tmp_path / "index.csv").write_text(re.sub(r",masks/[^,]*", ",", index))
    source = f"{tmp_path / 'index.csv'}@{phantom_set}"
    measured = measure(tmp_path / "out", "pipeline", source, protocol="p2", folds=(0,), **weights)
    figures = measured.report["figures"]["slices"]
    assert figures["dice_all"] is figures["dice_tumor"] is figures["masks"] is None
    assert figures["false_masks"] is not None  # of healthy slices the truth is known: no mask
    text = (measured.out / "report.md").read_text()
    assert not any("Dice" in message for message in measured.messages)
    assert "| Dice" not in text and "none with a true mask" in text
    assert "dice_by_size.png" not in measured.report["files"]


def test_worst_cases_name_the_truth_of_the_slice_that_they_show(pipeline, tmp_path):
    """A slice without a lesion of a sick volume has no tumor; a mistake without a true mask is shown too."""
    phantom = phantom_volume(7, "meningioma", (64, 64, 12), (3.6, 3.6, 12.0))
    save_volume(tmp_path / "v.nii.gz", phantom)
    nib.save(nib.Nifti1Image(np.roll(phantom.mask, 6, axis=2), phantom.affine), tmp_path / "m.nii.gz")
    Image.fromarray(phantom_slice(3, "no_tumor").image).save(tmp_path / "p.png")
    Image.fromarray(phantom_slice(7, "meningioma").image).save(tmp_path / "q.png")
    rows = "v.nii.gz,m.nii.gz,meningioma\np.png,,glioma\nq.png,,tumor\n"  # q is answered rightly
    (tmp_path / "index.csv").write_text(f"image,mask,label\n{rows}")
    evaluation = PipelineEvaluation(NONE, 0)
    evaluation.measure({"pipeline": pipeline}, load_samples(tmp_path), None)
    titles = [case.title for case in evaluation.worst.items]
    assert len(titles) == 2 and len({case.patient for case in evaluation.worst.items}) == 2
    assert any(
        re.fullmatch(
            r"true: meningioma, slice \d+\nmeningioma, Dice 0\.00|true: no tumor, slice \d+\nmeningioma, false mask", t
        )
        for t in titles
    )
    assert any(re.fullmatch(r"true: glioma\nno tumor \d\.\d\d", t) for t in titles)
    assert "worst.png" in evaluation.plots()
