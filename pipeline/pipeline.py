"""The two stages as one call: a scan goes in, a `Result` comes out."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
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
from data.samples import channel_of
from data.scan import ACQUISITION, Scan
from pipeline.admission import REFUSED, reason_to_refuse
from pipeline.engines.choice import TORCH, Engine, UnsupportedNetworkError, choose_engine
from pipeline.engines.opening import open_stages
from pipeline.gate import Verdict, judge_slice, judge_volume
from pipeline.lesions import measure_lesions, number_lesions, pixel_area_mm2, slice_areas_px, voxel_volume_mm3
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
_log = logging.getLogger(__name__)
_SMALL_PX = 48  # the models never saw so few pixels a side


@dataclass(frozen=True)
class Pipeline:
    """Both models, loaded once and used for any number of scans.

    Attributes:
        classifier: Stage one.
        segmenter: Stage two.
        threshold: Tumor probability from which a slice goes on to stage two; none takes those on the classifier's card,
            one for pictures and one for slices of volumes.
        engine: What computes both.
    """

    classifier: Classifier
    segmenter: Segmenter
    threshold: float | None = None
    engine: Engine = TORCH

    @classmethod
    def load(
        cls,
        classifier: str | Path | None = None,
        segmenter: str | Path | None = None,
        device: str = "auto",
        threshold: float | None = None,
        tta: bool = False,
        engine: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
    ) -> Pipeline:
        """Load both stages.

        Args:
            classifier: Weights of your own (``.safetensors`` with its card), or the shipped ones.
            segmenter: The same for stage two.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
            threshold: Tumor probability from which a slice is positive, 0..1; by default the one on the
                classifier's card, chosen on validation patients.
            tta: Average both stages over each slice and its mirror image: twice the time.
            engine: ``torch``, ``openvino``, or ``auto``: OpenVINO where there is no accelerator.
            precision: ``fp32``, ``bf16``, or ``auto``: bfloat16 where the hardware computes it.
            threads: Of a network's computation; by default all cores.

        Raises:
            InputError: Weights missing, damaged or of another architecture; no such device, engine or precision; a
                threshold out of range.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold {threshold} is not between 0 and 1")
        chosen = choose_engine(engine, device, precision, threads)
        try:
            stages = open_stages(classifier, segmenter, chosen, tta)
        except UnsupportedNetworkError as error:
            if engine != "auto":
                raise
            _log.warning("%s", error)
            chosen = choose_engine("torch", "cpu", precision, threads)
            stages = open_stages(classifier, segmenter, chosen, tta)
        return cls(*stages, threshold, chosen)

    def threshold_of(self, scan: Scan) -> float:
        """The tumor probability from which a slice of this scan is positive."""
        if self.threshold is not None:
            return self.threshold
        return self.classifier.tumor_threshold if scan.n_slices == 1 else self.classifier.volume_threshold

    def run(
        self,
        source: str | Path | NDArray[Any] | Scan,
        frame: int | None = None,
        plane: str = ACQUISITION,
        series: str | None = None,
        force: bool = False,
        explain: bool = False,
        channel: int | None = None,
    ) -> Result:
        """Classify a scan and, if it is positive, segment it; refuse what is no MRI of the brain.

        Args:
            source: A file, a folder or zip of DICOM files, an array as in `data.scan.Scan.from_array`, or a `Scan`.
            frame: Which frame of a 4-D file or of a DICOM series with several volumes.
            plane: How a volume is cut into slices: ``acquisition``, ``axial``, ``coronal`` or ``sagittal``.
            series: UID or number of the DICOM series, where the source holds several.
            force: Judge the scan even if it does not look like an MRI of the brain.
            explain: Add Grad-CAM of the label on the shown slice (`Result.heat`).
            channel: Which channel of a colour picture is the scan, 0 to 2; by default its brightness.

        Raises:
            InputError: The scan cannot be used; the message says what and where.
        """
        clock = _Clock()
        scan = self._open(source, frame, series)
        if channel is not None:
            scan = replace(scan, voxels=channel_of(scan, channel))
            check_voxels(scan)
        if scan.volume:
            scan = scan.with_plane(plane)
        clock.lap("read")
        prepared = self._prepare(scan, Preprocess(self.classifier.input_size))
        used = _used_slices(prepared)
        clock.lap("preprocess")
        probabilities, doubt = self._classify(prepared, used)
        if doubt and not force:
            clock.lap("classify")
            return self._refused(scan, prepared, used, doubt, clock)
        verdict = self._judge(scan, probabilities, used)
        clock.lap("classify")
        mask = self._segment(scan, prepared, verdict)
        clock.lap("segment")
        result = self._result(scan, prepared, probabilities, used, verdict, mask, clock)
        if doubt:
            result.review.insert(0, f"{doubt}; judged all the same, as --force asked")
        return self._explained(prepared, result) if explain else result

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

    def _classify(
        self, prepared: list[PreparedSlice | None], used: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], str | None]:
        """Probabilities ``(n_slices, 4)``, in which slices that are not used count as free of tumor, and why the scan
        may be no MRI of the brain."""
        probabilities = np.tile(np.eye(len(CLASSES), dtype=np.float32)[0], (len(prepared), 1))
        chosen = [p for p, use in zip(prepared, used, strict=True) if use and p is not None]
        logits, strangeness = self.classifier.look(np.stack([p.image for p in chosen]))
        probabilities[used] = self.classifier.calibrate(logits)
        has_head = any(p.head_fraction > 0 for p in chosen)
        return probabilities, reason_to_refuse(has_head, strangeness, self.classifier.strangeness_limit)

    def _explained(self, prepared: list[PreparedSlice | None], result: Result) -> Result:
        """The result with Grad-CAM of its label on the shown slice, on the source's grid; where the network has nothing
        to draw it from, the result stands without, and says so."""
        shown = prepared[result.shown_slice]
        if shown is None:
            return result
        try:
            heat = self.classifier.explain(shown.image[None], [CLASSES.index(result.label)])[0]
        except InputError as error:
            result.review.append(f"no explanation: {error}")
            return result
        grid = Preprocess(self.classifier.input_size)
        on_source = grid.map_to_source(np.rint(heat * 255).astype(np.uint8), shown.placement)
        return replace(result, heat=(on_source / 255).astype(np.float32))

    def _refused(
        self, scan: Scan, prepared: list[PreparedSlice | None], used: NDArray[np.bool_], doubt: str, clock: _Clock
    ) -> Result:
        judged = np.flatnonzero(used)
        return Result(
            scan=scan,
            label=REFUSED,
            probabilities={},
            prediction_set=[],
            mask=scan.mask_from_slices(np.zeros((scan.n_slices, *scan.slice(0).shape[:2]), np.uint8)),
            lesions=[],
            slices=[],
            review=[f"refused: {doubt}; --force judges it all the same", *_doubts(scan, prepared)],
            tumor_area_px=None,
            tumor_area_mm2=None,
            tumor_volume_mm3=None,
            shown_slice=int(judged[len(judged) // 2]),
            **self._origin(scan, clock),
        )

    def _origin(self, scan: Scan, clock: _Clock) -> dict[str, Any]:
        """What every result says of how it came about."""
        return {
            "threshold": self.threshold_of(scan),
            "models": {
                "classification": _identity(self.classifier.card) | {"tta": self.classifier.tta},
                "segmentation": _identity(self.segmenter.card) | {"tta": self.segmenter.tta},
            },
            "engine": self.engine.facts(),
            "versions": package_versions(),
            "timings_s": clock.laps,
        }

    def _prediction_set(self, verdict: Verdict) -> list[str]:
        # The user's own threshold, or the rule for volumes, may call what a picture alone would not be called.
        decided = np.array([CLASSES.index(verdict.label)])
        sets = self.classifier.prediction_sets(verdict.probabilities[None], decided)
        return [] if sets is None else [name for name, inside in zip(CLASSES, sets[0], strict=True) if inside]

    def _judge(self, scan: Scan, probabilities: NDArray[np.float32], used: NDArray[np.bool_]) -> Verdict:
        if scan.n_slices == 1:
            return judge_slice(probabilities[0], self.threshold_of(scan))
        distance = None if scan.spacing_mm is None else scan.spacing_mm[scan.slice_axis]
        return judge_volume(probabilities, used, self.threshold_of(scan), distance)

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
        possible = self._prediction_set(verdict)
        spatial = {name: float(p) for name, p in zip(CLASSES, verdict.probabilities, strict=True)}
        clock.lap("measure")
        return Result(
            scan=scan,
            label=verdict.label,
            probabilities=spatial,
            prediction_set=possible,
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
            review=_review(scan, prepared, verdict, mask, possible),
            tumor_area_px=int(areas[shown]),
            tumor_area_mm2=None if area_mm2 is None else round(float(areas[shown] * area_mm2), 3),
            tumor_volume_mm3=None if voxel_mm3 is None else round(float(np.count_nonzero(mask) * voxel_mm3), 3),
            shown_slice=shown,
            **self._origin(scan, clock),
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
    scan: Scan, prepared: list[PreparedSlice | None], verdict: Verdict, mask: NDArray[np.uint8], possible: list[str]
) -> list[str]:
    """Why a person should look at a scan that was judged."""
    reasons = _doubts(scan, prepared)
    if len(possible) > 1:
        reasons.append(f"cannot be told apart at 95 %: {', '.join(name.replace('_', ' ') for name in possible)}")
    confidence = float(verdict.probabilities[CLASSES.index(verdict.label)])
    if confidence < LOW_CONFIDENCE:
        reasons.append(f"low confidence ({confidence:.2f})")
    if verdict.positive.any() and not mask.any():
        reasons.append("classifier positive but mask empty")
    return reasons


def _doubts(scan: Scan, prepared: list[PreparedSlice | None]) -> list[str]:
    """What is wrong with the scan itself, whatever is in it."""
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
    return reasons


def _has_two_levels(voxels: NDArray[Any]) -> bool:
    return bool(((voxels == voxels.min()) | (voxels == voxels.max())).all())


def _identity(card: dict[str, Any]) -> dict[str, Any]:
    return {key: card.get(key) for key in ("architecture", "encoder", "sha256", "date") if key in card}
