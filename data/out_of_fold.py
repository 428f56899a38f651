"""What a cross-validation says of patients that its networks have not seen, for weights that see all of them.

Networks trained on every patient leave nobody to calibrate them on. Fold k of a cross-validation is validated on
patients that its training lacks; over all folds each patient is validated once. Thresholds fitted on these predictions
hold for weights of the same recipe with a few patients more.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.cards import check_settings, read_card
from data.errors import InputError

# What a fold's run and the run on all patients may have in different ways: it is no part of the recipe.
_FREE = {"data", "fold", "split", "duplicates", "init", "device", "workers", "patience", "out_of_fold", "not_brain"}
_FREE |= {"epoch_slices", "validate_every"}  # more patients have more slices, and none of them validates


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
    found = sorted(folder.glob("fold-*"))
    if not found:
        raise InputError(f"{folder}: no folds of a cross-validation there (fold-0, fold-1, ...)")
    runs: list[FoldRun] = []
    for path in found:
        card = read_card(path / weights)
        check_settings(card, path / weights, stage)
        if card.get("stage") != stage:
            raise InputError(f"{path / weights}: these weights are for {card.get('stage')}, not for {stage}")
        training = card.get("training", {})
        for key, value in recipe.items():
            if key not in _FREE and key in training and training[key] != value:
                raise InputError(f"{path}: the fold was trained with {key} = {training[key]}, not {value}")
        runs.append(FoldRun(path, card))
    folds = [run.card.get("training", {}).get("fold") for run in runs]
    if len(runs) < 3 or folds != list(range(len(runs))):
        raise InputError(f"{folder}: all folds of a cross-validation are needed, there are {folds}")
    return runs
