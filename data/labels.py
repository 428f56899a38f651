"""The four classes, in the order of every logit and probability in the project, and the names users give them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tumorlens.data.errors import InputError

CLASSES: tuple[str, ...] = ("no_tumor", "glioma", "meningioma", "pituitary")


NO_TUMOR = 0


# Folder and column names seen in public sets: Kaggle's "glioma_tumor", BRISC's "gl", figshare's 1/2/3 are not here
# because a bare number means different things in different sets.
_INITIALS = 2  # letters of the shortest names; with a number behind them they are a patient's: PI_00, ME07


_ALIASES = {
    "no": "no_tumor",
    "notumor": "no_tumor",
    "notumour": "no_tumor",
    "none": "no_tumor",
    "healthy": "no_tumor",
    "normal": "no_tumor",
    "negative": "no_tumor",
    "gl": "glioma",
    "glioma": "glioma",
    "gliomatumor": "glioma",
    "me": "meningioma",
    "meningioma": "meningioma",
    "meningiomatumor": "meningioma",
    "pi": "pituitary",
    "pituitary": "pituitary",
    "pituitarytumor": "pituitary",
    "pituitaryadenoma": "pituitary",
}


def canonical_label(name: str, mapping: Mapping[str, str] | None = None) -> str:
    """The project's class for a label as a user or a data set writes it.

    Args:
        name: Any spelling, such as ``"notumor"``, ``"Glioma"`` or ``"pituitary_tumor"``; two letters with a number,
            such as ``"PI_00"``, are none.
        mapping: The user's own names, tried first: ``{"tumour-free": "no_tumor"}``.

    Raises:
        InputError: The name is neither in the mapping nor a known spelling.
    """
    wanted = (mapping or {}).get(name, name)
    key = re.sub(r"[^a-z]", "", wanted.lower()).replace("tumour", "tumor")
    numbered = len(key) <= _INITIALS and re.search(r"\d", wanted) is not None
    label = None if numbered else _ALIASES.get(key)
    if label is None and wanted != name:
        raise InputError(f"the mapping {name}={wanted} leads to none of {', '.join(CLASSES)}")
    if label is None:
        raise InputError(
            f"label {name!r} is none of {', '.join(CLASSES)}; give a mapping for it (--map '{name}=CLASS')"
        )
    return label
