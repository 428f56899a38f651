"""The table of classes: what follows from a row is there and is not another row's."""

from __future__ import annotations

import json

import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.labels import CLASSES, SHIPPED_CLASSES, TABLE, TUMOR_FREE, UNKNOWN_COLOR, ClassList, labels_agree


def test_rows_do_not_share_names_aliases_or_colors():
    aliases = [alias for row in TABLE for alias in row.aliases]
    assert len(set(aliases)) == len(aliases)
    assert len({row.name for row in TABLE}) == len({row.color for row in TABLE}) == len(TABLE) == len(CLASSES)
    assert UNKNOWN_COLOR not in {row.color for row in TABLE}
    assert TUMOR_FREE == "no_tumor"


@pytest.mark.parametrize("row", TABLE, ids=CLASSES)
def test_each_class_is_found_by_its_name(row):
    assert SHIPPED_CLASSES.row(row.name) is row
    assert SHIPPED_CLASSES.color(row.name) == row.color


@pytest.mark.parametrize("row", TABLE, ids=CLASSES)
def test_sites_are_codes_of_snomed(row):
    from pydicom.sr.codedict import codes

    assert getattr(codes.SCT, row.site).scheme_designator == "SCT"
    assert (row.concept is None) == (row.name == TUMOR_FREE)


def test_names_that_are_not_in_the_list_are_gray():
    assert SHIPPED_CLASSES.color("zebra") == UNKNOWN_COLOR
    assert SHIPPED_CLASSES.row("zebra").malignancy == "unknown"


def test_a_tumor_of_unknown_type_may_be_of_any_type():
    assert labels_agree("tumor", "glioma") and labels_agree("glioma", "tumor") and labels_agree("tumor", "tumor")
    assert not labels_agree("tumor", "no_tumor") and not labels_agree("no_tumor", "tumor")
    assert not labels_agree("glioma", "meningioma")


def test_the_classes_of_data_are_in_the_order_of_the_table_and_the_alphabet():
    classes = ClassList.of_labels(["zebra", "", "meningioma", "tumor", "no_tumor", "ant", "glioma"])
    assert classes.outputs == ("no_tumor", "glioma", "meningioma", "ant", "zebra")
    assert classes.known == (*classes.outputs, "tumor")
    assert [classes.index(label) for label in ("no_tumor", "ant", "tumor", "")] == [0, 3, classes.untyped, -1]
    with pytest.raises(InputError, match=r"the label horse is not one of the classes .*--map horse=CLASS"):
        classes.index("horse")
    assert len({row.color for row in classes.rows}) == len(classes)
    assert classes.row("glioma") is SHIPPED_CLASSES.row("glioma")


def test_yes_or_no_has_one_tumor_class_for_all_tumors():
    classes = ClassList.of_labels(["tumor", "no_tumor"])
    assert (classes.binary, classes.outputs, classes.known) == (True, ("no_tumor", "tumor"), ("no_tumor", "tumor"))
    assert [classes.index(label) for label in ("no_tumor", "tumor", "glioma", "zebra")] == [0, 1, 1, 1]
    assert not classes.is_uncertain("tumor") and SHIPPED_CLASSES.is_uncertain("tumor")
    assert classes.prose("tumor") == "tumor"


def test_without_no_tumor_its_number_stays_and_it_is_no_answer():
    classes = ClassList.of_labels(["a", "b", "tumor"])
    assert (classes.gate, classes.names, classes.outputs) == (False, ("no_tumor", "a", "b"), ("a", "b"))
    assert (classes.index("a"), classes.index("tumor")) == (1, 3)
    with pytest.raises(InputError, match="the label no_tumor is not one"):
        classes.index("no_tumor")


@pytest.mark.parametrize("labels", [("a", "b"), ("no_tumor", "tumor"), ("no_tumor", "glioma", "zebra"), CLASSES])
def test_a_card_holds_the_whole_list(labels):
    classes = ClassList.of_labels(labels)
    card = json.loads(json.dumps(classes.to_card()))
    assert ClassList.from_card(card) == classes
    assert ("class_table" in card) == (classes != SHIPPED_CLASSES)


ROW = {"name": "a", "prose": "a", "color": "#123456", "malignancy": "unknown"}


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ({"classes": ["glioma"]}, "its 1 classes are not 2 to 50"),
        ({"classes": [f"c{n}" for n in range(51)]}, "its 51 classes are not"),
        ({"classes": ["glioma", 7]}, "are not a list of names"),
        ({"classes": "glioma"}, "are not a list of names"),
        ({"classes": ["glioma", "no_tumor"]}, "no_tumor is not the first one"),
        ({"classes": ["a", "a"]}, "named twice"),
        ({"classes": ["a", "b"], "class_table": [{"name": "a"}]}, "is not a row of a class"),
        ({"classes": ["a", "b"], "class_table": 7}, "is not a list of rows"),
        ({"classes": ["a", "b"], "class_table": [ROW | {"aliases": "HC"}]}, "is not a row of a class"),
        ({"classes": ["a", "b"], "class_table": [ROW | {"aliases": [7]}]}, "is not a row of a class"),
        (
            {"classes": ["a", "b"], "class_table": ClassList.of_labels(["a", "c"]).to_card()["class_table"]},
            "does not name the classes",
        ),
    ],
)
def test_cards_that_are_no_list_of_classes(card, reason):
    with pytest.raises(InputError, match=reason):
        ClassList.from_card(card)


def test_fifty_classes_have_fifty_colors():
    classes = ClassList.of_labels(f"class_{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(50))
    assert len({row.color for row in classes.rows}) == 51
    classes.check_number()
