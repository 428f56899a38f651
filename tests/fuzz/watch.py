"""The parent process: gives jobs to a child, and notices when it crashes, hangs or takes too much memory."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LOOK_EVERY_S, _SAY_EVERY_S = 0.2, 20.0
_MOST_ENDS = 25  # of children, by the cases of one target: each takes seconds


@dataclass
class Fault:
    """What a case did that it must not do.

    Attributes:
        target: The name in `tests.fuzz.targets.TARGETS`.
        seed: The run's.
        case: Its number.
        kind: ``crash SIGSEGV``, ``hang``, ``memory``, or the type of an exception.
        where: The last frame of ours, and the last of all.
        text: The exception's message.
        times: How many cases of the run did the same.
        files: The folder that keeps the files of the first one.
    """

    target: str
    seed: int
    case: int
    kind: str
    where: str
    text: str = ""
    trace: str = ""
    times: int = 1
    files: Path | None = None

    def __str__(self) -> str:
        times = f" ({self.times} times)" if self.times > 1 else ""
        text = f": {self.text}" if self.text else ""
        repeat = f"; repeat: python -m tests.fuzz --repeat {self.files}" if self.files else ""
        where = self.where or "an unknown place"
        return f"FAULT {self.target}, seed {self.seed}, case {self.case}: {self.kind} at {where}{text}{times}{repeat}"


@dataclass
class Report:
    """The outcome of a target's cases."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    ends: int = 0
    faults: list[Fault] = field(default_factory=list)


class Watcher:
    """A child process that runs cases, and is started again when one has ended it.

    Args:
        scratch: A folder for cases, in memory if the machine has such a place.
        keep: Where the files of faults go.
        limit_s: Seconds that a case may take.
        limit_mb: Memory that all processes of a case may take together.
        say: Gets a line about the progress from time to time.
    """

    def __init__(
        self,
        scratch: Path,
        keep: Path,
        limit_s: float = 20,
        limit_mb: int = 2048,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.scratch, self.keep, self.limit_s, self.limit_mb, self.say = scratch, keep, limit_s, limit_mb, say
        self._child: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def run(
        self,
        target: str,
        cases: int,
        seed: int = 1,
        first: int = 0,
        seconds: float | None = None,
        files: Path | None = None,
    ) -> Report:
        """Run the cases of a target; `files` is one that was kept."""
        report, begun, last = Report(), time.monotonic(), first + cases
        while first < last and report.ends < _MOST_ENDS:
            left = None if seconds is None else seconds - (time.monotonic() - begun)
            if left is not None and left <= 0:
                break
            job = {
                "target": target,
                "cases": last - first,
                "first": first,
                "seed": seed,
                "seconds": left,
                "limit_mb": self.limit_mb,
            }
            first = self._run_job(job if files is None else {**job, "files": str(files)}, report)
        report.seconds = time.monotonic() - begun
        return report

    def _run_job(self, job: dict[str, Any], report: Report) -> int:
        """Run cases until the job is done or the child has ended. Returns the number of the next case."""
        child = self._started()
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()
        case, said = job["first"] - 1, time.monotonic()
        for answer in self._answers(child):
            if "broken" in answer:
                raise RuntimeError(f"the cases of {job['target']} cannot be made:\n{answer['broken']}")
            if "case" in answer:
                case = answer["case"]
                if time.monotonic() - said > _SAY_EVERY_S:
                    said = time.monotonic()
                    self.say(f"{job['target']}: at case {case}, {len(report.faults)} faults so far")
                report.cases += 1
            elif "done" in answer:
                return job["first"] + job["cases"]
            elif answer.get("end") == "read":
                report.read += 1
            elif answer.get("end") == "refused":
                report.refused += 1
            else:
                found = answer.get("fault") or {"kind": answer["ended"], "where": self._place(child)}
                report.ends += "ended" in answer
                if case < job["first"]:
                    raise RuntimeError(f"the seeds of {job['target']} cannot be made: {found}")
                self._add(
                    report,
                    Fault(
                        job["target"],
                        job["seed"],
                        case,
                        found["kind"],
                        found["where"],
                        found.get("text", ""),
                        found.get("trace", ""),
                    ),
                    Path(answer.get("files") or self.scratch / "case"),
                )
        return case + 1

    def _answers(self, child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        """What the child says; at last ``{"ended": reason}`` if it ended before it was done."""
        heard, looked, ended, running = time.monotonic(), 0.0, "", False
        while True:
            ready, _, _ = select.select([child.stdout], [], [], _LOOK_EVERY_S)
            now = time.monotonic()
            if ready:
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                *lines, self._buffer = (self._buffer + chunk).split(b"\n")
                heard = now
                for line in map(json.loads, lines):
                    running = True
                    yield line
                    if "done" in line:
                        return
                    if line.get("end") == "exit":
                        self.close()
                        return
                if not chunk:
                    code = child.wait()
                    name = signal.Signals(-code).name if code < 0 else f"exit {code}"
                    yield {"ended": ended or f"crash {name}"}
                    self.close()
                    return
            if ended:
                continue  # it is being ended
            if now - looked > _LOOK_EVERY_S:
                looked = now
                if running and _memory_mb(child.pid) > self.limit_mb:
                    ended = f"memory over {self.limit_mb} MB"
                    os.killpg(child.pid, signal.SIGABRT)
            # Imports and the making of seeds have their own time.
            if now - heard > (self.limit_s if running else max(self.limit_s, 120)):
                ended = f"hang over {self.limit_s:g} s"
                os.kill(child.pid, signal.SIGABRT)  # faulthandler writes where it hangs
                time.sleep(0.5)
                os.killpg(child.pid, signal.SIGKILL)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            (self.scratch / "tmp").mkdir(parents=True, exist_ok=True)
            environment = {
                **os.environ,
                "FUZZ_SCRATCH": str(self.scratch),
                "TMPDIR": str(self.scratch / "tmp"),
                "OMP_NUM_THREADS": "1",
                "HOME": str(self.scratch),
            }
            command = [sys.executable, "-m", "tests.fuzz.worker"]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
            )
            self._buffer = b""
        return self._child

    def close(self) -> None:
        """End the child, and the processes that it has started."""
        child, self._child = self._child, None
        if child is not None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            child.stdin.close()
            child.stdout.close()
            shutil.rmtree(self.scratch / "tmp", ignore_errors=True)

    def _place(self, child: subprocess.Popen[bytes]) -> str:
        """Where a child was when it ended, as its faulthandler wrote it."""
        trace = self.scratch / f"trace-{child.pid}"
        lines = trace.read_text(errors="replace").splitlines() if trace.is_file() else []
        main = next(
            (
                k
                for k, line in enumerate(lines)
                if "most recent call first" in line and ("Current thread" in line or "Thread" in line)
            ),
            len(lines),
        )
        frames = [line.strip() for line in lines[main + 1 :] if line.startswith("  File")]
        ours = [frame for frame in frames if "/site-packages/" not in frame and "/lib/python" not in frame]
        return " > ".join(dict.fromkeys((*ours[:1], *frames[:1])))

    def _add(self, report: Report, fault: Fault, files: Path) -> None:
        """Count a fault. Of the first of its kind, keep the files, which are moved."""
        for known in report.faults:
            if (known.kind, known.where) == (fault.kind, fault.where):
                known.times += 1
                shutil.rmtree(files)
                return
        fault.files = self.keep / f"{fault.target}-{fault.seed}-{fault.case}"
        shutil.rmtree(fault.files, ignore_errors=True)
        self.keep.mkdir(parents=True, exist_ok=True)
        shutil.move(files, fault.files)
        about = {
            **json.loads((fault.files / "case.json").read_text()),
            "target": fault.target,
            "seed": fault.seed,
            "case": fault.case,
            "fault": str(fault),
            "trace": fault.trace,
        }
        (fault.files / "case.json").write_text(json.dumps(about, indent=2))
        report.faults.append(fault)
        self.say(str(fault))


def _memory_mb(group: int) -> int:
    """Resident memory of all processes of a group; 0 where the system does not say."""
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                pages += int((folder / "statm").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def in_turn(
    watcher: Watcher, targets: list[str], cases: int, seconds: float | None, seed: int, first: int
) -> list[Fault]:
    """Run targets one after the other, and say what became of each. Returns all faults.

    Args:
        watcher: Runs them.
        targets: Their names.
        cases: Of each target.
        seconds: For all of them together; a target gets what is left, divided by the number of those left.
        seed: Of all cases.
        first: The number of the first case.
    """
    begun, faults = time.monotonic(), []
    for index, name in enumerate(targets):
        share = None if seconds is None else max(0.2, (seconds - (time.monotonic() - begun)) / (len(targets) - index))
        report = watcher.run(name, cases, seed, first, share)
        watcher.say(
            f"{name}: {report.cases} cases in {report.seconds:.1f} s, {report.read} read, {report.refused} refused, "
            f"{len(report.faults)} faults"
        )
        if report.ends == _MOST_ENDS:
            watcher.say(f"{name}: {report.ends} of its cases ended their process, so the rest was left out")
        faults += report.faults
    return faults
