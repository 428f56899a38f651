"""Speed, each figure beside its baseline in the same run: ratios can be compared between machines, seconds cannot."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

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
_REPEATS = 3  # of starts; the best counts, for a busy machine only adds
_COMMAND = "import sys; from tumorlens.pipeline.cli.app import main; sys.argv = ['tumorlens', *sys.argv[1:]]; main()"


@dataclass
class Figures:
    """What was measured.

    Attributes:
        rows: ``what, ours, baseline, unit, ratio``; the ratio says how many times better ours is.
        context: Facts on the machine and the run.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, ours: float, baseline: float, unit: str) -> None:
        """Add a figure for which less is better, and its baseline."""
        ratio = round(baseline / max(ours, 1e-9), 2)
        row = {"what": what, "ours": round(ours, 3), "baseline": round(baseline, 3), "unit": unit, "ratio": ratio}
        self.rows.append(row)

    def table(self) -> str:
        """The figures as a Markdown table."""
        lines = ["| | ours | plain PyTorch | ratio |", "| --- | --- | --- | --- |"]
        for row in self.rows:
            lines.append(f"| {row['what']}, {row['unit']} | {row['ours']:g} | {row['baseline']:g} | {row['ratio']:g} |")
        return "\n".join(lines)

    def remarks(self) -> list[str]:
        """Lines about the figures that have no baseline."""
        floor = self.context["floor"]
        lines = [
            f"both networks, in batches: {floor['both_networks_ms_per_slice']:g} ms a slice; their "
            f"{floor['gflop_per_slice']:g} GFLOP alone take {floor['least_ms_per_slice']:g} ms at the "
            f"{floor['matrix_product_tflops']:g} TFLOPS of a matrix product here ({floor['share_of_rate']:.0%} of it)"
        ]
        for row in self.context.get("loader", ()):
            lines.append(f"{row['stage']}: {row['share_of_one_repeated_batch']:.1%} of the speed without a loader")
        for row in self.context.get("growth", ()):
            lines.append(f"{row['pictures']} pictures: {row['ms_each']} ms each, peak {row['peak_mb']} MB")
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
    runs = {
        "ours": [sys.executable, "-c", _COMMAND, *_run(source, folder / "o", threads)],
        "plain": [sys.executable, "-c", plain, str(source), str(folder / "p")],
        "help": [sys.executable, "-c", _COMMAND, "--help"],
        "python": [sys.executable, "-c", "pass"],
    }
    best: dict[str, tuple[float, float]] = {}
    for _ in range(_REPEATS):
        for name, command in runs.items():
            took = _process(command)
            before = best.get(name, took)
            best[name] = min(before[0], took[0]), min(before[1], took[1])
    figures.add("start to result, one picture", best["ours"][0], best["plain"][0], "s")
    figures.add("peak memory of that", best["ours"][1], best["plain"][1], "MB")
    figures.context["help_s"] = round(best["help"][0], 3)
    figures.context["empty_interpreter_s"] = round(best["python"][0], 3)


# A process's peak counts what its parent held when it was forked, so that a small one has to stand between.
_WATCH = (
    "import resource, subprocess, sys, time\n"
    "begun = time.perf_counter()\n"
    "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode\n"
    "print(code, time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def _process(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process. It has to succeed."""
    watched = subprocess.run([sys.executable, "-c", _WATCH, *command], capture_output=True, text=True, check=True)
    code, seconds, peak = watched.stdout.split()
    if code != "0":
        last = (watched.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise InputError(f"a measured process ended with {code} ({last})")
    return float(seconds), float(peak) / (1024 if sys.platform != "darwin" else 1024**2)


def _measure_slice(figures: Figures, ours: Pipeline, plain: Any) -> None:
    image = phantom_slice(7, "meningioma", size=512, pixel_mm=0.45).image
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(24):
        for name, call in (("ours", ours.run), ("plain", plain.judge)):
            begun = time.perf_counter()
            call(image)
            if turn >= 4:
                times[name].append(1000 * (time.perf_counter() - begun))
    for name, percentile in (("median", 50), ("95th percentile", 95)):
        one, other = (float(np.percentile(times[side], percentile)) for side in ("ours", "plain"))
        figures.add(f"one slice with a tumor, {name}", one, other, "ms")


def _measure_folder(figures: Figures, ours: Pipeline, plain: Any, sources: list[Path], folder: Path) -> None:
    begun = time.perf_counter()
    with TemporaryDirectory(prefix="tumorlens-") as scratch:
        jobs = collect([str(sources[0].parent)], folder / "ours", Path(scratch)).jobs
        report = run_batch(ours, jobs, folder / "ours")
    took = time.perf_counter() - begun
    if report.failed:
        raise InputError(f"{report.failed} of {len(sources)} phantoms failed, so there is nothing to measure")
    few = sources[: max(20, len(sources) // 5)]  # plain PyTorch is slow, and its time a slice does not change
    begun = time.perf_counter()
    for source in few:
        plain.run_file(source, folder / "plain" / source.stem)
    figures.add("a folder, read to written", 1000 * took / len(sources), _ms(begun, len(few)), "ms a slice")


def _measure_volume(figures: Figures, ours: Pipeline, plain: Any, depth: int) -> None:
    phantom = phantom_volume(7, "meningioma", (240, 240, depth), (0.9, 0.9, 155.0 / depth))
    begun = time.perf_counter()
    ours.run(phantom.scan)
    took = time.perf_counter() - begun
    begun = time.perf_counter()
    plain.run_volume(phantom.scan.voxels)
    figures.add(f"a volume of 240 x 240 x {depth}", took, time.perf_counter() - begun, "s")


def _measure_floor(figures: Figures, ours: Pipeline) -> None:
    """Both networks in batches, beside the least time that their multiplications take."""
    from tests.benchmarks.floor import measure_floor

    preprocess = Preprocess(ours.classifier.input_size)
    images = np.stack([preprocess(phantom_slice(n, "glioma").image).image for n in range(16)])
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        ours.classifier.look(images)
        ours.segmenter.predict(images)
        best = min(best, _ms(begun, len(images)))
    floor = measure_floor(CLASSIFIER, SEGMENTER, ours.engine.precision)
    figures.context["floor"] = {
        "gflop_per_slice": round(floor.operations / 1e9, 2),
        "matrix_product_tflops": round(floor.rate / 1e12, 3),
        "least_ms_per_slice": round(floor.ms, 2),
        "both_networks_ms_per_slice": round(best, 2),
        "share_of_rate": round(floor.ms / best, 3),
    }


def _measure_training(figures: Figures, stage: str, steps: int, size: int) -> None:
    from tests.benchmarks.training import measure_training

    speed = measure_training(stage, steps, size)
    figures.add(f"training, {stage}", speed.ours, speed.plain, "ms a slice")
    share = {"stage": stage, "share_of_one_repeated_batch": round(speed.repeated / speed.ours, 3)}
    figures.context.setdefault("loader", []).append(share)


def _measure_growth(figures: Figures, sources: list[Path], number: int, folder: Path, threads: int | None) -> None:
    inside = folder / f"grown-{number}"
    inside.mkdir()
    for n in range(number):
        (inside / f"{n:06d}.png").hardlink_to(sources[n % len(sources)])
    seconds, peak = _process([sys.executable, "-c", _COMMAND, *_run(inside, folder / f"g{number}", threads)])
    row = {"pictures": number, "ms_each": round(1000 * seconds / number, 1), "peak_mb": round(peak)}
    figures.context.setdefault("growth", []).append(row)


def _run(source: Path, out: Path, threads: int | None) -> list[str]:
    """Arguments of a quiet run on the CPU."""
    limit = [] if threads is None else ["--threads", str(threads)]
    return ["run", str(source), "-o", str(out), "--overwrite", "--device", "cpu", "-q", *limit]


def _ms(begun: float, n: int) -> float:
    return 1000 * (time.perf_counter() - begun) / n
