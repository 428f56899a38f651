"""The LGG set's layout: distinguished from others, read by patient, slice and channel, and good for training."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from tests.scans.lgg import write_lgg_phantoms
from tests.scans.phantoms import small_slice
from tests.scans.pictures import save, save_volume
from tumorlens.data.config import DataConfig
from tumorlens.data.datasets.duplicates import alike_pairs, copy_pairs
from tumorlens.data.datasets.folds import make_folds
from tumorlens.data.datasets.load import list_rows, load_samples
from tumorlens.data.datasets.sample import read_sample
from tumorlens.data.datasets.sweep import Unread, sweep
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.inspection.divide import divide, write_index
from tumorlens.data.inspection.statistics import measure
from tumorlens.data.phantom import phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.training.partition import load_partition
from tumorlens.segmentation.config import SegmenterConfig
from tumorlens.segmentation.train import train_segmenter

PATIENT = "TCGA_CS_4941_19960909"


@pytest.fixture(scope="module")
def lgg(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kaggle_3m")
    write_lgg_phantoms(folder, patients=6, slices=11)
    (folder / "README.md").write_text("about the set")
    (folder / "data.csv").write_text("Patient,RNASeqCluster\nTCGA_PH_0001,2\n")
    return folder


def pair(folder, stem, lesion=True, shape=(40, 40), suffix=".tif"):
    """A slice whose channels are 10, 20 and 30 brighter than the same noise, and its mask."""
    noise = np.random.default_rng(0).integers(0, 200, (*shape, 1))
    mask = np.zeros(shape, np.uint8)
    mask[5:15, 5:15] = 255 * lesion
    picture = save(folder / f"{stem}{suffix}", (noise + np.array([10, 20, 30])).astype(np.uint8))
    save(folder / f"{stem}_mask{suffix}", mask)
    return picture


def test_the_layout_is_recognized(lgg):
    samples = load_samples(lgg)
    assert len(samples) == 66
    assert len({s.patient for s in samples}) == 6
    assert all(s.patient == s.image.parent.name for s in samples)
    assert all(s.mask == s.image.with_name(f"{s.image.stem}_mask.tif") for s in samples)
    assert {s.label for s in samples} == {"glioma", "no_tumor"}
    assert {s.channel for s in samples} == {1}


def test_labels_follow_the_masks_and_the_outer_slices_are_free(lgg):
    samples = load_samples(lgg)
    for sample in samples:
        drawn = np.array(Image.open(sample.mask))
        assert set(np.unique(drawn)) <= {0, 255}
        assert (sample.label == "glioma") == bool(drawn.any())
    for patient in {s.patient for s in samples}:
        labels = [s.label for s in samples if s.patient == patient]
        assert labels[0] == labels[-1] == "no_tumor"
        assert 2 <= labels.count("glioma") <= 9


def test_slices_are_in_the_order_of_their_number(lgg):
    first = [s for s in load_samples(lgg) if s.patient.startswith("TCGA_PH_0001")]
    assert [int(s.image.stem.rsplit("_", 1)[1]) for s in first] == list(range(1, 12))


def test_the_folder_above_is_the_same_set(lgg, tmp_path):
    (tmp_path / "archive").mkdir()
    shutil.copytree(lgg, tmp_path / "archive" / "kaggle_3m")
    assert len(load_samples(tmp_path)) == 66
    shutil.copytree(lgg, tmp_path / "archive" / "lgg" / "kaggle_3m")
    with pytest.raises(
        InputError,
        match=r"lgg/kaggle_3m/\S+: patient TCGA_PH_0001_20000101 has another folder, .*archive/kaggle_3m/TCGA_PH_0001",
    ):
        load_samples(tmp_path)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_the_requested_channel_is_taken(tmp_path, suffix):
    path = pair(tmp_path / PATIENT, "x_1", suffix=suffix)
    stored = np.array(Image.open(path))
    for asked, got in ((None, 1), (0, 0), (1, 1), (2, 2)):
        (sample,) = load_samples(tmp_path, channel=asked)
        assert sample.channel == got
        np.testing.assert_array_equal(read_sample(sample).image, stored[..., got])
    assert read_sample(sample).mask.sum() == 100


def test_the_channel_works_for_other_layouts(tmp_path):
    stored = np.array(Image.open(pair(tmp_path, "x")))
    (tmp_path / "index.csv").write_text("image,label\nx.tif,glioma\n")
    assert read_sample(load_samples(tmp_path)[0]).image.shape == (40, 40, 3)
    (sample,) = load_samples(tmp_path, channel=2)
    np.testing.assert_array_equal(read_sample(sample).image, stored[..., 2])


def test_a_channel_of_a_gray_picture_is_refused(tmp_path):
    save(tmp_path / "glioma" / "1.png", small_slice(0).image)
    (sample,) = load_samples(tmp_path, channel=1)
    with pytest.raises(InputError, match=r"1\.png: channel 1 was asked for, but the scan is gray"):
        read_sample(sample)
    with pytest.raises(InputError, match="channel 3 is not one of 0, 1, 2"):
        load_samples(tmp_path, channel=3)


def test_gray_pictures_are_read_as_they_are_unless_a_channel_is_requested(tmp_path):
    image = small_slice(0).image
    save(tmp_path / PATIENT / "a_1.png", image)
    save(tmp_path / PATIENT / "a_1_mask.png", small_slice(0).mask * np.uint8(255))
    (sample,) = load_samples(tmp_path)
    assert sample.channel is None
    np.testing.assert_array_equal(read_sample(sample).image, image)
    with pytest.raises(InputError, match=r"a_1\.png: channel 1 was asked for, but the scan is gray"):
        load_samples(tmp_path, channel=1)


def test_three_equal_channels_are_channels(tmp_path):
    """Where both other sequences are missing, the set's authors filled them with FLAIR."""
    path = pair(tmp_path / PATIENT, "x_1")
    flair = np.array(Image.open(path))[..., 1]
    save(path, np.stack([flair] * 3, axis=-1))
    for channel in (None, 0, 2):
        np.testing.assert_array_equal(read_sample(load_samples(tmp_path, channel=channel)[0]).image, flair)


def test_a_patient_with_two_folders_is_reported(tmp_path):
    for name in ("a", "b"):
        pair(tmp_path / name / PATIENT, "x_1")
    report = check_set(tmp_path)
    (text,) = report.of("repeated_patient")
    assert text == f"b/{PATIENT}: patient {PATIENT} has another folder, {tmp_path / 'a' / PATIENT}"
    assert report.problems == 1 + len(report.of("tiny"))


def test_a_picture_without_mask_and_a_mask_without_picture_are_named(tmp_path):
    path = pair(tmp_path / PATIENT, "x_1")
    pair(tmp_path / PATIENT, "x_2")
    mask = path.with_name("x_1_mask.tif")
    mask.rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"x_1\.tif: the picture has no mask x_1_mask\.tif"):
        load_samples(tmp_path)
    (tmp_path / "kept").rename(mask)
    path.unlink()
    with pytest.raises(InputError, match=r"x_1_mask\.tif: the mask has no image of its name"):
        load_samples(tmp_path)


def test_two_pictures_of_one_name_are_named(tmp_path):
    pair(tmp_path / PATIENT, "x_1")
    pair(tmp_path / PATIENT, "x_1", suffix=".png")
    with pytest.raises(
        InputError,
        match=r"x_1_mask\.png: the mask could be that of x_1\.png and of x_1\.tif; .* lists all 4 problems",
    ):
        load_samples(tmp_path)


def test_a_mask_of_another_size_is_named(tmp_path):
    path = pair(tmp_path / PATIENT, "x_1")
    save(path.with_name("x_1_mask.tif"), np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match=r"x_1_mask\.tif: the mask has shape \(9, 9\), its image \(40, 40\)"):
        load_samples(tmp_path)


def test_an_empty_slice_is_left_out_unless_its_mask_shows_a_tumor(tmp_path):
    pair(tmp_path / PATIENT, "x_1")
    empty = pair(tmp_path / PATIENT, "x_2", lesion=False)
    save(empty, np.zeros((40, 40, 3), np.uint8))
    assert [s.image.name for s in load_samples(tmp_path)] == ["x_1.tif"]
    pair(tmp_path / PATIENT, "x_2", lesion=True)
    save(empty, np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"x_2\.tif: the mask shows a tumor where the picture has one value"):
        load_samples(tmp_path)


def test_other_layouts_are_not_shadowed(tmp_path):
    pair(tmp_path / "class_folders" / "glioma", "x_1")
    assert {s.patient for s in load_samples(tmp_path / "class_folders")} == {""}
    pair(tmp_path / "mapped" / "tumeur", "x_1")
    assert {s.patient for s in load_samples(tmp_path / "mapped", {"tumeur": "glioma"})} == {""}
    pair(tmp_path / "splits" / "train", "x_1")
    with pytest.raises(InputError, match="the folder train is not named for a class"):
        load_samples(tmp_path / "splits")
    pair(tmp_path / "indexed" / PATIENT, "x_1")
    (tmp_path / "indexed" / "index.csv").write_text(f"image,label\n{PATIENT}/x_1.tif,meningioma\n")
    assert [s.label for s in load_samples(tmp_path / "indexed")] == ["meningioma"]
    save(tmp_path / "beside" / "images" / "x_1.png", small_slice(0).image)
    save(tmp_path / "beside" / "masks" / "x_1_mask.png", small_slice(0).mask)
    assert [s.label for s in load_samples(tmp_path / "beside")] == ["tumor"]


def test_patients_may_have_the_initials_of_a_class(tmp_path):
    for patient in ("PI00", "GL_1", "NO12"):
        pair(tmp_path / "set" / patient, "x_1")
    assert {(s.patient, s.label) for s in load_samples(tmp_path / "set")} == {
        ("PI00", "glioma"), ("GL_1", "glioma"), ("NO12", "glioma")
    }  # fmt: skip
    pair(tmp_path / "classes" / "meningioma" / "PI00", "x_1")
    (sample,) = load_samples(tmp_path / "classes")
    assert (sample.label, sample.patient, sample.mask.name) == ("meningioma", "PI00", "x_1_mask.tif")


def test_folds_keep_a_patient_together(lgg):
    samples = load_samples(lgg)
    folds = make_folds(samples)
    assert set(folds) == set(range(5))
    assert len({(s.patient, f) for s, f in zip(samples, folds, strict=True)}) == 6
    assert len(set(samples)) == len(samples)  # usable as keys


def test_the_channels_differ_and_the_seed_decides(lgg, tmp_path):
    sick = next(s for s in load_samples(lgg) if s.label == "glioma")
    pre, flair, post = (
        read_sample(s).image for c in range(3) for s in load_samples(lgg, channel=c) if s.image == sick.image
    )
    lesion = read_sample(sick).mask > 0
    assert flair[lesion].mean() > 1.3 * post[lesion].mean() > 1.3 * pre[lesion].mean()
    write_lgg_phantoms(tmp_path / "a", 1, 5, seed=3)
    write_lgg_phantoms(tmp_path / "b", 1, 5, seed=3)
    write_lgg_phantoms(tmp_path / "c", 1, 5, seed=4)
    first, same, other = (
        [p.read_bytes() for p in sorted((tmp_path / name).rglob("*_3.tif"))] for name in ("a", "b", "c")
    )
    assert first == same != other
    with pytest.raises(InputError, match="at least 1 patient and 5 slices"):
        write_lgg_phantoms(tmp_path, 1, 4)


@pytest.mark.slow
def test_a_segmenter_trains_on_it_from_scratch(lgg, tmp_path):
    config = SegmenterConfig(
        data=(str(lgg),),
        encoder="resnet18",
        size=64,
        epochs=1,
        batch_size=8,
        init="none",
        device="cpu",
        precision="fp32",
    )
    card = train_segmenter(config, tmp_path / "run", progress=False, say=lambda *_: None)
    assert sum(card["n_slices"].values()) == 66
    assert (tmp_path / "run" / "segmenter.safetensors").is_file()
    assert 0 <= card["metrics"]["test"]["dice_tumor"] <= 1


@pytest.fixture(scope="module")
def vertex(tmp_path_factory):
    """Ten patients with one equal slice: near the vertex all heads are a small disk; whose it is, the folder says."""
    folder = tmp_path_factory.mktemp("vertex")
    write_lgg_phantoms(folder, patients=10)
    first, *others = sorted(p for p in folder.iterdir() if p.is_dir())
    for other in others:
        for kind in ("", "_mask"):
            shutil.copy(first / f"{first.name}_1{kind}.tif", other / f"{other.name}_1{kind}.tif")
    return folder


@pytest.mark.parametrize("duplicates", ["error", "drop"])
def test_slices_of_two_patients_that_look_alike_do_not_stop_a_training(vertex, duplicates):
    parts = load_partition(DataConfig((str(vertex),), size=64, duplicates=duplicates))
    assert len(parts.train) + len(parts.validation) + len(parts.test) == 10 * 6
    assert not parts.dropped


def test_such_slices_are_not_copies_to_the_data_commands_either(vertex, tmp_path):
    division = divide(vertex)
    assert division.merged == 0
    assert len({s.patient for s in division.samples}) == 10
    assert {s.split for s in division.samples} == {"train", "validation", "test"}
    index = tmp_path / "index.csv"
    write_index(division, index)
    source = f"{index}@{vertex}"
    report = check_set(source)
    assert report.problems == 0
    assert not report.of("copy")
    stats = measure(load_samples(source), Preprocess(64))
    assert copy_pairs(stats.samples, stats.signatures) == []
    assert alike_pairs(stats.signatures)
    assert len(load_partition(DataConfig((source,), split="official", size=64)).test) > 0


def test_an_index_in_such_a_folder_that_takes_the_brightness_is_held_to_the_rule(vertex, tmp_path):
    samples = load_samples(vertex)
    rows = [f"{s.image},{s.mask},{s.label},{s.patient},{int(s.patient[8:12]) % 5}" for s in samples]
    shutil.copytree(vertex, tmp_path / "set")
    (tmp_path / "set" / "index.csv").write_text("\n".join(["image,mask,label,patient,fold", *rows]) + "\n")
    with pytest.raises(InputError, match=r"pairs of slices show the same picture.*, the closest\)"):
        load_partition(DataConfig((str(tmp_path / "set"),), size=64))


def test_an_index_keeps_the_channel(lgg, tmp_path):
    index = tmp_path / "index.csv"
    write_index(divide(lgg, folds=3), index)
    assert index.read_text().splitlines()[0] == "image,mask,label,patient,split,sequence,fold,channel"
    source = f"{index}@{lgg}"
    direct, again = load_samples(lgg), load_samples(source)
    assert [s.channel for s in again] == [1] * 66
    for one, other in zip(direct[:3], again[:3], strict=True):
        np.testing.assert_array_equal(read_sample(one).image, read_sample(other).image)
    assert {s.channel for s in load_samples(source, channel=2)} == {2}
    assert {row.sample.channel for row in list_rows(source).rows} == {1}
    assert {row.sample.channel for row in list_rows(source, channel=0).rows} == {0}
    write_index(divide(source), index, overwrite=True)  # an index of our own, with all its columns
    assert {s.channel for s in load_samples(source)} == {1}


def test_a_volume_has_no_channel_wherever_it_is_read(tmp_path):
    phantom = phantom_volume(7, shape=(32, 40, 6), spacing_mm=(6, 6, 25))
    save_volume(tmp_path / "no_tumor" / "a.nii.gz", phantom)
    samples = load_samples(tmp_path, channel=1)
    with pytest.raises(InputError, match="the scan is a volume") as error:
        read_sample(samples[0])
    swept = list(sweep(samples, Preprocess(64)))
    assert [s.reason for s in swept if isinstance(s, Unread)] == [str(error.value)] * len(samples)
