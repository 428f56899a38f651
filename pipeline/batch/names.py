"""Names and output folders of scans: one each, whatever the inputs are called."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tumorlens.data.formats.open import SCAN_SUFFIXES
from tumorlens.pipeline.batch.job import _Found
from tumorlens.pipeline.outputs import TABLE

_STRIPPED = (*SCAN_SUFFIXES, ".zip", ".img", ".img.gz")


def bare_name(name: str) -> str:
    """A scan's name without its extension."""
    for suffix in sorted(_STRIPPED, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(PurePosixPath(name).name) > len(suffix):
            return name[: -len(suffix)]
    return name


def unique_names(found: list[_Found]) -> list[PurePosixPath]:
    """Names, with as many parent folders put in front as it takes to tell two inputs apart."""
    shown = [replace(f, path=Path(str(f.path).replace(*f.unpacked))) if f.unpacked else f for f in found]
    names = [f.name for f in shown]
    while True:
        count = Counter((name, f.tail) for f, name in zip(shown, names, strict=True))
        longer = [
            _one_folder_more(f.path, name) if count[name, f.tail] > 1 else name
            for f, name in zip(shown, names, strict=True)
        ]
        if longer == names:
            return _numbered(names, [f.tail for f in shown])
        names = longer


def _numbered(names: list[PurePosixPath], tails: list[str]) -> list[PurePosixPath]:
    """Names with a number behind those that no folder tells apart (two studies in the same one)."""
    seen: Counter[tuple[PurePosixPath, str]] = Counter()
    numbered = []
    for name, tail in zip(names, tails, strict=True):
        seen[name, tail] += 1
        again = seen[name, tail]
        numbered.append(name if again == 1 else name.with_name(f"{name.name}.{again}"))
    return numbered


def _one_folder_more(path: Path, name: PurePosixPath) -> PurePosixPath:
    resolved = path.resolve()
    parts = [p for p in resolved.parts if p != resolved.anchor]  # an output folder must not be absolute
    return PurePosixPath(*parts[-min(len(parts), len(name.parts) + 1) :])


def output_folders(names: list[PurePosixPath]) -> list[str]:
    """Names without their extension, which stays where two would collide."""
    # Many a disk takes "P1" and "p1" for the same folder.
    bare = [bare_name(str(name)) for name in names]
    count = Counter(b.casefold() for b in bare)
    # A bare name may also be the full name of another scan ("a" beside "a.png"), or a folder that others lie in.
    taken = Counter(str(place).casefold() for name in names for place in (name, *name.parents))
    free = [
        b if count[b.casefold()] == 1 and not taken[b.casefold()] else str(n) for b, n in zip(bare, names, strict=True)
    ]
    again: Counter[str] = Counter()
    folders = []
    for folder in free:
        again[folder.casefold()] += 1
        number = again[folder.casefold()]
        folders.append(_beside_table(folder if number == 1 else f"{folder}.{number}"))
    return folders


def _beside_table(folder: str) -> str:
    """The table of all results has its place, too."""
    return f"_{folder}" if PurePosixPath(folder).parts[0].lower() == TABLE else folder


def possible_folders(name: str) -> list[str]:
    """All that may be a scan's output folder, the likeliest first."""
    return [_beside_table(folder) for folder in (bare_name(name), name, *(f"{name}.{n}" for n in range(2, 10)))]
