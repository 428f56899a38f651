"""Whether weights may have seen the scans that they are measured on, as far as their card tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tumorlens.data.cards.lineage import known_start
from tumorlens.data.datasets.index import index_at

if TYPE_CHECKING:
    from tumorlens.pipeline.evaluation.protocols import Selection
    from tumorlens.pipeline.evaluation.request import EvaluationRequest

SAME, UNSURE, OTHER = "same", "unsure", "other"
_WHO = "{weights}"
_INDEX = "index.csv"
_TWINS = {"figshare": "brisc"}  # published sets with the same patients, in the same folds (shared by their indexes)


@dataclass(frozen=True)
class _Key:
    """What of a source does not differ between machines: the data's folder and the index, by name. A folder without an
    index counts as its own ``index.csv``; the folder is empty where a card does not tell it."""

    folder: str
    index: str

    @property
    def patients(self) -> _Key:
        return replace(self, folder=_TWINS.get(self.folder, self.folder))


def kinship(source: str, trained: Sequence[str]) -> str:
    """Whether a source is one of the training's: `SAME` folder and index, `UNSURE` for another index of the same
    folder or where the training's folder is not told, else `OTHER`.

    Args:
        source: As in `data.datasets.load.load_samples`.
        trained: The sources on a card; the paths may be another machine's.
    """
    wanted, known = _key(source).patients, [_key(text).patients for text in trained]
    if wanted in known:
        return SAME
    return UNSURE if not known or any(key.folder in ("", wanted.folder) for key in known) else OTHER


def tested_fold(card: dict[str, Any], data: Sequence[str], seed: int, own_folds: bool) -> int | None:
    """The test fold on a card, if it is one of these data: they are the training's, with folds of their own or made
    from the same sources and seed.

    Args:
        card: Of the weights.
        data: The sources.
        seed: Of folds that are made.
        own_folds: Whether the data name the folds themselves.
    """
    training = card.get("training")
    if not isinstance(training, dict) or training.get("split") in ("official", "all"):
        return None
    fold, trained = training.get("fold"), training.get("data") or []
    known = all(kinship(s, trained) == SAME for s in data) if own_folds else not _changed(training, data, seed)
    return fold if known and isinstance(fold, int) else None


def leak_warnings(
    stage: str, card: dict[str, Any], fold: int | None, selection: Selection, request: EvaluationRequest
) -> list[str]:
    """Why these weights, or those that they started from, may have seen what they are measured on; empty where nothing
    speaks for it.

    Args:
        stage: Of the weights.
        card: Of the weights.
        fold: Which part of the selection they are measured on.
        selection: The scans.
        request: Where the scans come from.
    """
    said: dict[str, str] = {}  # what is said -> of whom; what holds for weights is not said again of their start
    for who, training in _lineage(stage, card):
        for text in _seen(training, fold, selection, request):
            said.setdefault(text, who)
    return [text.replace(_WHO, who) for text, who in said.items()]


def _lineage(stage: str, card: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """The weights, those that they started from, and so on: what they are called, and what they learnt from, None where
    nothing is known of it. Weights that learnt from no scans of ours are left out."""
    name = who = f"the {stage} weights"
    told = card.get("training")
    facts: dict[str, Any] = {key: card[key] for key in ("stage", "leaking_test_slices") if key in card}
    training = {"stage": stage, **facts, **told} if isinstance(told, dict) else {"stage": stage}
    while True:
        yield who, training
        known = known_start(training)
        name, child = f"the weights {training.get('init')}", name
        who = f"{name}, from which {child} started,"
        if not known:
            yield who, None
        if not known.get("start"):
            return
        training = known["start"]


def _seen(
    training: dict[str, Any] | None, fold: int | None, selection: Selection, request: EvaluationRequest
) -> list[str]:
    """Why weights of this training may have seen the scans; `_WHO` stands for the weights."""
    if training is None:
        return [f"it is not known whether {_WHO} have seen these scans: neither they nor a copy of their card is there"]
    if "fold" not in training:
        return [f"the card of {_WHO} does not say on which fold they were tested; they may have seen these scans"]
    trained = training.get("data") or []
    kin = {source: kinship(source, trained) for source in request.data}
    return [] if set(kin.values()) == {OTHER} else _of_kin(training, fold, selection, request, kin)


def _of_kin(
    training: dict[str, Any], fold: int | None, selection: Selection, request: EvaluationRequest, kin: dict[str, str]
) -> list[str]:
    """The warnings where some source is, or may be, one of the training's."""
    same = [source for source in request.data if kin[source] == SAME]
    names = ", ".join(map(_shown, same))
    unsure = [_unsure(source, training) for source in request.data if kin[source] == UNSURE]
    if training.get("split") == "all":
        return ([f"{_WHO} were trained on all patients of {names}"] if same else []) + unsure
    official = training.get("split") == "official"
    if selection.protocol.split == "official":
        if official:
            return (_leaking(training) if same else []) + unsure
        return [f"{_WHO} were not trained with --split official, so they may have been trained on these very scans"]
    if fold is None:
        seen = (
            f"{_WHO} were trained on {names}, too: only the test part of that training is unseen "
            "(give --folds or --protocol)"
        )
        return ([seen] if same else []) + unsure
    if official:
        return [f"{_WHO} were trained on an official split, whose training part reaches into every fold"]
    if not selection.own_folds:
        changed = _changed(training, request.data, request.fold_seed)
        if training.get("stage") != request.stage and not selection.common_folds:
            changed.append("choice of scans")
        if changed:
            return [
                f"the data have no folds of their own, and {_WHO} were trained with another {' and '.join(changed)}: "
                "fold numbers do not mean the same patients, so these may have been trained on"
            ]
        return _fold_warning(training["fold"], fold, selection.n_folds or 1)
    return (_fold_warning(training["fold"], fold, selection.n_folds or 1) if same else []) + unsure


def _leaking(training: dict[str, Any]) -> list[str]:
    """What training on an official split with its leaks counted."""
    count = training.get("leaking_test_slices")
    if not count:
        return []
    return [
        f"leaks: {count} of the test slices of {_WHO} are copies of slices that they learnt from, or of such patients"
    ]


def _fold_warning(tested: int, fold: int, n_folds: int) -> list[str]:
    if tested == fold:
        return []
    why = "chose the epoch and the operating point" if fold == (tested + 1) % n_folds else "trained the weights"
    return [f"{_WHO} have test fold {tested}: the patients of fold {fold} {why}"]


def _unsure(source: str, training: dict[str, Any]) -> str:
    trained = ", ".join(map(_shown, training.get("data") or [])) or "data that their card does not name"
    return (
        f"it is not known whether {_WHO} have seen these patients: they were trained on {trained}, and "
        f"{_shown(source)} may hold the same patients in other folds"
    )


def _changed(training: dict[str, Any], data: Sequence[str], seed: int) -> list[str]:
    """The options that make other folds than the training's: folds that are made depend on all that was read."""
    same = {
        "--data": [_key(s) for s in training.get("data") or []] == [_key(s) for s in data],
        "--seed": training.get("seed") == seed,
    }
    return [name for name, equal in same.items() if not equal]


def _key(source: str) -> _Key:
    index, folder = _parts(source)
    if index is None:
        return _Key(_name(folder), _INDEX)
    if index.parent == folder == Path() and not index.is_file():
        return _Key("", index.name)  # "a.csv" on a card: in whatever folder the training was started
    # `data split` writes an index.csv; beside the data it is theirs, elsewhere it is another division of them.
    elsewhere = index.name == _INDEX and _whole(index.parent) != _whole(folder)
    return _Key(_name(folder), f"another {_INDEX}" if elsewhere else index.name)


def _parts(source: str) -> tuple[Path | None, Path]:
    """The index file of a source, if it names one, and the data's folder."""
    pair = index_at(source, _is_index)
    if pair is not None:
        return pair
    path = Path(source)
    return (path, path.parent) if _is_index(path) else (None, path)


def _is_index(path: Path) -> bool:
    return path.is_file() or path.suffix.lower() == ".csv"  # those on a card may be on another machine


def _whole(folder: Path) -> Path:
    """The folder from the root on; links are not followed, as their names are what other machines have too."""
    return Path(os.path.normpath(folder.absolute()))


def _name(folder: Path) -> str:
    return _whole(folder).name.lower()


def _shown(source: str) -> str:
    """A source without the folders above it."""
    index, folder = _parts(source)
    if index is None:
        return _whole(folder).name
    return index.name if folder == Path() else f"{index.name}@{_whole(folder).name}"
