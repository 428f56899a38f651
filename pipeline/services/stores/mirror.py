"""The inputs of a run that lie in stores or on DICOMweb servers, and the local folders that stand for them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tumorlens.data.errors import InputError, is_of_the_disk
from tumorlens.data.formats.open import SCAN_SUFFIXES
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.options import is_dicomweb, is_url
from tumorlens.pipeline.services.dicomweb import AUTH, Query, Studies, read_query
from tumorlens.pipeline.services.stores.stand_ins import fill_stand_in, make_stand_in
from tumorlens.pipeline.services.stores.store import AT_ONCE, Store

_HEAD = 2**18  # bytes of a file that may be DICOM; most slices are smaller, so that one request reads them whole
_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag where a header ends, in both byte orders
# The content of these tells whether they are run, and with which other files.
_WHOLE = (".zip", ".mat", ".hdr", ".hdr.gz", ".nhdr", ".mhd")
_SURE = tuple(end for end in SCAN_SUFFIXES if end not in (*_WHOLE, ".dcm"))
_SURE += (".img", ".img.gz", ".raw", ".json", ".csv")


@dataclass(frozen=True)
class Input:
    """An input that lies in a store, and the local folder or file that stands for it.

    Attributes:
        store: The store, whose URL is the input's or the one above a single file; or the DICOMweb server.
        path: What stands for the input: a folder, or a file.
        root: What stands for the store's URL.
        problems: Name of each file, study or series that cannot have a local one -> why.
    """

    store: Store | Studies
    path: Path
    root: Path
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> tuple[str, str]:
        """The folder, and the URL that it stands for."""
        return str(self.root), self.store.place


@dataclass(frozen=True)
class Inputs:
    """The inputs of a call, as paths of this machine.

    Attributes:
        paths: Files, folders and patterns.
        remote: Those that stand for URLs.
    """

    paths: list[str]
    remote: list[Input]

    @property
    def origins(self) -> list[tuple[str, str]]:
        """The folders that stand for URLs, each with its URL."""
        return [one.origin for one in self.remote]

    @property
    def problems(self) -> list[Job]:
        """Files of stores that cannot be run, as jobs with errors."""
        jobs = [(one, *problem) for one in self.remote for problem in one.problems.items()]
        return [Job(one.root, name, error, unpacked=one.origin) for one, name, error in jobs]


def mirror_inputs(texts: Iterable[str], folder: Path, out: str | None) -> Inputs:
    """The inputs of a call, with a local folder for each URL.

    Args:
        texts: What the user named.
        folder: The place of these folders. It need not exist.
        out: The place of the results, which are not scans.

    Raises:
        InputError: A store cannot be used, there is nothing at a URL, or several servers would get one password.
    """
    paths: list[str] = []
    remote: list[Input] = []
    texts = list(texts)
    queries = {text: read_query(text) for text in texts if is_dicomweb(text)}
    if os.environ.get(AUTH) and len({urlsplit(studies.address).netloc for studies, _ in queries.values()}) > 1:
        raise InputError(f"{AUTH} would go to several DICOMweb servers; name one server in a run, or unset it")
    servers: dict[Studies, Input] = {}  # queries of one server share a folder: a scan that both find is run once
    for text in texts:
        if text in queries:
            studies, query = queries[text]
            if studies not in servers:
                root = Path(os.path.realpath(folder)) / "dicomweb" / f"{len(servers):03}"
                servers[studies] = Input(studies, root, root, {})
                remote.append(servers[studies])
                paths.append(str(root))
            mirror_studies(studies, query, servers[studies].root, servers[studies].problems)
        elif is_url(text):
            remote.append(mirror_input(text, folder / str(len(remote)), out or ""))
            paths.append(str(remote[-1].path))
        else:
            paths.append(text.removeprefix("file://"))
    for one in servers.values():
        if one.problems and not any(one.root.glob("*/*/*")):
            raise InputError(next(iter(one.problems.values())))
    return Inputs(paths, remote)


def mirror_input(url: str, folder: Path, without: str = "") -> Input:
    """Make a local folder that stands for a URL: all names and sizes, whole archives, and the headers of DICOM files.

    A file that is not whole ends with what the store calls its version, so that different files differ here, too.

    Args:
        url: A file, or a prefix of files.
        folder: An empty folder.
        without: The URL of the results, which are not scans.

    Raises:
        InputError: The store cannot be used, or there is nothing at the URL.
    """
    store, folder, problems = Store(url), Path(os.path.realpath(folder)), {}
    if not store.is_folder and store.is_file():
        store, name = store.split()
        root, path = folder, folder / name
        files = {name: store.look(name)}
    else:
        root = path = folder / store.place.rpartition("/")[2]
        below = f"{Store(without).place}/"
        if below == f"{store.place}/":
            raise InputError(f"-o {store.place}: this is an input, too; give a URL of its own, such as one below it")
        inside = below.startswith(f"{store.place}/")
        files = {n: one for n, one in store.list().items() if not (inside and store.shown(n).startswith(below))}
    if not files:
        store.check_answers()
        raise InputError(f"{store.shown()}: no such file or folder")
    for name, one in files.items():
        try:
            end = one.version.encode()
            make_stand_in(root, name, len(end) + 1 if one.size is None else one.size, end)
        except (OSError, InputError) as error:
            problems[name] = f"{store.shown(name)}: the name cannot be that of a local file; rename it"
            if is_of_the_disk(error):
                raise
    usable = (name for name, one in files.items() if one.size != 0 and name not in problems and _is_shown(name))
    kinds = {name: name.lower() for name in usable}
    whole = [name for name, kind in kinds.items() if kind.endswith(_WHOLE)]
    heads = [name for name, kind in kinds.items() if not kind.endswith((*_WHOLE, *_SURE))]
    for name, data in _heads_of(store, heads, problems):
        size = files[name].size
        if size is not None:
            fill_stand_in(root / name, data)
        elif len(data) != _HEAD:  # all of it; some servers send a whole file whatever was asked for
            (root / name).write_bytes(data)
        if len(data) == _HEAD if size is None else len(data) < size and not any(tag in data for tag in _PIXELS):
            whole.append(name)
    for name in whole:
        try:
            store.fetch(name, root / name)
        except InputError as error:
            problems[name] = str(error)
    for name in problems:  # they have rows of their own
        if name in kinds:
            (root / name).unlink(missing_ok=True)
    return Input(store, path, root, problems)


def mirror_studies(studies: Studies, query: Query, root: Path, problems: dict[str, str]) -> None:
    """Add the names and headers of all objects that a query selects to the folder that stands for a DICOMweb server.

    Args:
        studies: The server.
        query: What is wanted of it.
        root: The folder.
        problems: Name of each study and series that cannot be run -> why; of all queries of the server.

    Raises:
        InputError: The server cannot be used, or nothing matches.
    """
    n_found = 0
    for study in studies.find(query):
        name = re.sub(r"^\.|^$|[^\w.-]", "_", study, flags=re.ASCII)[:64]  # also of what is not a UID
        with _noted(problems, name):
            for series in [f"{study}/{query.series}"] if query.series else studies.series(study):
                n_found += 1
                if not (root / series).exists():
                    with _noted(problems, series):
                        _mirror_series(studies, series, root)
        n_found += name in problems
    if not n_found:
        raise InputError(f"{studies.place}: there is no such study, or it has no MR series")


def _mirror_series(studies: Studies, series: str, root: Path) -> None:
    try:
        for name, head, size in studies.headers(series):
            make_stand_in(root, name, size, studies.shown(name).encode())
            fill_stand_in(root / name, head)
    except InputError:
        shutil.rmtree(root / series, ignore_errors=True)  # a part of a series is not a scan
        raise


@contextmanager
def _noted(problems: dict[str, str], name: str) -> Iterator[None]:
    """A block whose error is one of the problems until it works, and does not stop what comes after it."""
    try:
        yield
    except InputError as error:
        problems[name] = str(error)
    else:
        problems.pop(name, None)


def _heads_of(store: Store, names: Sequence[str], problems: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """The first bytes of files. A file that cannot be read is one of the problems, and does not stop the others."""
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        try:
            yield from list(store.read(some, _HEAD))
        except InputError:
            for name in some:
                try:
                    yield from list(store.read([name], _HEAD))
                except InputError as error:
                    problems[name] = str(error)


def _is_shown(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))
