"""Folders for the Hugging Face Hub: its own library reads the card, and `Pipeline.load` the weights."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.pipeline.engines.networks import save_segmenter
from tumorlens.classification.config import SHIPPED
from tumorlens.data.cards.card import read_card
from tumorlens.data.masks.regions import Regions
from tumorlens.pipeline.sharing.card import model_card
from tumorlens.pipeline.sharing.huggingface import write_hub_folder
from tumorlens.segmentation.config import SHIPPED as SEGMENTER

FILES = {"LICENSE", "README.md", "config.json", "model.json", "model.safetensors", "preprocessor_config.json"}


def test_the_hub_reads_the_card_of_the_shipped_weights(tmp_path):
    from huggingface_hub import ModelCard

    write_hub_folder(SHIPPED, "classification", tmp_path / "hub")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == FILES
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (card.data.license, card.data.license_name, card.data.license_link) == (
        "other",
        "tumorlens-weights",
        "LICENSE",
    )
    assert (card.data.library_name, card.data.pipeline_tag) == ("tumorlens", "image-classification")
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    slices = read_card(SHIPPED)["metrics"]["validation"]["slice"]
    assert measured == {"accuracy": slices["accuracy"], "f1": slices["macro_f1"]}
    assert "not a medical device" in card.text
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["id2label"] == {"0": "no_tumor", "1": "glioma", "2": "meningioma", "3": "pituitary"}
    assert (tmp_path / "hub" / "LICENSE").read_text().startswith((REPOSITORY / "LICENSE-WEIGHTS").read_text())


@pytest.mark.parametrize(("weights", "kind"), [(SHIPPED, "huggingface"), (SEGMENTER, "monai-bundle")])
def test_the_limits_are_those_of_the_model_card(weights, kind):
    whole = (REPOSITORY / "MODEL_CARD.md").read_text(encoding="utf-8")
    section = whole.split("\n## Where it fails\n")[1].split("\n## ")[0]
    short = model_card(read_card(weights), kind).replace("\n", " ")
    points = re.findall(r"^- \*\*(.+?)\.?\*\*", section, re.MULTILINE)
    assert len(points) > 10
    assert [point for point in points if f"**{point}" not in short] == []


def test_a_downloaded_folder_is_loaded_as_its_readme_says(small_segmenter, tmp_path, monkeypatch):
    """In a cache of the Hub, the files of a snapshot are links to blobs."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    write_hub_folder(small_segmenter, "segmentation", tmp_path / "blobs")
    revision = "0" * 40
    repository = tmp_path / "cache" / "models--OWNER--NAME"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for number, name in enumerate(sorted(FILES)):
        blob = (tmp_path / "blobs" / name).rename(tmp_path / "blobs" / str(number))
        (snapshot / name).symlink_to(blob)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, download=huggingface_hub.snapshot_download: download(
            name, cache_dir=tmp_path / "cache", local_files_only=True
        ),
    )
    readme = (snapshot / "README.md").read_text()
    assert readme.startswith("---\nlicense: unknown\n")
    (example,) = re.findall(r"```python\n(.*?)result = .*?```", readme, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["pipeline"].segmenter.card["sha256"] == read_card(small_segmenter)["sha256"]


def test_a_folder_by_command(command, small_segmenter, tmp_path):
    export = ("export", "segmentation", "--weights", small_segmenter, "--format", "huggingface", "-o", tmp_path / "hub")
    done = command(*export)
    assert (done.exit_code, "hub: ready to upload" in done.output) == (0, True), done.output
    done = command(*export)
    assert (done.exit_code, "hub: this folder is not empty" in done.stderr) == (2, True)


def test_the_card_that_is_shared_names_no_place_of_the_training(small_segmenter, tmp_path):
    weights = Path(shutil.copy(small_segmenter, tmp_path / "w.safetensors"))
    start = {"data": ["C:\\ward\\a"], "init": "imagenet"}
    places = {"data": ["/home/me/set", "lists/x.csv@/mnt/scans/"], "init": "/home/me/runs/w.safetensors"}
    training = {**places, "seed": 3, "start": start}
    card = read_card(small_segmenter) | {"command": "tumorlens train --data /home/me/set", "training": training}
    weights.with_suffix(".json").write_text(json.dumps(card))
    write_hub_folder(weights, "segmentation", tmp_path / "hub")
    shared = read_card(tmp_path / "hub" / "model.safetensors")
    assert shared["training"] == training | {
        "data": ["set", "x.csv@scans"],
        "init": "w.safetensors",
        "start": {"data": ["a"], "init": "imagenet"},
    }
    assert shared == {name: value for name, value in card.items() if name != "command"} | {
        "training": shared["training"]
    }


def test_regions_are_labels_and_have_a_row_on_the_card(tmp_path):
    weights = save_segmenter(tmp_path / "w.safetensors", regions=Regions.parse(["whole=1,2", "core=2"]))
    write_hub_folder(weights, "segmentation", tmp_path / "hub")
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert (config["num_labels"], config["id2label"]) == (2, {"0": "whole", "1": "core"})
    readme = (tmp_path / "hub" / "README.md").read_text()
    assert "| regions | whole (mask values 1, 2); core (mask values 2) |" in readme and "| outlines" not in readme


def test_classes_without_healthy_slices_have_no_gate_in_the_texts():
    shipped = read_card(SHIPPED)
    text = model_card(shipped | {"classes": ["glioma", "meningioma"]}, "monai-bundle")
    assert "no answer for a slice without a tumor" in text and "together have 0.5" not in text
    assert "together have 0.5" in model_card(shipped, "monai-bundle")
