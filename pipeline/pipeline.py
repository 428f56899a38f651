"""The two stages as one call: a scan goes in, a `Result` comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.predict import Classifier
from tumorlens.classification.trust.calibration import THRESHOLD
from tumorlens.data.errors import InputError
from tumorlens.data.labels import NO_TUMOR, ClassList
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.data.scan import Scan
from tumorlens.pipeline.case import Case, open_source, prepare, share_time
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import TORCH, Engine
from tumorlens.pipeline.engines.opening import open_or_torch, open_stages
from tumorlens.pipeline.gate import REFUSED, Scores, Screening, Verdict, as_printed, judge, screen
from tumorlens.pipeline.measure import Measurements, measure
from tumorlens.pipeline.measurements.lesions import pixel_area_mm2, voxel_volume_mm3
from tumorlens.pipeline.measurements.regions import RegionSize
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.read_ahead import Reading, read_ahead
from tumorlens.pipeline.result import Result
from tumorlens.pipeline.review import reasons_to_review
from tumorlens.pipeline.versions import package_versions
from tumorlens.pipeline.volumes.ask import Answers, Findings, ask_planes, find_suspicions
from tumorlens.pipeline.volumes.rule import Rule, types_of
from tumorlens.segmentation.predict import Segmenter

Source = str | Path | NDArray[Any] | Scan


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
        screening: What follows from it alone.
        answers: Both networks' answers, plane by plane.
        outcome: Already there where the explanation needed it.
        explanation: Empty unless you ask for one.
    """

    scores: Scores
    screening: Screening
    answers: Answers
    outcome: tuple[Verdict, Measurements] | None = None
    explanation: Explanation = Explanation()


@dataclass(frozen=True)
class Pipeline:
    """Both models, loaded once and used for any number of scans.

    Attributes:
        classifier: Stage one.
        segmenter: Stage two.
        threshold: Tumor probability from which a scan is positive. None takes 0.5, where the probabilities on both
            sides agree with the label.
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
            threshold: Tumor probability from which a scan is positive, 0..1; by default 0.5, the operating point that
                was chosen on validation patients.
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

    def run(self, source: Source, options: RunOptions = RunOptions(), series: str | None = None) -> Result:
        """Classify a scan and, if it is positive, segment it. A scan that is not an MRI of the brain is refused.

        Args:
            source: A file, a folder or zip of DICOM files, an array as in `data.scan.Scan.from_array`, or a `Scan`.
            options: Frame, channel, plane, and whether to force, to explain and to keep the segmenter's map. The other
                fields concern output files.
            series: UID or number of the DICOM series, where the source holds several.

        Raises:
            InputError: The scan cannot be used. The message says what is wrong and where.

        Example:
            >>> Pipeline.load().run("scan.nii.gz", RunOptions(plane="coronal", explain=True))
        """
        case = self._read(source, options, series)
        (scores,) = self.classify([case])
        screening = self.screen(case, scores, options.force)
        (answers,) = self.segment([case], [scores], [screening])
        verdict, measurements = self.judge(case, scores, screening, answers, options.maps)
        explanation = self.explain(case, verdict, measurements) if options.explain else Explanation()
        return self.to_result(case, scores, screening, verdict, measurements, explanation)

    def run_many(
        self,
        sources: Iterable[Source],
        options: RunOptions = RunOptions(),
        failed: Callable[[Source, InputError], None] | None = None,
        readers: int = 1,
    ) -> Iterator[Result]:
        """The results of many scans, in their order.

        Pictures share batches, and threads read up to two dozen scans ahead, so this is faster than `run` for each.
        The results are the same. Results that you do not keep take no memory.

        Args:
            sources: A list or a generator of files, folders, arrays or scans, as `run` takes them.
            options: As in `run`, for all scans.
            failed: Called, in a thread that reads, with each scan that cannot be used and the reason; that scan has no
                result. Without it the first such scan ends the iteration, after the results of those before it.
            readers: Number of threads that read.

        Raises:
            InputError: A scan cannot be used, and there is no `failed`.

        Example:
            >>> for result in Pipeline.load().run_many(sorted(Path("scans").glob("*.png"))):
            ...     result.save(Path("out") / result.scan.path.stem)
        """

        if isinstance(sources, str | Path | np.ndarray | Scan):
            raise InputError("run_many takes a list of scans; give one scan to run")

        def read(source: Source) -> Reading:
            try:
                return Reading(case=self._read(source, options))
            except InputError as error:
                if failed is None:
                    raise
                failed(source, error)
                return Reading()

        for group in read_ahead(sources, read, readers):
            cases = [reading.case for reading in group if reading.case is not None]
            decisions = self.decide(cases, options.force, options.explain, options.maps) if cases else []
            for case, decision in zip(cases, decisions, strict=True):
                yield self.conclude(case, decision, options.maps)

    def _read(self, source: Source, options: RunOptions, series: str | None = None) -> Case:
        begun = time.perf_counter()
        scan = open_source(source, options, series)
        return prepare(scan, self.classifier.input_size, read_s=time.perf_counter() - begun)

    def decide(
        self, cases: Sequence[Case], force: bool = False, explain: bool = False, maps: bool = False
    ) -> list[Decision]:
        """The steps of `run` that need the networks, for several scans: classify, screen, segment and explain.

        Slices of different scans share batches, which makes many pictures fast. The decision about a scan does not
        depend on the others. Only one thread at a time may call this.

        Args:
            cases: From `pipeline.case.prepare`, at the classifier's size.
            force: Judge scans even if they do not look like an MRI of the brain.
            explain: Add Grad-CAM of the label on the shown slice.
            maps: As in `conclude`, which must get the same.
        """
        scores = self.classify(cases)
        screenings = [self.screen(case, one, force) for case, one in zip(cases, scores, strict=True)]
        answers = self.segment(cases, scores, screenings)
        decisions = [Decision(*parts) for parts in zip(scores, screenings, answers, strict=True)]
        if not explain:
            return decisions
        return [self._with_explanation(case, decision, maps) for case, decision in zip(cases, decisions, strict=True)]

    def conclude(self, case: Case, decision: Decision, maps: bool = False) -> Result:
        """The steps of `run` after the networks: judge, measure, make the `Result`. Any thread may call this.

        Args:
            case: The prepared scan.
            decision: From `decide`.
            maps: Keep the segmenter's map, one byte a voxel.
        """
        scores, screening = decision.scores, decision.screening
        verdict, measurements = decision.outcome or self.judge(case, scores, screening, decision.answers, maps)
        return self.to_result(case, scores, screening, verdict, measurements, decision.explanation)

    def classify(self, cases: Sequence[Case]) -> list[Scores]:
        """The classifier's answer for the slices of each scan. All judged slices share batches."""
        begun = time.perf_counter()
        counts = [len(case.chosen) for case in cases]
        ends = np.cumsum(counts)[:-1]
        images = np.stack([prepared.image for case in cases for prepared in case.chosen])
        seen = self.classifier.look(images)
        parts = [
            [None] * len(cases) if part is None else np.split(part, ends)
            for part in (self.classifier.calibrate(seen.logits), seen.strangeness, seen.sequences)
        ]
        scores = []
        for case, judged, strangeness, sequences in zip(cases, *parts, strict=True):
            probabilities = np.zeros((len(case.prepared), len(self.classes)), np.float32)
            probabilities[:, NO_TUMOR] = 1
            probabilities[case.used] = judged
            scores.append(Scores(probabilities, strangeness, sequences))
        share_time("classify", time.perf_counter() - begun, cases, counts)
        return scores

    def screen(self, case: Case, scores: Scores, force: bool = False) -> Screening:
        """Whether the scan is refused, and the slices that go on to the segmenter, see `pipeline.gate.screen`."""
        return screen(case, scores, self.operating_point, self.classifier.strangeness_limit, force)

    def segment(
        self, cases: Sequence[Case], scores: Sequence[Scores], screenings: Sequence[Screening]
    ) -> list[Answers]:
        """What both networks say of the suspicious slices of each scan, plane by plane. All scans share batches."""
        return ask_planes(cases, scores, screenings, self.classifier, self.segmenter)

    def judge(
        self, case: Case, scores: Scores, screening: Screening, answers: Answers, maps: bool = False
    ) -> tuple[Verdict, Measurements]:
        """The verdict on the scan, and its mask with the lesions that are sure enough, on the scan's own grid."""
        begun = time.perf_counter()
        findings = find_suspicions(case, answers, self.segmenter)
        verdict, confidences = self._verdict(case, scores, screening, findings)
        measurements = measure(case, findings, confidences, self.operating_point, answers, self.segmenter, maps)
        case.timings_s["postprocess"] = time.perf_counter() - begun
        return verdict, measurements

    def _verdict(
        self, case: Case, scores: Scores, screening: Screening, findings: Findings
    ) -> tuple[Verdict, list[float]]:
        """The verdict on the scan, and how sure each of its suspicions is."""
        if screening.refused:
            nothing = np.zeros(len(self.classes), np.float32)
            return Verdict(REFUSED, nothing, doubt=screening.doubt, classes=self.classes), []
        if case.scan.n_slices == 1:
            p_tumor, types = as_printed(1 - scores.probabilities[0, NO_TUMOR]), scores.probabilities[0, 1:]
            confidences = [p_tumor] * int(findings.numbers.max())
        else:
            confidences = [as_printed(self.rule.confidence(suspicion.features)) for suspicion in findings.suspicions]
            p_tumor = max(confidences, default=self.rule.nothing)
            types = types_of(findings.suspicions, confidences, scores.probabilities[case.used, 1:])
        return judge(p_tumor, types, self.operating_point, self._possible, screening.doubt, self.classes), confidences

    def explain(self, case: Case, verdict: Verdict, measurements: Measurements) -> Explanation:
        """Grad-CAM of the label on the shown slice, on the scan's own grid; empty for a refused scan."""
        shown = case.prepared[measurements.shown_slice]
        if shown is None or verdict.refused:
            return Explanation()
        try:
            heat = self.classifier.explain(shown.image[None], [verdict.likeliest])[0]
        except InputError as error:
            return Explanation(problem=str(error))
        grid = Preprocess(self.classifier.input_size)
        on_source = grid.map_to_source(np.rint(heat * 255).astype(np.uint8), shown.placement)
        return Explanation((on_source / 255).astype(np.float32))

    def to_result(
        self,
        case: Case,
        scores: Scores,
        screening: Screening,
        verdict: Verdict,
        measurements: Measurements,
        explanation: Explanation,
    ) -> Result:
        """Everything about a scan in one `Result`. A refused scan has no figures."""
        scan, mask, shown = case.scan, measurements.mask, measurements.shown_slice
        measured = case.measured
        possible = [] if verdict.possible is None else np.flatnonzero(verdict.possible).tolist()
        area_px = None if verdict.refused else int(measurements.areas_px[shown])
        pixel_mm2, voxel_mm3 = (
            (None, None) if verdict.refused else (pixel_area_mm2(measured), voxel_volume_mm3(measured))
        )
        return Result(
            scan=scan,
            label=verdict.label,
            probabilities={} if verdict.refused else self._by_class(verdict.probabilities),
            prediction_set=[self.classes.names[c] for c in possible],
            mask=mask,
            lesions=measurements.lesions,
            slices=[] if verdict.refused else self._slice_rows(case, scores, screening, measurements),
            sequence=None if verdict.refused else scores.sequence,
            review=[
                *reasons_to_review(case, scores, verdict, measurements.lesions, self.threshold),
                *(f"lesions may lie outside of the brain: {r}" for r in (measurements.no_brain,) if r),
                *(f"no explanation: {r}" for r in (explanation.problem,) if r),
            ],
            tumor_area_px=area_px,
            tumor_area_mm2=None if area_px is None or pixel_mm2 is None else round(area_px * pixel_mm2, 3),
            tumor_volume_mm3=None if voxel_mm3 is None else round(float(np.count_nonzero(mask) * voxel_mm3), 3),
            shown_slice=shown,
            heat=explanation.heat,
            lesion_map=None if verdict.refused else measurements.lesion_map,
            threshold=self.operating_point,
            models={
                "classification": _identity(self.classifier.card) | {"tta": self.classifier.tta},
                "segmentation": _identity(self.segmenter.card) | {"tta": self.segmenter.tta},
            },
            engine=self.engine.facts(),
            versions=package_versions(),
            timings_s=case.timings_s,
            classes=self.classes,
            regions=self.segmenter.regions,
            region_mask=measurements.region_mask,
            region_sizes=[RegionSize()] * len(self.segmenter.regions) if verdict.refused else measurements.region_sizes,
        )

    @property
    def classes(self) -> ClassList:
        """The classes of the classifier."""
        return self.classifier.classes

    @property
    def operating_point(self) -> float:
        """The tumor probability from which a scan is positive."""
        return THRESHOLD if self.threshold is None else self.threshold

    @cached_property
    def rule(self) -> Rule:
        """The rule for volumes, from the classifier's card."""
        return Rule.of_card(self.classifier.card)

    def _possible(self, probabilities: NDArray[np.float32], label: int) -> NDArray[np.bool_] | None:
        # Your own threshold, or the rule for volumes, may choose a label that the picture alone would not get.
        sets = self.classifier.prediction_sets(probabilities[None], np.array([label]))
        return None if sets is None else sets[0]

    def _with_explanation(self, case: Case, decision: Decision, maps: bool) -> Decision:
        verdict, measurements = self.judge(case, decision.scores, decision.screening, decision.answers, maps)
        explanation = self.explain(case, verdict, measurements)
        return replace(decision, outcome=(verdict, measurements), explanation=explanation)

    def _slice_rows(
        self, case: Case, scores: Scores, screening: Screening, measurements: Measurements
    ) -> list[dict[str, Any]]:
        return [
            {
                "index": int(k),
                "probabilities": self._by_class(scores.probabilities[k]),
                "segmented": bool(screening.suspicious[k]),
                "area_px": int(measurements.areas_px[k]),
            }
            for k in np.flatnonzero(case.used)
        ]

    def _by_class(self, probabilities: NDArray[np.float32]) -> dict[str, float]:
        """The probability of each answer."""
        answers = probabilities[self.classes.offset :]
        return {name: as_printed(p) for name, p in zip(self.classes.outputs, answers, strict=True)}


def _identity(card: dict[str, Any]) -> dict[str, Any]:
    return {key: card[key] for key in ("architecture", "encoder", "sha256", "date") if key in card}
