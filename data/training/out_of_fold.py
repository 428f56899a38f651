"""What a cross-validation says of patients that its networks have not seen, for weights that see all of them.

Networks trained on every patient leave nobody to calibrate them on. Fold k of a cross-validation is validated on
patients that its training lacks; over all folds each patient is validated once. Thresholds fitted on these predictions
hold for weights of the same recipe with a few patients more.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tumorlens.data.cards.card import check_settings, read_card
from tumorlens.data.errors import InputError
from tumorlens.data.training.run_folder import FREE, changed_setting

# What a fold's run and the run on all patients may have in different ways: it is no part of the recipe.
_FREE = {*FREE, "data", "fold", "split", "duplicates", "init", "patience", "out_of_fold"}


_FREE |= {"epoch_slices", "validate_every"}  # more patients have more slices, and none of them validates


_LEAST_COVERED = 0.9  # of the patients; a few are left out as near-duplicates of others


@dataclass(frozen=True)
class FoldRun:
    """A finished run of a cross-validation.

    Attributes:
        folder: Where it lies.
        card: Of its weights.
    """

    folder: Path
    card: dict[str, Any]

    def rows(self, name: str) -> list[dict[str, str]]:
        """A table of the run's folder.

        Raises:
            InputError: It is not there, or is empty.
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


def fold_runs(folder: str | Path, weights: str, stage: str, recipe: Mapping[str, Any]) -> list[FoldRun]:
    """The runs of a cross-validation, one for each fold that the data have.

    Args:
        folder: With ``fold-0``, ``fold-1`` ... in it, as `tumorlens crossval` writes them.
        weights: Name of the weight file in each.
        stage: ``classification`` or ``segmentation``.
        recipe: Settings of the run on all patients, which has to be the folds' recipe.

    Raises:
        InputError: No such folder, a fold that is missing, unfinished or of another stage, or another recipe.
    """
    folder = Path(folder)
    numbered = {path.name.removeprefix("fold-"): path for path in folder.glob("fold-*")}
    found = [numbered[number] for number in sorted(filter(str.isdecimal, numbered), key=int)]
    if not found:
        raise InputError(f"{folder}: no folds of a cross-validation there (fold-0, fold-1, ...)")
    runs: list[FoldRun] = []
    for path in found:
        card = read_card(path / weights)
        check_settings(card, path / weights, stage)
        if card.get("stage") != stage:
            raise InputError(f"{path / weights}: these weights are for {card.get('stage')}, not for {stage}")
        changed = changed_setting(card.get("training", {}), dict(recipe), _FREE)
        if changed:
            raise InputError(f"{path}: the fold was trained with {changed}")
        if not isinstance(card.get("metrics", {}).get("test"), dict):
            raise InputError(f"{path / weights}: the card has no test figures")
        runs.append(FoldRun(path, card))
    folds = [run.card.get("training", {}).get("fold") for run in runs]
    if len(runs) < 3 or folds != list(range(len(runs))):
        raise InputError(f"{folder}: all folds of a cross-validation are needed, there are {folds}")
    return runs


def check_coverage(folder: str | Path, validated: Collection[str], patients: Collection[str]) -> None:
    """Raise an `InputError` if a cross-validation did not validate the patients of a run.

    Args:
        folder: Of the cross-validation.
        validated: Patients that its folds validated.
        patients: Of the run.
    """
    wanted, known = set(patients), set(patients) & set(validated)
    if len(known) < _LEAST_COVERED * len(wanted):
        raise InputError(
            f"{folder}: this cross-validation validated {len(known)} of the {len(wanted)} patients; it needs all folds "
            "of the same data"
        )


def mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample deviation over the folds of one figure; none where no fold has it."""
    known = [value for value in values if value is not None]
    return {
        "mean": round(mean(known), 4) if known else None,
        "sd": round(stdev(known), 4) if len(known) > 1 else None,
    }
