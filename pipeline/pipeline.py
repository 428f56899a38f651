"""The two stages as one call: a scan goes in, a `Result` comes out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification.predict import Classifier
from data.errors import InputError
from data.head import tissue_shares
from data.labels import CLASSES
from data.preprocess import PreparedSlice, Preprocess
from data.readers import check_voxels, open_scan
from data.scan import Scan
from pipeline.gate import Verdict, judge_slice, judge_volume
from pipeline.lesions import measure_lesions, number_lesions, pixel_area_mm2, slice_areas_px, voxel_volume_mm3
from pipeline.options import ACQUISITION
from pipeline.result import LOW_CONFIDENCE, Result
from pipeline.versions import package_versions
from segmentation.predict import Segmenter

# Slices of a volume whose head is smaller than this share of the largest one (vertex, neck) show too little to judge.
MIN_HEAD_SHARE = 0.3
# The same of the pixels brighter than air: beyond the head a volume shows noise, which is no slice at all.
_MIN_TISSUE_SHARE = 0.15
# Smaller connected lesions of a volume are taken for noise: a ball of 5.8 mm. In a volume kept out of training (BraTS)
# the 6 of 18 pieces below it were all false; a higher limit would drop more of those, and small tumors with them.
MIN_LESION_MM3 = 100.0
_SMALL_PX = 48  # the models never saw so few pixels a side


@dataclass(frozen=True)
class Pipeline:
    """Both models, loaded once and used for any number of scans.

    Attributes:
        classifier: Stage one.
        segmenter: Stage two.
        threshold: Tumor probability from which a slice goes on to stage two.
    """

    classifier: Classifier
    segmenter: Segmenter
    threshold: float

    @classmethod
    def load(
        cls,
        classifier: str | Path | None = None,
        segmenter: str | Path | None = None,
        device: str = "auto",
        threshold: float | None = None,
    ) -> Pipeline:
        """Load both stages.

        Args:
            classifier: Weights of your own (``.safetensors`` with its card), or the shipped ones.
            segmenter: The same for stage two.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
            threshold: Tumor probability from which a slice is positive, 0..1; by default the one on the
                classifier's card, chosen on validation patients.

        Raises:
            InputError: Weights missing, damaged or of another architecture; no such device; a threshold out of range.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold {threshold} is not between 0 and 1")
        stage_one = Classifier.load(classifier, device)
        stage_two = Segmenter.load(segmenter, device)
        return cls(stage_one, stage_two, stage_one.tumor_threshold if threshold is None else threshold)

    def run(
        self,
        source: str | Path | NDArray[Any] | Scan,
        frame: int | None = None,
        plane: str = ACQUISITION,
        series: str | None = None,
    ) -> Result:
        """Classify a scan and, if it is positive, segment it.

        Args:
            source: A file, a folder or zip of DICOM files, an array as in `data.scan.Scan.from_array`, or a `Scan`.
            frame: Which frame of a 4-D file or of a DICOM series with several volumes.
            plane: How a volume is cut into slices: ``acquisition``, ``axial``, ``coronal`` or ``sagittal``.
            series: UID or number of the DICOM series, where the source holds several.

        Raises:
            InputError: The scan cannot be used; the message says what and where.
        """
        clock = _Clock()
        scan = self._open(source, frame, series)
        if scan.volume:
            scan = scan.with_plane(plane)
        clock.lap("read")
        prepared = self._prepare(scan, Preprocess(self.classifier.input_size))
        used = _used_slices(prepared)
        clock.lap("preprocess")
        probabilities = self._classify(prepared, used)
        verdict = self._judge(scan, probabilities, used)
        clock.lap("classify")
        mask = self._segment(scan, prepared, verdict)
        clock.lap("segment")
        return self._result(scan, prepared, probabilities, used, verdict, mask, clock)

    def _open(self, source: str | Path | NDArray[Any] | Scan, frame: int | None, series: str | None) -> Scan:
        if isinstance(source, (str, Path)):
            return open_scan(source, frame, series=series)
        scan = source if isinstance(source, Scan) else Scan.from_array(source)
        check_voxels(scan)
        return scan

    def _prepare(self, scan: Scan, preprocess: Preprocess) -> list[PreparedSlice | None]:
        """Every slice prepared; none for a slice of a volume that shows nothing but air."""
        aspect = scan.pixel_aspect
        if not scan.volume:
            return [preprocess(scan.slice(0), aspect)]
        tissue = tissue_shares(scan)
        shown = tissue >= _MIN_TISSUE_SHARE * max(float(tissue.max()), 1e-9)
        prepared: list[PreparedSlice | None] = []
        for k in range(scan.n_slices):
            view = scan.slice(k)
            prepared.append(preprocess(view, aspect) if shown[k] and view.min() < view.max() else None)
        if not any(prepared):
            raise InputError("no slice of the volume shows anything")
        return prepared

    def _classify(self, prepared: list[PreparedSlice | None], used: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Probabilities ``(n_slices, 4)``; slices that are not used count as free of tumor."""
        probabilities = np.tile(np.eye(len(CLASSES), dtype=np.float32)[0], (len(prepared), 1))
        images = [p.image for p, use in zip(prepared, used, strict=True) if use and p is not None]
        probabilities[used] = self.classifier.predict(np.stack(images))
        return probabilities

    def _judge(self, scan: Scan, probabilities: NDArray[np.float32], used: NDArray[np.bool_]) -> Verdict:
        if scan.n_slices == 1:
            return judge_slice(probabilities[0], self.threshold)
        distance = None if scan.spacing_mm is None else scan.spacing_mm[scan.slice_axis]
        return judge_volume(probabilities, used, self.threshold, distance)

    def _segment(self, scan: Scan, prepared: list[PreparedSlice | None], verdict: Verdict) -> NDArray[np.uint8]:
        """The gate: only positive slices reach the segmenter. Returns the mask in the scan's array order."""
        masks = np.zeros((scan.n_slices, *scan.slice(0).shape[:2]), np.uint8)
        chosen = [int(k) for k in np.flatnonzero(verdict.positive) if prepared[k] is not None]
        if chosen:
            grid = Preprocess(self.segmenter.input_size)
            inputs = [p for p in (prepared[k] for k in chosen) if p is not None]
            if grid.size != self.classifier.input_size:  # a stage of the user's own may work at another resolution
                inputs = [grid(scan.slice(k), scan.pixel_aspect) for k in chosen]
            maps = self.segmenter.predict(np.stack([p.image for p in inputs]))
            for k, p, map_hw in zip(chosen, inputs, maps, strict=True):
                masks[k] = grid.mask_to_source(map_hw, p.placement, self.segmenter.mask_threshold)
        return scan.mask_from_slices(masks)

    def _result(
        self,
        scan: Scan,
        prepared: list[PreparedSlice | None],
        probabilities: NDArray[np.float32],
        used: NDArray[np.bool_],
        verdict: Verdict,
        mask: NDArray[np.uint8],
        clock: _Clock,
    ) -> Result:
        numbers = number_lesions(mask, scan, MIN_LESION_MM3)
        lesions = measure_lesions(numbers, scan)
        mask = (numbers != 0).astype(np.uint8)
        areas = slice_areas_px(mask, scan)
        shown = lesions[0].slice_index if lesions else _slice_to_show(probabilities, used)
        area_mm2, voxel_mm3 = pixel_area_mm2(scan), voxel_volume_mm3(scan)
        spatial = {name: float(p) for name, p in zip(CLASSES, verdict.probabilities, strict=True)}
        clock.lap("measure")
        return Result(
            scan=scan,
            label=verdict.label,
            probabilities=spatial,
            mask=mask,
            lesions=lesions,
            slices=[
                {
                    "index": int(k),
                    "probabilities": {n: round(float(p), 6) for n, p in zip(CLASSES, probabilities[k], strict=True)},
                    "segmented": bool(verdict.positive[k]),
                    "area_px": int(areas[k]),
                }
                for k in np.flatnonzero(used)
            ],
            review=_review(scan, prepared, verdict, mask, spatial[verdict.label]),
            threshold=self.threshold,
            models={"classification": _identity(self.classifier.card), "segmentation": _identity(self.segmenter.card)},
            versions=package_versions(),
            timings_s=clock.laps,
            tumor_area_px=int(areas[shown]),
            tumor_area_mm2=None if area_mm2 is None else round(float(areas[shown] * area_mm2), 3),
            tumor_volume_mm3=None if voxel_mm3 is None else round(float(np.count_nonzero(mask) * voxel_mm3), 3),
            shown_slice=shown,
        )


class _Clock:
    """Seconds between the steps of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.laps[step] = now - self._last
        self._last = now


def _used_slices(prepared: list[PreparedSlice | None]) -> NDArray[np.bool_]:
    share = np.array([0.0 if p is None else p.head_fraction for p in prepared])
    if share.max() == 0:  # no head anywhere: judge all that shows something
        return np.array([p is not None for p in prepared])
    return share >= MIN_HEAD_SHARE * share.max()


def _slice_to_show(probabilities: NDArray[np.float32], used: NDArray[np.bool_]) -> int:
    """Without a mask, the middle of the judged slices."""
    judged = np.flatnonzero(used)
    return int(judged[len(judged) // 2])


def _review(
    scan: Scan, prepared: list[PreparedSlice | None], verdict: Verdict, mask: NDArray[np.uint8], confidence: float
) -> list[str]:
    reasons = list(scan.warnings)
    rows, columns = scan.slice(0).shape[:2]
    if min(rows, columns) < _SMALL_PX:
        reasons.append(f"slices of {rows} x {columns} pixels are too small to judge")
    if scan.volume and scan.spacing_mm is None:
        reasons.append("the file says nothing of size and orientation, so slices may be turned or stretched")
    if _has_two_levels(scan.voxels):
        reasons.append("only two grey levels, perhaps a mask")
    if not any(p is not None and p.head_fraction > 0 for p in prepared):
        reasons.append("no head found")
    if confidence < LOW_CONFIDENCE:
        reasons.append(f"low confidence ({confidence:.2f})")
    if verdict.positive.any() and not mask.any():
        reasons.append("classifier positive but mask empty")
    return reasons


def _has_two_levels(voxels: NDArray[Any]) -> bool:
    return bool(((voxels == voxels.min()) | (voxels == voxels.max())).all())


def _identity(card: dict[str, Any]) -> dict[str, Any]:
    return {key: card.get(key) for key in ("architecture", "encoder", "sha256", "date") if key in card}
