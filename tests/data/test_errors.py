"""Messages that any terminal can print, and those about packages that are missing."""

from __future__ import annotations

import re
import sys

import pytest

from tumorlens.data.errors import InputError, needs, one_line, printable, reason_of


def test_a_message_has_escapes_for_file_names_that_are_not_utf_8():
    assert str(InputError("a\udcfcb.png: the file is empty")) == "a\\udcfcb.png: the file is empty"


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("one\ntwo"), "one"), (OSError(), "OSError"), (KeyError("a"), "'a'")]
)
def test_the_reason_of_an_error_is_its_first_line_or_its_type(error, reason):
    assert reason_of(error) == reason


def test_names_of_files_do_not_command_a_terminal():
    assert printable("\x1b]0;title\x07a\u202eb.png") == "\\x1b]0;title\\x07a\\u202eb.png"
    assert printable("Größe\t1\n") == "Größe\t1\n"


def test_a_message_is_one_line_whatever_a_file_is_called():
    assert one_line("a\nb\tc\rd\u2028e.png") == "a\\nb\\tc\\rd\\u2028e.png"
    assert str(InputError("a\nb.png: the file is empty")) == "a\\nb.png: the file is empty"


def test_a_feature_names_the_package_that_it_lacks_and_not_another_of_its_extra(monkeypatch):
    for package in ("ray", "dicomweb_client", "lightning"):
        monkeypatch.setitem(sys.modules, package, None)
    sentence = "DICOMweb needs dicomweb-client; install it with: pip install 'tumorlens[cluster]'"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"), needs("DICOMweb", "cluster"):
        import dicomweb_client  # noqa: F401
    with pytest.raises(InputError, match=r"^this command needs PyTorch; install it with"), needs("this command"):
        import lightning  # noqa: F401
