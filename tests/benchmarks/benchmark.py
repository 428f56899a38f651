"""Speed, each figure beside its baseline in the same run: ratios can be compared between machines, seconds cannot."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import numpy as np

from tests.benchmarks.rounds import Costs, as_text, ratio_of, run_rounds, spent
from tumorlens.classification.predict import SHIPPED as CLASSIFIER
from tumorlens.data.errors import InputError
from tumorlens.data.formats.pictures import write_png
from tumorlens.data.labels import CLASSES
from tumorlens.data.phantom import phantom_slice, phantom_volume
from tumorlens.data.preprocessing.preprocess import Preprocess
from tumorlens.pipeline.batch.inputs import collect
from tumorlens.pipeline.batch.run import run_batch
from tumorlens.pipeline.pipeline import Pipeline
from tumorlens.segmentation.predict import SHIPPED as SEGMENTER

Say = Callable[[str], None]

_HEALTHY_SHARE = 2  # every second slice of the folder
_SLICES_OF_STEPS = 16
_CALLS, _TURNS = 20, 3  # of a single slice, whose percentiles are compared
_COMMAND = "import sys; from tumorlens.pipeline.cli.app import main; sys.argv = ['tumorlens', *sys.argv[1:]]; main()"


@dataclass
class Figures:
    """What was measured.

    Attributes:
        rows: ``what, unit``, the medians ``ours`` and ``baseline`` of wall time (or memory), ``ratio`` and
            ``processor_ratio`` as from `ratio_of`, and ``rounds``: of each round ours and the baseline, wall time and
            processor time.
        context: Facts on the machine and the run.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, unit: str, costs: Costs) -> None:
        """Add a figure for which less is better.

        Args:
            what: What was measured.
            unit: Of `costs`.
            costs: (rounds, ours and baseline, wall time and processor time); a figure that is not a time has one clock.
        """
        ours, baseline = np.median(costs[..., 0], axis=0)
        clocks = [ratio_of(costs[..., clock]) for clock in range(costs.shape[-1])]
        self.rows.append(
            {
                "what": what,
                "unit": unit,
                "ours": round(float(ours), 3),
                "baseline": round(float(baseline), 3),
                "ratio": clocks[0],
                "processor_ratio": clocks[1] if len(clocks) > 1 else None,
                "rounds": costs.round(4).tolist(),
            }
        )

    def table(self) -> str:
        """The figures as a Markdown table."""
        lines = ["| | ours | plain PyTorch | ratio | ratio of processor time |", "| --- | --- | --- | --- | --- |"]
        for row in self.rows:
            ratios = f"{as_text(row['ratio'])} | {as_text(row['processor_ratio'])}"
            lines.append(f"| {row['what']}, {row['unit']} | {row['ours']:g} | {row['baseline']:g} | {ratios} |")
        return "\n".join(lines)

    def remarks(self) -> list[str]:
        """Lines about the figures that have no baseline."""
        floor = self.context["floor"]
        steps = ", ".join(f"{step} {ms:g}" for step, ms in self.context["steps_ms"].items())
        lines = [
            f"processor time of a slice in ms: {steps}",
            f"both networks, in batches: {floor['both_networks_ms_per_slice']:g} ms a slice; their "
            f"{floor['gflop_per_slice']:g} GFLOP alone take {floor['least_ms_per_slice']:g} ms at the "
            f"{floor['matrix_product_tflops']:g} TFLOPS of a matrix product here; ratio "
            f"{as_text(floor['share_of_rate'])}",
        ]
        for row in self.context.get("loader", ()):
            lines.append(f"{row['stage']}: {as_text(row['speed'])} times the speed without a loader")
        for row in self.context.get("growth", ()):
            lines.append(
                f"{row['pictures']} pictures: {row['ms_each']} ms each, of processor time {row['processor_ms_each']}, "
                f"peak {row['peak_mb']} MB"
            )
        return lines


def benchmark(
    slices: int = 200,
    depth: int = 155,
    threads: int | None = None,
    growth: tuple[int, ...] = (),
    training: int = 0,
    say: Say = print,
) -> Figures:
    """Measure the shipped models on phantoms, on the CPU.

    Args:
        slices: Pictures in the folder.
        depth: Slices of the volume, 240 x 240 pixels and 1 mm each.
        threads: Threads that both sides compute with; None takes all cores.
        growth: Numbers of pictures. Each is run in a process of its own: time and memory must not grow faster.
        training: Steps of each stage's training that are timed; 0 leaves training out.
        say: Gets a line at each step.
    """
    import torch

    from tests.benchmarks.plain import PlainTorch
    from tests.benchmarks.steps import measure_steps

    if threads is not None:
        torch.set_num_threads(threads)
    figures = Figures()
    say("opening the models")
    ours = Pipeline.load(device="cpu", threads=threads)
    plain = PlainTorch(CLASSIFIER, SEGMENTER)
    plain.size = ours.classifier.input_size
    figures.context = {"engine": ours.engine.facts(), "threads": threads or torch.get_num_threads(), "slices": slices}
    with TemporaryDirectory(prefix="tumorlens-benchmark-") as scratch:
        folder = Path(scratch)
        say(f"making {slices} slices and a volume")
        sources = _write_slices(folder / "in", slices)
        say("starts")
        _measure_starts(figures, sources[1], folder, threads)
        say("single slices")
        _measure_slice(figures, ours, plain)
        say("a folder")
        _measure_folder(figures, ours, plain, sources, folder)
        if depth:
            say("a volume")
            _measure_volume(figures, ours, plain, depth)
        say("the steps of a slice")
        figures.context["steps_ms"] = measure_steps(ours, sources[:_SLICES_OF_STEPS], folder / "steps")
        say("the processor")
        _measure_floor(figures, ours)
        for stage in ("classification", "segmentation") if training else ():
            say(f"training, {stage}")
            _measure_training(figures, stage, training, plain.size)
        for number in sorted(set(growth)):
            say(f"{number} pictures")
            _measure_growth(figures, sources, number, folder, threads)
    return figures


def _write_slices(folder: Path, slices: int) -> list[Path]:
    files = []
    for n in range(slices):
        label = CLASSES[0] if n % _HEALTHY_SHARE == 0 else CLASSES[1 + n % (len(CLASSES) - 1)]
        files.append(folder / f"{n:05d}.png")
        write_png(files[-1], phantom_slice(n % 16, label, size=512, pixel_mm=0.45).image)
    return files


def _measure_starts(figures: Figures, source: Path, folder: Path, threads: int | None) -> None:
    """Whole processes, from the command to files on disk."""
    own = "" if threads is None else f"torch.set_num_threads({threads})\n"
    plain = (
        f"import sys, torch; from pathlib import Path\n{own}"
        "from tumorlens.classification.predict import SHIPPED as one\n"
        "from tumorlens.segmentation.predict import SHIPPED as two\n"
        "from tests.benchmarks.plain import PlainTorch\n"
        "PlainTorch(one, two).run_file(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    runs = (
        [sys.executable, "-c", _COMMAND, *_run(source, folder / "o", threads)],
        [sys.executable, "-c", plain, str(source), str(folder / "p")],
        [sys.executable, "-c", _COMMAND, "--help"],
        [sys.executable, "-c", "pass"],
    )
    costs = run_rounds(*(partial(_process, command) for command in runs), warm=1)
    figures.add("start to result, one picture", "s", costs[:, :2, :2])
    figures.add("peak memory of that", "MB", costs[:, :2, 2:])
    help_s, interpreter_s = np.median(costs[:, 2:, 0], axis=0).round(3).tolist()
    figures.context |= {"help_s": help_s, "empty_interpreter_s": interpreter_s}


# A process's peak counts what its parent held when it was forked, so that a small one has to stand between.
_WATCH = (
    "import resource, subprocess, sys, time\n"
    "begun = time.perf_counter()\n"
    "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
    "wall, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    "print(code, wall, used.ru_utime + used.ru_stime, used.ru_maxrss)"
)


def _process(command: list[str]) -> tuple[float, float, float]:
    """Wall time and processor time in seconds, and peak memory in MB, of a process. It has to succeed."""
    watched = subprocess.run([sys.executable, "-c", _WATCH, *command], capture_output=True, text=True, check=True)
    code, wall, processor, peak = watched.stdout.split()
    if code != "0":
        last = (watched.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise InputError(f"a measured process ended with {code} ({last})")
    return float(wall), float(processor), float(peak) / (1024 if sys.platform != "darwin" else 1024**2)


def _measure_slice(figures: Figures, ours: Pipeline, plain: Any) -> None:
    image = phantom_slice(7, "meningioma", size=512, pixel_mm=0.45).image
    sides = (partial(spent, partial(run, image)) for run in (ours.run, plain.judge))
    costs = 1000 * run_rounds(*sides, rounds=_TURNS * _CALLS, warm=4).reshape(_TURNS, _CALLS, 2, 2)
    for name, percentile in (("median", 50), ("95th percentile", 95)):
        figures.add(f"one slice with a tumor, {name}", "ms", np.percentile(costs, percentile, axis=1))


def _measure_folder(figures: Figures, ours: Pipeline, plain: Any, sources: list[Path], folder: Path) -> None:
    few = sources[: max(20, len(sources) // 5)]  # plain PyTorch is slow, and its time a slice does not change

    def run_ours() -> None:
        out = Path(mkdtemp(dir=folder))
        with TemporaryDirectory(prefix="tumorlens-") as scratch:
            jobs = collect([str(sources[0].parent)], out, Path(scratch)).jobs
            report = run_batch(ours, jobs, out)
        if report.failed:
            raise InputError(f"{report.failed} of {len(sources)} phantoms failed, so there is nothing to measure")

    def run_plain() -> None:
        out = Path(mkdtemp(dir=folder))
        for source in few:
            plain.run_file(source, out / source.stem)

    costs = 1000 * run_rounds(lambda: spent(run_ours) / len(sources), lambda: spent(run_plain) / len(few))
    figures.add("a folder, read to written", "ms a slice", costs)


def _measure_volume(figures: Figures, ours: Pipeline, plain: Any, depth: int) -> None:
    scan = phantom_volume(7, "meningioma", (240, 240, depth), (0.9, 0.9, 155.0 / depth)).scan
    sides = partial(ours.run, scan), partial(plain.run_volume, scan.voxels)
    figures.add(f"a volume of 240 x 240 x {depth}", "s", run_rounds(*(partial(spent, side) for side in sides)))


def _measure_floor(figures: Figures, ours: Pipeline) -> None:
    """Both networks in batches, beside the least time that their multiplications take."""
    from tests.benchmarks.floor import matrix_product, operations_of

    preprocess = Preprocess(ours.classifier.input_size)
    images = np.stack([preprocess(phantom_slice(n, "glioma").image).image for n in range(16)])

    def networks() -> None:
        ours.classifier.look(images)
        ours.segmenter.predict(images)

    operations = operations_of(CLASSIFIER, SEGMENTER)
    product, of_product = matrix_product(ours.engine.precision)
    share = 1000 * operations / of_product
    costs = run_rounds(lambda: 1000 * spent(networks) / len(images), lambda: share * spent(product), warm=1)[..., 0]
    both_ms, least_ms = np.median(costs, axis=0)
    figures.context["floor"] = {
        "gflop_per_slice": round(operations / 1e9, 2),
        "matrix_product_tflops": round(operations / least_ms / 1e9, 3),
        "least_ms_per_slice": round(least_ms, 2),
        "both_networks_ms_per_slice": round(both_ms, 2),
        "share_of_rate": ratio_of(costs),
    }


def _measure_training(figures: Figures, stage: str, steps: int, size: int) -> None:
    from tests.benchmarks.training import training_loops

    loops = training_loops(stage, steps, size)
    costs = 1000 * run_rounds(loops.ours, loops.plain, loops.repeated)
    figures.add(f"training, {stage}", "ms a slice", costs[:, :2])
    speed = {"stage": stage, "speed": ratio_of(costs[:, [0, 2], 0])}
    figures.context.setdefault("loader", []).append(speed)


def _measure_growth(figures: Figures, sources: list[Path], number: int, folder: Path, threads: int | None) -> None:
    inside = folder / f"grown-{number}"
    inside.mkdir()
    for n in range(number):
        (inside / f"{n:06d}.png").hardlink_to(sources[n % len(sources)])
    wall, processor, peak = _process([sys.executable, "-c", _COMMAND, *_run(inside, folder / f"g{number}", threads)])
    each = {"ms_each": round(1000 * wall / number, 1), "processor_ms_each": round(1000 * processor / number, 1)}
    figures.context.setdefault("growth", []).append({"pictures": number, **each, "peak_mb": round(peak)})


def _run(source: Path, out: Path, threads: int | None) -> list[str]:
    """Arguments of a quiet run on the CPU."""
    limit = [] if threads is None else ["--threads", str(threads)]
    return ["run", str(source), "-o", str(out), "--overwrite", "--device", "cpu", "-q", *limit]
