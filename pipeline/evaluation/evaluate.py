"""One evaluation, from weights and data to a report: choose the scans, predict them, count, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.labels import ClassList
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import Engine
from tumorlens.pipeline.evaluation.leaks import (
    copy_warning,
    leak_warnings,
    learned_pictures,
    measured_patients,
    picture_warning,
)
from tumorlens.pipeline.evaluation.protocols import Progress, Selection, find_protocol
from tumorlens.pipeline.evaluation.report import check_out, screen_table, unit_of, write_report
from tumorlens.pipeline.evaluation.request import EvaluationRequest
from tumorlens.pipeline.evaluation.selection import known_leaks, select
from tumorlens.pipeline.evaluation.tables import source_names
from tumorlens.pipeline.evaluation.weights import Weights
from tumorlens.pipeline.versions import package_versions

Say = Callable[[str], None]


def evaluate(
    request: EvaluationRequest,
    out: Path,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Say = print,
    warn: Say = print,
) -> dict[str, Any]:
    """Measure and write the report.

    Args:
        request: The weights, the data and the protocol.
        out: The report's folder.
        overwrite: Replace the report that is there.
        progress: Called with the number of slices or scans done and of all.
        say: Gets the table of figures and the report's path.
        warn: Gets a line for each reason to mistrust the figures.

    Returns:
        The content of ``report.json``.

    Raises:
        InputError: Data, weights, folds, protocol or folder cannot be used.
    """
    check_out(out, overwrite)
    weights = Weights(request)
    weights.check_names()
    card = weights.first_card()
    request = completed(request, weights, card)
    selection = select(request, card, progress)
    weights.check_files(selection)
    warnings = warnings_about(selection, weights)
    for text in warnings:
        warn(text)
    evaluation = _evaluation(request, selection)
    for fold, samples in selection.parts.items():
        evaluation.learned = learned_pictures([weights.card(stage, fold) for stage in weights.names])
        evaluation.measure(weights.load(fold), samples, fold, progress)
    copies = picture_warning(*evaluation.known_slices())
    for text in copies:
        warn(text)
    warnings += copies
    selection = _with_verdict(selection, warnings)
    about = _about(request, selection, weights, warnings)
    if copies:
        about["mark"] = "{} of {} slices known to the weights".format(*evaluation.known_slices())
    report = write_report(out, about, evaluation, list(selection.parts))
    if selection.protocol.id != "none":
        say(selection.protocol.title)
    if copies:
        say(f"({about['mark']})")
    say(screen_table(report, evaluation.titles))
    counted = f"{report['n']} {unit_of(report)} of {report['n_patients']} patients"
    say(f"{counted}, {selection.choice}; report: {out / 'report.md'}")
    for text in (*selection.notes, *about["differs_from_run"]):
        say(f"note: {text}")
    return report


def differences_from_run(engine: Engine, tta: bool) -> list[str]:
    """How the networks are computed otherwise than by `tumorlens run` without options on this machine, in words."""
    of_run = choose_engine()
    differences = []
    if engine.facts() != of_run.facts():
        differences.append(f"computed by {engine}; `tumorlens run` computes by {of_run} on this machine")
    if tta:
        differences.append("each slice and its mirror image are averaged; `tumorlens run` does so with --tta only")
    return differences


def completed(request: EvaluationRequest, weights: Weights, card: dict[str, Any]) -> EvaluationRequest:
    """The request with folds, seed and input size from the weights' card where the user gives none, and with the
    spellings of classes on it."""
    training = card.get("training")
    seed = training.get("seed") if isinstance(training, dict) else None
    folds = request.folds
    if weights.per_fold and folds is None and find_protocol(request.protocol, request.stage, None).split == "folds":
        folds = ()  # weights of every fold were given: measure them all
    seed = request.seed if request.seed is not None else seed if isinstance(seed, int) else 0
    label_map = ClassList.from_card(card).spellings | dict(request.label_map)
    return replace(
        request, folds=folds, seed=seed, size=int(card.get("input_size", 224)), label_map=tuple(label_map.items())
    )


def warnings_about(selection: Selection, weights: Weights) -> list[str]:
    """The known flaw of the official split, then the leaks of each model."""
    official = selection.protocol.split == "official"
    flaw = known_leaks(selection.samples) if official else ""
    warnings = [flaw] if flaw else []
    for fold, samples in selection.parts.items():
        patients = measured_patients(samples)
        for stage in weights.names:
            card = weights.card(stage, fold)
            warnings += copy_warning(stage, card, patients) if official else []
            warnings += leak_warnings(stage, card, patients, "measured" if fold is None else f"of fold {fold}")
    return list(dict.fromkeys(warnings))


def _with_verdict(selection: Selection, warnings: list[str]) -> Selection:
    """The selection of P5 with a title that says whether the weights were trained without the source."""
    if selection.protocol.id != "p5":
        return selection
    verdict = "the weights have not learned from its patients"
    if warnings:
        verdict = "the weights were not trained without it, or that is not known: see the warnings"
    titled = replace(selection.protocol, title=f"{selection.protocol.title}; {verdict}")
    return replace(selection, protocol=titled)


def _evaluation(request: EvaluationRequest, selection: Selection) -> Any:
    from tumorlens.pipeline.evaluation.classification import ClassificationEvaluation
    from tumorlens.pipeline.evaluation.end_to_end import PipelineEvaluation
    from tumorlens.pipeline.evaluation.segmentation import SegmentationEvaluation

    seed = request.fold_seed
    if request.stage == "classification":
        has_masks = any(s.mask is not None or s.image.suffix.lower() == ".mat" for s in selection.samples)
        if request.explain and not has_masks:
            raise InputError(f"{request.data_names}: --explain needs masks, and no scan has one")
        return ClassificationEvaluation(selection.protocol, seed, request.explain, request.probe)
    if request.stage == "segmentation":
        return SegmentationEvaluation(selection.protocol, seed, request.outline)
    return PipelineEvaluation(selection.protocol, seed)


def _about(request: EvaluationRequest, selection: Selection, weights: Weights, warnings: list[str]) -> dict[str, Any]:
    """The facts at the head of the report."""
    folds = list(selection.parts)
    return {
        "stage": request.stage,
        "protocol": {"id": selection.protocol.id, "title": selection.protocol.title},
        "data": list(request.data),
        "sources": source_names(request.data),
        "label_map": [list(pair) for pair in request.label_map],
        "frame_channel": request.channel,
        "folds": {
            "measured": [fold for fold in folds if fold is not None],
            "of": selection.n_folds,
            "of_the_data": selection.own_folds,
            "choice": selection.choice,
        },
        "warnings": warnings,
        "mark": "",
        "notes": list(selection.notes),
        "tta": request.tta,
        "engine": weights.engine.facts(),
        "differs_from_run": differences_from_run(weights.engine, request.tta),
        "models": weights.describe(folds),
        "seed": request.fold_seed,
        "versions": package_versions(),
        "date": date.today().isoformat(),
        "command": request.command,
        **({"crossval": dict(request.training)} if request.training else {}),
    }
