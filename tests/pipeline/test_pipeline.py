"""The pipeline, step by step: which slices are judged and segmented, and what becomes of masks and reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.pipeline.fixed import SIZE, fixed_pipeline
from tumorlens.classification.predict import Classifier
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.preprocessing.head import tissue_shares
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import open_source, prepare
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.write import write_result
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.pipeline.result import Result

VOLUME = phantom_volume(7, "meningioma", shape=(64, 75, 12), spacing_mm=(3, 3, 10))


@pytest.fixture(scope="module")
def tall():
    """A volume that reaches beyond the head at both ends, where it shows noise."""
    volume = phantom_volume(7, "meningioma", shape=(64, 75, 44), spacing_mm=(3, 3, 5))
    noise = np.random.default_rng(0).rayleigh(2.5, volume.image.shape)
    return volume, Scan.from_array((volume.image + noise).astype(np.float32), volume.affine)


def with_rule(pipeline, rule):
    """The pipeline with a card whose rule for volumes has these weights and no others."""
    none = dict.fromkeys(("bias", "map", "slices", "both", "size", "depth"), 0.0)
    card = pipeline.classifier.card | {"lesion_rule": none | rule}
    return replace(pipeline, classifier=replace(pipeline.classifier, card=card))


def brightness(image):
    """A tumor probability that differs from slice to slice."""
    return 0.3 + 0.6 * float(image.mean()) / 255


def test_the_public_names_are_imported_when_they_are_used():
    import tumorlens

    assert (tumorlens.Pipeline, tumorlens.Result, tumorlens.RunOptions) == (Pipeline, Result, RunOptions)
    with pytest.raises(AttributeError, match="no attribute 'Scanner'"):
        tumorlens.Scanner  # noqa: B018


# ---- open and prepare ----


def test_slices_of_noise_are_not_judged(tall):
    volume, scan = tall
    head = np.array([(volume.scan.slice(k) > 40).mean() for k in range(44)])
    judged = set(np.flatnonzero(prepare(scan, SIZE).used))
    assert not judged & set(np.flatnonzero(head < 0.01))
    assert judged >= set(np.flatnonzero(head > 0.5 * head.max()))
    assert {s["index"] for s in fixed_pipeline().run(scan).slices} == judged


def test_tissue_is_measured_against_the_whole_volume(tall):
    _, scan = tall
    air = int(tissue_shares(scan).argmin())
    assert tissue_shares(scan)[air] < 0.01
    assert Preprocess(224)(scan.slice(air)).head_fraction > 0.5  # alone it would look like a head


@pytest.mark.parametrize("shape", [(64, 64), (16, 64, 64)])
def test_arrays_with_nan_are_refused(shape):
    voxels = np.random.default_rng(0).normal(size=shape)
    voxels[3] = np.nan
    for source in (voxels, Scan.from_array(voxels)):
        with pytest.raises(InputError, match="NaN or infinite"):
            fixed_pipeline().run(source)


def test_a_path_an_array_and_a_scan_give_the_same_result(tmp_path):
    image = phantom_slice(7, "meningioma").image
    Image.fromarray(image).save(tmp_path / "a.png")
    pipeline = fixed_pipeline(brightness)
    results = [pipeline.run(source) for source in (tmp_path / "a.png", image, Scan.from_array(image))]
    for result in results[1:]:
        assert result.probabilities == results[0].probabilities
        np.testing.assert_array_equal(result.mask, results[0].mask)


def test_options_choose_channel_and_plane():
    image = phantom_slice(7, "meningioma").image
    colors = np.stack([np.zeros_like(image), image, image // 2], axis=-1)
    np.testing.assert_array_equal(open_source(colors, RunOptions(channel=1)).voxels, image)
    result = fixed_pipeline().run(VOLUME.scan, RunOptions(plane="coronal"))
    assert (result.scan.plane, result.scan.n_slices) == ("coronal", 75)
    with pytest.raises(InputError, match="channel 1 was asked for, but the scan is"):
        open_source(image, RunOptions(channel=1))


def test_a_slice_is_prepared_again_for_a_stage_of_another_size():
    case = prepare(VOLUME.scan, SIZE)
    assert case.slice_at(5, SIZE) is case.prepared[5]
    np.testing.assert_array_equal(case.slice_at(5, 96).image, Preprocess(96)(VOLUME.scan.slice(5)).image)


# ---- classify, gate, segment ----


def test_scans_that_share_batches_get_the_answers_that_each_gets_alone():
    pipeline = fixed_pipeline(brightness)
    sources = [phantom_slice(1, "no_tumor").image, VOLUME.scan, phantom_slice(7, "meningioma").image]
    cases = [prepare(open_source(source), SIZE) for source in sources]
    together = [pipeline.conclude(case, decision) for case, decision in zip(cases, pipeline.decide(cases), strict=True)]
    for source, result in zip(sources, together, strict=True):
        alone = pipeline.run(source)
        np.testing.assert_array_equal(result.mask, alone.mask)
        assert result.to_dict() | {"timings_s": {}} == alone.to_dict() | {"timings_s": {}}
        assert list(result.timings_s) == ["read", "preprocess", "classify", "segment", "postprocess"]


def test_slices_that_are_not_judged_count_as_free_of_tumor(tall):
    case = prepare(tall[1], SIZE)
    (scores,) = fixed_pipeline().classify([case])
    np.testing.assert_array_equal(scores.probabilities[~case.used], [[1, 0, 0, 0]] * int((~case.used).sum()))
    np.testing.assert_allclose(scores.probabilities[case.used, 2], 0.98, atol=1e-5)


def test_the_segmenter_sees_suspicious_slices_and_their_neighbors():
    tumor = [0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    case = prepare(VOLUME.scan, SIZE)
    assert case.used.all()
    pipeline = fixed_pipeline(tumor)
    result = pipeline.run(VOLUME.scan)
    suspicious = [s["index"] for s in result.slices if s["segmented"]]
    assert suspicious == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(pipeline.segmenter.network.images, [case.prepared[k].image for k in suspicious])
    assert {s["index"] for s in result.slices if s["area_px"]} <= set(suspicious)


def test_a_volume_without_a_suspicious_slice_is_not_segmented():
    pipeline = fixed_pipeline(0.1)
    result = pipeline.run(VOLUME.scan)
    assert (result.label, pipeline.segmenter.network.images, result.lesions) == ("no_tumor", [], [])
    assert result.confidence == pytest.approx(0.98)
    assert not result.mask.any()


def test_a_volume_is_as_likely_a_tumor_as_its_surest_lesion():
    result = fixed_pipeline().run(VOLUME.scan)
    assert result.lesions[0].confidence == pytest.approx(1 - result.probabilities["no_tumor"], abs=1e-5)
    assert result.lesions[0].confidence > 0.5 and result.label == "meningioma"


def test_your_threshold_chooses_label_and_lesions_and_review_says_so():
    p_tumor = fixed_pipeline().run(VOLUME.scan).lesions[0].confidence
    strict = fixed_pipeline(threshold=1.0).run(VOLUME.scan)
    assert (strict.label, strict.lesions) == ("no_tumor", [])
    assert "labeled by your threshold 1" in strict.review
    assert strict.confidence == pytest.approx(1 - p_tumor, abs=1e-5)
    same = fixed_pipeline(threshold=p_tumor - 0.01).run(VOLUME.scan)
    assert same.label == "meningioma" and not any("your threshold" in reason for reason in same.review)


def test_doubtful_lesions_are_kept_and_reported():
    result = with_rule(fixed_pipeline(), {"bias": 0.4}).run(VOLUME.scan)
    assert [lesion.doubtful for lesion in result.lesions] == [True]
    assert result.lesions[0].confidence == pytest.approx(0.5987, abs=1e-4)
    assert "doubtful of 1 lesions: 1 (0.60)" in result.review
    assert result.to_dict()["lesions"][0]["confidence"] == result.lesions[0].confidence


def test_a_volume_whose_suspicions_are_unlikely_has_no_tumor_and_no_mask():
    result = with_rule(fixed_pipeline(), {"bias": -1.0}).run(VOLUME.scan)
    assert (result.label, result.lesions, bool(result.mask.any())) == ("no_tumor", [], False)
    assert result.probabilities["no_tumor"] == pytest.approx(0.7311, abs=1e-4)


def test_cards_with_another_threshold_print_probabilities_that_agree_with_the_label():
    image = phantom_slice(7, "meningioma").image
    for tumor, label in ((0.79, "no_tumor"), (0.81, "meningioma")):
        pipeline = fixed_pipeline(tumor)
        card = pipeline.classifier.card | {"operating_point": {"tumor_threshold": 0.8}}
        result = replace(pipeline, classifier=replace(pipeline.classifier, card=card)).run(image)
        assert result.label == label
        assert (result.probabilities["no_tumor"] < 0.5) == (label != "no_tumor")
        assert result.confidence >= 0.5 and result.threshold == 0.5


# ---- three planes ----


@pytest.fixture(scope="module")
def head():
    """A near isotropic volume."""
    return phantom_volume(7, "meningioma", shape=(72, 84, 72), spacing_mm=(2.0, 2.0, 2.0))


def test_a_near_isotropic_volume_is_cut_in_three_planes(head):
    pipeline = fixed_pipeline()
    case = prepare(open_source(head.scan), SIZE)
    scores = pipeline.classify([case])
    (answers,) = pipeline.segment([case], scores, [pipeline.screen(case, scores[0])])
    assert [answer.scan.slice_axis for answer in answers] == [2, 0, 1]
    assert all(answer.maps for answer in answers)
    assert all((~np.isnan(answer.probabilities[:, 0])).any() for answer in answers)
    stack = prepare(VOLUME.scan, SIZE)
    (single,) = pipeline.segment(
        [stack], pipeline.classify([stack]), [pipeline.screen(stack, pipeline.classify([stack])[0])]
    )
    assert len(single) == 1


def test_the_other_planes_are_not_cut_where_nothing_is_suspicious(head):
    pipeline = fixed_pipeline(0.05)
    assert pipeline.run(head.scan).label == "no_tumor"
    assert not pipeline.segmenter.network.images


def test_a_stripe_that_one_plane_draws_is_not_a_lesion(head):
    """The segmenter draws everywhere in axial slices and nothing in the others: their planes outvote the first one."""
    pipeline = fixed_pipeline()
    seen = []

    def only_first_call(images):
        seen.append(len(images))
        return np.full_like(images, 255 if len(seen) == 1 else 0)[:, None]

    result = replace(pipeline, segmenter=replace(pipeline.segmenter, network=only_first_call)).run(head.scan)
    assert len(seen) == 2  # the first two planes share no suspicion, so the third is not asked
    assert (result.label, result.lesions) == ("no_tumor", [])


def test_the_answer_is_nearly_the_same_in_every_plane(head):
    results = [fixed_pipeline().run(head.scan, RunOptions(plane=plane)) for plane in ("axial", "coronal", "sagittal")]
    assert {result.label for result in results} == {"meningioma"}
    assert [result.scan.plane for result in results] == ["axial", "coronal", "sagittal"]
    for result in results[1:]:
        np.testing.assert_array_equal(result.mask, results[0].mask)
        assert result.confidence == pytest.approx(results[0].confidence, abs=0.02)


def test_a_forced_scan_is_judged_and_sent_to_review():
    noise = np.random.default_rng(0).integers(0, 3, (64, 64))
    noise[:, :] = 7
    noise[10, 10] = 9  # no head stands out
    refused = fixed_pipeline().run(noise)
    assert (refused.label, refused.probabilities, refused.slices, refused.tumor_area_px) == ("refused", {}, [], None)
    assert refused.review[0] == "refused: no head stands out from the background; --force judges it all the same"
    forced = fixed_pipeline().run(noise, RunOptions(force=True))
    assert forced.label == "meningioma"
    assert forced.review[0] == "no head stands out from the background; judged all the same, as --force asked"


# ---- measure ----


def test_the_shown_slice_is_that_of_the_largest_lesion(monkeypatch):
    """It is not the slice with the largest area: a flat false piece must not stand for the scan."""
    pipeline = fixed_pipeline()
    mask = np.zeros(VOLUME.image.shape, np.uint8)
    mask[20:25, 20:25, 1:7] = 1  # 150 voxels, 25 in each slice
    mask[40:48, 40:48, 9] = 1  # 64 voxels in one slice
    monkeypatch.setattr("tumorlens.pipeline.volumes.ask.fuse", lambda *_: 255 * mask)
    result = pipeline.run(VOLUME.scan)
    assert [lesion.voxels for lesion in result.lesions] == [150, 64]
    assert 1 <= result.shown_slice < 7 and result.tumor_area_px == 25


def test_specks_of_a_volume_are_left_out(monkeypatch):
    pipeline = fixed_pipeline()
    scan = Scan.from_array(VOLUME.image, np.diag([1.0, 1.0, 5.0, 1.0]))
    mask = np.zeros(VOLUME.image.shape, np.uint8)
    mask[10:14, 10:15, 3] = 1  # 100 mm3
    mask[40, 40:59, 8] = 1  # 95 mm3
    monkeypatch.setattr("tumorlens.pipeline.volumes.ask.fuse", lambda *_: 255 * mask)
    result = pipeline.run(scan)
    assert [lesion.volume_mm3 for lesion in result.lesions] == [100]
    assert result.mask.sum() == 20
    assert result.tumor_volume_mm3 == 100


def test_a_volume_of_unknown_orientation_is_sent_to_review():
    result = fixed_pipeline().run(VOLUME.image)
    assert any("nothing of size and orientation" in reason for reason in result.review)


def test_a_volume_of_known_size_and_unknown_orientation_has_no_side(tmp_path):
    image = nib.Nifti1Image(VOLUME.image, None)
    image.header.set_zooms(np.linalg.norm(VOLUME.affine[:3, :3], axis=0))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii.gz")
    result = fixed_pipeline().run(tmp_path / "a.nii.gz")
    assert any("nothing of orientation" in reason and "no side is known" in reason for reason in result.review)
    assert result.tumor_volume_mm3 > 0 and result.lesions
    assert {(lesion.side, lesion.centroid_ras_mm) for lesion in result.lesions} == {(None, None)}
    content = write_result(result, tmp_path / "out", "a.nii.gz")
    assert content["scan"]["plane"] is None and {"overlay.png", "montage.png"} < set(content["files"])
    mask = nib.load(tmp_path / "out" / "mask.nii.gz").header
    assert (int(mask["qform_code"]), int(mask["sform_code"]), mask.get_xyzt_units()[0]) == (0, 0, "mm")
    assert mask.get_zooms() == image.header.get_zooms()


# ---- explain ----


def test_an_explanation_is_drawn_before_the_result_is_made(monkeypatch):
    """The networks are needed only in `decide`, so that results can be made in another thread."""
    calls = []

    def explain(self, images, classes):
        calls.append(classes)
        return np.ones(images.shape, np.float32)

    monkeypatch.setattr(Classifier, "explain", explain)
    pipeline, case = fixed_pipeline(), prepare(VOLUME.scan, SIZE)
    (decision,) = pipeline.decide([case], explain=True)
    assert calls == [[2]]
    result = pipeline.conclude(case, decision)
    assert len(calls) == 1
    assert result.heat.shape == case.scan.slice(result.shown_slice).shape
    assert result.heat.max() == 1
    alone = pipeline.run(VOLUME.scan, RunOptions(explain=True))
    np.testing.assert_array_equal(alone.heat, result.heat)
    assert pipeline.run(VOLUME.scan).heat is None


def test_a_refused_scan_has_no_explanation(monkeypatch):
    monkeypatch.setattr(Classifier, "explain", lambda *_: pytest.fail("explained"))
    flat = np.full((64, 64), 7)
    flat[10, 10] = 9
    assert fixed_pipeline().run(flat, RunOptions(explain=True)).heat is None


def test_a_network_that_cannot_be_explained_still_gives_its_result(monkeypatch):
    def no_maps(*_):
        raise InputError("this network has no feature maps")

    monkeypatch.setattr(Classifier, "explain", no_maps)
    result = fixed_pipeline().run(phantom_slice(7, "meningioma").image, RunOptions(explain=True))
    assert result.label == "meningioma"
    assert result.heat is None
    assert result.review[-1] == "no explanation: this network has no feature maps"


# ---- prediction sets ----


def test_the_label_is_in_its_prediction_set_at_any_threshold():
    pipeline = fixed_pipeline(0.9)
    card = pipeline.classifier.card | {"conformal": {"thresholds": dict.fromkeys(("no_tumor", "glioma"), 0.99)}}
    card["conformal"]["thresholds"] |= {"meningioma": 0.5, "pituitary": 0.99}
    pipeline = replace(pipeline, classifier=replace(pipeline.classifier, card=card))
    image = phantom_slice(7, "meningioma").image
    for threshold in (0.0, 0.5, 1.0):
        result = replace(pipeline, threshold=threshold).run(image)
        assert result.label in result.prediction_set
        assert "meningioma" in result.prediction_set


# ---- for users of Python ----


def test_many_scans_give_the_results_of_each_alone(pipeline, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    pictures = [phantom_slice(seed, "glioma", size=96 + 16 * seed).image for seed in range(4)]
    sources = [*pictures[:2], tmp_path / "damaged.png", Scan.from_array(VOLUME.image, VOLUME.affine), *pictures[2:]]
    lost = []
    results = list(pipeline.run_many(iter(sources), failed=lambda source, error: lost.append((source, str(error)))))
    ((path, reason),) = lost
    assert path == sources[2] and "damaged.png" in reason
    for source, result in zip([*sources[:2], *sources[3:]], results, strict=True):
        alone = pipeline.run(source)
        assert (result.label, result.probabilities) == (alone.label, alone.probabilities)
        np.testing.assert_array_equal(result.mask, alone.mask)


def test_a_scan_that_cannot_be_used_ends_the_iteration_after_the_results_before(pipeline, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    results = pipeline.run_many([phantom_slice(1, "glioma").image, tmp_path / "damaged.png"])
    assert next(results).label != "refused"
    with pytest.raises(InputError, match=r"damaged\.png"):
        next(results)


def test_a_result_saves_and_shows_itself(pipeline, tmp_path):
    result = pipeline.run(Scan.from_array(VOLUME.image, VOLUME.affine))
    files = result.save(tmp_path / "new" / "case 1")
    assert {file.name for file in files} >= {"result.json", "overlay.png", "mask.nii.gz"}
    assert all(file.is_file() for file in files)
    assert json.loads((tmp_path / "new" / "case 1" / "result.json").read_text())["scan"]["name"] == "case 1"
    with Image.open(tmp_path / "new" / "case 1" / "overlay.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.overlay()))
    with Image.open(BytesIO(result._repr_png_())) as picture:
        assert picture.size == result.overlay().size
    assert repr(result).startswith(f"<Result: {result.label} {result.confidence:.2f}, {len(result.lesions)} lesion")


def test_a_result_is_not_saved_over_files_of_yours(pipeline, tmp_path):
    (tmp_path / "mask.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"mask\.png"):
        pipeline.run(phantom_slice(1, "glioma").image).save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        pipeline.run(phantom_slice(1, "glioma").image).save(tmp_path / "file")


def test_a_scan_that_cannot_be_used_costs_no_result_before_it(pipeline, tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    pictures = [phantom_slice(seed, "glioma", size=96).image for seed in range(6)]
    for _ in range(3):
        results = []
        with pytest.raises(InputError, match=r"damaged\.png"):
            results.extend(pipeline.run_many([*pictures, tmp_path / "damaged.png"], readers=2))
        assert len(results) == len(pictures)


@pytest.mark.parametrize("sources", ["scan.png", Path("scan.png"), np.zeros((9, 9), np.uint8)])
def test_one_scan_is_not_a_list_of_scans(pipeline, sources):
    with pytest.raises(InputError, match="give one scan to run"):
        next(pipeline.run_many(sources))
