"""Whether a scan is one that the models can judge at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

REFUSED = "refused"  # the label of a scan that is not judged


def reason_to_refuse(has_head: bool, strangeness: NDArray[np.float32] | None, limit: float | None) -> str | None:
    """Why a scan is taken for something else than an MRI of the brain, or none.

    Args:
        has_head: Whether a head stands out from the background in any slice.
        strangeness: ``(n,)`` score of the judged slices, see `classification.refusal`; none for weights without one.
        limit: The highest score of a brain slice. A volume is refused where more than half of its slices lie above,
            for the first and last ones of a head often do.
    """
    if not has_head:
        return "no head stands out from the background"
    if strangeness is None or limit is None or not len(strangeness):
        return None
    beyond = strangeness > limit
    if 2 * int(beyond.sum()) <= len(beyond):
        return None
    score = f"score {float(np.median(strangeness)):.2f}, at most {limit:.2f} in brains"
    if len(beyond) == 1:
        return f"does not look like an MRI of the brain ({score})"
    return f"{int(beyond.sum())} of {len(beyond)} slices do not look like an MRI of the brain ({score})"
