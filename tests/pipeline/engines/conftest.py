"""Fixtures of the engine tests: small weight files, made once, and a cache folder for each test."""

from __future__ import annotations

import pytest

from tests.pipeline.engines.networks import save_classifier, save_segmenter


@pytest.fixture(scope="session")
def small_classifier(tmp_path_factory):
    """A weight file; tests that change it take a copy."""
    return save_classifier(tmp_path_factory.mktemp("small") / "one.safetensors")


@pytest.fixture(scope="session")
def small_segmenter(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("small") / "two.safetensors")


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setenv("TUMORLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"
