"""Test-time augmentation: a slice and its mirror image get the same answer. It is off by default."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess


@pytest.fixture(scope="module")
def pair():
    """Prepared phantoms and their mirror images."""
    preprocess = Preprocess(224)
    images = np.stack([preprocess(phantom_slice(k, "glioma").image).image for k in (3, 4)])
    return images, np.ascontiguousarray(images[:, :, ::-1])


def test_the_label_does_not_depend_on_the_side(pipeline, pair):
    plain, both = pipeline.classifier, replace(pipeline.classifier, tta=True)
    one, other = both.look(pair[0]).logits, both.look(pair[1]).logits
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert np.abs(plain.look(pair[0]).logits - plain.look(pair[1]).logits).max() > 1e-3
    np.testing.assert_allclose(one, (plain.look(pair[0]).logits + plain.look(pair[1]).logits) / 2, atol=1e-4)
    np.testing.assert_allclose(both.look(pair[0]).logits, one, atol=1e-4)


def test_the_mask_is_mirrored_back(pipeline, pair):
    plain, both = pipeline.segmenter, replace(pipeline.segmenter, tta=True)
    one, other = both.predict(pair[0]), both.predict(pair[1])
    assert np.abs(one.astype(int) - other[:, :, ::-1]).max() <= 1
    assert (plain.predict(pair[0]) != one).any()


def test_a_result_reports_whether_it_was_used(tumorlens, tmp_path):
    from PIL import Image

    Image.fromarray(phantom_slice(3, "glioma").image).save(tmp_path / "a.png")
    for flags, used in (([], False), (["--tta"], True)):
        out = tmp_path / f"out{used}"
        done = tumorlens("run", tmp_path / "a.png", "-o", out, *flags)
        assert done.exit_code == 0
        models = json.loads(next(out.rglob("result.json")).read_text())["models"]
        assert [models[stage]["tta"] for stage in ("classification", "segmentation")] == [used, used]
