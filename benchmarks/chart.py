"""The charts. Grey text without a background can be read on light and on dark pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw", "figure", "save"]

GREY, OURS, THEIRS = "#808080", "#e07b00", "#6c93b8"
#: Measure -> title; the same tools, from the best to the worst.
PANELS = {
    "latency": "Latency of one call, µs",
    "submits": "Single submits, calls/s",
    "map": "Map of trivial items, items/s",
    "short": "Calls of 1 ms, share of ideal",
    "first": "First result, ms",
    "shared": "64 calls with one 100 MB array, ms",
}
MORE_IS_BETTER = ("submits", "map", "short")


def draw(medians: dict[str, dict[str, tuple[float, bool]]], target: Path) -> None:
    """Draw one panel for each of `PANELS`."""
    drawn, axes = figure(2, 3, (11, 8.5))
    for (key, title), ax in zip(PANELS.items(), axes.flat, strict=True):
        found = [(values[key][0], name) for name, values in medians.items() if key in values]
        found.sort(reverse=key not in MORE_IS_BETTER)
        colours = [OURS if name == "nbstreamq" else THEIRS for _, name in found]
        ax.barh([name for _, name in found], [value for value, _ in found], color=colours)
        ax.set_title(title, fontsize=9)
        if key != "short":
            ax.set_xscale("log")
        ax.minorticks_off()
    save(drawn, target)


def figure(n_rows: int, n_columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure and its axes in our colours."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), GREY)
        | {"xtick.color": GREY, "ytick.color": GREY, "font.size": 8, "svg.fonttype": "none"}
        | {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "nbstreamq"}
    )
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    return drawn, axes


def save(drawn: Any, target: Path) -> None:
    """Write a chart; the same figures give the same file."""
    drawn.savefig(target, transparent=True, metadata={"Date": None})
