"""Reads a finished cross-validation, which calibrates the weights that are trained on all patients.

Networks trained on every patient leave nobody to calibrate them on. Fold k of a cross-validation is validated on
patients that its training lacks, and over all folds each patient is validated once. Thresholds fitted on these
predictions hold for weights of the same recipe with a few patients more.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

from tumorlens.data.cards.card import WEIGHT_FILES, check_settings, stage_card
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
    """A finished run of a cross-validation.

    Attributes:
        folder: The run's folder.
        card: The card of its weights.
    """

    folder: Path
    card: dict[str, Any]

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
    """Measurements of a cross-validation on patients that its networks have not seen. Each stage adds its own.

    Attributes:
        folder: The cross-validation's folder.
        patients: The patients that the folds validated.
        figures: Mean and deviation of the folds' test figures, for a card.
    """

    folder: Path
    patients: set[str]
    figures: dict[str, Any]

    def check_coverage(self, patients: Collection[str]) -> None:
        """Check that the folds validated the patients of a run.

        Raises:
            InputError: They validated fewer than nine in ten.
        """
        in_run = set(patients)
        validated = in_run & self.patients
        if len(validated) < _LEAST_COVERED * len(in_run):
            raise InputError(
                f"{self.folder}: this cross-validation validated {len(validated)} of the {len(in_run)} patients; it "
                "needs all folds of the same data"
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
            "a run on all patients (--split all) needs a cross-validation (--out-of-fold); no other run takes one"
        )
    return read(config.out_of_fold, plain_config(config)) if config.out_of_fold else None


def finished_folds(folder: str | Path, stage: str, recipe: Mapping[str, Any]) -> list[FinishedFold]:
    """The runs of a cross-validation, one for each fold of the data.

    Args:
        folder: Holds ``fold-0``, ``fold-1`` ..., as `tumorlens crossval` writes them.
        stage: ``classification`` or ``segmentation``.
        recipe: Settings of the run on all patients. The folds must have been trained with the same recipe.

    Raises:
        InputError: There is no such folder, a fold is missing, unfinished or of another stage, or the recipe differs.
    """
    folder = Path(folder)
    numbered = {path.name.removeprefix("fold-"): path for path in folder.glob("fold-*")}
    paths = [numbered[number] for number in sorted(filter(str.isdecimal, numbered), key=int)]
    if not paths:
        raise InputError(f"{folder}: no folds of a cross-validation there (fold-0, fold-1, ...)")
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
    if not isinstance(card.get("metrics", {}).get("test"), dict):
        raise InputError(f"{weights}: the card has no test figures")
    return card


def mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample deviation of one figure over the folds; None where no fold has it."""
    defined = [value for value in values if value is not None]
    return {
        "mean": round(mean(defined), 4) if defined else None,
        "sd": round(stdev(defined), 4) if len(defined) > 1 else None,
    }
