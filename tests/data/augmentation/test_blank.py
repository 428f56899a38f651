"""A blanked head shows its outline and nothing else."""

from __future__ import annotations

import numpy as np

from tumorlens.data.augmentation.blank import blank_head
from tumorlens.data.phantom import phantom_slice
from tumorlens.data.preprocessing.preprocess import Preprocess


def test_a_blanked_head_keeps_its_outline_and_nothing_else():
    image = Preprocess(224)(phantom_slice(7, "glioma").image).image
    inner = np.zeros((224, 224), bool)
    inner[90:130, 90:130] = True
    flat = [blank_head(image, seed) for seed in range(30)]
    assert all(((b == 0) == (flat[0] == 0))[~inner].mean() > 0.9 for b in flat)
    for blank in flat:
        correlation = np.corrcoef(blank[inner], image[inner])[0, 1] if blank[inner].std() else 0.0
        assert abs(correlation) < 0.5
    assert len({b[110, 110] for b in flat}) > 10
    assert np.array_equal(flat[3], blank_head(image, 3))
