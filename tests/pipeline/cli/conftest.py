"""Fixtures of the tests of commands."""

from __future__ import annotations

import pytest


@pytest.fixture
def trained(command, monkeypatch):
    """Calls `tumorlens train` and returns the arguments that the training gets."""

    def call(*words):
        calls = []
        monkeypatch.setattr("tumorlens.classification.train.train_classifier", lambda *a: calls.append(a))
        monkeypatch.setattr("tumorlens.segmentation.train.train_segmenter", lambda *a: calls.append(a))
        done = command("train", *words)
        assert (done.exit_code, done.output) == (0, ""), done.output
        return calls[0]

    return call
