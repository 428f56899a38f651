"""What holds for a result after all that reviewers have decided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tumorlens.pipeline.batch.stored import StoredResult
from tumorlens.pipeline.services.reviews.store import COMMENT, Decision, Store


def decisions_about(result: StoredResult, decisions: Sequence[Decision]) -> list[Decision]:
    """Of the decisions on a name, those on this very scan, frame and plane: a later run may have reused the name."""
    return [d for d in decisions if d.scan == result.name and d.before.get("of") in (None, result.identity)]


def final_decision(decisions: Sequence[Decision], reviewer: str | None = None) -> Decision | None:
    """The last decision that is more than a comment, of one reviewer or of all."""
    own = [d for d in decisions if d.action != COMMENT and reviewer in (None, d.reviewer)]
    return own[-1] if own else None


def last_correction(decisions: Sequence[Decision]) -> Decision | None:
    """The last decision that drew a mask."""
    drawn = [d for d in decisions if d.has_mask]
    return drawn[-1] if drawn else None


def current_mask(
    result: StoredResult, store: Store, decisions: Sequence[Decision] | None = None
) -> NDArray[np.uint8] | None:
    """The mask that holds, 0 and 1 in the order of the stored mask: the last corrected one, else the model's.

    It comes from the reviewers' file: the files beside the result are copies, which a crash may have left behind.

    Args:
        result: The stored result.
        store: The reviewers' file.
        decisions: Those to go by; by default all on this scan.

    Raises:
        InputError: The model's mask, or the reviewers' file, is damaged.
    """
    about = decisions_about(result, store.decisions(result.name) if decisions is None else decisions)
    corrected = last_correction(about)
    if corrected is not None:
        return store.mask(corrected.number)
    stored = result.mask(reviewed=False)
    return None if stored is None else stored.voxels


def models_of(result: StoredResult) -> dict[str, str]:
    """Stage -> SHA-256 of the weights that made a result."""
    models = result.content.get("models") or {}
    return {stage: str(card.get("sha256") or "") for stage, card in models.items()}
