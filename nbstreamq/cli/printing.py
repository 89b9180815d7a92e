"""What commands print: tables and advice for people, JSON for scripts."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Header of a column -> what it shows of a row.
Columns: TypeAlias = Mapping[str, Callable[[Any], object]]
#: Words that have a colour wherever a table shows them.
_STYLES = {
    "done": "green",
    "idle": "green",
    "failed": "red",
    "refused": "red",
    "problem": "bold red",
    "cancelled": "yellow",
    "open": "cyan",
    "busy": "cyan",
}
#: Columns of text where no terminal limits them: a pipe gets whole lines.
_WIDE = 1000


def console() -> Console:
    """Return what prints on standard output, in colours if that is a terminal."""
    from rich.console import Console  # slow to import

    return Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False, markup=False)


def print_json(value: Any) -> None:
    """Print plain data, dataclasses or lists of them as one JSON document."""
    print(json.dumps(value, default=_plain, indent=2))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [f.name for f in dataclasses.fields(value) if not f.name.startswith("_")]
        return {name: getattr(value, name) for name in shown}
    return str(value)


def print_rows(
    options: argparse.Namespace, rows: Sequence[Any], columns: Columns, *, empty: str, then: str
) -> None:
    """Print rows as a table, or as JSON if the options say so.

    Parameters
    ----------
    empty
        What to say if there are no rows.
    then
        What to do next.
    """
    if options.json:
        print_json(rows)
    elif rows:
        console().print(table(rows, columns))
        advise(then)
    else:
        print(empty)


def table(rows: Iterable[Any], columns: Columns) -> RenderableType:
    """Return a table with a line for each row."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for header in columns:
        made.add_column(header, overflow="fold")
    for row in rows:
        made.add_row(*(_cell(value_of(row)) for value_of in columns.values()))
    return made


def _cell(value: object) -> RenderableType:
    from rich.text import Text

    text = f"{value:,}" if isinstance(value, int) else str(value)
    return Text(text, style=_STYLES.get(text, ""))


def advise(text: str) -> None:
    """Print what to do next."""
    console().print(f"Next: {text}", style="dim")
