"""`Parcel`: a scan that another process fetches and runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tumorlens.data.formats.archives import unpack
from tumorlens.data.formats.open import source_files
from tumorlens.pipeline.batch.job import Job
from tumorlens.pipeline.batch.read_jobs import bytes_of
from tumorlens.pipeline.services.dicomweb import Studies
from tumorlens.pipeline.services.stores.mirror import Input
from tumorlens.pipeline.services.stores.store import Store


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
