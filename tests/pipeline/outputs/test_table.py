"""results.csv: its columns, its rows, and files that only look like it."""

from __future__ import annotations

import csv

import pytest

from tests.pipeline.fixed import fixed_pipeline
from tumorlens.data.errors import InputError
from tumorlens.data.phantom import phantom_slice
from tumorlens.pipeline.outputs.table import COLUMNS, csv_row, error_row, read_table, safe_cell, write_table


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
    assert safe_cell(text) == f"'{text}" and safe_cell(safe_cell(text)) == f"'{text}"
    assert safe_cell("2 lesions = doubtful") == "2 lesions = doubtful" and safe_cell("") == ""
    rows = [{**error_row("=1+1.png", text), "review": text}]  # names are keys and stay
    for _ in range(2):
        write_table(tmp_path / "results.csv", rows)
        with (tmp_path / "results.csv").open(newline="") as file:
            _, cells = csv.reader(file)
        assert (cells[0], *cells[-2:]) == ("=1+1.png", f"'{text}", f"'{text}")
        assert read_table(tmp_path / "results.csv") == rows


@pytest.mark.parametrize("content", [b"scan;label\n1;glioma\n", b"\xff\xfe\x00s", b""])
def test_a_table_of_another_program_is_not_read(tmp_path, content):
    (tmp_path / "results.csv").write_bytes(content)
    with pytest.raises(InputError, match="not the table as tumorlens writes it"):
        read_table(tmp_path / "results.csv")
