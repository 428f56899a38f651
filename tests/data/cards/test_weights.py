"""Weight files: their checksum is checked, no code in them runs, and the text of their card is readable."""

from __future__ import annotations

import json
import shutil

import pytest

from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.classification.predict import Classifier
from tumorlens.data.cards.weights import card_text, load_weights, read_state, save_weights
from tumorlens.data.errors import InputError
from tumorlens.segmentation.model import build_segmenter
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER
from tumorlens.segmentation.predict import Segmenter

HASHES = {"train": ["a"], "validation": [], "test": [], "start": None}


@pytest.fixture
def copy(tmp_path):
    for suffix in (".safetensors", ".json"):
        shutil.copy(CLASSIFIER.with_suffix(suffix), tmp_path / f"classifier{suffix}")
    return tmp_path / "classifier.safetensors"


def test_a_corrupted_file(copy):
    with copy.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(InputError, match="damaged or changed, their SHA-256"):
        Classifier.load(copy, "cpu")
    with pytest.raises(InputError, match="damaged or changed, their SHA-256"):  # as initial weights
        read_state(copy)


def test_a_truncated_file(copy):
    copy.write_bytes(copy.read_bytes()[:5000])
    with pytest.raises(InputError, match="SHA-256"):
        Classifier.load(copy, "cpu")


def test_hashes_of_patients_stand_seven_a_line(tmp_path):
    hashes = [f"{i:012x}" for i in range(15)]
    card = {"training": {"fold": 0, "patient_hashes": HASHES | {"train": hashes, "start": hashes[:1]}}, "sha256": "x"}
    text = card_text(card)
    assert json.loads(text) == card
    lines = [line for line in text.splitlines() if "00000000" in line]
    assert [line.count("00000000") for line in lines] == [7, 7, 1, 1]
    assert max(map(len, lines)) <= 120


def test_a_state_of_another_architecture(tmp_path):
    _, card = load_weights(SEGMENTER, "segmentation")
    other = build_segmenter(encoder="resnet18")
    path = tmp_path / "segmenter.safetensors"
    save_weights(other.state_dict(), path, card)
    with pytest.raises(InputError, match="another architecture"):
        Segmenter.load(path, "cpu")


def test_no_pickle_is_opened(tmp_path):
    """A checkpoint that would run code on loading is refused, and its code does not run."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with (tmp_path / "evil.pth").open("wb") as file:
        pickle.dump({"weight": Evil()}, file)
    with pytest.raises(InputError, match="cannot be loaded as weights"):
        read_state(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()
