"""The review desk of a batch."""

from __future__ import annotations

import shutil

import pytest

from tumorlens.pipeline.services.reviews.desk import Desk


@pytest.fixture
def scans(finished_batch):
    """The folder of the scans."""
    return finished_batch[0]


@pytest.fixture
def out(finished_batch, tmp_path):
    """A copy of the output folder, which a test may change."""
    shutil.copytree(finished_batch[1], tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def desk(out, scans):
    """The review desk of the batch."""
    desk = Desk(out, [str(scans)])
    yield desk
    desk.close()
