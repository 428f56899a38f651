"""The table of classes: what follows from a row is there and is not another row's."""

from __future__ import annotations

import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.labels import (
    CLASSES,
    SHIPPED_CLASSES,
    TABLE,
    TUMOR_FREE,
    UNKNOWN_COLOR,
    canonical_label,
    labels_agree,
)


def test_rows_do_not_share_names_aliases_or_colors():
    aliases = [alias for row in TABLE for alias in row.aliases]
    assert len(set(aliases)) == len(aliases)
    assert len({row.name for row in TABLE}) == len({row.color for row in TABLE}) == len(TABLE) == len(CLASSES)
    assert UNKNOWN_COLOR not in {row.color for row in TABLE}
    assert TUMOR_FREE == "no_tumor"


@pytest.mark.parametrize("row", TABLE, ids=CLASSES)
def test_each_class_is_found_by_its_spellings(row):
    assert all(canonical_label(alias) == row.name for alias in row.aliases)
    assert canonical_label(row.prose.upper()) == canonical_label(f"{row.name}_01") == row.name
    assert SHIPPED_CLASSES.row(row.name) is row
    assert SHIPPED_CLASSES.color(row.name) == row.color


@pytest.mark.parametrize("row", TABLE, ids=CLASSES)
def test_sites_are_codes_of_snomed(row):
    from pydicom.sr.codedict import codes

    assert getattr(codes.SCT, row.site).scheme_designator == "SCT"
    assert (row.concept is None) == (row.name == TUMOR_FREE)


def test_other_names_are_refused_and_gray():
    with pytest.raises(InputError, match=r"label 'zebra' is not one of no_tumor, .*--map 'zebra=CLASS'"):
        canonical_label("zebra")
    with pytest.raises(InputError, match="the mapping zebra=horse does not lead to one of"):
        canonical_label("zebra", {"zebra": "horse"})
    assert canonical_label("tumour-free", {"tumour-free": "no_tumor"}) == "no_tumor"
    with pytest.raises(InputError, match="label 'PI_00'"):  # a patient's name
        canonical_label("PI_00")
    assert SHIPPED_CLASSES.color("zebra") == UNKNOWN_COLOR
    with pytest.raises(KeyError):
        SHIPPED_CLASSES.row("zebra")


def test_a_tumor_of_unknown_type_may_be_of_any_type():
    assert labels_agree("tumor", "glioma") and labels_agree("glioma", "tumor") and labels_agree("tumor", "tumor")
    assert not labels_agree("tumor", "no_tumor") and not labels_agree("no_tumor", "tumor")
    assert not labels_agree("glioma", "meningioma")
