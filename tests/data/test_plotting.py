"""Figures are written to files and streams without a screen."""

from __future__ import annotations

import io

from PIL import Image

from tumorlens.data.plotting import new_figure, plain, save_figure


def test_a_figure_is_saved_to_a_file_and_a_stream(tmp_path):
    figure = new_figure(2, 1)
    figure.add_subplot().plot([0, 1], [1, 0])
    stream = io.BytesIO()
    save_figure(figure, tmp_path / "deep" / "a.png")
    save_figure(figure, stream)
    for target in (tmp_path / "deep" / "a.png", stream):
        with Image.open(target) as picture:
            assert (picture.format, picture.size) == ("PNG", (260, 130))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.png"]


def test_names_become_prose():
    assert plain("no_tumor") == "no tumor"
