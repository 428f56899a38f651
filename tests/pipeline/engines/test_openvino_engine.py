"""Engines: the same answers whatever computes, models kept and made again, quick starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.conftest import REPOSITORY
from tests.scans.pictures import save
from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.model import build_classifier
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.classification.predict import Classifier
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.cli.app import app
from tumorlens.pipeline.engines import cache
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import Engine
from tumorlens.pipeline.engines.opening import open_classifier, open_segmenter
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.segmentation.model import build_segmenter
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER
from tumorlens.segmentation.predict import Segmenter

FP32 = Engine("openvino", "cpu", "fp32")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setenv("TUMORLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def save_classifier(path, name="cnn", size=64):
    torch.manual_seed(0)
    model = build_classifier(find_architecture(name), size)
    card = {"stage": "classification", "architecture": name, "classes": list(CLASSES), "input_size": size}
    save_weights(model.state_dict(), path, card | {"operating_point": {"tumor_threshold": 0.5}})
    return path


def save_segmenter(path):
    torch.manual_seed(0)
    channels = [16, 16, 16, 16, 16]
    model = build_segmenter("unet", "resnet18", tuple(channels))
    card = {"stage": "segmentation", "architecture": "unet", "encoder": "resnet18", "decoder_channels": channels}
    point = {"mask_threshold": 0.5, "min_lesion_px": 0}
    save_weights(model.state_dict(), path, card | {"input_size": 64, "operating_point": point})
    return path


def slices(size=64, n=3):
    preprocess = Preprocess(size)
    return np.stack([preprocess(phantom_slice(seed, "glioma").image).image for seed in range(n)])


def test_both_engines_see_the_same_in_untrained_networks(folder, tmp_path):
    one, two = save_classifier(tmp_path / "one.safetensors"), save_segmenter(tmp_path / "two.safetensors")
    images = slices(n=19)  # more than a batch
    logits, features = open_classifier(one, FP32)(images)
    assert features is None
    np.testing.assert_allclose(logits, Classifier.load(one, "cpu").logits(images), atol=1e-3)
    maps, expected = open_segmenter(two, FP32)(images), open_segmenter(two, Engine())(images)
    assert maps.dtype == np.uint8
    assert np.abs(maps.astype(int) - expected).max() <= 1
    assert len(open_segmenter(two, FP32)(images[:0])) == 0


def test_the_shipped_stages_agree(pipeline):
    """Labels, probabilities, strangeness and masks, in the precision that this machine takes by itself."""
    fast = Pipeline.load(device="cpu", engine="openvino")
    images = np.stack([Preprocess(pipeline.classifier.input_size)(phantom_slice(s, k).image).image for s, k in _CASES])
    for precision, far in ((fast, 0.03), (Pipeline.load(engine="openvino", precision="fp32"), 0.002)):
        logits, strange = precision.classifier.look(images)
        other, wanted = pipeline.classifier.look(images)
        distance = np.abs(precision.classifier.calibrate(logits) - pipeline.classifier.calibrate(other))
        assert distance.max() < far
        assert np.abs(strange - wanted).max() < 40 * far
    for seed, kind in _CASES:
        image = phantom_slice(seed, kind).image
        quick, slow = fast.run(image), pipeline.run(image)
        assert quick.label == slow.label
        assert 2 * (quick.mask & slow.mask).sum() >= 0.99 * (quick.mask.sum() + slow.mask.sum())
        assert quick.engine["name"] == "openvino"
        assert slow.engine == {"name": "torch", "device": "cpu", "precision": "fp32"}


_CASES = [(1, "no_tumor"), (7, "meningioma"), (9, "glioma"), (3, "meningioma")]


def test_volumes_and_mirrored_slices_agree(pipeline):
    volume = phantom_volume(7, "meningioma").scan
    fast = Pipeline.load(engine="openvino", precision="fp32", tta=True)
    quick = fast.run(volume)
    slow = Pipeline.load(device="cpu", engine="torch", precision="fp32", tta=True).run(volume)
    assert quick.label == slow.label
    assert 2 * (quick.mask & slow.mask).sum() >= 0.99 * (quick.mask.sum() + slow.mask.sum())


def test_explanations_need_layers_and_get_them(pipeline):
    image = phantom_slice(7, "meningioma").image
    fast = Pipeline.load(engine="openvino", precision="fp32").run(image, RunOptions(explain=True))
    np.testing.assert_allclose(fast.heat, pipeline.run(image, RunOptions(explain=True)).heat, atol=0.02)


def test_a_kept_model_is_used_again(folder, tmp_path, monkeypatch, caplog):
    path = save_classifier(tmp_path / "one.safetensors")
    expected, _ = open_classifier(path, FP32)(slices())
    assert "one.safetensors: OpenVINO's model is made, once" in caplog.text  # who waits is told for what
    caplog.clear()
    (kept,) = folder.iterdir()
    monkeypatch.setattr(cache, "_convert", lambda *_: pytest.fail("made again"))
    np.testing.assert_array_equal(open_classifier(path, FP32)(slices())[0], expected)
    shutil.copy(path, tmp_path / "elsewhere.safetensors")
    shutil.copy(path.with_suffix(".json"), tmp_path / "elsewhere.json")
    np.testing.assert_array_equal(open_classifier(tmp_path / "elsewhere.safetensors", FP32)(slices())[0], expected)
    assert [p.name for p in folder.iterdir()] == [kept.name]
    assert not caplog.text


def test_a_quiet_first_run_says_nothing(folder, tmp_path):
    one, two = save_classifier(tmp_path / "one.safetensors"), save_segmenter(tmp_path / "two.safetensors")
    save(tmp_path / "a.png", phantom_slice(7, "meningioma").image)
    command = [
        sys.executable,
        "-m",
        "tumorlens.pipeline.cli.app",
        "run",
        tmp_path / "a.png",
        "-o",
        tmp_path / "out",
        "--device",
        "cpu",
    ]
    command += ["--classifier", one, "--segmenter", two, "-q"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(list(folder.iterdir())) == 2  # both were made


@pytest.mark.parametrize("harm", ["model.bin", "model.xml", "stamp.json", "gone"])
def test_a_damaged_model_is_made_again(folder, tmp_path, harm):
    path = save_classifier(tmp_path / "one.safetensors")
    expected, _ = open_classifier(path, FP32)(slices())
    (kept,) = folder.iterdir()
    if harm == "gone":
        (kept / "model.xml").unlink()
    else:
        with (kept / harm).open("r+b") as file:
            file.seek(40)
            file.write(b"\x7f\x00\x7f")
    np.testing.assert_array_equal(open_classifier(path, FP32)(slices())[0], expected)
    (again,) = folder.iterdir()
    assert cache._is_whole(again, path, json.loads(path.with_suffix(".json").read_text()))


def test_damaged_weights_are_told_whatever_is_kept(folder, tmp_path):
    path = save_classifier(tmp_path / "one.safetensors")
    open_classifier(path, FP32)
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\x01\x02\x03")
    with pytest.raises(InputError, match="damaged or changed, their SHA-256"):
        open_classifier(path, FP32)


def test_other_weights_get_a_model_of_their_own(folder, tmp_path):
    open_classifier(save_classifier(tmp_path / "one.safetensors"), FP32)
    open_classifier(save_classifier(tmp_path / "two.safetensors", size=96), FP32)
    open_segmenter(save_segmenter(tmp_path / "three.safetensors"), FP32)
    assert len(list(folder.iterdir())) == 3


def test_old_models_go(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_MOST_KEPT", 2)
    for size in (64, 80, 96):
        open_classifier(save_classifier(tmp_path / f"{size}.safetensors", size=size), FP32)
    assert len(list(folder.iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUMORLENS_CACHE", str(tmp_path / "file"))
    path = save_classifier(tmp_path / "one.safetensors")
    assert open_classifier(path, FP32)(slices())[0].shape == (3, 4)


def test_processes_that_make_the_same_model_at_once(folder, tmp_path):
    path = save_classifier(tmp_path / "one.safetensors")
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from tumorlens.pipeline.engines.choice import Engine; from tumorlens.pipeline.engines.opening import open_classifier\n"
        "network = open_classifier(Path(sys.argv[1]), Engine('openvino', 'cpu', 'fp32'))\n"
        "print(network(np.zeros((2, 64, 64), np.uint8))[0].shape)"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["(2, 4)"] * 3
    (kept,) = folder.iterdir()
    assert cache._is_whole(kept, path, json.loads(path.with_suffix(".json").read_text()))


def test_a_network_that_openvino_cannot_take(folder, tmp_path, monkeypatch):
    one, two = save_classifier(tmp_path / "one.safetensors"), save_segmenter(tmp_path / "two.safetensors")

    def fail(*_, **__):
        raise RuntimeError("No conversion rule for aten::strange\nand more")

    monkeypatch.setattr(cache.openvino, "convert_model", fail)
    with pytest.raises(InputError, match=r"one\.safetensors: OpenVINO cannot take this network .*; use --engine torch"):
        Pipeline.load(one, two, engine="openvino")
    assert Pipeline.load(one, two, device="cpu").engine.name == "torch"  # left to itself it finds a way


def test_a_warm_start_imports_nothing_heavy(pipeline, tmp_path):
    Pipeline.load(device="cpu")  # makes the models, if no test has
    save(tmp_path / "a.png", phantom_slice(7, "meningioma").image)
    code = (
        "import sys; from typer.testing import CliRunner; from tumorlens.pipeline.cli.app import app\n"
        "done = CliRunner().invoke(app, ['run', 'a.png', '-o', 'out', '--device', 'cpu'])\n"
        "assert done.exit_code == 0, done.output\n"
        "print(sorted({'torch', 'monai', 'lightning', 'scipy', 'sklearn', 'matplotlib', 'pydicom', 'nibabel',\n"
        "              'openvino_telemetry.main'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert done.stdout.strip() == "[]"
    assert (tmp_path / "out" / "a" / "overlay.png").is_file()


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"engine": "tensorrt"}, "engine 'tensorrt' is none of auto, torch, openvino"),
        ({"precision": "int8"}, "precision int8 is not offered: its masks agree with those of fp32 by a Dice of 0.97"),
        ({"precision": "fp8"}, "precision 'fp8' is none of auto, fp32, bf16"),
        ({"engine": "openvino", "device": "cuda"}, "engine openvino runs on the CPU, not on device 'cuda'"),
        ({"engine": "torch", "device": "cuda:99"}, "device 'cuda:99' is not there"),
        ({"threads": 0}, "threads 0 is not 1 or more"),
    ],
)
def test_engines_that_cannot_be(wish, reason):
    with pytest.raises(InputError, match=reason):
        choose_engine(**wish)


def test_bf16_is_taken_where_the_processor_has_it_only(monkeypatch):
    from tumorlens.pipeline.engines import openvino_engine

    for capable, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(openvino_engine, "computes_bf16", lambda capable=capable: capable)
        assert choose_engine("openvino").precision == expected
    with pytest.raises(InputError, match="precision bf16: cpu does not compute it in hardware"):
        choose_engine("openvino", precision="bf16")


def test_engines_are_compared_on_labelled_slices(phantom_set, tmp_path):
    one, two = save_classifier(tmp_path / "one.safetensors"), save_segmenter(tmp_path / "two.safetensors")
    arguments = ["evaluate", "engines", "--data", str(phantom_set), "--fold", "0", "--classifier", str(one)]
    done = CliRunner().invoke(app, [*arguments, "--segmenter", str(two), "-o", str(tmp_path / "table.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "table.json").read_text())
    assert (rows[0]["engine"], rows[0]["precision"], rows[0]["labels_agree"]) == ("torch", "fp32", 1.0)
    fast = next(row for row in rows if (row["engine"], row["precision"]) == ("openvino", "fp32"))
    assert fast["n"] == 8
    assert fast["labels_agree"] == 1.0
    assert fast["masks_dice"] > 0.995
    assert len(done.stdout.strip().splitlines()) == 2 + len(rows)
    done = CliRunner().invoke(app, [*arguments[:4], "--fold", "9"])
    assert (done.exit_code, "no slice of fold 9" in done.stderr) == (2, True)


def test_an_engine_that_says_otherwise_does_not_hold():
    from tumorlens.pipeline.engines.agreement import Answers, _row

    labels, masks = np.array([0, 1, 1, 2]), np.zeros((4, 8, 8), np.uint8)
    masks[1:, 2:6, 2:6] = 1

    class Known:
        def __init__(self):
            self.labels, self.masks = labels, masks

        def __len__(self):
            return 4

    first = Answers(labels, masks, 1.0)
    assert _row(Engine(), first, first, Known())["holds"]
    other = labels.copy()
    other[1] = 3
    assert not _row(Engine(), Answers(other, masks, 1.0), first, Known())["holds"]
    shifted = np.roll(masks, 1, axis=2)
    row = _row(Engine(), Answers(labels, shifted, 1.0), first, Known())
    assert (row["labels_agree"], row["masks_dice"], row["holds"]) == (1.0, 0.75, False)


def test_an_engine_by_command(tmp_path):
    save(tmp_path / "a.png", phantom_slice(7, "meningioma").image)
    arguments = ["run", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--threads", "1"]
    done = CliRunner().invoke(app, [*arguments, "--engine", "openvino", "--precision", "fp32"])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "a" / "result.json").read_text())
    assert result["engine"] == {"name": "openvino", "device": "cpu", "precision": "fp32"}
    done = CliRunner().invoke(app, [*arguments, "--overwrite", "--engine", "cuda"])
    assert done.exit_code == 2
    assert "engine 'cuda' is none of" in done.stderr


def test_the_shipped_weights_are_opened_once_for_both(pipeline):
    stages = Pipeline.load(device="cpu", engine="openvino", precision="fp32")
    assert stages.classifier.source == CLASSIFIER
    assert isinstance(stages.segmenter, Segmenter)
    assert stages.segmenter.card["sha256"] == json.loads(SEGMENTER.with_suffix(".json").read_text())["sha256"]
