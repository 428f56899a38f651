"""The reports of a batch: of each scan once its result is there, whether made now or kept, and of the whole run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tumorlens.data.errors import InputError
from tumorlens.data.files import write_text
from tumorlens.data.labels import ClassList
from tumorlens.pipeline.batch.job import folder_of
from tumorlens.pipeline.options import RunOptions
from tumorlens.pipeline.outputs import REPORT, REPORT_PDF
from tumorlens.pipeline.outputs.write import result_text

_NONE = "no report: "  # how the reason to review begins where a report could not be made


def with_report(content: dict[str, Any], folder: Path, options: RunOptions) -> dict[str, Any]:
    """The content of a ``result.json``, once its report is written; if that fails, ``review`` says why.

    A report that is younger than the result stays as it is.

    Args:
        content: Of the ``result.json`` in the folder.
        folder: The folder of the result.
        options: Of the run. Nothing happens unless they ask for a report.
    """
    if not (options.report or options.pdf):
        return content
    from tumorlens.pipeline.outputs.report_html import write_report

    review = [reason for reason in content["review"] if not reason.startswith(_NONE)]
    wanted = [folder / REPORT, *([folder / REPORT_PDF] if options.pdf else [])]
    made_at = (folder / "result.json").stat().st_mtime_ns
    if all(file.is_file() and file.stat().st_mtime_ns >= made_at for file in wanted) and review == content["review"]:
        return content
    try:
        write_report({**content, "review": review}, folder, options.pdf)
    except InputError as error:
        review.append(f"{_NONE}{error}")
    except Exception as error:  # a report must not cost the result
        review.append(f"{_NONE}{type(error).__name__}")
    if review != content["review"]:
        content = {**content, "review": review}
        write_text(folder / "result.json", result_text(content))
    return content


def renew_report(folder: Path, options: RunOptions) -> None:
    """Write the report of a result whose ``result.json`` has changed, if the options ask for one."""
    if options.report or options.pdf:
        with_report(json.loads((folder / "result.json").read_text(encoding="utf-8")), folder, options)


def report_batch(out: Path, rows: Sequence[Mapping[str, str]], classes: ClassList, options: RunOptions) -> None:
    """Write the report of the whole run, if the options ask for one; `classes` are those of the results.

    Raises:
        InputError: It cannot be written.
    """
    if options.report or options.pdf:
        from tumorlens.pipeline.outputs.report_batch import write_batch_report

        try:
            write_batch_report(out, rows, {row["scan"]: folder_of(row["scan"]) for row in rows}, classes)
        except OSError as error:
            raise InputError(f"{out / REPORT}: cannot be written ({error.strerror})") from None
