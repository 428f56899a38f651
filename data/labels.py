"""The classes: what is known of each (`TumorClass`), and the list of a classifier or of a data set (`ClassList`).

`TABLE` holds the classes of the shipped classifier, and the spellings by which data sets name them (`data.spellings`
reads them). A classifier learns the classes of its data, whatever their names; its card carries them, and everything
after it follows the card.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tumorlens.data.errors import InputError


@dataclass(frozen=True)
class TumorClass:
    """One row of the table of classes.

    Attributes:
        name: The name in files and on the command line.
        prose: The name in a sentence.
        aliases: Spellings in public data sets, lower case, letters only, with the American ``tumor``. Numbers are not
            among them, because they mean different classes in different sets. Those that a user adds follow, as the
            user writes them.
        color: The color in plots and reports, hexadecimal RGB from the palette of M. Okabe and K. Ito (Color Universal
            Design, 2008), which color-blind readers can tell apart.
        malignancy: The typical behavior of the type; not a histological grade.
        concept: SNOMED CT concept ``(value, scheme, meaning)``, or None where there is no tumor.
        site: Keyword of the anatomic site in pydicom's SNOMED CT dictionary (``pydicom.sr.codedict.codes.SCT``).
    """

    name: str
    prose: str
    aliases: tuple[str, ...]
    color: str
    malignancy: str
    concept: tuple[str, str, str] | None = None
    site: str = "Brain"


TABLE = (
    TumorClass(
        "no_tumor",
        "no tumor",
        ("no", "notumor", "none", "healthy", "normal", "negative"),
        "#009E73",
        "not applicable",
    ),
    TumorClass(
        "glioma",
        "glioma",
        ("gl", "glioma", "gliomatumor"),
        "#D55E00",
        "malignant",
        ("393564001", "SCT", "Glioma"),
    ),
    TumorClass(
        "meningioma",
        "meningioma",
        ("me", "meningioma", "meningiomatumor"),
        "#0072B2",
        "usually benign",
        ("302820008", "SCT", "Intracranial meningioma"),
    ),
    TumorClass(
        "pituitary",
        "pituitary tumor",
        ("pi", "pituitary", "pituitarytumor", "pituitaryadenoma"),
        "#CC79A7",
        "usually benign",
        ("254956000", "SCT", "Pituitary adenoma"),
        "Pituitary",
    ),
)
NO_TUMOR = 0  # the place of "no tumor" in every list; a list without that class gives it the probability 0
TUMOR_FREE = TABLE[NO_TUMOR].name
TUMOR = "tumor"  # a tumor whose type is not known, or the only tumor class of a list
SEQUENCES = ("t1", "t1c", "t2", "flair")  # kinds of MRI; t1c is T1 with contrast agent
OUTLINES = ("enhancing", "extent")  # conventions: what takes up contrast agent, or all that FLAIR shows of a lesion
UNKNOWN_COLOR = "#777777"  # of slices without a label
COLOR = re.compile(r"#[0-9A-Fa-f]{6}")
FEWEST, MOST = 2, 50  # classes of a classifier

_NEOPLASM = ("108369006", "SCT", "Neoplasm")
_ORANGE = "#E69F00"
_ANY_TUMOR = TumorClass(TUMOR, "tumor of uncertain type", (), _ORANGE, "unknown", _NEOPLASM)
_ONE_TUMOR = TumorClass(TUMOR, "tumor", (), _ORANGE, "unknown", _NEOPLASM)
# What the table leaves of the palette of Okabe and Ito, then the "muted" one of P. Tol (SRON/EPS/TN/09-002, 2021).
_COLORS = (
    *("#56B4E9", "#F0E442"),
    *("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499"),
)
_SHADES = (0.45, -0.35, 0.7, -0.6, 0.25)  # shares of white, or of black, in the colors after those


@dataclass(frozen=True)
class ClassList:
    """The classes of a classifier or of a data set, in the order of every logit and probability.

    "No tumor" always stands first, with number 0. In a list without that class (`gate` is false) the network has no
    output for it, its probability is 0, and every scan goes on to the segmenter.

    A list whose only tumor class is called ``tumor`` answers yes or no. In every other list, ``tumor`` is the label of
    a tumor whose type is not known; its number is `untyped`, and no network has an output for it.

    Attributes:
        rows: Of all classes, "no tumor" first.
        gate: Whether "no tumor" is among the answers.
    """

    rows: tuple[TumorClass, ...] = TABLE
    gate: bool = True

    @classmethod
    def of_rows(cls, rows: Iterable[TumorClass]) -> ClassList:
        """The list of some rows, in their order; rows without a color get one that the others do not have.

        Raises:
            InputError: Two rows have one name, or ``tumor`` stands beside tumors that have a type.
        """
        given = list(rows)
        names = [row.name for row in given]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"the class {twice} is named twice")
        tumors = [row for row in given if row.name != TUMOR_FREE]
        if len(tumors) > 1 and TUMOR in names:
            raise InputError(
                f"{TUMOR} means a tumor of any type, so it cannot be a class beside {', '.join(names)}; leave it out, "
                "and rows of that label teach only that there is a tumor"
            )
        free = next((row for row in given if row.name == TUMOR_FREE), TABLE[NO_TUMOR])
        ordered = (free, *tumors)
        unused = iter(_unused_colors({row.color for row in (*ordered, *TABLE)} | {UNKNOWN_COLOR, _ORANGE}))
        colored = tuple(row if row.color else replace(row, color=next(unused)) for row in ordered)
        return cls(colored, TUMOR_FREE in names)

    @classmethod
    def of_labels(cls, labels: Iterable[str]) -> ClassList:
        """The classes that the labels of a data set name: known ones in the order of the table, others by the alphabet.

        Labels that are empty, or that say only ``tumor`` where others say more, name no class.
        """
        names = set(labels) - {""}
        typed = names - {TUMOR_FREE, TUMOR}
        names -= {TUMOR} if typed else set()
        known = [row.name for row in TABLE if row.name in names]
        return cls.of_rows(fresh_row(name) for name in (*known, *sorted(names - set(known))))

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> ClassList:
        """The classes of a classifier's card, or of a ``result.json``; the shipped ones where it names none.

        Raises:
            InputError: They are not the names of 2 to 50 classes, or their table is not one.
        """
        names = card.get("classes", list(SHIPPED_CLASSES.names))
        table = card.get("class_table", [])
        if not isinstance(table, list):
            raise InputError(f"its class_table {table!r} is not a list of rows")
        rows = [_row_of(entry) for entry in table]
        if not isinstance(names, list) or not all(isinstance(n, str) and n == own_name(n) for n in names):
            raise InputError(f"its classes {names!r} are not a list of names in small letters")
        if rows and [row.name for row in rows] != names:
            raise InputError("its class_table does not name the classes of its list")
        found = cls.of_rows(rows or map(fresh_row, names))
        if not FEWEST <= len(names) <= MOST:
            raise InputError(f"its {len(names)} classes are not {FEWEST} to {MOST}")
        if list(found.outputs) != names:
            raise InputError(f"its class {TUMOR_FREE} is not the first one")
        return found

    def to_card(self) -> dict[str, Any]:
        """The entries of a card, or of a ``result.json``: nothing more than the names of the shipped classes."""
        table = [] if self == SHIPPED_CLASSES else [_entry_of(row) for row in self.rows[self.offset :]]
        return {"classes": list(self.outputs), **({"class_table": table} if table else {})}

    def check_number(self) -> None:
        """Raise an `InputError` if these are too few or too many classes for a classifier."""
        if len(self.outputs) < FEWEST:
            only = f"one class only, {self.outputs[0]}" if self.outputs else "no class"
            raise InputError(
                f"the data show {only}, and a classifier needs two or more: add slices of another class (those of "
                f"healthy heads as {TUMOR_FREE}), or name the classes with --classes"
            )
        if len(self.outputs) > MOST:
            raise InputError(
                f"the data name {len(self.outputs)} classes ({', '.join(self.outputs[:3])}, ...), and a classifier "
                f"takes {MOST}; if these are names of patients, name the classes with --classes, or give --map "
                "NAME=CLASS"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all classes, ``no_tumor`` first even where the list lacks it."""
        return tuple(row.name for row in self.rows)

    @property
    def offset(self) -> int:
        """How many numbers of classes have no output of the network: 1 where the list lacks ``no_tumor``."""
        return 0 if self.gate else 1

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the network's outputs, which are the answers."""
        return self.names[self.offset :]

    @property
    def tumors(self) -> tuple[str, ...]:
        """The names of all classes but ``no_tumor``."""
        return self.names[NO_TUMOR + 1 :]

    @property
    def binary(self) -> bool:
        """Whether ``tumor`` is the only tumor class."""
        return self.tumors == (TUMOR,)

    @property
    def spellings(self) -> dict[str, str]:
        """Label or folder -> the class that it means only because the user says so, for `data.spellings`."""
        return {alias: row.name for row in self.rows for alias in _own_aliases(row)}

    @property
    def untyped(self) -> int:
        """The number of the label ``tumor`` where it says that the type is not known."""
        return len(self.rows)

    @property
    def known(self) -> tuple[str, ...]:
        """The labels by their numbers: the classes and, where it says that the type is not known, ``tumor``."""
        return self.names if self.binary else (*self.names, TUMOR)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that a scan may get: `known` without what is not among the answers."""
        return self.known[self.offset :]

    def index(self, label: str) -> int:
        """The number of a data set's label; -1 for an empty one. To a list that says yes or no, any tumor is one.

        Raises:
            InputError: The list has no such class.
        """
        if not label:
            return -1
        if self.binary and label != TUMOR_FREE:
            return self.names.index(TUMOR)
        if label not in self.known[self.offset :]:
            raise InputError(
                f"the label {label} is not one of the classes {', '.join(self.outputs)}; give --map {label}=CLASS, or "
                "leave its slices out"
            )
        return self.known.index(label)

    def indices(self, labels: Iterable[str]) -> list[int]:
        """`index` of each label."""
        every = list(labels)
        number = {label: self.index(label) for label in set(every)}
        return [number[label] for label in every]

    def row(self, name: str) -> TumorClass:
        """The row of a class, or of a tumor whose type is not known; a bare one for any other name."""
        found = next((row for row in self.rows if row.name == name), None)
        return found or (_ANY_TUMOR if name == TUMOR else replace(fresh_row(name), color=UNKNOWN_COLOR))

    def prose(self, name: str) -> str:
        """The name of a class in a sentence."""
        return self.row(name).prose

    def color(self, name: str) -> str:
        """The color of a class in every plot; gray for any other name."""
        return self.row(name).color

    def is_uncertain(self, label: str) -> bool:
        """Whether a label says that there is a tumor, but not of which type."""
        return label == TUMOR and not self.binary


SHIPPED_CLASSES = ClassList()  # of the shipped classifier
CLASSES = SHIPPED_CLASSES.names


def fresh_row(name: str) -> TumorClass:
    """The table's row of a class or, for a name that is not in it, a row without a color that knows nothing more."""
    if name == TUMOR:
        return _ONE_TUMOR
    found = next((row for row in TABLE if row.name == name), None)
    return found or TumorClass(name, name.replace("_", " "), (), "", "unknown", _NEOPLASM)


def _unused_colors(used: Collection[str]) -> Iterator[str]:
    """Colors for classes that the table lacks: first those that color-blind readers can tell apart, then shades."""
    base = tuple(color for color in _COLORS if color not in used)
    yield from base
    for share in _SHADES:
        for color in _COLORS:
            target = 255 if share > 0 else 0
            parts = (round(part + abs(share) * (target - part)) for part in bytes.fromhex(color[1:]))
            yield "#{:02X}{:02X}{:02X}".format(*parts)


def _entry_of(row: TumorClass) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": row.name, "prose": row.prose, "color": row.color, "malignancy": row.malignancy}
    entry |= {"concept": list(row.concept), "site": row.site} if row.concept else {}
    own = _own_aliases(row)
    return entry | ({"aliases": list(own)} if own else {})


def _own_aliases(row: TumorClass) -> tuple[str, ...]:
    """The aliases that a user adds to those of the table."""
    return tuple(alias for alias in row.aliases if alias not in fresh_row(row.name).aliases)


def _row_of(entry: Any) -> TumorClass:
    """The row of a card's entry.

    Raises:
        InputError: It is not one.
    """
    try:
        texts = [entry[key] for key in ("name", "prose", "color", "malignancy")]
        aliases = entry.get("aliases", [])
        concept, site = entry.get("concept"), entry.get("site", "Brain")
        whole = concept is None or (len(concept) == 3 and all(isinstance(part, str) for part in concept))
        whole &= isinstance(aliases, list)
    except (KeyError, TypeError, AttributeError):
        whole, texts, aliases = False, [None], []
    whole &= all(isinstance(text, str) for text in (*texts, *aliases)) and site in {row.site for row in TABLE}
    if not whole or not COLOR.fullmatch(texts[2]):
        raise InputError(f"the entry {entry!r} of its class_table is not a row of a class")
    name, prose, color, malignancy = texts
    known = fresh_row(name)
    return replace(
        known,
        prose=prose,
        color=color,
        malignancy=malignancy,
        concept=tuple(concept) if concept else None,
        site=site,
        aliases=(*known.aliases, *aliases),
    )


def outline_of(sequence: str | None) -> str:
    """The convention, one of `OUTLINES`, by which lesions are outlined on a kind of MRI.

    Without contrast agent nothing enhances, so there is only the extent. An unknown kind counts as T1 with contrast
    agent: so do the pictures of the largest data sets.
    """
    return "extent" if sequence in ("flair", "t2", "t1") else "enhancing"


def labels_agree(first: str, second: str) -> bool:
    """Whether two labels of a picture can both be right: they are equal, or one of two tumors has no known type."""
    return first == second or (TUMOR in (first, second) and TUMOR_FREE not in (first, second))


def own_name(name: str) -> str:
    """A name as a class has it: in small letters, with ``_`` for all that is neither letter nor digit."""
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")
