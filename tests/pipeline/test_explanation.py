"""Explanations of scans: Grad-CAM on the scan's own grid, drawn on request."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.scans.pictures import save, save_volume
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs.overlay import draw_heat


@pytest.mark.parametrize("volume", [False, True])
def test_an_explanation_is_drawn_on_request(tumorlens, tmp_path, volume):
    if volume:
        source = tmp_path / "a.nii.gz"
        save_volume(source, phantom_volume(7, "meningioma", shape=(96, 112, 6), spacing_mm=(2, 2, 18)))
    else:
        source = tmp_path / "a.png"
        save(source, phantom_slice(7, "meningioma").image)
    assert tumorlens("run", source, "-o", tmp_path / "out", "--explain").exit_code == 0
    picture = np.asarray(Image.open(tmp_path / "out" / "a" / "explanation.png"))
    overlay = np.asarray(Image.open(tmp_path / "out" / "a" / "overlay.png"))
    height, width = overlay.shape[:2]
    assert picture.shape[1] > 2 * width and picture.shape[0] > height  # mask and heat side by side, words below
    colored = picture.astype(int).max(axis=2) - picture.min(axis=2) > 40
    assert colored[:height, -width:].mean() > 0.005, "no heat is visible"
    assert (picture[:height, :width] == (255, 225, 0)).all(axis=2).any(), "the mask has no outline"
    assert not colored[height:].any() and (picture[height:] > 200).any()
    assert "explanation.png" in json.loads((tmp_path / "out" / "a" / "result.json").read_text())["files"]
    assert tumorlens("run", source, "-o", tmp_path / "plain").exit_code == 0
    assert not (tmp_path / "plain" / "a" / "explanation.png").exists()


def test_heat_lies_on_the_grid_of_the_scan(pipeline):
    image = np.pad(phantom_slice(7, "meningioma").image, ((0, 0), (300, 0)))
    heat = pipeline.run(image, RunOptions(explain=True)).heat
    assert heat.shape == image.shape
    assert heat[:, :250].max() == 0 < heat.max() <= 1


def test_without_a_request_there_is_no_heat(pipeline):
    result = pipeline.run(phantom_slice(3, "no_tumor").image)
    assert result.heat is None
    with pytest.raises(InputError, match="explain=True"):
        draw_heat(result)
