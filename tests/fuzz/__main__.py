"""`python -m tests.fuzz`, from the repository: damaged files for every reader.

A reader of a damaged file may return, or raise `InputError` with a sentence for the user. Anything else is a fault:
another exception, the end of the process, more than 20 seconds (decoders are stopped after 15), or more than 2 GB of
memory.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.watch import Watcher, in_turn

_MEMORY = Path("/dev/shm")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases. Returns 1 if there was a fault."""
    from tests.fuzz.targets import PLANTED, TARGETS

    options = _parser([*TARGETS, *PLANTED]).parse_args(arguments)
    options.cases = options.cases or (1000 if options.seconds is None else 10**9)
    keep = options.keep or Path(tempfile.mkdtemp(prefix="tumorlens-fuzz-"))
    with tempfile.TemporaryDirectory(prefix="tumorlens-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None) as scratch:
        watcher = Watcher(Path(scratch), keep, options.limit_s, options.limit_mb, lambda line: print(line, flush=True))
        try:
            if options.repeat:
                about = json.loads((options.repeat / "case.json").read_text())
                faults = watcher.run(
                    about["target"], 1, about.get("seed", 1), about.get("case", 0), files=options.repeat.absolute()
                ).faults
                print(*(fault.trace for fault in faults), sep="\n")
            else:
                targets = options.target or list(TARGETS)
                faults = in_turn(watcher, targets, options.cases, options.seconds, options.seed, options.first)
        finally:
            watcher.close()
    for fault in sorted(faults, key=lambda fault: -fault.times):
        print(fault)
    print(f"{len(faults)} faults" + (f"; their files are in {keep}" if faults else ""))
    return 1 if faults else 0


def _parser(targets: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz", description="Damaged files for every reader. Targets: " + ", ".join(targets) + "."
    )
    parser.add_argument(
        "--target", nargs="+", choices=targets, metavar="NAME", help="what is fuzzed; everything by default"
    )
    parser.add_argument(
        "--cases", type=int, default=None, help="cases of each target (1000; without a limit with --seconds)"
    )
    parser.add_argument("--seconds", type=float, help="time for all targets together")
    parser.add_argument("--seed", type=int, default=1, help="another number gives other cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, help="folder for the files of faults")
    parser.add_argument("--repeat", type=Path, metavar="FOLDER", help="run a case that was kept")
    parser.add_argument("--limit-s", type=float, default=20, help="seconds that a case may take")
    parser.add_argument("--limit-mb", type=int, default=2048, help="memory that a case may take")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the folder in memory goes, too
    sys.exit(main())
