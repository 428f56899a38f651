"""The one rule for names of results.

A scan is called by its path below the input that you named. Its output folder is that name without the extension.
Where another scan has this folder, the later one gets ``-`` and six digits of the hash of its place in its name, and so
in its folder: ``t1.png`` and ``t1-3f2a91.png``. Letter case makes no difference, because many disks take ``P1`` for
``p1``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath

from tumorlens.data.errors import one_line
from tumorlens.pipeline.batch.job import Job, place_of, split_extension
from tumorlens.pipeline.outputs import TABLE


def name_jobs(
    jobs: Sequence[Job],
    is_free: Callable[[Job], bool] = lambda job: True,
    has_result: Callable[[Job], bool] = lambda job: False,
) -> list[Job]:
    """The jobs in the same order, each with a name and an output folder of its own.

    The names do not depend on the order of the jobs. Where several want one folder, the first in the order of their
    places gets it, and scans that can be run come before inputs that cannot.

    Args:
        jobs: Each with its path below the input as its name.
        is_free: Whether no other scan has a result in the job's output folder.
        has_result: Whether this scan has a result there. Such a scan keeps its name before others get theirs.
    """
    order = sorted(range(len(jobs)), key=lambda n: (jobs[n].error is not None, jobs[n].place, jobs[n].uid))
    with_name: dict[int, Job] = {}
    folders: set[str] = set()
    for accepts, tries in ((has_result, 2), (is_free, None)):
        for n in order:
            if n in with_name:
                continue
            for job in islice(_possible_jobs(jobs[n]), tries):
                folder = job.folder.casefold()
                if folder not in folders and folder.split("/")[0] != TABLE and accepts(job):
                    with_name[n] = job
                    folders.add(folder)
                    break
    return [with_name[n] for n in range(len(jobs))]


def _possible_jobs(job: Job) -> Iterator[Job]:
    """The job with its plain name, then with digits of the hash of its place, of the hash of that hash, and so on."""
    plain = one_line(job.plain_name or job.name)
    yield replace(job, name=plain, plain_name=plain)
    digest = place_of(job)
    if job.uid:  # the series of one folder have one place
        digest = _sha256(digest + job.uid)
    while True:
        yield replace(job, name=_with_digits(plain, digest[:6]), plain_name=plain)
        digest = _sha256(digest)


def _with_digits(name: str, digits: str) -> str:
    """The name with ``-`` and digits before its extension, or behind the folder that has the name of the table."""
    above = PurePosixPath(name).parts[:-1]
    top = next((part for part in above if part != ".." and "/" not in part), "")
    if top.casefold() == TABLE:
        return name.replace(top, f"{top}-{digits}", 1)
    stem, extension = split_extension(name)
    return f"{stem}-{digits}{extension}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
