"""`Result`: everything that a run reports about a scan."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.data.errors import InputError
from tumorlens.data.labels import SHIPPED_CLASSES, TUMOR_FREE, ClassList
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.data.scan import Scan
from tumorlens.pipeline.gate import REFUSED, as_printed
from tumorlens.pipeline.measurements.lesions import Lesion, number_lesions
from tumorlens.pipeline.measurements.regions import RegionSize

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA_VERSION = 2

MALIGNANCY_NOTE = (
    "This is the typical behavior of the predicted tumor type, not a histological grade. Only a pathologist's "
    "examination of tissue gives a grade."
)


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """Label, probabilities, mask and measurements of one scan.

    Attributes:
        scan: The scan in the plane in which it was judged.
        label: One of `classes`; ``tumor`` where its type is uncertain; or ``refused`` for a scan that does
            not look like an MRI of the brain. A refused scan has no probabilities, an empty mask and no slices, and
            `review` says why.
        probabilities: Class -> probability, with six decimals, as they decide; for a volume, of the whole scan.
        mask: uint8, 0 and 1, in the array order of ``scan.voxels``: ``(i, j, k)``, or ``(rows, columns)`` of a picture.
        lesions: Connected lesions, largest first.
        slices: For each judged slice its index, probabilities, mask area, and whether the segmenter drew it or, where
            it sees a slice every 3 mm, its neighbors.
        review: Reasons why a person should look at this scan; empty if there are none.
        threshold: Tumor probability from which the scan was positive.
        models: Stage -> architecture, SHA-256 and date of the weights.
        versions: Package -> version.
        timings_s: Step -> seconds.
        tumor_area_px: Area of the mask in the shown slice in pixels; None for a refused scan.
        tumor_area_mm2: The same in mm2; None where the pixel size is unknown.
        tumor_volume_mm3: Volume of the mask in mm3; None for a picture or an unknown voxel size.
        shown_slice: Index of the slice in the overlay: where the largest lesion is largest, or the middle one.
        prediction_set: The classes that remain possible at the coverage on the classifier's card, including the label
            (of ``tumor`` the likeliest type); empty where the card has no such figures.
        sequence: The sequence that the scan shows, one of `data.labels.SEQUENCES`, and its probability; None for a
            refused scan, and for weights that do not name it.
        heat: Grad-CAM of the label on the shown slice, ``(rows, columns)`` in 0..1, if you asked for an explanation.
        engine: Name, device and precision of the engine that computed the result.
        lesion_map: uint8, 255 is certain: the segmenter's lesion probability on the grid of `mask`, if you asked for
            it. Several planes are one map (`pipeline.volumes.planes.fuse`). It is 0 where the segmenter was not asked,
            and holds also what was not sure enough for the mask.
        classes: The classes of the classifier.
        regions: The parts of a lesion that the segmenter tells apart, such as the core; mostly none.
        region_mask: uint8 on the grid of `mask`: the value of each voxel's region, 0 outside of the mask (see
            `data.masks.regions.Regions.paint`); None where the segmenter tells no regions apart. Every voxel of the
            mask has a region.
        region_sizes: The size of each region, in the order of `regions`.
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
    sequence: tuple[str, float] | None = None
    heat: NDArray[np.float32] | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    lesion_map: NDArray[np.uint8] | None = None
    classes: ClassList = SHIPPED_CLASSES
    regions: Regions = NO_REGIONS
    region_mask: NDArray[np.uint8] | None = None
    region_sizes: list[RegionSize] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether the scan was not judged."""
        return self.label == REFUSED

    @cached_property
    def numbers(self) -> NDArray[np.uint16]:
        """The number of each voxel's lesion, 0 outside, in the array order of `mask`."""
        return number_lesions(self.mask, self.scan)

    def region(self, name: str) -> NDArray[np.uint8]:
        """The mask of one region, 0 and 1, on the grid of `mask`. Regions may lie in each other.

        Raises:
            InputError: The segmenter tells no such region apart.
        """
        if self.region_mask is None or name not in self.regions.names:
            known = ", ".join(self.regions.names) or "none"
            raise InputError(f"there is no region {name!r}; the regions of this segmenter: {known}")
        return np.asarray((self.regions.bits(self.region_mask) >> self.regions.names.index(name)) & 1, np.uint8)

    @property
    def confidence(self) -> float | None:
        """Probability of the label, of ``tumor`` that of all types together; None for a refused scan."""
        if self.classes.is_uncertain(self.label):
            return as_printed(1 - self.probabilities.get(TUMOR_FREE, 0.0))
        return self.probabilities.get(self.label)

    @property
    def malignancy(self) -> str:
        """Typical behavior of the predicted type, see `MALIGNANCY_NOTE`; empty for a refused scan."""
        return "" if self.refused else self.classes.row(self.label).malignancy

    @property
    def positive(self) -> bool:
        """Whether the label is a tumor."""
        return not self.refused and self.label != TUMOR_FREE

    def overlay(self) -> Image:
        """The shown slice with mask, label and confidence, an RGB picture of PIL. A notebook shows it by itself."""
        from PIL import Image

        from tumorlens.pipeline.outputs.overlay import draw_overlay

        return Image.fromarray(draw_overlay(self))

    def save(self, folder: str | Path, name: str | None = None) -> list[Path]:
        """Write the files of `tumorlens run` for this scan: ``result.json``, overlay, masks, DICOM objects.

        Files of an earlier result in the folder are replaced.

        Args:
            folder: Made if it is missing.
            name: The scan's name in ``result.json``; by default that of its file, or else of the folder. Of DICOM it is
                always that of the folder, because files may be called as the patient.

        Returns:
            The files.

        Raises:
            InputError: The folder cannot be written to, or holds files with these names that tumorlens did not write.
        """
        from tumorlens.pipeline.outputs.write import write_result

        place = Path(folder)
        own = self.scan.path if self.scan.dicom is None else None
        name = name or (place.resolve() if own is None else own).name
        try:
            written = write_result(self, place, name)
        except (OSError, ValueError) as error:
            raise InputError(f"{place}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
        return [place / file for file in (*written["files"], "result.json")]

    def _repr_png_(self) -> bytes:
        """The overlay, for notebooks."""
        picture = BytesIO()
        self.overlay().save(picture, "png", compress_level=1)
        return picture.getvalue()

    def __repr__(self) -> str:
        confidence = "" if self.confidence is None else f" {self.confidence:.2f}"
        lesions = f", {len(self.lesions)} lesions" if self.lesions else ""
        lesions += f" of {', '.join(self.regions.names)}" if self.lesions and self.regions else ""
        return f"<Result: {self.label}{confidence}{lesions}{', to review' if self.review else ''}>"

    def to_dict(self) -> dict[str, Any]:
        """Everything except the arrays, as plain values for JSON."""
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
            **(self.classes.to_card() if self.classes != SHIPPED_CLASSES else {}),
            "label": self.label,
            "probabilities": dict(self.probabilities) or None,
            "confidence": self.confidence,
            "prediction_set": self.prediction_set,
            "sequence": None if self.sequence is None else self.sequence[0],
            "sequence_probability": None if self.sequence is None else round(self.sequence[1], 4),
            "malignancy": self.malignancy,
            "malignancy_note": MALIGNANCY_NOTE,
            "threshold": self.threshold,
            "tumor_area_px": self.tumor_area_px,
            "tumor_area_mm2": self.tumor_area_mm2,
            "tumor_volume_mm3": self.tumor_volume_mm3,
            **self._regions_of_dict(),
            "lesions": [asdict(lesion) for lesion in self.lesions],
            "slices": self.slices,
            "shown_slice": self.shown_slice,
            "review": self.review,
            "models": self.models,
            "engine": self.engine,
            "versions": self.versions,
            "timings_s": {name: round(seconds, 4) for name, seconds in self.timings_s.items()},
        }

    def _regions_of_dict(self) -> dict[str, Any]:
        sizes = [asdict(size) for size in self.region_sizes]
        return {
            key: [row | size for row, size in zip(rows, sizes, strict=True)]
            for key, rows in self.regions.to_card().items()
        }
