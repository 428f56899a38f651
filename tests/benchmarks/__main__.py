"""`python -m tests.benchmarks`, from the repository: the speed on this machine beside what plain PyTorch does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.benchmark import benchmark
from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the figures if a file is named."""
    options = _parser().parse_args(arguments)
    try:
        figures = benchmark(
            options.slices,
            options.depth,
            options.threads,
            options.growth,
            options.training,
            say=lambda text: print(f"benchmark: {text}", file=sys.stderr),
        )
    except InputError as error:
        sys.exit(f"benchmark: error: {error}")
    if options.out is not None:
        write_text(options.out, json.dumps({"figures": figures.rows, "context": figures.context}, indent=2) + "\n")
    print(figures.table())
    for line in figures.remarks():
        print(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.benchmarks",
        description="Measure the speed on this machine beside what plain PyTorch does in the same minute. Both sides "
        "run the shipped models on phantoms, on the CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--slices", type=_at_least(4), default=200, help="pictures in the folder that is run")
    parser.add_argument("--depth", type=_at_least(0), default=155, help="slices of the volume that is run; 0: none")
    parser.add_argument("--threads", type=_at_least(1), help="threads that compute; all cores if you leave it out")
    parser.add_argument(
        "--growth",
        type=_numbers,
        default=(),
        metavar="10,100,..",
        help="run so many pictures, too, each number in a process of its own",
    )
    parser.add_argument(
        "--training", type=_at_least(0), default=0, help="steps of each stage's training that are timed, too; 0: none"
    )
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the figures")
    return parser


def _at_least(least: int):
    """A converter for argparse that refuses smaller numbers."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


def _numbers(text: str) -> tuple[int, ...]:
    """``"10,100"`` as numbers; an empty text as none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 10,100")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    main()
