"""A job as a table of pandas."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from ..errors import NbstreamqError
from ..protocol.states import State
from .annotation import error_text
from .ledger import Ledger
from .report import Report

__all__ = ["frame_of"]


def frame_of(ledger: Ledger) -> Any:
    """Return the DataFrame of a job, a row for each item; see `Job.to_frame`."""
    pandas = _pandas()
    reports = _last_reports(ledger)
    states = [ledger.state(i) for i in range(len(reports))]
    values = [ledger.value(i) if s is State.DONE else None for i, s in enumerate(states)]
    errors = ledger.errors()
    printed = [ledger.output.text(i) for i in range(len(states))]

    def objects(column: Sequence[Any]) -> Any:
        # Else None would become nan, and arrays of equal length further columns.
        return pandas.Series(column, dtype=object)

    starts = [r.started if r and r.started else None for r in reports]
    seconds = [_seconds(r, s) for r, s in zip(reports, states, strict=True)]
    return pandas.DataFrame(
        {
            "item": range(len(states)),
            "status": pandas.Series([str(s) for s in states], dtype=object),
            "value": _numbers(objects(values)),
            "error": objects(
                [error_text(errors[i]) if i in errors else None for i in range(len(states))]
            ),
            "worker": objects([r.worker if r else None for r in reports]),
            "attempts": pandas.Series([r.attempt if r else 0 for r in reports], dtype=int),
            "started": pandas.to_datetime(pandas.Series(starts, dtype=float), unit="s", utc=True),
            "seconds": pandas.Series(seconds, dtype=float),
            "output": objects(printed),
        }
    )


def _pandas() -> Any:
    try:
        return importlib.import_module("pandas")
    except ModuleNotFoundError as error:
        raise NbstreamqError(
            f"to_frame() needs pandas, which can't be imported here ({error}): pip install pandas"
        ) from error


def _last_reports(ledger: Ledger) -> list[Report | None]:
    """Return the last news of each item, None where there is none."""
    news = ledger.reports(0)
    last: list[Report | None] = [None] * len(ledger)
    for report in news:
        for run in report.span:
            first, end = report.n + run.start, report.n + run.stop
            last[first:end] = [report] * (end - first)
    return last


def _seconds(report: Report | None, state: State) -> float | None:
    """Return how long it took; None while it is not known."""
    is_known = report is not None and report.started and state in {State.DONE, State.FAILED}
    return report.seconds if report is not None and is_known else None


def _numbers(column: Any) -> Any:
    """Return a column of numbers of one type as such; any other as it is."""
    kinds = set(map(type, column))
    return column.infer_objects() if len(kinds) == 1 and kinds < {int, float, bool} else column
