"""The two stages as one call: a scan goes in, a `Result` comes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, NO_TUMOR
from tumorlens.data.preprocessing.preprocess import Placement, Preprocess
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import Case, open_source, prepare
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import TORCH, Engine
from tumorlens.pipeline.engines.opening import open_or_torch, open_stages
from tumorlens.pipeline.gate import Scores, Verdict, judge
from tumorlens.pipeline.measurements.lesions import (
    Lesion,
    measure_lesions,
    number_lesions,
    pixel_area_mm2,
    slice_areas_px,
    voxel_volume_mm3,
)
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.result import Result
from tumorlens.pipeline.review import reasons_to_review
from tumorlens.pipeline.versions import package_versions
from tumorlens.segmentation.predict import Segmenter

# Smaller connected lesions of a volume count as noise: a ball of 5.8 mm. In a volume kept out of training (BraTS) the 6
# of 18 pieces below it were all false. A higher limit would drop more of those, and small tumors with them.
MIN_LESION_MM3 = 100.0

# Positive slice -> lesion map ``(size, size)`` uint8 on the segmenter's grid, 255 is certain, and the way back.
LesionMaps = dict[int, tuple[NDArray[np.uint8], Placement]]


@dataclass(frozen=True)
class Measurements:
    """The mask of a scan and its measurements.

    Attributes:
        mask: uint8, 0 and 1, in the array order of the scan.
        lesions: Connected lesions, largest first.
        areas_px: ``(n_slices,)`` mask pixels of each slice.
        shown_slice: The slice in which the largest lesion is largest; without lesions, the middle of the judged slices.
    """

    mask: NDArray[np.uint8]
    lesions: list[Lesion]
    areas_px: NDArray[np.int64]
    shown_slice: int


@dataclass(frozen=True)
class Explanation:
    """Grad-CAM of the label on the shown slice.

    Attributes:
        heat: ``(rows, columns)`` float32 in 0..1 on the scan's own grid, or None where the network has no feature maps.
        problem: Why there is no heat, or None.
    """

    heat: NDArray[np.float32] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Decision:
    """Everything about a scan that needs the networks.

    Attributes:
        scores: The classifier's answer for each slice.
        verdict: The gate's decision about the scan.
        maps: The segmenter's answer for each positive slice.
        measurements: Already there where the explanation needed them.
        explanation: Empty unless you ask for one.
    """

    scores: Scores
    verdict: Verdict
    maps: LesionMaps
    measurements: Measurements | None = None
    explanation: Explanation = Explanation()


@dataclass(frozen=True)
class Pipeline:
    """Both models, loaded once and used for any number of scans.

    Attributes:
        classifier: Stage one.
        segmenter: Stage two.
        threshold: Tumor probability from which a slice goes on to stage two. None takes the thresholds on the
            classifier's card: one for pictures and one for slices of volumes.
        engine: The engine that computes both.
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
            classifier: Your own weights (``.safetensors`` with its card), or None for the shipped ones.
            segmenter: The same for stage two.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
            threshold: Tumor probability from which a slice is positive, 0..1. The default is on the classifier's card
                and was chosen on validation patients.
            tta: Average both stages over each slice and its mirror image. This takes twice the time.
            engine: ``torch``, ``openvino``, or ``auto``: OpenVINO where there is no accelerator.
            precision: ``fp32``, ``bf16``, or ``auto``: OpenVINO computes in bfloat16 where the hardware does.
            threads: Threads that compute a network; all cores by default.

        Raises:
            InputError: Weights are missing, damaged or of another architecture; the device, engine or precision is not
                available; the threshold is out of range.
        """
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold {threshold} is not between 0 and 1")
        first_choice = choose_engine(engine, device, precision, threads)
        stages, opened_on = open_or_torch(
            lambda engine: open_stages(classifier, segmenter, engine, tta), first_choice, engine, precision
        )
        return cls(*stages, threshold, opened_on)

    def run(
        self, source: str | Path | NDArray[Any] | Scan, options: RunOptions = RunOptions(), series: str | None = None
    ) -> Result:
        """Classify a scan and, if it is positive, segment it. A scan that is not an MRI of the brain is refused.

        Args:
            source: A file, a folder or zip of DICOM files, an array as in `data.scan.Scan.from_array`, or a `Scan`.
            options: Frame, channel, plane, and whether to force and to explain. The other fields concern output files.
            series: UID or number of the DICOM series, where the source holds several.

        Raises:
            InputError: The scan cannot be used. The message says what is wrong and where.

        Example:
            >>> Pipeline.load().run("scan.nii.gz", RunOptions(plane="coronal", explain=True))
        """
        begun = time.perf_counter()
        scan = open_source(source, options, series)
        case = prepare(scan, self.classifier.input_size, read_s=time.perf_counter() - begun)
        (scores,) = self.classify([case])
        verdict = self.gate(case, scores, options.force)
        (maps,) = self.segment([case], [verdict])
        measurements = self.measure(case, maps)
        explanation = self.explain(case, verdict, measurements) if options.explain else Explanation()
        return self.to_result(case, scores, verdict, measurements, explanation)

    def decide(self, cases: Sequence[Case], force: bool = False, explain: bool = False) -> list[Decision]:
        """The steps of `run` that need the networks, for several scans: classify, gate, segment and explain.

        Slices of different scans share batches, which makes many pictures fast. The decision about a scan does not
        depend on the others. Only one thread at a time may call this.

        Args:
            cases: From `pipeline.case.prepare`, at the classifier's size.
            force: Judge scans even if they do not look like an MRI of the brain.
            explain: Add Grad-CAM of the label on the shown slice.
        """
        scores = self.classify(cases)
        verdicts = [self.gate(case, one, force) for case, one in zip(cases, scores, strict=True)]
        maps = self.segment(cases, verdicts)
        decisions = [Decision(*answers) for answers in zip(scores, verdicts, maps, strict=True)]
        if not explain:
            return decisions
        return [self._with_explanation(case, decision) for case, decision in zip(cases, decisions, strict=True)]

    def conclude(self, case: Case, decision: Decision) -> Result:
        """The steps of `run` after the networks: measure, and make the `Result`. Any thread may call this."""
        measurements = decision.measurements or self.measure(case, decision.maps)
        return self.to_result(case, decision.scores, decision.verdict, measurements, decision.explanation)

    def classify(self, cases: Sequence[Case]) -> list[Scores]:
        """The classifier's answer for the slices of each scan. All judged slices share batches."""
        begun = time.perf_counter()
        counts = [len(case.chosen) for case in cases]
        ends = np.cumsum(counts)[:-1]
        images = np.stack([prepared.image for case in cases for prepared in case.chosen])
        logits, strangeness = self.classifier.logits_and_strangeness(images)
        logits_of = np.split(logits, ends)
        strangeness_of = [None] * len(cases) if strangeness is None else np.split(strangeness, ends)
        scores = []
        for case, case_logits, case_strangeness in zip(cases, logits_of, strangeness_of, strict=True):
            probabilities = np.zeros((len(case.prepared), len(CLASSES)), np.float32)
            probabilities[:, NO_TUMOR] = 1
            probabilities[case.used] = self.classifier.calibrate(case_logits)
            scores.append(Scores(probabilities, case_strangeness))
        _share_time("classify", time.perf_counter() - begun, cases, counts)
        return scores

    def gate(self, case: Case, scores: Scores, force: bool = False) -> Verdict:
        """The scan's label and the slices that go on to the segmenter, see `pipeline.gate.judge`."""
        return judge(case, scores, self.threshold_of(case.scan), self.classifier.strangeness_limit, force)

    def segment(self, cases: Sequence[Case], verdicts: Sequence[Verdict]) -> list[LesionMaps]:
        """The segmenter's lesion maps of the positive slices of each scan. All slices share batches."""
        begun = time.perf_counter()
        size = self.segmenter.input_size
        positive = [np.flatnonzero(verdict.positive).tolist() for verdict in verdicts]
        slices = [case.slice_at(k, size) for case, indices in zip(cases, positive, strict=True) for k in indices]
        answers = self.segmenter.predict(np.stack([p.image for p in slices])) if slices else np.zeros((0, size, size))
        maps_in_order = zip(answers, (p.placement for p in slices), strict=True)
        maps = [{k: next(maps_in_order) for k in indices} for indices in positive]
        _share_time("segment", time.perf_counter() - begun, cases, [len(indices) for indices in positive])
        return maps

    def measure(self, case: Case, maps: LesionMaps) -> Measurements:
        """The mask on the scan's own grid, without specks, and its lesions."""
        begun = time.perf_counter()
        scan = case.scan
        numbers = number_lesions(self.to_source_grid(scan, maps), scan, MIN_LESION_MM3)
        lesions = measure_lesions(numbers, scan)
        mask = (numbers != 0).astype(np.uint8)
        judged = np.flatnonzero(case.used)
        shown_slice = lesions[0].slice_index if lesions else int(judged[len(judged) // 2])
        measurements = Measurements(mask, lesions, slice_areas_px(mask, scan), shown_slice)
        case.timings_s["postprocess"] = time.perf_counter() - begun
        return measurements

    def to_source_grid(self, scan: Scan, maps: LesionMaps) -> NDArray[np.uint8]:
        """The mask (0 and 1) in the scan's array order: cropping, resizing and orientation are undone here."""
        grid = Preprocess(self.segmenter.input_size)
        masks = np.zeros((scan.n_slices, *scan.slice(0).shape[:2]), np.uint8)
        for k, (map_hw, placement) in maps.items():
            masks[k] = grid.mask_to_source(map_hw, placement, self.segmenter.mask_threshold)
        return scan.mask_from_slices(masks)

    def explain(self, case: Case, verdict: Verdict, measurements: Measurements) -> Explanation:
        """Grad-CAM of the label on the shown slice, on the scan's own grid; empty for a refused scan."""
        shown = case.prepared[measurements.shown_slice]
        if shown is None or verdict.refused:
            return Explanation()
        try:
            heat = self.classifier.explain(shown.image[None], [CLASSES.index(verdict.label)])[0]
        except InputError as error:
            return Explanation(problem=str(error))
        grid = Preprocess(self.classifier.input_size)
        on_source = grid.map_to_source(np.rint(heat * 255).astype(np.uint8), shown.placement)
        return Explanation((on_source / 255).astype(np.float32))

    def to_result(
        self, case: Case, scores: Scores, verdict: Verdict, measurements: Measurements, explanation: Explanation
    ) -> Result:
        """Everything about a scan in one `Result`. A refused scan has no figures."""
        scan, mask, shown = case.scan, measurements.mask, measurements.shown_slice
        prediction_set = self._prediction_set(verdict)
        area_px = None if verdict.refused else int(measurements.areas_px[shown])
        pixel_mm2, voxel_mm3 = (None, None) if verdict.refused else (pixel_area_mm2(scan), voxel_volume_mm3(scan))
        return Result(
            scan=scan,
            label=verdict.label,
            probabilities={} if verdict.refused else _by_class(verdict.probabilities),
            prediction_set=prediction_set,
            mask=mask,
            lesions=measurements.lesions,
            slices=[] if verdict.refused else _slice_rows(case, scores, verdict, measurements),
            review=reasons_to_review(case, verdict, mask, prediction_set, explanation.problem),
            tumor_area_px=area_px,
            tumor_area_mm2=None if area_px is None or pixel_mm2 is None else round(area_px * pixel_mm2, 3),
            tumor_volume_mm3=None if voxel_mm3 is None else round(float(np.count_nonzero(mask) * voxel_mm3), 3),
            shown_slice=shown,
            heat=explanation.heat,
            threshold=self.threshold_of(scan),
            models={
                "classification": _identity(self.classifier.card) | {"tta": self.classifier.tta},
                "segmentation": _identity(self.segmenter.card) | {"tta": self.segmenter.tta},
            },
            engine=self.engine.facts(),
            versions=package_versions(),
            timings_s=case.timings_s,
        )

    def threshold_of(self, scan: Scan) -> float:
        """The tumor probability from which a slice of this scan is positive."""
        if self.threshold is not None:
            return self.threshold
        return self.classifier.tumor_threshold if scan.n_slices == 1 else self.classifier.volume_threshold

    def _with_explanation(self, case: Case, decision: Decision) -> Decision:
        measurements = self.measure(case, decision.maps)
        explanation = self.explain(case, decision.verdict, measurements)
        return replace(decision, measurements=measurements, explanation=explanation)

    def _prediction_set(self, verdict: Verdict) -> list[str]:
        if verdict.refused:
            return []
        # Your own threshold, or the rule for volumes, may choose a label that the picture alone would not get.
        label = np.array([CLASSES.index(verdict.label)])
        sets = self.classifier.prediction_sets(verdict.probabilities[None], label)
        return [] if sets is None else [name for name, inside in zip(CLASSES, sets[0], strict=True) if inside]


def _slice_rows(case: Case, scores: Scores, verdict: Verdict, measurements: Measurements) -> list[dict[str, Any]]:
    return [
        {
            "index": int(k),
            "probabilities": {name: round(p, 6) for name, p in _by_class(scores.probabilities[k]).items()},
            "segmented": bool(verdict.positive[k]),
            "area_px": int(measurements.areas_px[k]),
        }
        for k in np.flatnonzero(case.used)
    ]


def _by_class(probabilities: NDArray[np.float32]) -> dict[str, float]:
    return {name: float(p) for name, p in zip(CLASSES, probabilities, strict=True)}


def _share_time(step: str, seconds: float, cases: Sequence[Case], n_slices: Sequence[int]) -> None:
    """Charge the time of a common batch to its scans by their number of slices."""
    total = max(1, sum(n_slices))
    for case, n in zip(cases, n_slices, strict=True):
        case.timings_s[step] = seconds * n / total


def _identity(card: dict[str, Any]) -> dict[str, Any]:
    return {key: card.get(key) for key in ("architecture", "encoder", "sha256", "date") if key in card}
