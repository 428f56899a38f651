"""`Output`: the place of the results, a folder or a store."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tumorlens.data.files import write_text
from tumorlens.pipeline.options import is_url
from tumorlens.pipeline.outputs import PARQUET, QUARANTINE, REPORT, RESULT_FILES, TABLE
from tumorlens.pipeline.services.stores.stand_ins import fill_stand_in, make_stand_in
from tumorlens.pipeline.services.stores.store import Store

RESULT = "result.json"
_TOLD = (RESULT, QUARANTINE)  # they say what the other files of a folder are
_OF_ALL = (TABLE, REPORT, PARQUET)


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
            make_stand_in(self.folder, name, one.size or 0)
        if content:
            for name, data in self.store.read([n for n in ours if PurePosixPath(n).name in _TOLD or n in _OF_ALL]):
                fill_stand_in(self.folder / name, data)
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
            make_stand_in(place, PurePosixPath(name).name, one.size or 0)
        for name, data in store.read([name for name in there if PurePosixPath(name).name in _TOLD]):
            fill_stand_in(place / PurePosixPath(name).name, data)
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
