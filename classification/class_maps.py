"""Grad-CAM without gradients, for networks that end in a mean over the last feature maps and a linear layer.

The gradient of a logit by such a feature map is the layer's weight, divided by the number of places, everywhere. So the
maps weighted by the linear layer are Grad-CAM's, but for that number, which the division by the maximum takes out
(R. Selvaraju et al., ICCV 2017, say so of the class activation maps of B. Zhou et al., CVPR 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def heat_of(maps_nchw: NDArray[np.float32], outputs_n: Sequence[int] | NDArray[Any], size: int) -> NDArray[np.float32]:
    """The parts of each slice that speak for one output, ``(n, size, size)`` in 0..1, as `classification.gradcam` has
    them: each map divided by its maximum, all 0 where nothing speaks for it.

    Args:
        maps_nchw: ``(n, outputs, h, w)``, what each place of the last feature maps adds to each logit.
        outputs_n: ``(n,)`` the output to explain in each slice.
        size: Side of the slices in pixels.
    """
    heat = np.zeros((len(maps_nchw), size, size), np.float32)
    for place, maps, output in zip(heat, maps_nchw, outputs_n, strict=True):
        place[:] = cv2.resize(np.maximum(maps[output], 0), (size, size), interpolation=cv2.INTER_LINEAR)
        place /= max(place.max(), np.finfo(np.float32).tiny)
    return heat
