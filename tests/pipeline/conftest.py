"""Weights of small networks for the tests of evaluation and of the commands."""

from __future__ import annotations

import pytest

from tests.data.training.runs import classifier_config, segmenter_config, train


@pytest.fixture(scope="session")
def weights(phantom_set, tmp_path_factory):
    """A classifier and a segmenter that were trained for one epoch, with test fold 0."""
    folder = tmp_path_factory.mktemp("weights")
    train(classifier_config(phantom_set, epochs=1), folder / "c")
    train(segmenter_config(phantom_set, epochs=1), folder / "s")
    return {
        "classifier": str(folder / "c" / "classifier.safetensors"),
        "segmenter": str(folder / "s" / "segmenter.safetensors"),
    }
