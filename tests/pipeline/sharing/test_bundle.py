"""MONAI bundles: MONAI itself verifies and runs them, and its answers are ours."""

from __future__ import annotations

import csv
import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.engines.networks import save_segmenter
from tests.scans.pictures import save, save_volume
from tumorlens.classification.predict import SHIPPED, Classifier
from tumorlens.data.errors import InputError
from tumorlens.data.files import PART
from tumorlens.data.formats.open import open_scan
from tumorlens.data.masks.regions import Regions
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.sharing.bundle import write_bundle
from tumorlens.pipeline.sharing.transforms import ChooseOutlined
from tumorlens.segmentation.predict import Segmenter

IGNITE = "MONAI's engines need pytorch-ignite: pip install pytorch-ignite"


@pytest.fixture(scope="module")
def classifier_bundle(small_classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "classifier"
    assert write_bundle(small_classifier, "classification", folder)["logits"] < 1e-5
    return folder


@pytest.fixture(scope="module")
def segmenter_bundle(small_segmenter, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "segmenter"
    assert write_bundle(small_segmenter, "segmentation", folder)["logits"] < 1e-5
    return folder


@pytest.fixture(params=["classifier_bundle", "segmenter_bundle"])
def bundle(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def pictures(tmp_path):
    """A gray and a color picture, neither square nor of the network's size, and one that EXIF turns upside down."""
    gray = phantom_slice(3, "meningioma", size=200).image[10:, :180]
    save(tmp_path / "scans" / "a.png", gray)
    save(tmp_path / "scans" / "b.png", np.stack([gray, gray // 2, gray // 3], axis=-1))
    turned = Image.Exif()
    turned[0x0112] = 3
    Image.fromarray(gray).save(tmp_path / "scans" / "c.png", exif=turned)
    return tmp_path / "scans"


def run(bundle, scans, out, **settings):
    """What ``python -m monai.bundle run`` does."""
    pytest.importorskip("ignite", reason=IGNITE)
    from monai.bundle import run as run_bundle

    run_bundle(
        config_file=str(bundle / "configs/inference.json"),
        bundle_root=str(bundle),
        dataset_dir=str(scans),
        output_dir=str(out),
        **settings,
    )
    logging.disable(logging.NOTSET)


def test_monai_verifies_network_and_properties(bundle):
    from monai.bundle import ConfigWorkflow, verify_net_in_out

    files = {"meta_file": str(bundle / "configs/metadata.json"), "config_file": str(bundle / "configs/inference.json")}
    verify_net_in_out("network_def", device="cpu", **files)
    pytest.importorskip("ignite", reason=IGNITE)
    workflow = ConfigWorkflow(workflow_type="infer", logging_file=False, **files)
    workflow.initialize()
    assert not workflow.check_properties()


def test_the_metadata_follow_the_schema(bundle):
    """The entries that the schema of 2024-07-25 requires, with their types; the schema itself is a download."""
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    texts = ("schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
    texts += ("copyright", "data_source", "data_type", "image_classes", "label_classes", "pred_classes", "intended_use")
    assert all(isinstance(metadata[name], str) for name in texts)
    assert all(isinstance(metadata[name], dict) for name in ("required_packages_version", "changelog", "eval_metrics"))
    for tensor in (
        metadata["network_data_format"]["inputs"]["image"],
        metadata["network_data_format"]["outputs"]["pred"],
    ):
        assert all(isinstance(tensor[name], str) for name in ("type", "format", "dtype"))
        assert all(isinstance(tensor[name], list) for name in ("spatial_shape", "value_range"))
        assert tensor["num_channels"] == len(tensor["channel_def"])


def test_the_probabilities_of_a_bundle_are_ours(classifier_bundle, small_classifier, pictures, tmp_path):
    run(classifier_bundle, pictures, tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = [[float(p) for p in row[1:]] for row in csv.reader(file)]
    classifier, preprocess = Classifier.load(small_classifier, "cpu"), Preprocess(64)
    scans = [open_scan(path) for path in sorted(pictures.iterdir())]
    expected = classifier.predict(np.stack([preprocess(scan.slice(0)).image for scan in scans]))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_a_volume_has_a_row_for_each_slice(classifier_bundle, small_classifier, tmp_path):
    path = save_volume(tmp_path / "scans" / "v.nii.gz", phantom_volume(1, shape=(60, 70, 5)))
    run(classifier_bundle, path.parent, tmp_path / "out")
    rows = np.loadtxt(tmp_path / "out" / "predictions.csv", delimiter=",", usecols=range(1, 5))
    scan, preprocess = open_scan(path), Preprocess(64)
    images = np.stack([preprocess(scan.slice(k), scan.pixel_aspect).image for k in range(scan.n_slices)])
    np.testing.assert_allclose(rows, Classifier.load(small_classifier, "cpu").predict(images), atol=1e-5)


@pytest.mark.parametrize("outline", ["enhancing", "extent"])
def test_the_masks_of_pictures_are_ours(segmenter_bundle, small_segmenter, pictures, tmp_path, outline):
    run(segmenter_bundle, pictures, tmp_path / "out", outline=outline, output_ext=".png")
    segmenter, preprocess = Segmenter.load(small_segmenter, "cpu"), Preprocess(64)
    for path in sorted(pictures.iterdir()):
        prepared = preprocess(open_scan(path).slice(0))
        (drawn,) = segmenter.predict(prepared.image[None], [segmenter.channel_of(outline)])
        expected = preprocess.mask_to_source(drawn, prepared.placement, segmenter.mask_threshold)
        assert 0 < expected.mean() < 1
        mask = np.asarray(Image.open(tmp_path / "out" / f"{path.stem}_mask.png"))
        np.testing.assert_array_equal(mask, expected * 255)


def test_an_outline_that_the_bundle_lacks_is_not_replaced_by_another():
    settings = {"keys": "pred", "outlines": ["enhancing", "extent"], "operating_point": {"mask_threshold": 0.5}}
    with pytest.raises(InputError, match=r"^outline 'extend': choose one of enhancing, extent$"):
        ChooseOutlined(outline="extend", **settings)


def test_the_masks_of_regions_are_whole_lesions(pictures, tmp_path):
    regions = Regions.parse(["whole=1,2", "core=2"])
    weights = save_segmenter(tmp_path / "w.safetensors", regions=regions)
    write_bundle(weights, "segmentation", tmp_path / "bundle")
    pred = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())["network_data_format"]["outputs"]["pred"]
    assert (pred["num_channels"], pred["channel_def"]) == (2, {"0": "whole", "1": "core"})
    run(tmp_path / "bundle", pictures, tmp_path / "out", output_ext=".png")
    segmenter, preprocess = Segmenter.load(weights, "cpu"), Preprocess(64)
    for path in sorted(pictures.iterdir()):
        prepared = preprocess(open_scan(path).slice(0))
        whole, first = segmenter.predict(prepared.image[None])[0], segmenter.look(prepared.image[None])[0, 0]
        expected = preprocess.mask_to_source(whole, prepared.placement, segmenter.mask_threshold)
        assert (expected != preprocess.mask_to_source(first, prepared.placement, segmenter.mask_threshold)).any()
        mask = np.asarray(Image.open(tmp_path / "out" / f"{path.stem}_mask.png"))
        np.testing.assert_array_equal(mask, expected * 255)


@pytest.mark.parametrize("axes", [(1.0, 1.0, 4.0), (-1.0, 1.0, 4.0)])
def test_the_mask_of_a_volume_lies_on_its_grid(segmenter_bundle, small_segmenter, tmp_path, axes):
    phantom = phantom_volume(1, shape=(60, 70, 5))
    voxels = phantom.image.copy()
    voxels[:, :, 0] = 0  # a slice of air
    path = tmp_path / "scans" / "v.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(voxels, phantom.affine @ np.diag([*np.sign(axes), 1])), path)
    run(segmenter_bundle, path.parent, tmp_path / "out")
    mask = nib.load(tmp_path / "out" / "v_mask.nii.gz")
    scan, segmenter, preprocess = open_scan(path), Segmenter.load(small_segmenter, "cpu"), Preprocess(64)
    np.testing.assert_allclose(mask.affine, scan.affine)
    expected = np.zeros((scan.n_slices, *scan.slice(0).shape), np.uint8)
    for k in range(1, scan.n_slices):
        prepared = preprocess(scan.slice(k), scan.pixel_aspect)
        (drawn,) = segmenter.predict(prepared.image[None])
        expected[k] = preprocess.mask_to_source(drawn, prepared.placement, segmenter.mask_threshold)
    assert expected.any()
    np.testing.assert_array_equal(np.asarray(mask.dataobj), scan.mask_from_slices(expected))


def test_a_bundle_by_command(command, small_segmenter, tmp_path):
    out = tmp_path / "bundle"
    export = ("export", "segmentation", "--weights", small_segmenter, "--format", "monai-bundle", "-o", out)
    done = command(*export)
    assert done.exit_code == 0, done.output
    assert "bundle: largest difference from PyTorch: logits" in done.output
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert files == {
        "LICENSE",
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/model.pt",
        "models/model.ts",
    }
    assert "has not stated a license" in (out / "LICENSE").read_text()
    done = command(*export)
    assert (done.exit_code, "bundle: this folder is not empty; choose another -o" in done.stderr) == (2, True)


def test_a_bundle_that_cannot_be_made_leaves_nothing(small_classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda path: lambda batch: torch.zeros(len(batch), 4))
    with pytest.raises(InputError, match="bundle: not written, because its logits differ from PyTorch's by"):
        write_bundle(small_classifier, "classification", tmp_path / "bundle")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((PART, "bundle"))]


@pytest.mark.slow
def test_the_shipped_classifier_answers_as_tumorlens_does(pipeline, tmp_path):
    folder = tmp_path / "bundle"
    write_bundle(SHIPPED, "classification", folder)
    assert "non-commercial research and teaching" in (folder / "LICENSE").read_text()
    path = save(tmp_path / "scans" / "a.png", phantom_slice(3, "glioma").image)
    run(folder, path.parent, tmp_path / "out")
    probabilities = np.loadtxt(tmp_path / "out" / "predictions.csv", delimiter=",", usecols=range(1, 5))
    np.testing.assert_allclose(probabilities, list(pipeline.run(path).probabilities.values()), atol=1e-5)
