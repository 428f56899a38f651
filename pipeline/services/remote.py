"""Scans and results in stores (`pipeline.services.stores`), and scans on DICOMweb servers.

What looks for scans, names them, and goes on after a stop, works on folders. So a local folder stands for a prefix of a
store: `mirror_input` and `Output` make it. Most of its files have the right size and no content; a process that runs a
scan fetches the whole files of this one scan.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text
from tumorlens.data.formats.archives import unpack
from tumorlens.data.formats.open import SCAN_SUFFIXES, source_files
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_jobs import bytes_of
from tumorlens.pipeline.options import is_dicomweb, is_url
from tumorlens.pipeline.outputs import PARQUET, QUARANTINE, REPORT, RESULT_FILES, TABLE
from tumorlens.pipeline.services.dicomweb import Studies, read_query
from tumorlens.pipeline.services.stores import AT_ONCE, Store

RESULT = "result.json"
_HEAD = 2**18  # bytes of a file that may be DICOM; most slices are smaller, so that one request reads them whole
_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # the tag where a header ends, in both byte orders
# The content of these tells whether they are run, and with which other files.
_WHOLE = (".zip", ".mat", ".hdr", ".hdr.gz", ".nhdr", ".mhd")
_SURE = tuple(end for end in SCAN_SUFFIXES if end not in (*_WHOLE, ".dcm"))
_SURE += (".img", ".img.gz", ".raw", ".json", ".csv")
_TOLD = (RESULT, QUARANTINE)  # they say what the other files of a folder are
_OF_ALL = (TABLE, REPORT, PARQUET)
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other file can be made either


@dataclass(frozen=True)
class Input:
    """An input that lies in a store, and the local folder or file that stands for it.

    Attributes:
        store: The store, whose URL is the input's or the one above a single file; or the DICOMweb server.
        path: What stands for the input: a folder, or a file.
        root: What stands for the store's URL.
        problems: Name of each file that cannot have a local one -> why.
    """

    store: Store | Studies
    path: Path
    root: Path
    problems: Mapping[str, str] = field(default_factory=dict)

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
        return [Job(one.root, name, error) for one in self.remote for name, error in one.problems.items()]


def mirror_inputs(texts: Iterable[str], folder: Path, out: str | None) -> Inputs:
    """The inputs of a call, with a local folder for each URL.

    Args:
        texts: What the user named.
        folder: The place of these folders. It need not exist.
        out: The place of the results, which are not scans.

    Raises:
        InputError: A store cannot be used, or there is nothing at a URL.
    """
    paths: list[str] = []
    remote: list[Input] = []
    for text in texts:
        if is_dicomweb(text):  # queries of one server share a folder, so that a scan that both find is run once
            remote.append(mirror_studies(text, folder / "dicomweb"))
            if str(remote[-1].path) not in paths:
                paths.append(str(remote[-1].path))
        elif is_url(text):
            remote.append(mirror_input(text, folder / str(len(remote)), out or ""))
            paths.append(str(remote[-1].path))
        else:
            paths.append(text.removeprefix("file://"))
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
        raise InputError(f"{store.shown()}: no such file or folder")
    for name, one in files.items():
        try:
            end = one.version.encode()
            _place(root, name, len(end) + 1 if one.size is None else one.size, end)
        except (OSError, InputError) as error:
            problems[name] = f"{store.shown(name)}: the name cannot be that of a local file; rename it"
            if getattr(error, "errno", None) in _HOPELESS:
                raise
    usable = (name for name, one in files.items() if one.size != 0 and name not in problems and _is_shown(name))
    kinds = {name: name.lower() for name in usable}
    whole = [name for name, kind in kinds.items() if kind.endswith(_WHOLE)]
    heads = [name for name, kind in kinds.items() if not kind.endswith((*_WHOLE, *_SURE))]
    for name, data in _heads_of(store, heads, problems):
        size = files[name].size
        if size is not None:
            _fill(root / name, data)
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


def mirror_studies(url: str, folder: Path) -> Input:
    """Make a local folder that stands for a DICOMweb server: the names and headers of all objects that a URL selects.

    Args:
        url: The server and a query, or the URL of a study or series.
        folder: Where the folders that stand for servers lie.

    Raises:
        InputError: The URL or the server cannot be used, or nothing matches.
    """
    studies, query = read_query(url)
    root = Path(os.path.realpath(folder)) / hashlib.sha256(studies.address.encode()).hexdigest()
    problems: dict[str, str] = {}
    for series in studies.find(query):
        if (root / series).exists():
            continue
        try:
            for name, head, size in studies.headers(series):
                _place(root, name, size, studies.shown(name).encode())
                _fill(root / name, head)
        except InputError as error:
            problems[series] = str(error)
            shutil.rmtree(root / series, ignore_errors=True)  # a part of a series is not a scan
    if problems and not any(root.glob("*/*/*")):
        raise InputError(next(iter(problems.values())))
    return Input(studies, root, root, problems)


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


def _place(root: Path, name: str, size: int, end: bytes = b"") -> None:
    """Make a file of a size, without content but its end.

    Raises:
        InputError: The name leads out of the folder.
        OSError: The file cannot be made: both ``a`` and ``a/b`` may be files of a store.
    """
    if any(part in ("", ".", "..") or "\0" in part for part in name.split("/")):
        raise InputError(f"{name}: this is not the name of a file")
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.truncate(size)
        if size > len(end):
            stream.seek(size - len(end))
            stream.write(end)


def _fill(file: Path, head: bytes) -> None:
    with file.open("r+b") as stream:
        stream.write(head)


@dataclass(frozen=True)
class Parcel:
    """A job, and where another process gets its files.

    Attributes:
        job: The job, with paths of the machine that found it.
        root: The folder that they lie in; None if every machine reads them where they are.
        store: Where the files come from: a store, or a DICOMweb server.
        files: Their names there.
        archive: Whether the only file is a zip whose content the job's paths name.
    """

    job: Job
    root: Path | None = None
    store: Store | Studies | None = None
    files: tuple[str, ...] = ()
    archive: bool = False

    @property
    def n_bytes(self) -> int:
        """The size of the job's files, as far as it is known."""
        return bytes_of(self.job)

    def open_in(self, place: Path) -> Job:
        """The job with paths of this machine. `fetch` brings the files there.

        Args:
            place: An empty folder.
        """
        if self.root is None:
            return self.job
        old, new = self.root, place

        def moved(path: Path) -> Path:
            return new / path.relative_to(old)

        job = self.job
        unpacked = (str(new), job.unpacked[1]) if job.unpacked else None
        return replace(job, path=moved(job.path), files=tuple(moved(file) for file in job.files), unpacked=unpacked)

    def fetch(self, place: Path) -> None:
        """Bring the files.

        Raises:
            InputError: One cannot be fetched.
        """
        if self.root is None:
            return
        if not self.archive:
            if self.store:
                self.store.fetch_all(self.files, place)
            return
        (name,) = self.files
        if isinstance(self.store, Store):
            file = place.with_suffix(".zip")
            self.store.fetch(name, file)
            unpack(file, place)
            file.unlink()
        else:
            unpack(Path(name), place)


def parcel_of(job: Job, inputs: Iterable[Input], shared: bool = True) -> Parcel:
    """The job, ready to be run by another process.

    Args:
        job: A job that `collect` found in the inputs.
        inputs: The inputs that lie in stores.
        shared: Whether the other process sees the files of this machine.
    """
    if job.error or job.unpacked is None:
        return Parcel(job)
    folder, shown = job.unpacked
    inputs = list(inputs)
    source = next((each for each in inputs if folder == str(each.root)), None)
    if source is None:  # an archive, in the input that holds it
        holders = [each for each in inputs if _is_below(shown, each) and (each.root / _name_in(shown, each)).is_file()]
        source = max(holders, key=lambda each: len(each.store.place), default=None)
    if source is not None and folder == str(source.root):
        paths = job.files or tuple(source_files(job.path))
        names = tuple(path.relative_to(source.root).as_posix() for path in paths if path.is_relative_to(source.root))
        return Parcel(job, source.root, source.store, names)
    if source is not None:
        return Parcel(job, Path(folder), source.store, (_name_in(shown, source),), archive=True)
    return Parcel(job) if shared else Parcel(job, Path(folder), None, (str(Path(shown).absolute()),), archive=True)


def _is_below(shown: str, source: Input) -> bool:
    return shown.startswith(f"{source.store.place}/")


def _name_in(shown: str, source: Input) -> str:
    return shown.removeprefix(f"{source.store.place}/")


@dataclass
class Output:
    """The place of the results: a folder, or a URL and the local folder that stands for it.

    Attributes:
        folder: The folder.
        store: Where the results go; None if the folder itself is the place.
    """

    folder: Path
    store: Store | None = None
    _known: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def at(cls, text: str, scratch: Path) -> Output:
        """The place that a user named; a folder in `scratch` stands for a URL."""
        if not is_url(text):
            return cls(Path(text.removeprefix("file://")))
        return cls(scratch / "out", Store(text))

    @property
    def origins(self) -> list[tuple[str, str]]:
        """The folder that stands for a URL, and the URL."""
        return [(str(self.folder), self.shown)] if self.store else []

    @property
    def shown(self) -> str:
        """The place as the user knows it."""
        return self.store.place if self.store else str(self.folder)

    def pull(self, content: bool) -> None:
        """Let the folder show what an earlier call has written.

        Args:
            content: Fetch also what says whose the results are.

        Raises:
            InputError: The store cannot be used.
        """
        if self.store is None:
            return
        ours = {name: one for name, one in self.store.list().items() if _is_ours(name)}
        for name, one in ours.items():
            _place(self.folder, name, one.size or 0)
        if content:
            for name, data in self.store.read([n for n in ours if PurePosixPath(n).name in _TOLD or n in _OF_ALL]):
                _fill(self.folder / name, data)
        self._known = self._signatures()

    def push(self, names: Sequence[str] = ()) -> None:
        """Let the store follow what has changed in the folder since the last call.

        Args:
            names: Write only these files.

        Raises:
            InputError: The store cannot be used.
        """
        if self.store is None:
            return
        if names:
            self.store.put({name: self.folder / name for name in names if (self.folder / name).is_file()})
            return
        now = self._signatures()
        self.store.remove([name for name in self._known if name not in now])
        self.store.put({name: self.folder / name for name in now if self._known.get(name) != now[name]})
        self._known = now

    def note(self, name: str, text: str) -> None:
        """Write a file of the store to the folder, where later steps look for it."""
        if self.store is not None:
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            self._known[name] = _signature(file)

    def write(self, name: str, text: str) -> None:
        """Write a file to the place of the results at once."""
        write_text(self.folder / name, text)
        if self.store is not None:
            self.store.put({name: self.folder / name})
            self._known[name] = _signature(self.folder / name)

    def _signatures(self) -> dict[str, tuple[int, int]]:
        files = (file for file in self.folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        return {file.relative_to(self.folder).as_posix(): _signature(file) for file in files}


def _folder_of(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _is_ours(name: str) -> bool:
    return name in _OF_ALL or PurePosixPath(name).name in (*RESULT_FILES, QUARANTINE)


def _signature(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def pull_result(store: Store, folder: str, place: Path) -> list[str]:
    """Let a local folder show the result of one scan, if there is one; returns the names of the files in the store.

    Args:
        store: The place of all results.
        folder: The scan's folder in it.
        place: The local folder.
    """
    there = {name: one for name, one in store.list(folder).items() if _is_ours(name) and _folder_of(name) == folder}
    if any(PurePosixPath(name).name in _TOLD for name in there):
        for name, one in there.items():
            _place(place, PurePosixPath(name).name, one.size or 0)
        for name, data in store.read([name for name in there if PurePosixPath(name).name in _TOLD]):
            _fill(place / PurePosixPath(name).name, data)
    return list(there)


def push_result(store: Store, folder: str, place: Path, files: Sequence[str], there: Sequence[str]) -> None:
    """Write the files of one scan to a store, ``result.json`` last: a folder with one is complete.

    Args:
        store: The place of all results.
        folder: The scan's folder in it.
        place: The local folder.
        files: All files but ``result.json``.
        there: The files of an earlier result in the store.
    """
    store.remove([name for name in there if PurePosixPath(name).name in _TOLD])
    store.put({f"{folder}/{name}": place / name for name in files})
    store.remove([name for name in there if PurePosixPath(name).name not in (*files, *_TOLD)])
    store.put({f"{folder}/{RESULT}": place / RESULT})
    shutil.rmtree(place, ignore_errors=True)
