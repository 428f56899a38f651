"""results.csv: its columns, its rows, and files that only look like it."""

from __future__ import annotations

import csv
import errno

import pytest

from tests.pipeline.fixed import fixed_pipeline
from tumorlens.data.errors import InputError
from tumorlens.data.files import safe_cell, text_of_cell
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.outputs.table import (
    COLUMNS,
    append_row,
    csv_row,
    error_row,
    read_table,
    write_table,
)


def row_of(result):
    content = result.to_dict()
    return csv_row(content | {"scan": {"name": "a.png"}})


def test_the_columns_are_those_that_scripts_of_users_rely_on():
    assert ",".join(COLUMNS) == (
        "scan,label,confidence,p_no_tumor,p_glioma,p_meningioma,p_pituitary,prediction_set,malignancy,"
        "tumor_area_px,tumor_area_mm2,tumor_volume_mm3,review,error"
    )


def test_a_row_holds_the_figures_of_a_result():
    row = row_of(fixed_pipeline(0.75).run(phantom_slice(7, "meningioma").image))
    assert tuple(row) == COLUMNS
    assert (row["label"], row["confidence"], row["p_meningioma"]) == ("meningioma", "0.7500", "0.7500")
    assert (row["p_glioma"], row["malignancy"], row["error"]) == ("0.0000", "usually benign", "")
    assert int(row["tumor_area_px"]) > 0
    assert row["tumor_area_mm2"] == row["tumor_volume_mm3"] == ""  # a picture has no millimeters


def test_the_table_comes_back_as_it_was_written(tmp_path):
    rows = [
        row_of(fixed_pipeline().run(phantom_slice(7, "meningioma").image)),
        error_row('b, "c"', "line one\nline two"),
    ]
    assert read_table(tmp_path / "results.csv") == []
    write_table(tmp_path / "results.csv", rows)
    assert read_table(tmp_path / "results.csv") == rows


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_text_that_a_spreadsheet_would_run_is_quoted(tmp_path, begin):
    text = f"{begin}HYPERLINK(1)"
    assert safe_cell(text) == f"'{text}"
    for cell in (text, f"'{text}", f"''{text}", "'quoted'", "'"):  # a file may be called so, too
        assert text_of_cell(safe_cell(cell)) == cell
    assert safe_cell("2 lesions = doubtful") == "2 lesions = doubtful" and safe_cell("") == ""
    rows = [{**error_row(f"{text}.png", text), "review": text}, error_row(f"'{text}.png", "")]
    for _ in range(2):
        write_table(tmp_path / "results.csv", rows)
        with (tmp_path / "results.csv").open(newline="") as file:
            _, cells, others = csv.reader(file)
        assert (cells[0], *cells[-2:], others[0]) == (f"'{text}.png", f"'{text}", f"'{text}", f"''{text}.png")
        assert read_table(tmp_path / "results.csv") == rows


@pytest.mark.parametrize("content", [b"scan;label\n1;glioma\n", b"\xff\xfe\x00s", b""])
def test_a_table_of_another_program_is_not_read(tmp_path, content):
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(InputError, match="not the table as tumorlens writes it"):
        read_table(tmp_path / "results.csv")


ROWS = [
    {**error_row("ä.png", ""), "label": "glioma", "review": 'a; "b", c'},
    {**error_row("p1/b.nii.gz", ""), "label": "no_tumor", "confidence": "0.9000"},
    error_row('b, "c".dcm', 'line "one"\nline two, Müller'),
    error_row("\udcfc.png", "=1"),
]


def append_all(path, rows):
    write_table(path, rows[:1])
    for row in rows[1:]:
        append_row(path, row)


def test_rows_that_are_added_are_as_those_that_are_written_at_once(tmp_path):
    append_all(tmp_path / "a.csv", ROWS)
    write_table(tmp_path / "b.csv", ROWS)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert read_table(tmp_path / "a.csv") == [*ROWS[:3], {**ROWS[3], "scan": "\\udcfc.png"}]


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_a_row_that_is_cut_off_anywhere_is_left_out_and_the_others_stay(tmp_path, n_rows):
    path = tmp_path / "results.csv"
    append_all(path, ROWS[:n_rows])
    whole = path.read_bytes()
    write_table(path, ROWS[: n_rows - 1])
    begin = path.stat().st_size
    for end in range(begin, len(whole)):
        path.write_bytes(whole[:end])
        assert read_table(path) in (ROWS[: n_rows - 1], ROWS[:n_rows] if end >= len(whole) - 2 else None)
    path.write_bytes(whole)
    assert read_table(path) == ROWS[:n_rows]


def test_a_last_line_without_an_end_counts_if_it_has_a_label(tmp_path):
    """Some editors leave it out."""
    path = tmp_path / "results.csv"
    write_table(path, ROWS[:2])
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").rstrip())
    assert read_table(path) == ROWS[:2]


def test_the_last_of_several_rows_of_a_scan_counts(tmp_path):
    path = tmp_path / "results.csv"
    later = [error_row("p1/b.nii.gz", "now it is broken"), {**ROWS[0], "label": "meningioma"}]
    append_all(path, [*ROWS[:3], *later])
    assert read_table(path) == [ROWS[2], *later]


def test_a_table_that_is_damaged_in_the_middle_is_not_read(tmp_path):
    path = tmp_path / "results.csv"
    write_table(path, ROWS[:3])
    path.write_bytes(path.read_bytes().replace(b"no_tumor", b'"no"_tumor'))
    with pytest.raises(InputError, match="not the table as tumorlens writes it"):
        read_table(path)


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_leaves_no_part_of_a_row(tmp_path, room):
    """The system stops the writing in the middle of the row, as it does on a full disk."""
    resource = pytest.importorskip("resource", reason="Windows")
    path = tmp_path / "results.csv"
    write_table(path, ROWS[:2])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, limits[1]))
    try:
        with pytest.raises(OSError) as caught:
            append_row(path, ROWS[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG and path.read_bytes() == before
    append_row(path, ROWS[2])
    assert read_table(path) == ROWS[:3]
