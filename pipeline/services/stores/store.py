"""`Store`: the files below a URL (s3://, gs://, az://, https://), which fsspec reads and writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from tumorlens.data.errors import InputError, needs, reason_of

AT_ONCE = 32  # requests
_REFUSED = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"}
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Entry(NamedTuple):
    """A file in a store: its size in bytes, if the store says it, and what is another text after each change."""

    size: int | None
    version: str

    @classmethod
    def of(cls, about: Mapping[str, Any], url: str) -> Entry:
        """From what fsspec says of a file."""
        size = about.get("size")  # lists of HTTP folders have none
        return cls(None if size is None else int(size), str(about.get("ETag") or about.get("etag") or url))


@dataclass(frozen=True)
class Store:
    """The files below a URL. All methods raise an `InputError` that names the URL where the store cannot be used."""

    url: str

    def __reduce__(self) -> tuple[Any, ...]:  # another process opens its own connections
        return Store, (self.url,)

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        with needs(f"{self.place}: a URL"):
            from fsspec.core import url_to_fs
        try:
            system, path = url_to_fs(self._asked[0], use_listings_cache=False)
        except ImportError as error:
            kind = self.url.split("://")[0]
            needed = _PACKAGES.get(kind, reason_of(error))
            raise InputError(f"{self.place}: {kind}:// needs the package {needed}; install it with pip") from None
        except ValueError as error:
            raise InputError(f"{self.place}: {reason_of(error)}") from None
        return system, path.rstrip("/")

    def _path(self, name: str) -> str:
        base, query = self._opened[1], self._asked[1]
        if self._is_http:  # a server may know a folder only by its slash
            return (f"{base}/{quote(name)}" if name else base + "/" * self.is_folder) + query
        return f"{base}/{name}" if name else base

    def shown(self, name: str = "") -> str:
        """The URL of a file, without passwords and signatures."""
        return f"{self.place}/{name}" if name else self.place

    @property
    def place(self) -> str:
        """The URL without what opens the store: name and password of a user, and a query; and without a last slash."""
        return (unquote(_opener_free(self._asked[0])) if self._is_http else self.url).rstrip("/")

    @property
    def _is_http(self) -> bool:
        return self.url.startswith(("http://", "https://"))

    @property
    def _asked(self) -> tuple[str, str]:
        """The URL without its query, and the query, which may be a signature. Every request needs it."""
        url, mark, query = self.url.partition("?") if self._is_http else (self.url, "", "")
        return url, mark + query

    def split(self) -> tuple[Store, str]:
        """The store above a single file, and the file's name in it."""
        url, query = self._asked
        base, _, name = url.rpartition("/")
        return Store(base + query), unquote(name) if self._is_http else name

    @property
    def is_folder(self) -> bool:
        """Whether the URL says that it is a folder."""
        return self._asked[0].endswith("/")

    @contextmanager
    def _errors(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # each store has errors of its own
            raise InputError(f"{self.shown(name)}: {_opener_free(_reason(error))}") from None

    def is_file(self) -> bool:
        """Whether the URL is one file."""
        with self._errors():
            return bool(self._opened[0].isfile(self._path("")))

    def check_answers(self) -> None:
        """Ask a web server for the URL: lists of one that cannot be reached are empty."""
        if self._is_http:
            with self._errors():
                self._opened[0].cat_file(self._path(""), start=0, end=1)

    def list(self, below: str = "") -> dict[str, Entry]:
        """Name of each file below the URL -> its size and version.

        Raises:
            InputError: The store cannot be asked; or it is a web server's folder, and the URL has a query.
        """
        system, base = self._opened
        with self._errors(below):
            try:
                found = system.find(self._path(below), detail=True)
            except FileNotFoundError:
                if below:
                    return {}
                raise
        names = {path.removeprefix(f"{base}/"): about for path, about in found.items()}
        if self._is_http:
            names = {unquote(path.partition("?")[0]): about for path, about in names.items()}
            if self._asked[1] and any(f"{self._asked[1]}/" in path for path in found):  # as it joins relative links
                raise InputError(f"{self.place}: a folder cannot be listed by a URL with a query; name its files")
        return {n: Entry.of(names[n], self.shown(n)) for n in sorted(names) if n and n != base and not n.endswith("/")}

    def look(self, name: str) -> Entry:
        """Size and version of one file."""
        with self._errors(name):
            return Entry.of(self._opened[0].info(self._path(name)), self.shown(name))

    def read(self, names: Sequence[str], n_bytes: int | None = None) -> Iterator[tuple[str, bytes]]:
        """Each name with its file's bytes, or the first of them; several at once where the store can do that."""
        system = self._opened[0]
        for start in range(0, len(names), AT_ONCE):
            some = names[start : start + AT_ONCE]
            paths = [self._path(name) for name in some]
            with self._errors(some[0]):
                begin = None if n_bytes is None else 0  # unlike cat, cat_ranges takes no name for a pattern
                yield from zip(some, system.cat_ranges(paths, begin, n_bytes, on_error="raise"), strict=True)

    def fetch(self, name: str, file: Path) -> None:
        """Write a file of the store to a local one."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._errors(name):
            self._opened[0].get_file(self._path(name), str(file))

    def fetch_all(self, names: Sequence[str], folder: Path) -> None:
        """Write files of the store to a local folder."""
        for name in names:
            self.fetch(name, folder / name)

    def put(self, files: Mapping[str, Path]) -> None:
        """Write local files to the store, each whole or not at all."""
        with self._errors(next(iter(files), "")):
            if files:
                self._opened[0].put([str(file) for file in files.values()], [self._path(name) for name in files])

    def remove(self, names: Sequence[str]) -> None:
        """Delete files, whether they are there or not."""
        for name in names:
            with self._errors(name), suppress(FileNotFoundError):
                self._opened[0].rm_file(self._path(name))

    def check_writable(self, scratch: Path) -> None:
        """Write a file to the store and delete it."""
        file = scratch / ".tumorlens"
        file.write_bytes(b"")
        self.put({file.name: file})
        self.remove([file.name])


def _opener_free(text: str) -> str:
    """A text whose URLs have no names, passwords and queries of users, which may be signatures."""
    return re.sub(r"(https?://)(?:[^/\s'\"@]*@)?([^\s'\"?]*)(?:\?[^\s'\")]*)?", r"\1\2", text)


def _reason(error: Exception) -> str:
    """Why a store cannot be used, and what to do, in words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket, folder or file"
    if isinstance(error, PermissionError):
        return "the store denies access; check the credentials and their rights"
    if type(error).__name__ in _REFUSED:
        return "no credentials for this store; set them as its own tools expect, such as AWS_ACCESS_KEY_ID for S3"
    if isinstance(error, NotImplementedError):
        return "this kind of store cannot be used so; choose another URL"
    return f"the store cannot be used ({reason_of(error)})"
