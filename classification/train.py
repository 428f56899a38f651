"""Training of the classifier, from data folders to a run folder with weights, card, curves and confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.evaluation.metrics import classification_metrics, gate_metrics
from tumorlens.classification.evaluation.plots import plot_confusion
from tumorlens.classification.model import build_classifier, initialise
from tumorlens.classification.module import ClassifierModule, build_module, check_size, freeze_backbone
from tumorlens.classification.network import predict_logits
from tumorlens.classification.trust.calibration import calibrated
from tumorlens.classification.trust.evidence import Evidence, read_evidence, write_predictions
from tumorlens.classification.trust.fit import fit_trust
from tumorlens.classification.trust.refusal_fit import read_others
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.devices import pick_device, wants_bf16
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES
from tumorlens.data.training.curves import plot_learning_curves
from tumorlens.data.training.loaders import epoch_slices, loaders
from tumorlens.data.training.module import check_steps, chooses_epoch, sides
from tumorlens.data.training.networks import freeze_stem
from tumorlens.data.training.out_of_fold import check_coverage
from tumorlens.data.training.partition import Partition, load_partition
from tumorlens.data.training.run_folder import (
    check_run,
    chosen_state,
    describe_run,
    plain_config,
    write_config,
    write_metrics_table,
)
from tumorlens.data.training.trainer import fit as run_loop
from tumorlens.data.training.trainer import make_trainer

Say = Callable[[str], None]


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
