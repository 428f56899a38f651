"""Classes that the user names, and folders of classes that no table knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scans.own_classes import SEVEN, class_folders, seven_classes
from tests.scans.phantoms import small_slice
from tests.scans.pictures import save
from tumorlens.data.datasets.classes import given_classes, merged_folders
from tumorlens.data.datasets.load import load_samples
from tumorlens.data.errors import InputError
from tumorlens.data.inspection.check import check_set
from tumorlens.data.labels import SHIPPED_CLASSES, ClassList
from tumorlens.data.spellings import canonical_label

YAML = """
- name: healthy
  no_tumor: true
  aliases: [HC, "tumour-free"]
- name: GBM
  prose: glioblastoma
  color: "#112233"
  malignancy: malignant
  aliases: [glioblastoma multiforme]
- meningioma
"""


def test_a_file_names_classes_with_all_that_is_known_of_them(tmp_path):
    (tmp_path / "own.yaml").write_text(YAML)
    given = given_classes(str(tmp_path / "own.yaml"))
    assert given.classes.outputs == ("no_tumor", "gbm", "meningioma")
    row = given.classes.row("gbm")
    assert (row.prose, row.color, row.malignancy, row.concept[2]) == (
        "glioblastoma", "#112233", "malignant", "Neoplasm",
    )  # fmt: skip
    on_card = ClassList.from_card(given.classes.to_card())
    assert on_card == given.classes
    for folder in ("HC", "Tumour free", "GBM", "Glioblastoma_Multiforme", "meningioma"):
        save(tmp_path / "set" / folder / "1.png", small_slice(len(folder)).image)
    for spellings in (given.spellings, on_card.spellings):
        labels = {s.image.parent.name: s.label for s in load_samples(tmp_path / "set", spellings)}
        assert labels == {
            "HC": "no_tumor", "Tumour free": "no_tumor", "GBM": "gbm", "Glioblastoma_Multiforme": "gbm",
            "meningioma": "meningioma",
        }  # fmt: skip


def test_names_that_tumorlens_knows_add_nothing_to_a_card():
    assert given_classes("no_tumor,Glioma,meningioma,pituitary tumor").classes == SHIPPED_CLASSES


def test_a_file_beside_the_data_is_read_by_itself(tmp_path):
    (tmp_path / "classes.yaml").write_text(YAML)
    for folder in ("HC", "GBM"):
        save(tmp_path / folder / "1.png", small_slice(len(folder)).image)
    assert {s.label for s in load_samples(tmp_path)} == {"no_tumor", "gbm"}
    assert given_classes("", [tmp_path]).classes.outputs == ("no_tumor", "gbm", "meningioma")
    assert given_classes("a,b", [tmp_path]).classes.outputs == ("a", "b")
    assert given_classes("", [tmp_path / "HC"]) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: b", "a list of classes begins each line with"),
        ("- name: a\n- name: A", "the class a is named twice"),
        ("- name: a\n  colour: red", "a class has no 'colour'; it has name, prose"),
        ("- name: a\n  color: red", "the color 'red' of a is not like"),
        ("- name: a\n  aliases: [1]", "the aliases of a are not texts"),
        ("- name: a\n  no_tumor: 'yes'", "the no_tumor 'yes' is not true or false"),
        ("- name: refused", "a class cannot be called refused"),
        ("- name: 7", "the name 7 is not a text"),
        ("- name: [", "this is not YAML"),
        ("- name: no\n- name: b", "put yes, no and numbers in quotes"),
        ("- name: ''\n- name: b", "a class has no name"),
        ("- name: a\n  aliases: [x]\n- name: b\n  aliases: [x]", "x is a spelling of two classes, a and b"),
        ("[no_tumor, glioma, tumor]", "tumor means a tumor of any type"),
    ],
)
def test_files_that_are_no_list_of_classes(tmp_path, text, reason):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=reason) as error:
        given_classes(str(tmp_path / "own.yaml"))
    assert str(tmp_path / "own.yaml") in str(error.value)
    with pytest.raises(InputError, match="cannot be read"):
        given_classes(str(tmp_path / "missing.yaml"))


def test_folders_of_any_name_are_classes_and_those_in_them_patients(tmp_path):
    samples = load_samples(seven_classes(tmp_path))
    classes = ClassList.of_labels(s.label for s in samples)
    assert classes.outputs == (
        "no_tumor", "glioma", "meningioma", "astrocitoma", "ependimoma", "neurocitoma", "schwannoma",
    )  # fmt: skip
    assert len(samples) == 8 * len(SEVEN)
    assert len({(s.split, s.patient) for s in samples}) == len(samples)
    report = check_set(tmp_path)
    assert (report.of("unknown_label"), report.of("doubtful_label"), report.files) == ([], [], len(samples))


@pytest.mark.parametrize("names", [("astro", "ependy"), ("grade_2", "grade_3", "grade_4"), ("Foo T1", "Bar T2")])
def test_no_name_needs_to_be_known(tmp_path, names):
    class_folders(tmp_path / "download" / "set", names, 2)
    assert len({s.label for s in load_samples(tmp_path)}) == len(names)


@pytest.mark.parametrize(
    "names", [("astro",), ("P01", "P02", "P03"), ("astro", "17"), ("TCGA_CS_4941", "TCGA_CS_4942")]
)
def test_folders_of_patients_are_not_classes(tmp_path, names):
    for name in names:
        save(tmp_path / name / "1.png", small_slice(len(name)).image)
    with pytest.raises(InputError, match=f"the folder ({'|'.join(names)}) is not named for a class .*--map"):
        load_samples(tmp_path)
    assert {s.label for s in load_samples(tmp_path, dict.fromkeys(names, "own"))} == {"own"}


def test_a_folder_of_tumors_may_be_divided_by_type(tmp_path):
    class_folders(tmp_path / "tumor", ("astro", "glioma"), 1)
    class_folders(tmp_path, ("healthy",), 1)
    assert sorted(s.label for s in load_samples(tmp_path)) == ["astro", "glioma", "no_tumor"]


def test_a_sequence_behind_the_name_of_a_class_is_the_sequence(tmp_path):
    """As in the sets of 44 and of 17 classes, which have a folder for each type and sequence."""
    class_folders(tmp_path, ("Astrocitoma T1", "Astrocitoma T1C+", "Astrocitoma T2", "_NORMAL T1", "Glioma_flair"), 1)
    found = {(s.label, s.sequence) for s in load_samples(tmp_path)}
    expected = {("astrocitoma", "t1"), ("astrocitoma", "t1c"), ("astrocitoma", "t2"), ("no_tumor", "t1")}
    assert found == expected | {("glioma", "flair")}
    apart = {s.label for s in load_samples(tmp_path, {"Astrocitoma T2": "astrocitoma_t2"})}
    assert apart == {"astrocitoma", "astrocitoma_t2", "no_tumor", "glioma"}


def test_names_that_may_be_typing_errors_are_named(tmp_path):
    class_folders(tmp_path, ("healthy", "schwannoma", "grade_2", "grade_3", "Cyst T1", "Cyst T1C+", "Cyst T2"), 12)
    class_folders(tmp_path, ("schwanoma", "notes"), 1)
    doubts = check_set(tmp_path).of("doubtful_label")
    assert len(doubts) == 2
    assert doubts[0].startswith("schwanoma (1 slices) is written nearly like schwannoma (12)")
    assert "--map schwanoma=schwannoma" in doubts[0]
    assert doubts[1].startswith("notes has only 1 slices")


def test_names_that_the_user_gives_are_taken_as_they_are(tmp_path):
    """A number or a sequence belongs to a name that was chosen for a class, and to that of an index."""
    assert given_classes("glioma_t1,glioma_2,b").classes.outputs == ("glioma_t1", "glioma_2", "b")
    assert canonical_label("A", {"A": "glioma_2"}) == "glioma_2"
    class_folders(tmp_path, ("x",), 3)
    (tmp_path / "index.csv").write_text(
        "image,label\n"
        + "".join(
            f"x/{path.name},{label}\n"
            for path, label in zip(sorted((tmp_path / "x").iterdir()), ("glioma_t1", "Glioma 2", "Glioma"), strict=True)
        )
    )
    assert [s.label for s in load_samples(tmp_path)] == ["glioma_t1", "glioma_2", "glioma"]


@pytest.mark.parametrize("text", ["a", "foo.txt"])
def test_one_name_is_no_list_of_classes(text):
    with pytest.raises(InputError, match=r"give two or more names with commas between them, or a file"):
        given_classes(text)
    with pytest.raises(InputError, match="a class has no name"):
        given_classes("a,,b")


def test_an_empty_text_of_a_class_says_nothing(tmp_path):
    (tmp_path / "classes.yaml").write_text("- name: a\n  malignancy: ''\n  prose: ' '\n- name: b\n")
    row = given_classes(str(tmp_path / "classes.yaml")).classes.row("a")
    assert (row.malignancy, row.prose) == ("unknown", "a")


def test_folders_that_differ_in_a_number_and_are_one_class_are_named():
    scans = {
        Path("set/Glioma 2/a.png"): "glioma",
        Path("set/Glioma_3/p1/b.png"): "glioma",
        Path("set/glioma T1/c.png"): "glioma",
        Path("set/PI_01/d.png"): "pituitary",
        Path("set/PI_02/e.png"): "pituitary",
    }
    assert merged_folders(scans) == [
        "the folders Glioma 2 and Glioma_3 are read as one class, glioma; if they are two, give --map "
        "'Glioma 2=glioma_2' --map 'Glioma_3=glioma_3'"
    ]
    del scans[Path("set/Glioma_3/p1/b.png")]
    assert merged_folders(scans) == []
