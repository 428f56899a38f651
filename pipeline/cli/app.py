"""The command line `tumorlens` on one page. A command's module is imported when the command is called, not before."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from tumorlens.pipeline.cli.screen import HELP_WIDTH, note, show_error, usage_message, write_examples

if TYPE_CHECKING:
    from tumorlens.pipeline.cli.options import Command

# Name -> place of the command (module and attribute below pipeline.cli, or the commands of a group), and the first line
# of its help.
Commands = Mapping[str, tuple[Any, str]]
TRAIN: Commands = {
    "classification": ("train.classification", "Train the classifier (any classes; ResNet-50 or another network)."),
    "segmentation": ("train.segmentation", "Train the segmenter (one mask; Res-U-Net or another network)."),
}
EVALUATE: Commands = {
    "classification": ("evaluate.classification", "Measure a classifier: accuracy, AUC, calibration, gate, shortcuts."),
    "segmentation": ("evaluate.segmentation", "Measure a segmenter alone: Dice, IoU, HD95, lesions, false masks."),
    "pipeline": ("evaluate.pipeline", "Measure both stages end to end, as `tumorlens run` uses them."),
    "engines": ("evaluate.engines", "Compare the engines and precisions of this machine on the same slices."),
}
CROSSVAL: Commands = {
    "classification": ("crossval.classification", "Train and measure the classifier on every fold."),
    "segmentation": ("crossval.segmentation", "Train and measure the segmenter on every fold."),
    "pipeline": ("crossval.pipeline", "Train both stages on every fold and measure them end to end."),
}
DATA: Commands = {
    "explore": ("data.explore", "Write a report on a data set: index.html (opens offline), report.json, figures/."),
    "check": ("data.check", "Report what is wrong with a data set: files, labels, masks, copies, patients."),
    "split": ("data.split", "Divide a data set by patient into parts or folds, and write them as an index."),
}
MASKS: Commands = {
    "export": (
        "masks.export",
        "Write masks for 3D Slicer, ITK-SNAP, DICOM viewers, CVAT, LabelMe and others.",
    ),
    "import": ("masks.bring_back", "Take corrected masks back, report what changed, and record it as a review."),
}
REVIEW: Commands = {
    "export": (
        "review.export",
        "Write the reviewers' decisions, and corrected cases as a data set to train on.",
    ),
    "report": ("review.report", "Report progress, and how far reviewers and models agree."),
}
COMMANDS: Commands = {
    "run": ("run.run", "Label scans, segment the positive ones, write results.csv, masks and overlays."),
    "demo": ("tools.demo", "Run the pipeline on a phantom scan, or on yours, and say where the results are."),
    "serve": ("serve.serve", "Open a page on this machine to try scans, and to review the results in OUT."),
    "dicom-node": ("dicom_node.dicom_node", "Receive DICOM studies, run them, and send SEG and SR back."),
    "review": (REVIEW, "Make use of what reviewers have decided."),
    "masks": (MASKS, "Exchange masks with other programs."),
    "train": (TRAIN, "Train a stage on your own data."),
    "evaluate": (EVALUATE, "Measure a stage, or both together, on labeled scans."),
    "crossval": (CROSSVAL, "Train and measure on every fold."),
    "data": (DATA, "Look at a data set, check it, split it by patient."),
    "calibrate": ("tools.calibrate", "Fit the rule for volumes on labeled ones, and write it to a classifier's card."),
    "export": ("tools.export", "Write a stage for other programs (Triton, ONNX Runtime, OpenVINO, LibTorch)."),
    "info": ("info.info", "Show versions, extras, devices, models and their hashes."),
}


class LazyGroup(click.Group):
    """A group that knows the names of its commands and a line on each, and imports a command when it is called."""

    def __init__(self, name: str, text: str, places: Commands, **rest: Any) -> None:
        super().__init__(name, help=text, context_settings={"max_content_width": HELP_WIDTH}, **rest)
        self.places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.places:
            return None
        place, text = self.places[cmd_name]
        if not isinstance(place, str):
            return LazyGroup(cmd_name, text, place)
        module, attribute = place.split(".")
        loaded: Command = getattr(import_module(f"tumorlens.pipeline.cli.{module}"), attribute)
        return loaded.with_help(text)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.places.items()])


class Program(LazyGroup):
    """The group on top: a mistake in the command's words is one sentence and exit code 2."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.epilog)

    def main(self, *args: Any, **rest: Any) -> Any:
        rest["standalone_mode"] = False  # otherwise click prints its own messages and exits
        try:
            code = super().main(*args, **rest)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = 2
        except click.UsageError as error:
            show_error(usage_message(error))
            code = 2
        except click.Abort:
            note("stopped")
            code = 130
        sys.exit(code)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"tumorlens {version('tumorlens')}")
        ctx.exit()


app = Program(
    "tumorlens",
    "Brain tumors in MRI: a ResNet-50 says whether and which, a Res-U-Net shows where. For research only.",
    COMMANDS,
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Print the version and leave.",
        )
    ],
    epilog="""
    tumorlens demo
    tumorlens run scan.png -o results
    tumorlens train classification --data my-set -o run
    tumorlens evaluate pipeline --data my-set -o report
    """,
)


def main() -> None:
    """Entry point of the console command."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # PyTorch's threads sleep while they wait for work. Otherwise they spin, and take the cores from the processes that
    # load data and from other programs. OpenMP reads both when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if os.environ["OMP_WAIT_POLICY"].lower() == "passive":
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # PyTorch's hints for developers; read at its import, too
    with handle_termination_signals():
        app(prog_name="tumorlens")


@contextmanager
def handle_termination_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `KeyboardInterrupt`, as Ctrl-C does, and the exit code is then 143 or 129.

    Otherwise they would end the process at once and leave the unpacked files of a patient's archive on the disk. Use it
    in the command's own process only: signals are not a library's business. Ignored signals (`nohup`) stay ignored.
    """
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        for each in before:  # a second one must not stop the cleaning up
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no HUP
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        if received:
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
