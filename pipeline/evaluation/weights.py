"""The weights that an evaluation measures: one file, or one for each fold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tumorlens.data.cards.card import check_settings, stage_card
from tumorlens.data.errors import InputError
from tumorlens.pipeline.engines.choice import choose_engine
from tumorlens.pipeline.engines.engine import Engine
from tumorlens.pipeline.evaluation.protocols import Selection, find_protocol
from tumorlens.pipeline.evaluation.request import EvaluationRequest

PLACEHOLDER = "{fold}"


class Weights:
    """The weight files of a request, one for each stage and fold.

    Attributes:
        request: The evaluation.
        engine: The engine that computes the networks.
        names: Stage -> its weight file as the user named it; ``{fold}`` stands for the fold's number.
        per_fold: Whether a name has ``{fold}``.
    """

    def __init__(self, request: EvaluationRequest) -> None:
        from tumorlens.classification.predict import SHIPPED as CLASSIFIER
        from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

        self.request = request
        self.engine = choose_engine(request.engine, request.device, request.precision)
        of_both = {
            "classification": request.classifier or str(CLASSIFIER),
            "segmentation": request.segmenter or str(SEGMENTER),
        }
        self.names = {stage: name for stage, name in of_both.items() if request.stage in (stage, "pipeline")}
        self.per_fold = any(PLACEHOLDER in name for name in self.names.values())

    def path(self, stage: str, fold: int | None) -> Path:
        """The file of a stage's weights for a fold."""
        return Path(self.names[stage].replace(PLACEHOLDER, str(fold)))

    def card(self, stage: str, fold: int | None) -> dict[str, Any]:
        """The card of that file.

        Raises:
            InputError: The weights or the card are not there, are wrong, or are of another stage.
        """
        path = self.path(stage, fold)
        card = stage_card(path, stage)
        check_settings(card, path.with_suffix(".json"), stage)
        return card

    def first_card(self) -> dict[str, Any]:
        """The card that says how folds were made: the classifier's, if there is one."""
        first_fold = (self.request.folds or (0,))[0]
        return next(self.card(stage, first_fold) for stage in self.names)

    def check_names(self) -> None:
        """Raise an `InputError`, before anything is read, if a name has ``{fold}`` but the protocol has no folds."""
        protocol = find_protocol(self.request.protocol, self.request.stage, self.request.folds)
        if not self.per_fold or protocol.split == "folds":
            return
        name = next(name for name in self.names.values() if PLACEHOLDER in name)
        if self.request.protocol is None:
            raise InputError(f"{name}: {PLACEHOLDER} needs folds; give --folds, or a protocol that has them")
        raise InputError(f"{name}: protocol {protocol.id} has no folds that {PLACEHOLDER} could stand for")

    def check_files(self, selection: Selection) -> None:
        """Raise an `InputError` if a file is missing, before the first of them is used."""
        for fold in selection.parts:
            for stage in self.names:
                self.card(stage, fold)

    def load(self, fold: int | None) -> dict[str, Any]:
        """The models of a fold, by stage."""
        from tumorlens.pipeline.engines.opening import open_or_torch

        models, self.engine = open_or_torch(
            lambda engine: self._open(fold, engine), self.engine, self.request.engine, self.request.precision
        )
        return models

    def _open(self, fold: int | None, engine: Engine) -> dict[str, Any]:
        from tumorlens.classification.predict import Classifier
        from tumorlens.pipeline.engines.opening import open_classifier, open_segmenter, open_stages
        from tumorlens.pipeline.pipeline import Pipeline
        from tumorlens.segmentation.predict import Segmenter

        stage, tta = self.request.stage, self.request.tta
        if stage == "pipeline":
            paths = (self.path("classification", fold), self.path("segmentation", fold))
            return {stage: Pipeline(*open_stages(*paths, engine, tta), engine=engine)}
        path = self.path(stage, fold)
        if stage == "classification":
            return {stage: Classifier.load(path, tta=tta, network=lambda p: open_classifier(p, engine))}
        return {stage: Segmenter.load(path, tta=tta, network=lambda p: open_segmenter(p, engine))}

    def describe(self, folds: list[int | None]) -> list[dict[str, Any]]:
        """Stage, fold, file, architecture, hash, test (or held-out) fold and operating point of each file."""
        files = []
        for stage, name in self.names.items():
            for fold in folds if PLACEHOLDER in name else [None]:
                card = self.card(stage, fold)
                training = card.get("training") or {}
                files.append(
                    {
                        "stage": stage,
                        "fold": fold,
                        "file": str(self.path(stage, fold)),
                        "architecture": card.get("architecture"),
                        **({"encoder": card["encoder"]} if "encoder" in card else {}),
                        "sha256": card.get("sha256"),
                        "test_fold": None if training.get("split") in ("all", "official") else training.get("fold"),
                        "operating_point": card.get("operating_point"),
                    }
                )
        return files
