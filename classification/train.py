"""Training of the classifier, from data folders to a run folder with weights, card, curves and confusion matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tumorlens.classification.architectures import find_architecture
from tumorlens.classification.config import ClassifierConfig
from tumorlens.classification.evaluation.metrics import classification_metrics, gate_metrics
from tumorlens.classification.evaluation.plots import plot_confusion
from tumorlens.classification.model import InitReport, build_classifier, initialize
from tumorlens.classification.module import build_module, check_input_size, freeze_backbone
from tumorlens.classification.network import TorchNetwork
from tumorlens.classification.trust.calibration import THRESHOLD
from tumorlens.classification.trust.evidence import PredictionEvidence, read_evidence, write_predictions
from tumorlens.classification.trust.fit import Trust, fit_trust
from tumorlens.classification.trust.refusal_fit import read_others
from tumorlens.data.cards.lineage import card_of
from tumorlens.data.datasets.classes import doubtful_names, given_classes, merged_folders
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, TUMOR_FREE, ClassList
from tumorlens.data.training.module import input_sizes
from tumorlens.data.training.networks import freeze, mix_in_start
from tumorlens.data.training.out_of_fold import find_evidence
from tumorlens.data.training.partition import Partition
from tumorlens.data.training.processes import one_voice
from tumorlens.data.training.run import Progress, Run, Say
from tumorlens.data.training.run_folder import describe_run, plain_config

if TYPE_CHECKING:
    from torch import nn


@one_voice()
def train_classifier(
    config: ClassifierConfig,
    out: Path,
    resume: bool = False,
    progress: bool = True,
    say: Say = print,
    prepared: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Train, choose the best epoch on validation patients, measure it on the test fold, and write the run folder.

    A run on all patients has no validation or test patients. A run of the same recipe that held patients out, or a
    cross-validation, calibrates it, and the card holds the figures of those.

    Args:
        config: All settings.
        out: The run's folder.
        resume: Continue the run in this folder.
        progress: Show Lightning's progress bar.
        say: Gets one line of text at each step.
        prepared: Called with the number of slices read and of all.
        command: The command as the user typed it, for the card.

    Returns:
        The card of the weights, test metrics included.

    Raises:
        InputError: Unusable data, settings or run folder.
    """
    run = Run.begin(config, out, resume, progress, say)
    evidence = find_evidence(config, read_evidence)
    given = given_classes(config.classes, config.data)
    expected = ClassList.from_card(card_of(config.init_file)) if given is None else given.classes
    expected.check_number()
    model, start = initial_model(run, config, expected.outputs)

    not_brains = read_not_brains(config)
    parts = run.load_data(has_label, evidence, prepared, given)
    check_classes(parts, evidence, run.say)
    if parts.classes.outputs != expected.outputs:  # only the data know which classes there are
        model, start = initial_model(run, config, parts.classes.outputs)
    if start is not None:
        run.say_start(start)

    module = build_module(config, parts, model)
    initial = initial_weights(config, parts.classes.outputs) if config.start_share else None
    run.train(module, parts, blank=config.blank)
    epoch = run.load_best_epoch(module)
    if initial is not None:
        mix_in_start(module.model, initial, config.start_share)

    network = TorchNetwork(module.model, run.device, module.normalization, run.half, classes=parts.classes)
    trust = fit_trust(network, parts, config, not_brains, evidence)
    if "too_few" in trust.conformal:
        run.say(f"warning: no prediction sets, for there are too few {trust.conformal['too_few']}")
    metrics = measure(network, parts, trust, out) if evidence is None else evidence.figures

    card = {
        "stage": "classification",
        "architecture": config.arch,
        **parts.classes.to_card(),
        "input_size": config.size,
        "normalization": plain_config(module.normalization),
        "classes_in_training": [name for n, name in enumerate(parts.classes.names) if n in parts.train.labels],
        **trust.facts(),
        "metrics": metrics,
        **describe_run(out, parts, epoch, command),
    }
    return run.save({**module.model.state_dict(), **trust.tensors()}, card, headline(config, metrics))


def initial_model(run: Run, config: ClassifierConfig, outputs: Sequence[str]) -> tuple[nn.Module, InitReport | None]:
    """The network before training, and where its weights come from; None for a resumed run.

    Built before the data are read, so that a wrong setting does not cost you the time of reading them; and again where
    they have other classes than was expected.

    Raises:
        InputError: Unknown network or initial weights, or settings that the network does not support.
    """
    architecture = find_architecture(config.arch)
    model = build_classifier(architecture, config.size, len(outputs))
    for size in input_sizes(config):
        check_input_size(model, architecture, size, len(outputs))
    report = None
    if run.checkpoint is None:
        if config.init == "imagenet" and architecture.pretrained is not None:
            run.check_sources()
        report = initialize(model, architecture, config.init, outputs)
        check_start(report, config)
    if config.frozen:
        freeze_backbone(model)
        if config.init == "none" or (config.init == "imagenet" and architecture.pretrained is None):
            raise InputError(f"--frozen keeps the initial weights of {config.arch}; give it some with --init FILE")
    freeze(model, config.frozen_until)
    return model, report


def check_start(report: InitReport, config: ClassifierConfig) -> None:
    """Raise an `InputError` if ``--start-share`` would mix random weights in."""
    if config.start_share and report.fresh:
        raise InputError(
            f"--init {config.init}: --start-share needs a whole network, and it lacks {', '.join(report.fresh)}"
        )


def initial_weights(config: ClassifierConfig, outputs: Sequence[str]) -> nn.Module:
    """The network as it was before training.

    Raises:
        InputError: The initial weights are not there any more, or not those of a whole network of this kind.
    """
    architecture = find_architecture(config.arch)
    start = build_classifier(architecture, config.size, len(outputs))
    check_start(initialize(start, architecture, config.init, outputs), config)
    return start


def read_not_brains(config: ClassifierConfig) -> list[NDArray[np.uint8]]:
    """The prepared pictures of `config.not_brain`, which teach the refusal.

    Raises:
        InputError: See `classification.trust.refusal_fit.read_others`.
    """
    return [picture for folder in config.not_brain for picture in read_others(folder, config.size)]


def has_label(sample: Sample) -> bool:
    """Whether a sample has a label."""
    return bool(sample.label)


def check_classes(parts: Partition, evidence: PredictionEvidence | None, say: Say) -> None:
    """Say which classes there are, and warn about names that may be typing errors and classes that no slice shows.

    Raises:
        InputError: There are too few or too many classes, or not those of the evidence.
    """
    classes = parts.classes
    classes.check_number()
    if evidence is not None and evidence.classes.outputs != classes.outputs:
        raise InputError(
            f"{evidence.folder}: the run there has the classes {', '.join(evidence.classes.outputs)}, this one "
            f"{', '.join(classes.outputs)}; name the same ones with --classes"
        )
    if classes.outputs != CLASSES:
        say(f"classes: {', '.join(classes.outputs)}")
    if not classes.gate:
        say(f"no class is {TUMOR_FREE}, so this classifier calls every scan a tumor")
    samples = [sample for part in (parts.train, parts.validation, parts.test) for sample in part.samples]
    merged = merged_folders({sample.image: sample.label for sample in samples})
    for line in [*doubtful_names(Counter(sample.label for sample in samples)), *merged]:
        say(f"warning: {line}")
    absent = [name for name in classes.outputs if classes.index(name) not in parts.train.labels]
    if absent:
        say(f"warning: no training slice shows {', '.join(absent)}, so this classifier cannot learn to recognize it")


def measure(network: TorchNetwork, parts: Partition, trust: Trust, out: Path) -> dict[str, Any]:
    """Metrics of the validation and test patients, ``{"validation": ..., "test": ...}``.

    Writes a table of predictions and a confusion matrix of each to the run's folder.
    """
    metrics: dict[str, Any] = {}
    for name, part in parts.held_out().items():
        classes = part.classes
        fitted = name == "validation"  # the thresholds were fitted on these slices, so their logits are there
        probabilities = trust.calibration(trust.logits if fitted else network.logits(part.images))
        write_predictions(out / f"{name}.csv", part, probabilities, trust.strangeness if fitted else None)
        metrics[name] = classification_metrics(part, probabilities)
        metrics[name]["gate"] = gate_metrics(part.labels, probabilities, THRESHOLD)
        plot_confusion(part.labels, probabilities.argmax(1), out / f"confusion_{name}.png", f"{name} patients", classes)
    return metrics


def headline(config: ClassifierConfig, metrics: dict[str, Any]) -> str:
    """The test accuracy in a sentence."""
    if config.split == "all":
        return "on all patients; the figures are those of held-out patients"
    measured = metrics["validation" if config.split == "holdout" else "test"]
    accuracy = measured["slice"]["accuracy"]
    return f"{config.tested}: " + ("no tumor has a known type" if accuracy is None else f"accuracy {accuracy:.4f}")
