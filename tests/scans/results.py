"""Results of scans with a given mask, for the tests of pictures."""

from __future__ import annotations

from tumorlens.data.labels import CLASSES
from tumorlens.pipeline.measurements.lesions import measure_lesions, number_lesions
from tumorlens.pipeline.result import Result


def result_of(scan, mask, label="glioma", judged=None):
    """A result with measured lesions; by default every slice is judged."""
    probabilities = dict.fromkeys(CLASSES, 0.01) | {label: 0.97}
    slices = [
        {"index": int(k), "probabilities": probabilities} for k in (range(scan.n_slices) if judged is None else judged)
    ]
    lesions = measure_lesions(number_lesions(mask, scan), scan)
    return Result(scan, label, probabilities, mask, lesions, slices, [], 0.5, {}, {}, {}, 0, None, None, 0)
