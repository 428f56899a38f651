"""The classes that a user names: by ``--classes``, or in a ``classes.yaml`` beside the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import Any

from tumorlens.data.datasets.index import find_index
from tumorlens.data.errors import InputError
from tumorlens.data.labels import COLOR, TABLE, TUMOR, TUMOR_FREE, ClassList, TumorClass, fresh_row, own_name
from tumorlens.data.spellings import canonical_label, known_label, without_sequence

FILE = "classes.yaml"  # beside the data
_CLOSE = 0.85  # likeness of two names (difflib) from which one may be a typing error
_NUMBERS_OF_SEQUENCES = re.compile(r"_t[12]c?(?=_|$)")
_NUMBERS = re.compile(r"_t[12]c?(?=_|$)|\d+")  # sequences and numbers, in which the names of classes may differ
_FEW, _FEW_SHARE = 5, 0.1  # slices of a class, and their share of the largest class, below which it may be one
_KEYS = {"name": str, "prose": str, "color": str, "malignancy": str, "no_tumor": bool, "aliases": list}


@dataclass(frozen=True)
class GivenClasses:
    """The classes that a user names.

    Attributes:
        classes: In the user's order.
        spellings: The labels and folders of the data that mean them, for `data.spellings.known_label`.
    """

    classes: ClassList
    spellings: dict[str, str]


def given_classes(text: str, sources: Sequence[str | Path] = ()) -> GivenClasses | None:
    """The classes of ``--classes`` or, where that is empty, of the ``classes.yaml`` beside the data, or None.

    Args:
        text: A YAML file, or names with commas between them.
        sources: The data sets. The classes of several files are one list.

    Raises:
        InputError: A file cannot be read or is not a list of classes.
    """
    if text:
        if "," not in text and not text.lower().endswith((".yaml", ".yml")):
            raise InputError(
                f"--classes {text}: give two or more names with commas between them, or a file that ends in .yaml"
            )
        rows = _rows(text.split(","), "--classes") if "," in text else _read(Path(text))
        return _given(rows, "--classes" if "," in text else text)
    files = [file for file in map(file_beside, sources) if file is not None]
    first: dict[str, TumorClass] = {}
    for row in (row for file in dict.fromkeys(files) for row in _read(file)):
        other = first.setdefault(row.name, row)
        first[row.name] = replace(other, aliases=tuple(dict.fromkeys((*other.aliases, *row.aliases))))
    return _given(list(first.values()), str(files[0])) if files else None


def spellings_of(source: str | Path) -> dict[str, str]:
    """The spellings that the ``classes.yaml`` beside a data set adds; errors as in `given_classes`."""
    given = given_classes("", [source])
    return given.spellings if given else {}


def file_beside(source: str | Path) -> Path | None:
    """The ``classes.yaml`` of a data set, beside its index or in its folder; None if there is none."""
    try:
        index, root = find_index(source)
    except InputError:  # whoever reads the data says so
        return None
    places = [folder / FILE for folder in (*([index.parent] if index else []), root)]
    return next((place for place in places if place.is_file()), None)


def _given(rows: list[TumorClass], where: str) -> GivenClasses:
    spellings: dict[str, str] = {}
    for alias, name in ((alias, row.name) for row in rows for alias in row.aliases):
        if spellings.setdefault(alias, name) != name:
            raise InputError(f"{where}: {alias} is a spelling of two classes, {spellings[alias]} and {name}")
    try:
        return GivenClasses(ClassList.of_rows(map(_with_own_aliases, rows)), spellings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _with_own_aliases(row: TumorClass) -> TumorClass:
    """The row with the aliases of the table, and those of the user that the table does not know."""
    own = (alias for alias in row.aliases if known_label(alias) != row.name)
    return replace(row, aliases=(*fresh_row(row.name).aliases, *own))


def _read(path: Path) -> list[TumorClass]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the list of classes cannot be read ({getattr(error, 'strerror', error)})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: this is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: a list of classes begins each line with '- name: NAME'")
    return _rows(content, str(path))


def _rows(entries: Sequence[Any], where: str) -> list[TumorClass]:
    return [_row(entry if isinstance(entry, dict) else {"name": entry}, where) for entry in entries]


def _row(entry: dict[str, Any], where: str) -> TumorClass:
    """The row of an entry; its aliases are the spellings that the entry adds to those of the table."""
    unknown = [key for key in entry if key not in _KEYS]
    if unknown:
        raise InputError(f"{where}: a class has no {unknown[0]!r}; it has {', '.join(_KEYS)}")
    for key, kind in _KEYS.items():
        if key in entry and not isinstance(entry[key], kind):
            what = {str: "a text", bool: "true or false", list: "a list of texts"}[kind]
            hint = "; put yes, no and numbers in quotes" if kind is str else ""
            raise InputError(f"{where}: the {key} {entry[key]!r} is not {what}{hint}")
    name = entry.get("name", "").strip()
    if not name:
        raise InputError(f"{where}: a class has no name")
    aliases = entry.get("aliases", [])
    if not all(isinstance(alias, str) for alias in aliases):
        raise InputError(f"{where}: the aliases of {name} are not texts; put numbers in quotes")
    if not COLOR.fullmatch(entry.get("color", "#000000")):
        raise InputError(f"{where}: the color {entry['color']!r} of {name} is not like '#56B4E9'")
    try:
        own = TUMOR_FREE if entry.get("no_tumor") else canonical_label(name, exact=True)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    row = fresh_row(own)
    texts = {key: entry[key] for key in ("prose", "color", "malignancy") if entry.get(key, "").strip()}
    return replace(row, aliases=tuple(dict.fromkeys((name, *aliases))), **texts)


def doubtful_names(counts: Mapping[str, int]) -> list[str]:
    """Sentences about classes that may be typing errors: their name is close to another, or they have few slices.

    Args:
        counts: Number of slices of each label.
    """
    known = {row.name for row in TABLE} | {TUMOR}
    names = sorted(name for name in counts if name)
    lines = []
    for first, second in combinations(names, 2):
        fewer, more = sorted((first, second), key=lambda name: (name in known, counts[name]))
        letters = [_NUMBERS.sub("", name) for name in (first, second)]
        if fewer in known or letters[0] == letters[1]:  # grade_2 and grade_3 are meant
            continue
        if SequenceMatcher(a=letters[0], b=letters[1]).ratio() >= _CLOSE:
            lines.append(
                f"{fewer} ({counts[fewer]} slices) is written nearly like {more} ({counts[more]}); if they are one "
                f"class, give --map {fewer}={more}"
            )
    most = max(counts.values(), default=0)
    close = " ".join(lines)
    for name in names:
        few = counts[name] < min(_FEW, _FEW_SHARE * most)
        if few and name not in known and f"{name} (" not in close:
            lines.append(
                f"{name} has only {counts[name]} slices, too few to learn from; if it is not a class, map it or leave "
                "it out"
            )
    return lines


def merged_folders(images: Mapping[Path, str]) -> list[str]:
    """Sentences about folders side by side whose names differ in a number only and count as one class.

    Args:
        images: The label of each scan.
    """
    named: dict[tuple[Path, str], set[str]] = {}
    for folder, label in {(folder, label) for image, label in images.items() for folder in image.parents}:
        if re.search(r"\d", _NUMBERS_OF_SEQUENCES.sub("", own_name(folder.name))) and known_label(folder.name) == label:
            named.setdefault((folder.parent, label), set()).add(folder.name)
    lines = []
    for (_, label), names in sorted(named.items()):
        if label and len({own_name(without_sequence(name)[0]) for name in names}) > 1:
            first, second, *_ = sorted(names)
            lines.append(
                f"the folders {first} and {second} are read as one class, {label}; if they are two, give --map "
                f"'{first}={own_name(first)}' --map '{second}={own_name(second)}'"
            )
    return lines
