"""The functions that run a cell on a worker.

They are sent by value, since a worker may lack IPython, which the other modules here import. So
this module holds only functions and one constant, and the functions import what they need.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

#: Name to which a cell's code assigns the value of its last expression.
VALUE = "_nbstreamq_value"


def run_cell(
    *, body: FunctionType, home: FunctionType, inputs: dict[str, Any], wanted: tuple[str, ...]
) -> tuple[Any, dict[str, Any], list[Any]]:
    """Run a cell; return its value, the variables in `wanted`, and what it shows.

    Parameters
    ----------
    body
        The cell's code.
    home
        A function with the globals that all functions from the notebook share.
    inputs
        The notebook's variables that the cell uses.
    wanted
        Names of variables to bring back.
    """
    import builtins

    from nbstreamq.objects.bytecode import names_of
    from nbstreamq.objects.surroundings import shared_names

    namespace = home.__globals__
    namespace.update(inputs)
    if hasattr(builtins, "__IPYTHON__"):  # a replay, in the notebook itself
        return execute(body, namespace), {}, []
    for name, value in shared_names().items():
        namespace.setdefault(name, value)
    shown: list[Any] = []
    namespace.setdefault("display", lambda *values: shown.extend(map(bundle_of, values)))
    before = open_figures()
    try:
        value = execute(body, namespace)
    finally:
        figures = take_figures(before)
        for name in names_of(body.__code__).sets - inputs.keys():  # by `global`
            if name in namespace:
                shared_names()[name] = namespace[name]
    outputs = {name: wanted_value(namespace, name) for name in wanted}
    if value is not None and not (figures and is_figure(value)):
        shown.append(bundle_of(value))
    return value, outputs, figures + shown


def run_everywhere(*, body: FunctionType, inputs: dict[str, Any]) -> None:
    """Run a cell in the namespace that later cells see, too; print its last value."""
    import sys

    from nbstreamq.objects.surroundings import shared_names

    namespace = shared_names()
    namespace.update(inputs)
    value = execute(body, namespace)
    if value is not None:
        sys.stdout.write(f"{value!r}\n")


def execute(body: FunctionType, namespace: dict[str, Any]) -> Any:
    """Run a cell's code; return the value of its last expression."""
    exec(body.__code__, namespace)  # noqa: S102 - running code is what a cell is for
    return namespace.pop(VALUE, None)


def wanted_value(namespace: dict[str, Any], name: str) -> Any:
    """Return a variable of the cell; NameError if there is none of that name."""
    if name not in namespace:
        raise NameError(f"-o {name}: the cell does not define {name!r}", name=name)
    return namespace[name]


def bundle_of(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return how `value` is shown, as data and metadata: MIME type -> text."""
    import base64
    import importlib.util

    plain = type(value) in (bool, bytes, complex, float, int, str, type(None))
    if plain or importlib.util.find_spec("IPython") is None:
        return {"text/plain": repr(value)}, {}
    from IPython.core.formatters import DisplayFormatter

    data, metadata = DisplayFormatter().format(value)
    texts = {
        kind: base64.b64encode(content).decode() if isinstance(content, bytes) else content
        for kind, content in data.items()
    }
    return texts, metadata


def open_figures() -> set[int]:
    """Return the numbers of matplotlib's open figures, and have new ones open no window."""
    import os
    import sys

    # show() closes inline figures, so take_figures would not find them.
    if "inline" in os.environ.get("MPLBACKEND", "inline"):
        os.environ["MPLBACKEND"] = "agg"
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return set()
    if "inline" in pyplot.get_backend():
        pyplot.switch_backend("agg")
    return set(pyplot.get_fignums())


def take_figures(before: set[int]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return matplotlib's new figures as PNG, and close them."""
    import base64
    import io
    import sys

    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    taken: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in pyplot.get_fignums() if pyplot else ():
        if number not in before:
            figure, file = pyplot.figure(number), io.BytesIO()
            figure.savefig(file, format="png", bbox_inches="tight")
            text = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "figure"}
            taken.append((text, {}))
            pyplot.close(figure)
    return taken


def is_figure(value: Any) -> bool:
    """Return whether `value` is a matplotlib figure."""
    return any(c.__module__ == "matplotlib.figure" for c in type(value).__mro__)
