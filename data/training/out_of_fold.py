"""Reads finished runs on held-out patients, which calibrate the weights that are trained on all patients.

Networks trained on every patient leave nobody to calibrate them on. A run of the same recipe with ``--split holdout``
is validated on patients that its training lacks; so is each fold of a cross-validation, and there each patient is
validated once. What is fitted on these predictions holds for weights of the same recipe with a few patients more.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

from tumorlens.data.cards.card import WEIGHT_FILES, check_settings, stage_card
from tumorlens.data.cards.lineage import PATIENTS
from tumorlens.data.config import TrainingConfig
from tumorlens.data.errors import InputError
from tumorlens.data.training.run_folder import FREE, changed_setting, plain_config

# Settings in which a fold and the run on all patients may differ. More patients have more slices, and a run on all
# patients validates none of them.
_FREE = {*FREE, "data", "fold", "split", "duplicates", "init", "patience", "out_of_fold"}
_FREE |= {"epoch_slices", "validate_every"}
_LEAST_COVERED = 0.9  # of the patients: a few are left out as near-duplicates of others
_LEAST_FOLDS = 3


@dataclass(frozen=True)
class FinishedFold:
    """A finished run that held patients out: a fold of a cross-validation, or a run with ``--split holdout``.

    Attributes:
        folder: The run's folder.
        card: The card of its weights.
    """

    folder: Path
    card: dict[str, Any]

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of the test patients, or of the validation patients where the run has no test part."""
        metrics = self.card["metrics"]
        return dict(metrics.get("test") or metrics["validation"])

    def rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a table in the run's folder.

        Raises:
            InputError: The table is missing or empty.
        """
        path = self.folder / name
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error):
            rows = []
        if not rows:
            raise InputError(f"{path}: no such table of a cross-validation; train this fold again")
        return rows


@dataclass(frozen=True)
class Evidence:
    """Measurements on patients that the networks have not seen. Each stage adds its own.

    Attributes:
        folder: The folder of the cross-validation, or of the run.
        patients: The patients that were validated.
        figures: Mean and deviation of the folds' figures, for a card.
        whole: Whether every patient should have been validated, as in a cross-validation.
    """

    folder: Path
    patients: set[str]
    figures: dict[str, Any]
    whole: bool

    def check_coverage(self, patients: Collection[str]) -> None:
        """Check that the patients of a run were validated, or at least that the validated ones are in the run.

        Raises:
            InputError: A cross-validation validated fewer than nine in ten, or a run other patients.
        """
        in_run = set(patients)
        validated = in_run & self.patients
        least = _LEAST_COVERED * len(in_run if self.whole else self.patients)
        if len(validated) < least:
            raise InputError(
                f"{self.folder}: the patients of this run are not those that were held out there: {len(validated)} of "
                f"{len(in_run)} were; it needs {'all folds of ' if self.whole else ''}the same data"
            )


StageEvidence = TypeVar("StageEvidence", bound=Evidence)


def find_evidence(
    config: TrainingConfig, read: Callable[[str | Path, Mapping[str, Any]], StageEvidence]
) -> StageEvidence | None:
    """The evidence that a run on all patients is calibrated on; None for a run with validation patients.

    Args:
        config: Settings of the run.
        read: Reads the stage's evidence from the folder of a cross-validation, given the recipe of the run.

    Raises:
        InputError: The evidence is missing, comes from another recipe, or is given to a run with validation patients.
    """
    if bool(config.out_of_fold) != (config.split == "all"):
        raise InputError(
            "a run on all patients (--split all) needs runs on held-out patients (--out-of-fold); "
            "no other run takes any"
        )
    return read(config.out_of_fold, plain_config(config)) if config.out_of_fold else None


def finished_folds(folder: str | Path, stage: str, recipe: Mapping[str, Any]) -> list[FinishedFold]:
    """The runs of a cross-validation, one for each fold of the data; or one run with ``--split holdout``.

    Args:
        folder: Holds ``fold-0``, ``fold-1`` ..., as `tumorlens crossval` writes them; or is the folder of the one run.
        stage: ``classification`` or ``segmentation``.
        recipe: Settings of the run on all patients. The folds must have been trained with the same recipe.

    Raises:
        InputError: There is no such folder, a fold is missing, unfinished or of another stage, or the recipe differs.
    """
    folder = Path(folder)
    if (folder / WEIGHT_FILES[stage]).is_file():
        card = _checked_card(folder / WEIGHT_FILES[stage], stage, recipe)
        if card.get("training", {}).get("split") != "holdout":
            raise InputError(f"{folder}: this run did not hold a fold out; train one with --split holdout")
        return [FinishedFold(folder, card)]
    numbered = {path.name.removeprefix("fold-"): path for path in folder.glob("fold-*")}
    paths = [numbered[number] for number in sorted(filter(str.isdecimal, numbered), key=int)]
    if not paths:
        raise InputError(
            f"{folder}: neither folds of a cross-validation (fold-0, fold-1, ...) nor a finished run there"
        )
    folds = [FinishedFold(path, _checked_card(path / WEIGHT_FILES[stage], stage, recipe)) for path in paths]
    numbers = [fold.card.get("training", {}).get("fold") for fold in folds]
    if len(folds) < _LEAST_FOLDS or numbers != list(range(len(folds))):
        raise InputError(f"{folder}: all folds of a cross-validation are needed, there are {numbers}")
    return folds


def _checked_card(weights: Path, stage: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    card = stage_card(weights, stage)
    check_settings(card, weights.with_suffix(".json"), stage)
    changed = changed_setting(card.get("training", {}), dict(recipe), _FREE)
    if changed:
        raise InputError(f"{weights.parent}: the fold was trained with {changed}")
    hashes = card.get("training", {}).get(PATIENTS) or {}
    known = set(hashes.get("start") or ()) & {*hashes.get("validation", ()), *hashes.get("test", ())}
    if known:
        raise InputError(
            f"{weights.parent}: its initial weights have learned from {len(known)} of the patients that it held out"
        )
    metrics = card.get("metrics", {})
    if not isinstance(metrics, dict) or not any(isinstance(metrics.get(part), dict) for part in ("test", "validation")):
        raise InputError(f"{weights}: the card has no figures of held-out patients")
    return card


def mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample deviation of one figure over the folds; None where no fold has it."""
    defined = [value for value in values if value is not None]
    return {
        "mean": round(mean(defined), 4) if defined else None,
        "sd": round(stdev(defined), 4) if len(defined) > 1 else None,
    }
