"""The two stages as one call: a scan goes in, a `Result` comes out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.preprocessing.preprocess import Placement, PreparedSlice, Preprocess
from tumorlens.data.scan import ACQUISITION, Scan
from tumorlens.pipeline.case import Case, open_case
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import TORCH, Engine
from tumorlens.pipeline.engines.opening import open_or_torch, open_stages
from tumorlens.pipeline.gate import REFUSED, Verdict, judge_slice, judge_volume, reason_to_refuse
from tumorlens.pipeline.measurements.lesions import (
    measure_lesions,
    number_lesions,
    pixel_area_mm2,
    slice_areas_px,
    voxel_volume_mm3,
)
from tumorlens.pipeline.result import Result
from tumorlens.pipeline.review import review_scan, review_verdict
from tumorlens.pipeline.versions import package_versions
from tumorlens.segmentation.predict import Segmenter

# Smaller connected lesions of a volume are taken for noise: a ball of 5.8 mm. In a volume kept out of training (BraTS)
# the 6 of 18 pieces below it were all false; a higher limit would drop more of those, and small tumors with them.
MIN_LESION_MM3 = 100.0


@dataclass(frozen=True)
class Decision:
    """What the networks say of a scan.

    Attributes:
        probabilities: ``(n_slices, 4)``.
        verdict: What the gate makes of them; none for a scan that is refused.
        doubt: Why the scan may be no MRI of the brain, or none.
        maps: Positive slice -> the segmenter's map ``(size, size)`` uint8, 255 is certain, and its way back.
        result: The result, where the explanation needed it already.
    """

    probabilities: NDArray[np.float32]
    verdict: Verdict | None
    doubt: str | None
    maps: dict[int, tuple[NDArray[np.uint8], Placement]] = field(default_factory=dict)
    result: Result | None = None


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
        stages, taken = open_or_torch(
            lambda engine: open_stages(classifier, segmenter, engine, tta), chosen, engine, precision
        )
        return cls(*stages, threshold, taken)

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
        case = open_case(source, self.classifier.input_size, frame, plane, series, channel)
        return self.conclude(case, self.decide([case], force, explain)[0])

    def decide(self, cases: Sequence[Case], force: bool = False, explain: bool = False) -> list[Decision]:
        """Let both networks see prepared scans; slices of several scans share batches, which is what makes many
        pictures fast. What they say of a scan does not depend on the others.

        Args:
            cases: From `pipeline.case.open_case`, prepared at the classifier's size.
            force: See `run`.
            explain: See `run`.
        """
        begun = time.perf_counter()
        slices = [case.chosen for case in cases]
        logits, strangeness = self.classifier.look(np.stack([p.image for chosen in slices for p in chosen]))
        ends = np.cumsum([len(chosen) for chosen in slices])
        each = zip(cases, slices, np.split(logits, ends[:-1]), _split(strangeness, ends[:-1]), strict=True)
        decisions = [self._decision(*one, force) for one in each]
        _share_out("classify", time.perf_counter() - begun, cases, [len(chosen) for chosen in slices])
        begun = time.perf_counter()
        self._draw(cases, decisions)
        drawn = [len(decision.maps) for decision in decisions]
        _share_out("segment", time.perf_counter() - begun if any(drawn) else 0.0, cases, drawn)
        if explain:
            results = [self.conclude(case, decision) for case, decision in zip(cases, decisions, strict=True)]
            explained = [self._explained(case, result) for case, result in zip(cases, results, strict=True)]
            return [replace(decision, result=result) for decision, result in zip(decisions, explained, strict=True)]
        return decisions

    def conclude(self, case: Case, decision: Decision) -> Result:
        """From what the networks said of a scan to masks and measurements on its own grid."""
        if decision.result is not None:
            return decision.result
        begun = time.perf_counter()
        if decision.verdict is None:
            case.timings_s["postprocess"] = time.perf_counter() - begun
            return self._refused(case, str(decision.doubt))
        mask = self._mask(case, decision)
        result = self._result(case, decision.probabilities, decision.verdict, mask, begun)
        if decision.doubt:
            result.review.insert(0, f"{decision.doubt}; judged all the same, as --force asked")
        return result

    def _decision(
        self,
        case: Case,
        chosen: list[PreparedSlice],
        logits: NDArray[np.float32],
        strangeness: NDArray[np.float32] | None,
        force: bool,
    ) -> Decision:
        """Slices that are not used count as free of tumor."""
        probabilities = np.tile(np.eye(len(CLASSES), dtype=np.float32)[0], (len(case.prepared), 1))
        probabilities[case.used] = self.classifier.calibrate(logits)
        has_head = any(p.head_fraction > 0 for p in chosen)
        doubt = reason_to_refuse(has_head, strangeness, self.classifier.strangeness_limit)
        verdict = None if doubt and not force else self._judge(case.scan, probabilities, case.used)
        return Decision(probabilities, verdict, doubt)

    def _draw(self, cases: Sequence[Case], decisions: Sequence[Decision]) -> None:
        """The gate: only positive slices reach the segmenter."""
        grid = Preprocess(self.segmenter.input_size)
        asked: list[tuple[Decision, int, PreparedSlice]] = []
        for case, decision in zip(cases, decisions, strict=True):
            for k in [] if decision.verdict is None else np.flatnonzero(decision.verdict.positive):
                p = case.prepared[k]
                if p is None:
                    continue
                if grid.size != self.classifier.input_size:  # a stage of the user's own may work at another resolution
                    p = grid(case.scan.slice(int(k)), case.scan.pixel_aspect)
                asked.append((decision, int(k), p))
        if asked:
            maps = self.segmenter.predict(np.stack([p.image for _, _, p in asked]))
            for (decision, number, p), map_hw in zip(asked, maps, strict=True):
                decision.maps[number] = map_hw, p.placement

    def _mask(self, case: Case, decision: Decision) -> NDArray[np.uint8]:
        """In the scan's array order."""
        scan, grid = case.scan, Preprocess(self.segmenter.input_size)
        masks = np.zeros((scan.n_slices, *scan.slice(0).shape[:2]), np.uint8)
        for k, (map_hw, placement) in decision.maps.items():
            masks[k] = grid.mask_to_source(map_hw, placement, self.segmenter.mask_threshold)
        return scan.mask_from_slices(masks)

    def _explained(self, case: Case, result: Result) -> Result:
        """The result with Grad-CAM of its label on the shown slice, on the source's grid; where the network has nothing
        to draw it from, the result stands without, and says so."""
        shown = case.prepared[result.shown_slice]
        if shown is None or result.refused:
            return result
        try:
            heat = self.classifier.explain(shown.image[None], [CLASSES.index(result.label)])[0]
        except InputError as error:
            result.review.append(f"no explanation: {error}")
            return result
        grid = Preprocess(self.classifier.input_size)
        on_source = grid.map_to_source(np.rint(heat * 255).astype(np.uint8), shown.placement)
        return replace(result, heat=(on_source / 255).astype(np.float32))

    def _refused(self, case: Case, doubt: str) -> Result:
        scan, judged = case.scan, np.flatnonzero(case.used)
        return Result(
            scan=scan,
            label=REFUSED,
            probabilities={},
            prediction_set=[],
            mask=scan.mask_from_slices(np.zeros((scan.n_slices, *scan.slice(0).shape[:2]), np.uint8)),
            lesions=[],
            slices=[],
            review=[f"refused: {doubt}; --force judges it all the same", *review_scan(case)],
            tumor_area_px=None,
            tumor_area_mm2=None,
            tumor_volume_mm3=None,
            shown_slice=int(judged[len(judged) // 2]),
            **self._origin(case),
        )

    def _origin(self, case: Case) -> dict[str, Any]:
        """What every result says of how it came about."""
        return {
            "threshold": self.threshold_of(case.scan),
            "models": {
                "classification": _identity(self.classifier.card) | {"tta": self.classifier.tta},
                "segmentation": _identity(self.segmenter.card) | {"tta": self.segmenter.tta},
            },
            "engine": self.engine.facts(),
            "versions": package_versions(),
            "timings_s": case.timings_s,
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

    def _result(
        self,
        case: Case,
        probabilities: NDArray[np.float32],
        verdict: Verdict,
        mask: NDArray[np.uint8],
        begun: float,
    ) -> Result:
        scan = case.scan
        numbers = number_lesions(mask, scan, MIN_LESION_MM3)
        lesions = measure_lesions(numbers, scan)
        mask = (numbers != 0).astype(np.uint8)
        areas = slice_areas_px(mask, scan)
        shown = lesions[0].slice_index if lesions else _slice_to_show(case.used)
        area_mm2, voxel_mm3 = pixel_area_mm2(scan), voxel_volume_mm3(scan)
        possible = self._prediction_set(verdict)
        spatial = {name: float(p) for name, p in zip(CLASSES, verdict.probabilities, strict=True)}
        case.timings_s["postprocess"] = time.perf_counter() - begun
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
                for k in np.flatnonzero(case.used)
            ],
            review=review_verdict(case, verdict, mask, possible),
            tumor_area_px=int(areas[shown]),
            tumor_area_mm2=None if area_mm2 is None else round(float(areas[shown] * area_mm2), 3),
            tumor_volume_mm3=None if voxel_mm3 is None else round(float(np.count_nonzero(mask) * voxel_mm3), 3),
            shown_slice=shown,
            **self._origin(case),
        )


def _share_out(step: str, seconds: float, cases: Sequence[Case], slices: Sequence[int]) -> None:
    """A common batch's time, on each case by its slices."""
    total = max(1, sum(slices))
    for case, n in zip(cases, slices, strict=True):
        case.timings_s[step] = seconds * n / total


def _split(values: NDArray[Any] | None, ends: NDArray[np.int_]) -> list[Any]:
    return [None] * (len(ends) + 1) if values is None else list(np.split(values, ends))


def _slice_to_show(used: NDArray[np.bool_]) -> int:
    """Without a mask, the middle of the judged slices."""
    judged = np.flatnonzero(used)
    return int(judged[len(judged) // 2])


def _identity(card: dict[str, Any]) -> dict[str, Any]:
    return {key: card.get(key) for key in ("architecture", "encoder", "sha256", "date") if key in card}
