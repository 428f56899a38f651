"""The cache of OpenVINO models: made once, checked before each use, made again where damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib

import numpy as np
import openvino
import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.engines.networks import OPENVINO_FP32, save_classifier, save_segmenter, slices
from tests.scans.pictures import save
from tumorlens.data.errors import InputError
from tumorlens.data.masks.regions import Regions
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.engines import cache
from tumorlens.pipeline.engines.opening import open_classifier, open_segmenter
from tumorlens.pipeline.pipeline import Pipeline


def copy_weights(weights, path):
    shutil.copy(weights, path)
    shutil.copy(weights.with_suffix(".json"), path.with_suffix(".json"))
    return path


@pytest.fixture(scope="module")
def filled_cache(small_classifier, tmp_path_factory):
    """A cache with the model of the small classifier, and the logits that it gives for three slices."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUMORLENS_CACHE", str(folder))
        logits, _ = open_classifier(small_classifier, OPENVINO_FP32)(slices())
    return folder, logits


@pytest.fixture
def stored(filled_cache, cache_folder):
    """The test's own copy of the filled cache: the folder of the only model, and its logits."""
    shutil.copytree(filled_cache[0], cache_folder.parent)
    (folder,) = cache_folder.iterdir()
    return folder, filled_cache[1]


def is_whole(folder, weights):
    return cache._content(folder, weights, json.loads(weights.with_suffix(".json").read_text())) is not None


def test_a_new_model_is_announced(cache_folder, small_classifier, caplog):
    open_classifier(small_classifier, OPENVINO_FP32)
    assert "one.safetensors: converting the network for OpenVINO once" in caplog.text
    assert len(list(cache_folder.iterdir())) == 1


def test_a_stored_model_is_used_again(stored, small_classifier, tmp_path, monkeypatch, caplog):
    folder, logits = stored
    monkeypatch.setattr(cache, "_compile", lambda *_: pytest.fail("made again"))
    elsewhere = copy_weights(small_classifier, tmp_path / "elsewhere.safetensors")
    for weights in (small_classifier, elsewhere):
        np.testing.assert_array_equal(open_classifier(weights, OPENVINO_FP32)(slices())[0], logits)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert not caplog.text


@pytest.mark.slow
def test_a_quiet_first_run_says_nothing(cache_folder, small_classifier, small_segmenter, tmp_path):
    save(tmp_path / "a.png", phantom_slice(7, "meningioma").image)
    command = [sys.executable, "-m", "tumorlens.pipeline.cli.app", "run", tmp_path / "a.png", "-o", tmp_path / "out"]
    command += ["--device", "cpu", "--classifier", small_classifier, "--segmenter", small_segmenter, "-q"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(list(cache_folder.iterdir())) == 2  # both were made


@pytest.mark.parametrize("harm", ["model.blob", "stamp.json", "gone"])
def test_a_damaged_model_is_made_again(stored, small_classifier, harm):
    folder, logits = stored
    if harm == "gone":
        (folder / "model.blob").unlink()
    else:
        with (folder / harm).open("r+b") as file:
            file.seek(40)
            file.write(b"\x7f\x00\x7f")
    assert not is_whole(folder, small_classifier)
    np.testing.assert_array_equal(open_classifier(small_classifier, OPENVINO_FP32)(slices())[0], logits)
    (again,) = folder.parent.iterdir()
    assert is_whole(again, small_classifier)


def test_a_model_that_openvino_does_not_take_is_replaced(stored, small_classifier, monkeypatch):
    """As where it was stored for another processor, or by another build."""
    folder, logits = stored
    (folder / "model.blob").write_bytes(b"another")
    stamp = json.loads((folder / "stamp.json").read_text()) | {"crc32": zlib.crc32(b"another")}
    (folder / "stamp.json").write_text(json.dumps(stamp))
    assert is_whole(folder, small_classifier)
    np.testing.assert_array_equal(open_classifier(small_classifier, OPENVINO_FP32)(slices())[0], logits)
    monkeypatch.setattr(cache, "_compile", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(open_classifier(small_classifier, OPENVINO_FP32)(slices())[0], logits)


def test_a_full_temporary_folder_costs_only_memory(cache_folder, small_classifier, monkeypatch, caplog):
    def full(*_, **__):
        raise RuntimeError("Can't open bin file")

    monkeypatch.setattr(cache.openvino, "save_model", full)
    assert open_classifier(small_classifier, OPENVINO_FP32)(slices())[0].shape == (3, 4)
    assert "takes twice the memory" in caplog.text


def test_damaged_weights_are_reported_although_their_model_is_stored(stored, small_classifier, tmp_path):
    weights = copy_weights(small_classifier, tmp_path / "one.safetensors")
    open_classifier(weights, OPENVINO_FP32)
    with weights.open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x02\x03")
    with pytest.raises(InputError, match="damaged or changed, their SHA-256"):
        open_classifier(weights, OPENVINO_FP32)


def test_other_weights_get_a_model_of_their_own(stored, small_segmenter, tmp_path):
    open_classifier(save_classifier(tmp_path / "larger.safetensors", size=96), OPENVINO_FP32)
    open_segmenter(small_segmenter, OPENVINO_FP32)
    assert len(list(stored[0].parent.iterdir())) == 3


def test_a_stored_model_is_not_taken_for_a_card_of_other_channels(cache_folder, tmp_path):
    weights = save_segmenter(tmp_path / "two.safetensors", regions=Regions.parse(["whole=1,2", "core=1"]))
    assert open_segmenter(weights, OPENVINO_FP32)(slices()).shape[1] == 2
    card = json.loads(weights.with_suffix(".json").read_text())
    weights.with_suffix(".json").write_text(json.dumps(card | {"regions": card["regions"][:1]}))
    with pytest.raises(InputError, match=r"segmentation_head\.0\.weight has 2 channels, the card 1"):
        open_segmenter(weights, OPENVINO_FP32)


def test_old_models_are_deleted(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_MOST_MODELS", 2)
    for size in (80, 96):
        open_classifier(save_classifier(tmp_path / f"{size}.safetensors", size=size), OPENVINO_FP32)
    assert len(list(stored[0].parent.iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(small_classifier, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUMORLENS_CACHE", str(tmp_path / "file"))
    assert open_classifier(small_classifier, OPENVINO_FP32)(slices())[0].shape == (3, 4)


def test_a_slower_process_leaves_the_model_that_is_there(stored, small_classifier):
    """Two processes made the same model; the first one has stored it meanwhile."""
    folder, logits = stored
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    model = openvino.Core().import_model((folder / "model.blob").read_bytes(), "CPU")
    cache._store(model, folder, small_classifier, json.loads(small_classifier.with_suffix(".json").read_text()))
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
    np.testing.assert_array_equal(open_classifier(small_classifier, OPENVINO_FP32)(slices())[0], logits)


@pytest.mark.slow
def test_processes_make_the_same_model_at_the_same_time(cache_folder, small_classifier):
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from tumorlens.pipeline.engines.engine import Engine\n"
        "from tumorlens.pipeline.engines.opening import open_classifier\n"
        "network = open_classifier(Path(sys.argv[1]), Engine('openvino', 'cpu', 'fp32'))\n"
        "print(network(np.zeros((2, 64, 64), np.uint8))[0].shape)"
    )
    command = [sys.executable, "-c", code, str(small_classifier)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["(2, 4)"] * 3
    (folder,) = cache_folder.iterdir()
    assert is_whole(folder, small_classifier)


def test_a_network_that_openvino_cannot_take(cache_folder, small_classifier, small_segmenter, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No conversion rule for aten::strange\nand more")

    monkeypatch.setattr(cache.openvino, "convert_model", fail)
    with pytest.raises(InputError, match=r"one\.safetensors: OpenVINO cannot take this network .*; use --engine torch"):
        Pipeline.load(small_classifier, small_segmenter, engine="openvino")
    assert Pipeline.load(small_classifier, small_segmenter, device="cpu").engine.name == "torch"  # auto finds a way
