"""Training of the classifier, from data folders to a run folder with weights, card, curves and confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from classification.calibration import calibrated
from classification.evaluate import classification_metrics, gate_metrics, predict_logits, write_predictions
from classification.model import build_classifier, check_size, freeze_backbone, initialise
from classification.out_of_fold import Evidence, read_evidence
from classification.plots import plot_confusion
from classification.refusal_fit import read_others
from classification.trust import fit_trust
from classification.zoo import DEFAULT, find_architecture
from data.cards import save_weights
from data.compute import pick_device, wants_bf16
from data.errors import InputError
from data.labels import CLASSES
from data.loaders import to_batch
from data.networks import freeze_stem, still_stem
from data.out_of_fold import check_coverage
from data.partition import Partition, load_partition
from data.recipe import (
    Stage,
    TrainingConfig,
    adamw_one_cycle,
    check_steps,
    chooses_epoch,
    describe_run,
    epoch_slices,
    loaders,
    sides,
    to_small_batch,
    total_steps,
)
from data.run_plots import plot_learning_curves
from data.samples import Sample
from data.trainer import check_run, chosen_state, make_trainer, plain_config, write_config, write_metrics_table
from data.trainer import fit as run_loop
from data.transplant import expected_counts

Say = Callable[[str], None]


@dataclass(frozen=True)
class ClassifierConfig(TrainingConfig):
    """Settings of a classifier's training run; those of `make weights` are in the Makefile.

    Attributes:
        label_smoothing: Share of a slice's label that is spread over all classes.
        balance: Weight the loss by the inverse frequency of the classes.
        arch: Name of the network, see `classification.zoo.find_architecture`.
        frozen: Let only the last layer learn.
        blank: Share of the training slices whose head is blanked, on which all classes are to be equally likely, so
            that the head's outline cannot tell the source of a scan.
        out_of_fold: Folder of a cross-validation of this recipe, whose predictions decide calibration and thresholds of
            a run on all patients (``split="all"``).
        not_brain: Folders of pictures that are no brains; the classifier learns to refuse them and their like, besides
            those that are drawn (`data.not_brain`).
    """

    label_smoothing: float = 0.05
    balance: bool = True
    arch: str = DEFAULT
    frozen: bool = False
    blank: float = 0.1
    out_of_fold: str = ""
    not_brain: tuple[str, ...] = ()


class ClassifierModule(Stage):
    """A classifier with label-smoothed, class-weighted cross-entropy, AdamW and a one-cycle schedule."""

    def __init__(
        self, config: ClassifierConfig, model: nn.Module, class_weights: torch.Tensor, total_steps: int
    ) -> None:
        super().__init__()
        self.config, self.total_steps = config, total_steps
        self.normalization = find_architecture(config.arch).normalization
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = nn.CrossEntropyLoss(weight=class_weights, label_smoothing=config.label_smoothing)
        self.accuracy = MulticlassAccuracy(len(CLASSES), average="micro")
        self.macro_f1 = MulticlassF1Score(len(CLASSES), average="macro")

    def forward(self, images_nhw: torch.Tensor) -> torch.Tensor:
        return self.model(to_batch(images_nhw, self.normalization))

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        images = to_small_batch(batch["image"], self.normalization, self.config, self.current_epoch)
        logits, blank = self.model(images).float(), batch["blank"]
        loss = logits.new_zeros(())
        if not blank.all():
            loss = loss + (~blank).float().mean() * self.loss(logits[~blank], batch["label"][~blank])
        if blank.any():  # cross-entropy to the uniform distribution: no opinion
            loss = loss - blank.float().mean() * logits[blank].log_softmax(1).mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["label"]))
        return loss

    def on_train_epoch_start(self) -> None:
        if self.config.frozen:  # a frozen backbone keeps its batch statistics, too
            self.model.eval()
        elif self.config.freeze_stem:
            still_stem(self.model)

    def validation_step(self, batch: dict[str, torch.Tensor], index: int) -> None:
        logits = self(batch["image"]).float()
        self.accuracy(logits, batch["label"])
        self.macro_f1(logits, batch["label"])
        self.log("val_loss", self.loss(logits, batch["label"]), batch_size=len(logits))
        self.log("val_accuracy", self.accuracy, prog_bar=True)
        self.log("val_macro_f1", self.macro_f1)

    def configure_optimizers(self) -> Any:
        return adamw_one_cycle(self.model, self.config, self.total_steps)


def train_classifier(
    config: ClassifierConfig,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    say: Say = print,
    prepared: Callable[[int, int], None] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train, pick the best epoch on validation patients, measure it on the test fold, write the run folder.

    Args:
        config: All settings.
        out: The run's folder.
        resume: Continue the run that is there.
        progress: Show Lightning's progress bar.
        say: Gets one line of text at each step.
        prepared: Called with the number of slices read and of all.
        command: What the user typed, for the card.

    Returns:
        The card of the weights, test metrics included.

    Raises:
        InputError: Unusable data, settings, or run folder.
    """
    checkpoint = check_run(out, config, resume)
    evidence = find_evidence(config)
    L.seed_everything(config.seed, verbose=False)
    architecture = find_architecture(config.arch)
    model = build_classifier(architecture, config.size)
    for side in sides(config):
        check_size(model, architecture, side)
    if checkpoint is None:  # before the data are read: a wrong name should not cost the user that time
        say(f"initial weights: {initialise(model, architecture, config.init)}")
    if config.frozen:
        freeze_backbone(model)
        if config.init == "none" or (config.init == "imagenet" and architecture.pretrained is None):
            raise InputError(f"--frozen keeps the first weights of {config.arch}; give it some with --init FILE")
    if config.freeze_stem:
        freeze_stem(model)
    others = [picture for folder in config.not_brain for picture in read_others(folder, config.size)]
    parts = load_partition(config, keep=has_label, progress=prepared)
    say(str(parts))
    if evidence is not None:
        check_coverage(config.out_of_fold, evidence.patients, [s.patient for s in parts.train.samples])
    absent = [name for number, name in enumerate(CLASSES) if number not in parts.train.labels]
    if absent:
        say(f"warning: no training slice shows {', '.join(absent)}, so this classifier cannot learn to tell it")
    module = build_module(config, parts, model)
    check_steps(module, config, epoch_slices(config, parts))
    write_config(out, config)
    fit(module, config, parts, out, checkpoint, progress)
    return finish(module, config, parts, out, say, command, others, evidence)


def has_label(sample: Sample) -> bool:
    """Whether a sample says what it shows."""
    return bool(sample.label)


def find_evidence(config: ClassifierConfig) -> Evidence | None:
    """The out-of-fold predictions that a run on all patients needs.

    Raises:
        InputError: They are missing, of another recipe, or given to a run with validation patients of its own.
    """
    if bool(config.out_of_fold) != (config.split == "all"):
        raise InputError("a run on all patients (--split all) needs a cross-validation (--out-of-fold), and only it")
    return read_evidence(config.out_of_fold, plain_config(config)) if config.out_of_fold else None


def build_module(config: ClassifierConfig, parts: Partition, model: nn.Module | None = None) -> ClassifierModule:
    """A module around a model (a fresh one, if none is given); loss weights undo the classes' imbalance, the schedule
    spans the whole run."""
    counts = expected_counts(parts.train.labels, parts.train.masks, config.transplant, len(CLASSES))
    counts[counts < 1] = max(1.0, counts.max())  # label smoothing would pull to an absent class that weighs much
    weights = len(parts.train) / (len(CLASSES) * counts) if config.balance else np.ones(len(CLASSES))
    class_weights = torch.tensor(weights, dtype=torch.float32).clamp(max=5)
    model = model or build_classifier(find_architecture(config.arch), config.size)
    return ClassifierModule(config, model, class_weights, total_steps(config, parts))


def fit(
    module: ClassifierModule, config: ClassifierConfig, parts: Partition, out: Path, checkpoint: Path | None, bar: bool
) -> None:
    """Run the training loop; leaves ``checkpoints/last.ckpt``, and ``best.ckpt`` where validation chooses."""
    training, validation = loaders(config, parts, config.blank)
    chooses = chooses_epoch(config, parts)
    trainer = make_trainer(out, config, "val_macro_f1" if chooses else None, bar)
    run_loop(trainer, module, training, validation if chooses else None, checkpoint)


def finish(
    module: ClassifierModule,
    config: ClassifierConfig,
    parts: Partition,
    out: Path,
    say: Say,
    command: str,
    others: Sequence[NDArray[np.uint8]] = (),
    evidence: Evidence | None = None,
) -> dict[str, Any]:
    """Load the best epoch, fit when to believe it, predict validation and test patients, write plots, tables, weights
    and card. A run on all patients has neither; the figures on its card are those of the cross-validation."""
    state, epoch = chosen_state(out)
    module.load_state_dict(state)
    trust = fit_trust(module.model, module.normalization, parts, config, others, evidence)
    results: dict[str, Any] = {} if evidence is None else evidence.figures
    for name, part in (("validation", parts.validation), ("test", parts.test)):
        if not len(part):
            continue
        logits, strangeness = trust.logits, trust.strangeness
        if name == "test":
            half = wants_bf16(config.precision, pick_device(config.device))
            logits = predict_logits(module.model, part.images, config.device, module.normalization, half=half)
            strangeness = None
        probabilities = calibrated(logits, trust.temperature)
        write_predictions(out / f"{name}.csv", part, probabilities, strangeness)
        results[name] = classification_metrics(part, probabilities)
        results[name]["gate"] = gate_metrics(part.labels, probabilities, trust.thresholds(part))
        plot_confusion(part.labels, probabilities.argmax(1), out / f"confusion_{name}.png", f"{name} patients")
    plot_learning_curves(write_metrics_table(out), out / "curves.png")
    card = save_weights(
        {**module.model.state_dict(), **trust.tensors()},
        out / "classifier.safetensors",
        {
            "stage": "classification",
            "architecture": config.arch,
            "classes": list(CLASSES),
            "input_size": config.size,
            "normalization": plain_config(module.normalization),
            "classes_in_training": [CLASSES[n] for n in sorted(set(parts.train.labels.tolist()))],
            **trust.facts(),
            "metrics": results,
            **describe_run(out, parts, epoch, command),
        },
    )
    measured = "on all patients, test figures are the cross-validation's"
    if "test" in results:
        measured = f"{config.tested}: accuracy {results['test']['slice']['accuracy']:.4f}"
    say(f"{measured}, weights in {out}")
    return card
