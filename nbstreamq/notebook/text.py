"""A snapshot of a job as text with a bar, for terminals."""

from __future__ import annotations

import io
from typing import Any

from .html import describe

__all__ = ["job_text"]

#: Characters of the bar.
WIDTH = 30


def job_text(snapshot: dict[str, Any]) -> str:
    """Return a bar and the numbers, and the first errors, coloured for terminals."""
    from rich.console import Console, Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    counts = snapshot["counts"]
    over = counts["done"] + counts["failed"] + counts["cancelled"]
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(1, snapshot["n"]), completed=over, width=WIDTH)
    line.add_row(Text(snapshot["name"], style="bold"), bar, Text(describe(snapshot)))
    lines: list[Any] = [line]
    if snapshot["obstacle"]:
        lines.append(Text(f"Nothing can run: {snapshot['obstacle']}", style="yellow"))
    lines += [
        Text(f"✗ item {error['item']}: {error['summary']}", style="red")
        for error in snapshot["errors"]
    ]
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=120).print(Group(*lines))
    return file.getvalue().rstrip("\n")
