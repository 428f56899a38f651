"""Files are written whole or not at all, and never over a file of the user."""

from __future__ import annotations

import os

import pytest

from tumorlens.data.errors import InputError
from tumorlens.data.files import claim, sha256_of, whole_file, write_text


def _is_ours(path):
    return path.read_text().startswith("ours")


def test_files_that_do_not_exist_may_be_written(tmp_path):
    claim([tmp_path / "new" / "a.txt"], "a report", _is_ours)
    assert not (tmp_path / "new").exists()


def test_our_files_are_replaced_only_if_the_user_says_so(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ours")
    with pytest.raises(InputError, match=r"a\.txt: a report is here already; give --overwrite .* another -o"):
        claim([path], "a report", _is_ours)
    claim([path], "a report", _is_ours, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_the_user_is_never_replaced(tmp_path, overwrite):
    path = tmp_path / "a.txt"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"a\.txt: tumorlens did not write this file and leaves it alone"):
        claim([path], "a report", _is_ours, overwrite)


def test_folders_and_files_in_each_others_place_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="this is a folder; -o takes the name of a file"):
        claim([tmp_path / "folder"], "a report", _is_ours)
    with pytest.raises(InputError, match="file: this is a file, not a folder"):
        claim([tmp_path / "file" / "deep" / "a.txt"], "a report", _is_ours)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="you may not write to this folder"):
        claim([tmp_path / "a.txt"], "a report", _is_ours)


def test_a_text_is_written_whole_with_the_rights_of_a_new_file(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "a \udcff b\n")  # a file name that is not UTF-8
    (tmp_path / "b.txt").write_text("")
    assert (tmp_path / "deep" / "a.txt").read_text() == "a \\udcff b\n"
    assert (tmp_path / "deep" / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode
    assert sha256_of(tmp_path / "b.txt").startswith("e3b0c442")


def test_a_failure_leaves_no_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
