"""Weights of small networks for the tests of evaluation and of the commands; a batch to look at and to review."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.training.runs import classifier_config, segmenter_config, train
from tests.scans.pictures import save, save_volume
from tests.scans.studies import SICK, series
from tumorlens.data.phantom import phantom_slice, phantom_volume


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


@pytest.fixture(scope="session")
def finished_batch(pipeline, tmp_path_factory):
    """The folders of scans and results of a batch that was run once.

    It has pictures, a volume, a DICOM series, a file that is not a brain, and one that is damaged.
    """
    from tumorlens.pipeline.batch.inputs import collect
    from tumorlens.pipeline.batch.run import run_batch

    root = tmp_path_factory.mktemp("batch")
    scans = root / "scans"
    save(scans / "meningioma.png", phantom_slice(7, "meningioma").image)
    save(scans / "healthy.png", phantom_slice(1, "no_tumor").image)
    save(scans / "noise.png", np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8))
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    save_volume(scans / "volume.nii.gz", phantom_volume(7, "meningioma", (96, 112, 12), (2.0, 2.0, 10.0)))
    (scans / "dicom").mkdir()
    for path in series(root / "tmp", SICK):
        path.rename(scans / "dicom" / path.name)
    work = collect([str(scans)], root / "out", root / "scratch")
    run_batch(pipeline, work.jobs, root / "out")
    return scans, root / "out"
