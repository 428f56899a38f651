"""Dice of each region of lesions, of the segmenter alone and end to end."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from tests.pipeline.fixed import BRATS, fixed_pipeline
from tests.scans.pictures import save, save_volume
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.evaluation.end_to_end import PipelineEvaluation
from tumorlens.pipeline.evaluation.protocols import NONE
from tumorlens.pipeline.evaluation.segmentation import SegmentationEvaluation
from tumorlens.segmentation.evaluation.metrics import slice_scores
from tumorlens.segmentation.evaluation.regions import region_dice, region_figures

PIPELINE = fixed_pipeline(regions=BRATS)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Two pictures and a volume, each with what the pipeline itself draws in it as its mask."""
    folder = tmp_path_factory.mktemp("answers")
    images = {f"{n}.png": phantom_slice(n, "meningioma", size=96, pixel_mm=2.3).image for n in (7, 8)}
    paths = [save(folder / "images" / name, image) for name, image in images.items()]
    volume = phantom_volume(7, "meningioma", (64, 75, 12), (3.0, 3.0, 10.0))
    paths.append(save_volume(folder / "images" / "9.nii.gz", volume))
    (folder / "masks").mkdir()
    for path in paths:
        for file in PIPELINE.run(path).save(folder / "runs" / path.name):
            if file.name.startswith("regions."):
                file.rename(folder / "masks" / f"{path.name.split('.')[0]}{''.join(file.suffixes)}")
    return folder


def end_to_end(folder):
    evaluation = PipelineEvaluation(NONE, 0)
    evaluation.measure({"pipeline": PIPELINE}, load_samples(folder), None)
    return evaluation


def alone(folder):
    evaluation = SegmentationEvaluation(NONE, 0)
    evaluation.measure({"segmentation": PIPELINE.segmenter}, load_samples(folder), None)
    return evaluation


def dice_of(figures):
    return {name: part["dice_present"]["value"] for name, part in figures["regions"].items()}


def test_the_regions_of_a_run_are_those_that_the_evaluation_draws(answers):
    evaluation = end_to_end(answers)
    for kind, count in (("slices", 2), ("volumes", 1)):
        figures = evaluation.figures_of(evaluation.cases)[kind]
        assert dice_of(figures) == {"whole": 1, "core": 1, "enhancing": 1}
        assert figures["dice_tumor"]["value"] == 1
        assert figures["regions"]["core"]["n_present"] == count
    pictures = [case for case in alone(answers).cases if not case.sample.from_volume]
    assert len(pictures) == 2
    assert {one.dice for case in pictures for one in case.regions.values()} == {1.0}


def test_each_region_is_compared_with_its_own(answers, tmp_path):
    image = save(tmp_path / "images" / "7.png", phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image)
    values = PIPELINE.run(image).region_mask.copy()
    values[values == 4] = 1  # nothing enhances
    save(tmp_path / "masks" / "7.png", values)
    for evaluation, figures_of in ((alone(tmp_path), lambda f: f), (end_to_end(tmp_path), lambda f: f["slices"])):
        figures = figures_of(evaluation.figures_of(evaluation.cases))
        regions = figures["regions"]
        assert regions["whole"]["dice_present"]["value"] == regions["core"]["dice_present"]["value"] == 1
        assert regions["enhancing"]["dice_present"] is None and regions["enhancing"]["n_present"] == 0
        assert regions["enhancing"]["dice_all"]["value"] == 0  # it was drawn all the same
        (row,) = evaluation.rows()
        assert (row["region_core_dice"], row["region_enhancing_dice"]) == (1, 0)
        assert row["region_enhancing_guess_px"] > 0 == row["region_enhancing_truth_px"]
        *_, table = evaluation.tables(evaluation.figures_of(evaluation.cases))
        assert table.title == "Regions, slices"
        assert [row[:2] for row in table.rows][1:] == [["core", "1 of 1"], ["enhancing", "0 of 1"]]
        assert any(path.endswith("regions.core.dice_present") for path in evaluation.titles)
        assert "each has a Dice of its own" in evaluation.policy


def test_the_slices_of_a_volume_have_their_regions(answers):
    evaluation = end_to_end(answers)
    volume, *slices = [row for row in evaluation.rows() if row["kind"] != "picture"]
    assert (volume["kind"], volume["region_core_dice"]) == ("volume", 1)
    stored = np.asarray(nib.load(answers / "masks" / "9.nii.gz").dataobj)
    cores = [row["region_core_truth_px"] for row in slices]
    assert cores == [int(np.isin(stored[:, :, k], (1, 4)).sum()) for k in range(stored.shape[2])]


def test_a_lesion_is_what_lies_in_a_region(tmp_path):
    image = save(tmp_path / "images" / "7.png", phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image)
    values = PIPELINE.run(image).region_mask.copy()
    values[:20] = 3  # belongs to no region
    save(tmp_path / "masks" / "7.png", values)
    for evaluation in (alone(tmp_path), end_to_end(tmp_path)):
        (row,) = evaluation.rows()
        assert row["dice"] == 1


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_mask_without_regions_has_the_dice_of_the_lesion_only(kind, tmp_path):
    image = save(tmp_path / "images" / "7.png", phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image)
    save(tmp_path / "masks" / f"7.{kind}", PIPELINE.run(image).mask * np.uint8(255))
    for evaluation in (alone(tmp_path), end_to_end(tmp_path)):
        (row,) = evaluation.rows()
        assert row["dice"] > 0.98 and not any(name.startswith("region_") for name in row)
        figures = evaluation.figures_of(evaluation.cases)
        assert "regions" not in figures and "regions" not in figures.get("slices", {})


def test_the_worst_slices_name_their_regions(tmp_path):
    image = save(tmp_path / "images" / "7.png", phantom_slice(7, "meningioma", size=96, pixel_mm=2.3).image)
    values = PIPELINE.run(image).region_mask.copy()
    values[:, :48] = 0
    save(tmp_path / "masks" / "7.png", values)
    for evaluation in (alone(tmp_path), end_to_end(tmp_path)):
        (worst,) = evaluation.worst.items
        whole = evaluation.rows()[0]["region_whole_dice"]
        assert worst.title.splitlines()[2].startswith(f"whole {whole:.2f}, core 0.")


def test_dice_counts_the_voxels_of_a_scan_and_the_slices_of_a_patient():
    def scores(guess, truth):
        guess, truth = (np.arange(9).reshape(3, 3) < n for n in (guess, truth))
        return {"core": slice_scores(guess, truth)}

    volume = [scores(2, 4), scores(0, 0), scores(3, 0)]
    assert region_dice(volume) == {"core": pytest.approx(2 * 2 / 9)}
    assert region_dice([scores(0, 0)]) == {"core": 1} and region_dice([]) == {}
    figures = region_figures([volume, [scores(0, 0)], []], ["a", "b", "c"], 0)["regions"]["core"]
    assert (figures["n"], figures["n_present"]) == (2, 1)
    assert figures["dice_all"]["value"] == pytest.approx((4 / 9 + 1) / 2)
    assert figures["dice_present"]["value"] == pytest.approx(4 / 9)
    assert (figures["slices"]["n"], figures["slices"]["n_present"]) == (4, 1)
    assert figures["slices"]["dice_present"]["value"] == pytest.approx(2 * 2 / 6)
    assert figures["patient"]["by_patient"] == {"a": pytest.approx(4 / 9), "b": 1}
    assert region_figures([[], [{}]], ["a", "b"], 0) == {}
