"""Tables of an evaluation as Markdown, and the folder that a table is saved in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bokehdepth.files.atomic import staged

INTERVAL = "95 %, n scenes"
"""What a header says of a column of `cell`."""


def cell(interval: Mapping[str, Any] | None, form: str = ".3f") -> str:
    """`mean (low to high, n scenes)`, with signs and the p-value where it is a paired difference; a dash of None.

    Args:
        interval: the fields of a `statistics.Interval`, and `p_value` where it is a difference.
        form: how a number is written.
    """
    if interval is None:
        return "-"
    form = f"+{form}" if "p_value" in interval else form
    low, high = interval["low"], interval["high"]
    ends = "no interval" if low is None else f"{low:{form}} to {high:{form}}"
    tested = f", p {interval['p_value']:.2g}" if "p_value" in interval else ""
    return f"{interval['mean']:{form}} ({ends}, n {interval['scenes']}){tested}"


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:{form}}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = ["| " + " | ".join(cells) + " |" for cells in (header, *lines)]
    return "\n".join([rows[0], "|---" * len(header) + "|", *rows[1:]])


def save_report(folder: Path, report: dict[str, Any], rows: Sequence[dict[str, Any]], text: str) -> None:
    """Writes a table and what it was made from, all or nothing: `report.json`, `per_image.csv`, `table.md`.

    Args:
        folder: replaced file by file.
        report: every number of the table.
        rows: one dictionary of equal keys for each picture and method.
        text: the table.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with staged(folder, overwrite=True) as part:
        (part / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
        (part / "per_image.csv").write_text(buffer.getvalue(), encoding="utf-8")
        (part / "table.md").write_text(text + "\n", encoding="utf-8")
