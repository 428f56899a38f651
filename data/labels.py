"""The classes, in the order of every logit and probability in the project, with everything about each of them.

To add a class, add a row to `TABLE` and train again. Labels of data sets, columns of results.csv, colors, DICOM codes
and plots follow from the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tumorlens.data.errors import InputError


@dataclass(frozen=True)
class TumorClass:
    """One row of the table of classes.

    Attributes:
        name: The name in files and on the command line.
        prose: The name in a sentence.
        aliases: Spellings in public data sets, lower case, letters only, with the American ``tumor``. Numbers are not
            among them, because they mean different classes in different sets.
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
CLASSES: tuple[str, ...] = tuple(row.name for row in TABLE)
NO_TUMOR = 0  # its place in `CLASSES`
TUMOR = "tumor"  # a tumor whose type is not known
UNTYPED = len(CLASSES)  # the index of `TUMOR` among the labels of a data set; no network has an output for it
KNOWN = (*CLASSES, TUMOR)  # labels that a data set may have
SEQUENCES = ("t1", "t1c", "t2", "flair")  # kinds of MRI; t1c is T1 with contrast agent
OUTLINES = ("enhancing", "extent")  # conventions: what takes up contrast agent, or all that FLAIR shows of a lesion
UNKNOWN_COLOR = "#777777"  # of slices without a label

_INITIALS = 2  # letters of the shortest aliases; with a number they name a patient: PI_00, ME07
_ALIASES = {alias: row.name for row in TABLE for alias in row.aliases}
_ALIASES |= dict.fromkeys(("tumor", "yes", "positive"), TUMOR)
_ANY_TUMOR = TumorClass(TUMOR, "tumor of uncertain type", (), "#E69F00", "unknown", ("108369006", "SCT", "Neoplasm"))
_ROWS = {row.name: row for row in (*TABLE, _ANY_TUMOR)}


def class_of(name: str) -> TumorClass:
    """The row of a class by its name, or that of `TUMOR`, which is not among the classes.

    Raises:
        KeyError: There is no such class.
    """
    return _ROWS[name]


def outline_of(sequence: str | None) -> str:
    """The convention, one of `OUTLINES`, by which lesions are outlined on a kind of MRI.

    Without contrast agent nothing enhances, so there is only the extent. An unknown kind counts as T1 with contrast
    agent: so do the pictures of the largest data sets.
    """
    return "extent" if sequence in ("flair", "t2", "t1") else "enhancing"


def color_of(name: str) -> str:
    """The color of a class in every plot; gray for any other name."""
    return _ROWS[name].color if name in _ROWS else UNKNOWN_COLOR


def labels_agree(first: str, second: str) -> bool:
    """Whether two labels of a picture can both be right: they are equal, or one of two tumors has no known type."""
    no_tumor = CLASSES[NO_TUMOR]
    return first == second or (TUMOR in (first, second) and no_tumor not in (first, second))


def canonical_label(name: str, mapping: Mapping[str, str] | None = None) -> str:
    """The project's class for a label as a user or a data set writes it; `TUMOR` for a tumor of unknown type.

    Args:
        name: Any spelling, such as ``"notumor"``, ``"Glioma"`` or ``"pituitary_tumor"``. Two letters with a number,
            such as ``"PI_00"``, are not a label.
        mapping: The user's own names, which come first: ``{"tumour-free": "no_tumor"}``.

    Raises:
        InputError: The name is neither in the mapping nor a known spelling.
    """
    mapped = (mapping or {}).get(name, name)
    key = re.sub(r"[^a-z]", "", mapped.lower()).replace("tumour", "tumor")
    numbered = len(key) <= _INITIALS and re.search(r"\d", mapped) is not None
    label = None if numbered else _ALIASES.get(key)
    if label is None and mapped != name:
        raise InputError(f"the mapping {name}={mapped} does not lead to one of {', '.join(KNOWN)}")
    if label is None:
        raise InputError(
            f"label {name!r} is not one of {', '.join(KNOWN)}; give a mapping for it (--map '{name}=CLASS')"
        )
    return label
