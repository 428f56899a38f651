"""Small weight files, as the tests of the engines make them."""

from __future__ import annotations

import pytest

from tests.pipeline.engines.networks import save_classifier, save_segmenter


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("sharing") / "one.safetensors")


@pytest.fixture(scope="session")
def small_segmenter(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("sharing") / "two.safetensors", ("enhancing", "extent"))
