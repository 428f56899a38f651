"""The child process: runs cases, names each before it runs it, and reports what was raised.

It reads jobs, a line of JSON each, and answers lines of JSON, see `run`. A crash, a hang or a process that takes too
much memory is the parent's to notice (`tests.fuzz.watch`).
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutations import mutate, splice
from tests.fuzz.structures import structured

Files = dict[str, bytes]
_MB = 2**20
_LEAST = 20  # cases of a target, however little time it has


def make_case(target: str, made: list[Files], damaged: int | None, seed: int, number: int) -> Files:
    """The files of a case. The first cases are the whole seeds."""
    if number < len(made):
        return made[number]
    random = Random(f"{target} {seed} {number}")
    files = dict(random.choice(made))
    names = list(files)[:damaged]
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 6))):
        name = names[0] if random.random() < 0.6 else random.choice(names)
        if name not in files:
            continue
        kind = random.random()
        if kind < 0.55:
            files[name] = structured(random, files[name], name)
        elif kind < 0.92:
            files[name] = mutate(random, files[name])
        elif kind < 0.98:
            other = random.choice(made)
            files[name] = splice(random, files[name], other.get(name, next(iter(other.values()))))
        elif name != names[0]:
            del files[name]
    return files


def main() -> None:
    """Answer jobs until there are no more."""
    scratch = Path(os.environ["FUZZ_SCRATCH"])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # what readers and their libraries print is not a fault
        os.dup2(silence, stream)
    traces = (scratch / f"trace-{os.getpid()}").open("w")
    faulthandler.enable(traces)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tempfile.tempdir = str(scratch / "tmp")
    warnings.simplefilter("ignore")

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    for line in sys.stdin:
        try:
            run(json.loads(line), scratch, say)
        except Exception:  # a fault of the harness, not of a reader
            say({"broken": traceback.format_exc()})


def run(job: dict[str, Any], scratch: Path, say: Any) -> None:
    """Run the cases of a job.

    Says ``{"case": number}`` before each case, ``{"end": "read", "refused", "fault" or "exit"}`` after it, the last two
    with a ``fault``, and ``{"done": true}`` at last.
    """
    from tests.fuzz.targets import PLANTED, TARGETS
    from tumorlens.data.errors import InputError

    target = {**TARGETS, **PLANTED}[job["target"]]
    begun = time.monotonic()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    made = _seeds(job["target"], target, scratch)
    with suppress(Exception):  # after this, all packages are imported
        target.read(_write(made[0], scratch / "case") / next(iter(made[0])))
    _limit_memory(job["limit_mb"])
    for number in range(job["first"], job["first"] + job["cases"]):
        late = job["seconds"] is not None and time.monotonic() - begun > job["seconds"]
        if late and number >= job["first"] + _LEAST:
            break
        files = (
            _kept(Path(job["files"]))
            if "files" in job
            else make_case(job["target"], made, target.damaged, job["seed"], number)
        )
        folder = _write(files, scratch / "case")
        say({"case": number})
        end: dict[str, Any] = {"end": "read"}
        try:
            target.read(folder / next(iter(files)))
        except InputError:
            end = {"end": "refused"}
        except BaseException as error:
            end = {"end": "fault", "fault": _fault(error)}
            # Out of the way of the next case, until the parent has taken it.
            end["files"] = str(folder.parent.rename(scratch / f"fault-{number}"))
        peak = _peak_mb()
        if peak > job["limit_mb"]:
            say({"end": "exit", "fault": {"kind": "memory", "where": "", "text": f"{peak} MB"}})
            os._exit(0)  # the peak of a process does not go down
        say(end)
    say({"done": True})


def _seeds(name: str, target: Any, scratch: Path) -> list[Files]:
    """The target's seeds, made once in a run: those of DICOM are not the same twice."""
    stored = scratch / f"seeds-{name}"
    if not stored.exists():
        part = stored.with_suffix(".part")
        part.write_bytes(pickle.dumps(target.seeds()))
        part.rename(stored)
    return pickle.loads(stored.read_bytes())


def _kept(folder: Path) -> Files:
    """The files of a case that was kept."""
    names = json.loads((folder / "case.json").read_text())["files"]
    return {name: (folder / "files" / name).read_bytes() for name in names}


def _write(files: Files, folder: Path) -> Path:
    """Write a case beside its ``case.json``, which says in what order the files come."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "case.json").write_text(json.dumps({"files": list(files)}))
    return folder / "files"


def _limit_memory(limit_mb: int) -> None:
    """Let this process take no more than twice the limit on top of what its packages take."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        taken = int(statm.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * limit_mb * _MB, hard))


def _peak_mb() -> int:
    """Highest resident memory of this process or of one that it has ended.

    `getrusage` counts what the parent had when it forked, so Linux's own figure goes first.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    own = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) // 1024


def _fault(error: BaseException) -> dict[str, Any]:
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "/tests/fuzz/worker" not in frame.filename
    ]
    ours = [
        frame for frame in frames if "/site-packages/" not in frame.filename and "/lib/python" not in frame.filename
    ]
    shown = [f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in (*ours[-1:], *frames[-1:])]
    return {
        "kind": type(error).__name__,
        "where": " > ".join(dict.fromkeys(shown)),
        "text": " ".join(str(error).split())[:200],
        "trace": "".join(traceback.format_exception(error)[-40:]),
    }


def _short(path: str) -> str:
    return path.removeprefix(f"{Path(__file__).parents[2]}/").rpartition("/site-packages/")[2]


if __name__ == "__main__":
    main()
