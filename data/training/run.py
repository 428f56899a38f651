"""A training run as both stages do it: begin, read the data, train, load the best epoch, save the weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from tumorlens.data.cards.card import WEIGHT_FILES
from tumorlens.data.cards.lineage import PATIENTS, size_of_start
from tumorlens.data.cards.weights import save_weights
from tumorlens.data.config import TrainingConfig, check_choices
from tumorlens.data.datasets.classes import GivenClasses
from tumorlens.data.datasets.load import find_source
from tumorlens.data.datasets.patient_hashes import hash_patients
from tumorlens.data.datasets.sample import Sample
from tumorlens.data.devices import pick_device, wants_bf16
from tumorlens.data.errors import InputError
from tumorlens.data.masks.regions import NO_REGIONS, Regions
from tumorlens.data.training.curves import plot_learning_curves
from tumorlens.data.training.loaders import epoch_slices, loaders
from tumorlens.data.training.logs import check_logger, close_loggers, stopped_early
from tumorlens.data.training.module import StageModule, check_steps, chooses_epoch
from tumorlens.data.training.out_of_fold import Evidence
from tumorlens.data.training.partition import Partition, load_partition
from tumorlens.data.training.prepared import remove_prepared
from tumorlens.data.training.processes import end_processes, start_processes
from tumorlens.data.training.run_folder import (
    check_outputs,
    check_run,
    chosen_state,
    with_start,
    write_config,
    write_metrics_table,
)
from tumorlens.data.training.trainer import make_trainer, quiet_lightning, run_trainer

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


def _quiet(text: str) -> None:
    """Say nothing, for the first process says it."""


@dataclass(frozen=True)
class Run:
    """A training run. Its methods are the steps, in the order in which a stage takes them.

    Attributes:
        config: All settings.
        out: The run's folder.
        checkpoint: Where a resumed run continues; None for a new one.
        progress: Show Lightning's progress bar, or without a terminal a line an epoch.
        say: Gets one line of text at each step.
        team: The processes that train together; None for one alone. Only the first says anything, and only it goes on
            after `train`.
    """

    config: TrainingConfig
    out: Path
    checkpoint: Path | None
    progress: bool = True
    say: Say = print
    team: L.Fabric | None = None

    @classmethod
    def begin(cls, config: TrainingConfig, out: Path, resume: bool, progress: bool, say: Say) -> Run:
        """Check the folder and the device, start the other processes, and set the seed.

        Raises:
            InputError: See `data.training.run_folder.check_run` and `data.training.processes.start_processes`, or a
                setting is not one of its choices.
        """
        check_choices(config)
        check_logger(config)
        quiet_lightning()
        checkpoint = check_run(out, config, resume)
        team = start_processes(config)
        L.seed_everything(config.seed, verbose=False)
        return cls(config, out, checkpoint, progress, say if team is None or team.is_global_zero else _quiet, team)

    @property
    def device(self) -> torch.device:
        """The device on which the trained network is measured."""
        return pick_device(self.config.device)

    @property
    def half(self) -> bool:
        """Whether the run computes in bfloat16."""
        return wants_bf16(self.config.precision, self.device)

    def check_sources(self) -> None:
        """Check that the data exist; nothing is worth a download if they do not.

        Raises:
            InputError: See `data.datasets.load.find_source`.
        """
        for source in self.config.data:
            find_source(source)

    def say_start(self, report: object) -> None:
        """Report the initial weights, and for a whole network the size of the input that comes with it."""
        size = size_of_start(self.config)
        own = "as they learned" if size == self.config.size else f"they learned with {size}"
        self.say(f"initial weights: {report}" + (f"; input of {self.config.size} pixels, {own}" if size else ""))

    def load_data(
        self,
        keep: Callable[[Sample], bool],
        evidence: Evidence | None,
        prepared: Progress | None,
        given: GivenClasses | None = None,
        regions: Regions = NO_REGIONS,
    ) -> Partition:
        """The slices to learn from, to validate and to test on.

        Args:
            keep: Only samples for which it is true are read.
            evidence: What a run on all patients is calibrated on.
            prepared: Called with the number of slices read and of all.
            given: The classes that the user names; by default they are those of the labels.
            regions: The parts of lesions that the masks are read for; by default their lesions are whole.

        Raises:
            InputError: See `data.training.partition.load_partition`.
        """
        load = partial(load_partition, keep=keep, given=given, regions=regions)
        if self.team is None:
            parts = load(self.config, progress=prepared)
            own = self.out / "prepared"  # of several processes that were killed while they read
            if not self.config.prepared or Path(self.config.prepared).absolute() != own.absolute():
                remove_prepared(own)
        else:
            parts = self._load_in_turn(self.team, load, prepared)
        self.say(str(parts))
        self.warn_of_known_patients(parts)
        if evidence is not None:
            evidence.check_coverage([sample.patient for sample in parts.train.samples])
        return parts

    def _load_in_turn(self, team: L.Fabric, load: Callable[..., Partition], prepared: Progress | None) -> Partition:
        """The first process reads the slices and stores them, for the others to take; what it stored goes then."""
        first, own = team.is_global_zero, None if self.config.prepared else self.out / "prepared"
        config = self.config if own is None else replace(self.config, prepared=str(own))
        is_new, problem = not self.out.exists(), None
        try:
            with team.rank_zero_first():
                try:
                    parts = load(config, progress=prepared if first else None)
                except InputError as error:  # raised below: the others wait for the end of this block
                    problem = error
            if problem is not None:
                raise problem
            team.barrier()
            return parts
        finally:
            if first and own is not None:
                remove_prepared(own)
                if is_new:
                    with suppress(OSError):
                        self.out.rmdir()

    def warn_of_known_patients(self, parts: Partition) -> None:
        """Warn if the initial weights have learned from patients that this run holds out."""
        known = set((with_start(self.config).get("start") or {}).get(PATIENTS) or ())
        for name, part in parts.held_out().items() if known else ():
            hashes = set(hash_patients(part.samples))
            if seen := len(hashes & known):
                self.say(
                    f"warning: the initial weights have learned from {seen} of the {len(hashes)} {name} patients, so "
                    f"the {name} figures do not hold for new patients"
                )

    def train(self, module: StageModule, parts: Partition, blank: float = 0.0, negative_share: float = 0.0) -> None:
        """Run the training loop; writes ``checkpoints/last.ckpt``, and ``best.ckpt`` where validation chooses.

        Args:
            module: Learns in place.
            parts: The run's slices.
            blank: Share of the training slices with blanked heads.
            negative_share: See `data.training.loaders.slice_weights`.

        Raises:
            InputError: The network cannot learn from such small steps, the training diverged, or a resumed run has
                other classes now or a damaged checkpoint.
        """
        check_steps(module, self.config, epoch_slices(self.config, parts, negative_share))
        if self.checkpoint is not None:
            check_outputs(self.out, self.checkpoint, module.outputs)
        process = 0 if self.team is None else self.team.global_rank
        training, validation = loaders(self.config, parts, blank, negative_share, process)
        if process == 0:
            write_config(self.out, self.config)
        chooses = chooses_epoch(self.config, parts)
        monitor = f"val_{self.config.best_by}" if chooses else None
        trainer = make_trainer(self.out, self.config, monitor, self.progress, self.say)
        run_trainer(trainer, module, training, validation if chooses else None, self.checkpoint)
        end_processes()
        if reason := stopped_early(trainer, self.config):
            self.say(reason)
        close_loggers(trainer)

    def load_best_epoch(self, module: StageModule) -> int:
        """Load the chosen epoch, or the last one, into the module; returns its number."""
        state, epoch = chosen_state(self.out)
        module.load_state_dict(state)
        return epoch

    def save(self, tensors: dict[str, torch.Tensor], card: dict[str, Any], headline: str) -> dict[str, Any]:
        """Write learning curves, weights and card. Returns the card as it is written.

        Args:
            tensors: The content of the weight file.
            card: The content of its card, see `data.cards.weights.save_weights`.
            headline: The test figure that is reported to the user.
        """
        plot_learning_curves(write_metrics_table(self.out), self.out / "curves.png")
        written = save_weights(tensors, self.out / WEIGHT_FILES[card["stage"]], card)
        self.say(f"{headline}, weights in {self.out}")
        return written
