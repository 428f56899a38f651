"""`Result`: all that one run says of one scan."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.scan import Scan
from tumorlens.pipeline.gate import REFUSED
from tumorlens.pipeline.measurements.lesions import Lesion

SCHEMA_VERSION = 2
LOW_CONFIDENCE = 0.7  # below it a case is sent to human eyes

_MALIGNANCY = {
    REFUSED: "",
    "no_tumor": "not applicable",
    "glioma": "malignant",
    "meningioma": "usually benign",
    "pituitary": "usually benign",
}

MALIGNANCY_NOTE = (
    "This is the typical behaviour of the predicted tumor type and no histological grade; only a pathologist's "
    "examination of tissue gives a grade."
)


@dataclass(frozen=True)
class Result:
    """Label, probabilities, mask and measurements of one scan.

    Attributes:
        scan: What was looked at.
        label: ``no_tumor``, ``glioma``, ``meningioma``, ``pituitary``, or ``refused`` for what is no MRI of the brain;
            then there are no probabilities, no mask and no slices, and `review` says why.
        probabilities: Class -> probability; for a volume, of the whole scan.
        prediction_set: The classes that remain possible at the coverage on the classifier's card, the label among them;
            empty where the weights have no such figures.
        mask: uint8, 0 and 1, in the array order of ``scan.voxels`` (without colours).
        lesions: Connected lesions, largest first.
        slices: For each judged slice its index, probabilities and whether the segmenter saw it.
        review: Why a person should look at this case; empty if nothing speaks for it.
        threshold: Tumor probability from which a slice was positive.
        models: Stage -> architecture, SHA-256 and date of the weights.
        versions: Package -> version.
        timings_s: Step -> seconds.
        heat: Grad-CAM of the label on the shown slice, ``(rows, columns)`` in 0..1, where it was asked for.
        engine: What computed: its name, device and precision.
    """

    scan: Scan
    label: str
    probabilities: dict[str, float]
    mask: NDArray[np.uint8]
    lesions: list[Lesion]
    slices: list[dict[str, Any]]
    review: list[str]
    threshold: float
    models: dict[str, dict[str, Any]]
    versions: dict[str, str]
    timings_s: dict[str, float]
    tumor_area_px: int | None
    tumor_area_mm2: float | None
    tumor_volume_mm3: float | None
    shown_slice: int
    prediction_set: list[str] = field(default_factory=list)
    heat: NDArray[np.float32] | None = None
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        """Whether the scan was not judged."""
        return self.label == REFUSED

    @property
    def confidence(self) -> float | None:
        """Probability of the label; none for a refused scan."""
        return self.probabilities.get(self.label)

    @property
    def malignancy(self) -> str:
        """Typical behaviour of the predicted type; see `MALIGNANCY_NOTE`."""
        return _MALIGNANCY[self.label]

    @property
    def positive(self) -> bool:
        return not self.refused and self.label != CLASSES[NO_TUMOR]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the arrays, as plain values for JSON."""
        scan = self.scan
        return {
            "schema_version": SCHEMA_VERSION,
            "scan": {
                "format": scan.format,
                "shape": [int(n) for n in scan.source_shape],
                "n_slices": scan.n_slices,
                "plane": scan.plane,
                "spacing_mm": None if scan.spacing_mm is None else [round(s, 6) for s in scan.spacing_mm],
                "notes": list(scan.notes),
                **({"dicom": scan.dicom.facts} if scan.dicom is not None else {}),
            },
            "label": self.label,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()} or None,
            "confidence": None if self.confidence is None else round(self.confidence, 6),
            "prediction_set": self.prediction_set,
            "malignancy": self.malignancy,
            "malignancy_note": MALIGNANCY_NOTE,
            "threshold": self.threshold,
            "tumor_area_px": self.tumor_area_px,
            "tumor_area_mm2": self.tumor_area_mm2,
            "tumor_volume_mm3": self.tumor_volume_mm3,
            "lesions": [asdict(lesion) for lesion in self.lesions],
            "slices": self.slices,
            "shown_slice": self.shown_slice,
            "review": self.review,
            "models": self.models,
            "engine": self.engine,
            "versions": self.versions,
            "timings_s": {name: round(seconds, 4) for name, seconds in self.timings_s.items()},
        }
