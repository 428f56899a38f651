"""The spellings of classes: which class the word of a data set or of a user means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from tumorlens.data.errors import InputError
from tumorlens.data.labels import TABLE, TUMOR, own_name

_INITIALS = 2  # letters of the shortest aliases; with a number they name a patient: PI_00, ME07
_ALIASES = {alias: row.name for row in TABLE for alias in row.aliases}
_ALIASES |= dict.fromkeys(("tumor", "yes", "positive"), TUMOR)
_RESERVED = ("refused", "unlabeled")  # labels of scans, and of slices, that are of no class
# Behind a name: "_NORMAL T1", "glioma_t1ce", "Meningioma T1C+".
_SEQUENCE = re.compile(r"(?<=\w)[\W_]+(t1ce|t1gd|t1c|t1|t2|flair)(\+?)[\W_]*$", re.IGNORECASE)


def known_label(name: str, mapping: Mapping[str, str] | None = None, exact: bool = False) -> str:
    """The class that a name is known to mean, by the user's mapping or by the spellings of the table; else empty.

    Args:
        name: Any spelling, such as ``"notumor"``, ``"Glioma"`` or ``"pituitary_tumor"``. Two letters with a number,
            such as ``"PI_00"``, are the name of a patient.
        mapping: The user's own names, which come first: ``{"tumour-free": "no_tumor", "GBM": "glioblastoma"}``. Upper
            and lower case, spaces and hyphens do not count. One that names no spelling but a class, as messages do,
            holds for all spellings of it.
        exact: See `canonical_label`.
    """
    plain = name if exact else without_sequence(name)[0]
    known = _in_table(plain, exact)
    for each in (name, known or plain):
        spelled = own_name(each)
        mapped = next(
            (to for own, to in (mapping or {}).items() if each == own or (spelled and spelled == own_name(own))), ""
        )
        if mapped:
            return _in_table(mapped, exact=True) or own_name(mapped)
    return known


def _in_table(name: str, exact: bool = False) -> str:
    key = re.sub(r"[^a-z0-9]" if exact else r"[^a-z]", "", name.lower()).replace("tumour", "tumor")
    numbered = len(key) <= _INITIALS and re.search(r"\d", name) is not None
    return "" if numbered else _ALIASES.get(key, "")


@lru_cache(4096)  # a folder of patients asks for the same names again and again
def without_sequence(name: str) -> tuple[str, str]:
    """The name of a class without the sequence that a data set writes behind it, and that sequence, one of `SEQUENCES`
    of `data.labels`.

    ``"Astrocytoma T1C+"`` is ``("Astrocytoma", "t1c")``, and a name without one ``(name, "")``.
    """
    found = _SEQUENCE.search(name)
    if found is None:
        return name, ""
    word = found[1].lower()
    return name[: found.start()], word if word in ("t2", "flair") or (word == "t1" and not found[2]) else "t1c"


def canonical_label(name: str, mapping: Mapping[str, str] | None = None, exact: bool = False) -> str:
    """The class for a label as a user or a data set writes it, see `known_label`; any other name is its own class,
    without the sequence behind it.

    Args:
        name: Any spelling.
        mapping: See `known_label`.
        exact: The name was chosen for a class: numbers and a sequence in it belong to it.

    Raises:
        InputError: The name has no letter, looks like that of a patient, or is one that a class cannot have.
    """
    known = known_label(name, mapping, exact)
    label = known or own_name(name if exact else without_sequence(name)[0])
    if not re.search(r"[^\W\d_]", label):
        raise InputError(
            f"label {name!r} is a number, which says nothing of a class; give a mapping for it (--map '{name}=CLASS')"
        )
    if label in _RESERVED:
        raise InputError(f"a class cannot be called {label}; give it another name (--map '{name}=CLASS')")
    letters = re.sub(r"[^a-z]", "", name.lower())
    if not known and len(letters) <= _INITIALS and letters in _ALIASES:
        raise InputError(
            f"label {name!r} looks like the name of a patient; if it is a class, give a mapping for it (--map "
            f"'{name}=CLASS')"
        )
    return label
