"""DICOMDIR: the file of a disk or an export that lists its other files (PS3.3 F.3)."""

from __future__ import annotations

import os
from pathlib import Path

from tumorlens.data.dicom.headers import items, read_header, text
from tumorlens.data.errors import InputError, printable

_CLASS = "1.2.840.10008.1.3.10"


def is_dicomdir(path: Path) -> bool:
    """Whether a DICOM file is a DICOMDIR."""
    try:
        sop_class = text(read_header(path, ("SOPClassUID", "DirectoryRecordSequence")), "SOPClassUID")
    except InputError:
        return False
    return sop_class == _CLASS or path.name.upper() == "DICOMDIR"


def read_dicomdir(path: Path) -> tuple[list[Path], list[str]]:
    """The files that a DICOMDIR lists, and the names in it of those that are missing.

    Raises:
        InputError: The DICOMDIR is damaged, or all of its files are missing.
    """
    records = items(read_header(path), "DirectoryRecordSequence")
    root = path.parent.resolve()
    files: list[Path] = []
    missing: list[str] = []
    for record in records:
        parts = [part for part in text(record, "ReferencedFileID").split("\\") if part]
        if parts and not _is_name(parts):
            missing.append("/".join(parts))
            continue
        if not parts or root not in root.joinpath(*parts).resolve().parents:
            continue  # not the record of a file, or one that leads out of the medium
        file = _on_disk(path.parent, parts)
        if file is None or root not in file.resolve().parents:
            missing.append("/".join(parts))
        else:
            files.append(file)
    if not files:
        lost = f"all of the {len(missing)} files that it lists are missing"
        raise InputError(f"{path}: {lost if missing else 'it lists no file'}")
    return files, missing


def missing_note(path: Path) -> str:
    """A sentence about files that a DICOMDIR lists and that are missing; empty if all are there."""
    try:
        return note_on(*read_dicomdir(path))
    except InputError as error:  # the files around it may still be scans
        return str(error).replace(str(path), path.name)


def note_on(files: list[Path], missing: list[str]) -> str:
    """The same for what `read_dicomdir` returned."""
    if not missing:
        return ""
    first = printable(missing[0][:64])
    return (
        f"{len(missing)} of the {len(missing) + len(files)} files that the DICOMDIR lists are missing (first: {first})"
    )


def _is_name(parts: list[str]) -> bool:
    """Whether a file can be called so: no NUL, and no part longer than file systems take."""
    return all("\0" not in part and len(os.fsencode(part)) < 256 for part in parts)


def _on_disk(folder: Path, parts: list[str]) -> Path | None:
    """The listed file, or none if it is missing. Names in small letters and with ``.dcm`` behind them count, too."""
    exact = folder.joinpath(*parts)
    if exact.is_file():
        return exact
    place = folder
    for depth, part in enumerate(parts):
        names = {part.lower()} if depth < len(parts) - 1 else {part.lower(), f"{part.lower()}.dcm"}
        place = next((p for p in sorted(place.iterdir()) if p.name.lower() in names), place / part)
        if not place.exists():
            return None
    return place if place.is_file() else None
