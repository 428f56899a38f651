"""Files that tumorlens did not write are never replaced, and a place that cannot be written to is refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.files import claim


def ours(path):
    return path.read_text() == "ours"


def test_only_our_own_files_are_replaced_and_only_on_demand(tmp_path):
    files = [tmp_path / "new" / "a.txt", tmp_path / "new" / "b.txt"]
    claim(files, "a report", ours)
    files[1].parent.mkdir()
    files[1].write_text("ours")
    with pytest.raises(
        InputError, match=r"b\.txt: a report is here already; give --overwrite to replace it, or choose"
    ):
        claim(files, "a report", ours)
    claim(files, "a report", ours, overwrite=True)
    files[0].write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"a\.txt: tumorlens did not write this file .* choose another --out"):
            claim(files, "a report", ours, overwrite, "--out")


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: this is a file, not a folder"):
        claim([tmp_path / "file" / "report" / "a.txt"], "a report", ours)
    with pytest.raises(InputError, match="this is a folder; -o takes the name of a file"):
        claim([tmp_path], "a report", ours)
    with pytest.raises(InputError, match="/proc: this folder cannot be written to"):
        claim([Path("/proc/nowhere/a.txt")], "a report", ours)
