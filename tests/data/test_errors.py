"""Messages that any terminal can print."""

from __future__ import annotations

import pytest

from tumorlens.data.errors import InputError, reason_of


def test_a_message_has_escapes_for_file_names_that_are_not_utf_8():
    assert str(InputError("a\udcfcb.png: the file is empty")) == "a\\udcfcb.png: the file is empty"


@pytest.mark.parametrize(
    ("error", "reason"), [(ValueError("one\ntwo"), "one"), (OSError(), "OSError"), (KeyError("a"), "'a'")]
)
def test_the_reason_of_an_error_is_its_first_line_or_its_type(error, reason):
    assert reason_of(error) == reason
