"""The spellings of classes: which names mean a class, by the table or by the user's mapping, and which are refused."""

from __future__ import annotations

import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, TABLE
from tumorlens.data.spellings import canonical_label, known_label


@pytest.mark.parametrize("row", TABLE, ids=CLASSES)
def test_each_class_is_found_by_its_spellings(row):
    assert all(canonical_label(alias) == row.name for alias in row.aliases)
    assert canonical_label(row.prose.upper()) == canonical_label(f"{row.name}_01") == row.name


def test_other_names_are_classes_of_their_own():
    assert canonical_label("Zebra stripes") == "zebra_stripes"
    assert canonical_label("zebra", {"zebra": "Horse"}) == canonical_label("ZEBRA", {"zebra": "Horse"}) == "horse"
    with pytest.raises(InputError, match=r"label '2' is a number, .*--map '2=CLASS'"):
        canonical_label("2")
    with pytest.raises(InputError, match="a class cannot be called refused"):
        canonical_label("Refused")
    assert canonical_label("tumour-free", {"tumour-free": "no_tumor"}) == "no_tumor"
    with pytest.raises(InputError, match="label 'PI_00'"):  # a patient's name
        canonical_label("PI_00")


def test_a_mapping_of_a_class_holds_for_its_spellings_unless_they_have_their_own():
    """As messages say it: the label pituitary is not one of the classes; give --map pituitary=CLASS."""
    mapping = {"pituitary": "glioma", "glioma": "pituitary", "Astro": "glioblastoma", "astro t1": "astro_t1"}
    found = {name: canonical_label(name, mapping) for name in ("pituitary_tumor", "PI", "gl", "Glioma T1", "pituitary")}
    assert found == {
        "pituitary_tumor": "glioma", "PI": "glioma", "gl": "pituitary", "Glioma T1": "pituitary", "pituitary": "glioma",
    }  # fmt: skip
    assert (canonical_label("Astro T2", mapping), canonical_label("Astro T1", mapping)) == ("glioblastoma", "astro_t1")
    assert known_label("PI_00", mapping) == ""  # a patient's name
