"""Checks of user input: arguments, options of the command line, environment variables.

Each check returns the value in the form that nbstreamq works with. For other values it raises a
TypeError or a ValueError, as the standard library does, and the message says which parameter it is,
what was given, and what is allowed.
"""

from __future__ import annotations

import math
import operator
import re
import sys
import threading
from collections.abc import Collection
from numbers import Real
from typing import Any, Literal

from .secret import Address, Secret

#: Largest count: the largest index in C.
MAX_COUNT = sys.maxsize
#: Most retries: more than any call needs.
MAX_RETRIES = 2**31 - 1
#: Most workers on one machine: more than any machine can run, but few enough to list.
MAX_WORKERS = 10_000
#: Most bytes: the largest number that fits into the memory that worker and supervisor share.
MAX_BYTES = 2**63 - 1
#: Most limits of memory that a call may have, one after the other.
MAX_SIZES = 100
#: Longest time: a year, which is an exact number in Lua in milliseconds.
MAX_SECONDS = 365 * 86_400
#: Longest name of a queue, in bytes: it is part of every key, and of messages.
MAX_QUEUE_NAME = 200
#: Longest names of a job and a lane, in bytes: a worker writes both to memory of a fixed size.
MAX_NAME = 80
#: Upper limits of a seed, and of how many numbers it consists.
MAX_SEED, MAX_SEED_WORDS = 2**1024, 1000
#: How many seconds each unit of a duration has, and a duration such as ``1h30m``.
_UNITS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNITS), re.ASCII)
#: Bytes of each unit of a size such as ``2.5G``.
_SIZES = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([kMGT]?)B?", re.ASCII)
_SHOWN = 60


def shown(value: object) -> str:
    """Return a short repr of `value`, for an error message."""
    try:
        text = repr(value[: 2 * _SHOWN] if isinstance(value, str | bytes) else value)
    except Exception:  # noqa: BLE001 - the repr of any object may fail, even that of a very large int
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _must_be(parameter: str, value: object, allowed: str) -> str:
    return f"{parameter} is {shown(value)}: it must be {allowed}"


# -- numbers -----------------------------------------------------------------------------------


def check_count(
    parameter: str, value: Any, *, least: int = 0, most: int = MAX_COUNT, instead: str = ""
) -> int:
    """Return an integer; any integer type is accepted, except bool.

    Parameters
    ----------
    instead
        What else is allowed, for the message: ``"'auto'"``.
    """
    allowed = f"{instead and instead + ' or '}{_integer(least, most)}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(_must_be(parameter, value, allowed))
    if not least <= number <= most:
        raise ValueError(_must_be(parameter, value, allowed))
    return number


def check_seed(parameter: str, value: Any) -> int | tuple[int, ...]:
    """Return a number or a tuple of numbers, as NumPy's SeedSequence takes them."""
    allowed = (
        f"None, an integer from 0 to 2**1024 - 1, or a list of 1 to {MAX_SEED_WORDS} such integers"
    )
    if getattr(value, "ndim", 0):  # an array
        value = value.tolist()
    words = list(value) if isinstance(value, list | tuple | range) else [value]
    try:
        numbers = [operator.index(w) for w in words if not isinstance(w, bool)]
    except TypeError:
        numbers = []
    if len(numbers) < len(words):
        raise TypeError(_must_be(parameter, value, allowed))
    if not 1 <= len(numbers) <= MAX_SEED_WORDS or not all(0 <= n < MAX_SEED for n in numbers):
        raise ValueError(_must_be(parameter, value, allowed))
    return tuple(numbers) if isinstance(value, list | tuple | range) else numbers[0]


def check_count_or_auto(
    parameter: str, value: Any, *, least: int = 0, most: int = MAX_COUNT
) -> int | Literal["auto"]:
    """Return a count, or the word ``auto``."""
    if not isinstance(value, str):
        return check_count(parameter, value, least=least, most=most, instead="'auto'")
    if value != "auto":
        raise ValueError(_must_be(parameter, value, f"'auto' or {_integer(least, most)}"))
    return "auto"


def _integer(least: int, most: int) -> str:
    return f"an integer from {least} to {'sys.maxsize' if most == sys.maxsize else f'{most:,}'}"


def check_seconds(
    parameter: str,
    value: Any,
    *,
    above: float | None = None,
    most: float = MAX_SECONDS,
    instead: str = "",
) -> float:
    """Return a finite number of seconds from 0, or above `above`, to `most`."""
    span = f"from 0 to {most:,}" if above is None else f"above {above:,}, up to {most:,}"
    allowed = f"{instead and instead + ' or '}a number of seconds {span}"
    seconds = _finite(parameter, value, allowed)
    if not (0 <= seconds <= most if above is None else above < seconds <= most):
        raise ValueError(_must_be(parameter, value, allowed))
    return seconds


def read_seconds(parameter: str, text: str, *, least: float = 0.0) -> float:
    """Return seconds, from `least` to a year, given as text such as ``90`` or ``1h30m``."""
    parts = _DURATION.fullmatch(text) if text else None
    try:
        if parts is None:
            seconds = float(text)
        else:
            numbers = zip(parts.groups(default="0"), _UNITS.values(), strict=True)
            seconds = math.fsum(float(number) * unit for number, unit in numbers)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= MAX_SECONDS:
        allowed = f"seconds, or a time such as 90s, 55m or 1h30m, from {least:g} s to a year"
        raise ValueError(_must_be(parameter, text, allowed))
    return seconds


def check_timeout(parameter: str, value: Any) -> float | None:
    """Return how many seconds to wait: None means forever; a negative time counts as 0."""
    if value is None:
        return None
    most = threading.TIMEOUT_MAX
    allowed = f"None or a finite number of seconds up to {most:,.0f}"
    seconds = _finite(parameter, value, allowed)
    if seconds > most:
        raise ValueError(_must_be(parameter, value, allowed))
    return max(0.0, seconds)


def check_bytes(parameter: str, value: Any, *, least: int = 0, most: int = MAX_BYTES) -> int:
    """Return a number of bytes; fractions of a byte are cut off."""
    allowed = f"a number of bytes from {least:,} to {most:,}"
    _finite(parameter, value, allowed)
    size = int(value)  # not of the float, which may be rounded up
    if not least <= size <= most:
        raise ValueError(_must_be(parameter, value, allowed))
    return size


def read_bytes(parameter: str, text: str, *, least: int = 0) -> int:
    """Return a number of bytes that is given as text such as ``2e9``, ``500M`` or ``2.5G``."""
    found = _SIZE.fullmatch(text)
    size = math.nan if found is None else float(found[1]) * _SIZES[found[2]]
    if not least <= size < MAX_BYTES:
        allowed = f"a size such as 2e9, 500M or 2.5G, of {least:,} bytes at least"
        raise ValueError(_must_be(parameter, text, allowed))
    return int(size)


def check_sizes(
    parameter: str, value: Any, *, least: int = 0, most: int = MAX_SIZES
) -> int | list[int]:
    """Return a number of bytes, or a list of such numbers, each larger than the one before."""
    if getattr(value, "ndim", 0):  # an array
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return check_bytes(parameter, value, least=least)
    sizes = [check_bytes(parameter, one, least=least) for one in value]
    if not 1 <= len(sizes) <= most or sorted(set(sizes)) != sizes:
        allowed = f"a number of bytes, or a list of 1 to {most} of them, the smallest first"
        raise ValueError(_must_be(parameter, value, allowed))
    return sizes


def check_rate(parameter: str, value: Any) -> float:
    """Return a number of starts per second: from one in a year to a million."""
    allowed = (
        f"a number of starts per second, from one in a year (1 / {MAX_SECONDS:,}) to 1,000,000"
    )
    rate = _finite(parameter, value, allowed)
    if not 1 / MAX_SECONDS <= rate <= 1_000_000:
        raise ValueError(_must_be(parameter, value, allowed))
    return rate


def _finite(parameter: str, value: Any, allowed: str) -> float:
    decimal = sys.modules.get("decimal")  # a Decimal can't exist before its module is imported
    kinds = (Real,) if decimal is None else (Real, decimal.Decimal)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(_must_be(parameter, value, allowed))
    try:
        number = float(value)
    except (OverflowError, ValueError):  # too large, or a signalling NaN
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(_must_be(parameter, value, allowed))
    return number


# -- names and other texts ---------------------------------------------------------------------


def check_queue_name(parameter: str, value: Any) -> str:
    """Return the name of a queue."""
    return _check_name(parameter, value, forbidden=" {}", most=MAX_QUEUE_NAME)


def check_job_name(parameter: str, value: Any) -> str:
    """Return the name of a job; ids of named jobs have a colon, those of other jobs a dot."""
    return _check_name(parameter, value, forbidden=" .:{}", most=MAX_NAME)


def check_unit(parameter: str, value: Any) -> str:
    """Return the id of a unit: what started some workers, such as a job of a scheduler."""
    return _check_name(parameter, value, forbidden=" {}", most=MAX_NAME)


def check_limit_name(parameter: str, value: Any) -> str:
    """Return the name of a limit."""
    return _check_name(parameter, value, forbidden=" {}", most=MAX_NAME)


def check_lane(parameter: str, value: Any) -> str:
    """Return the name of a lane; a lane whose name starts with @ belongs to one worker."""
    return _check_name(parameter, value, forbidden=" {}", most=MAX_NAME, first="@")


def _check_name(parameter: str, value: Any, *, forbidden: str, most: int, first: str = "") -> str:
    others = " ".join(forbidden.replace(" ", ""))
    starts = " or ".join(f"'{c}'" for c in f"{first}-")
    allowed = (
        f"a name of 1 to {most} bytes, of printable characters except white space and {others}, and"
        f" without {starts} at its start"
    )
    if not isinstance(value, str):
        raise TypeError(_must_be(parameter, value, allowed))
    name = str.__str__(value)  # without what a subclass such as an enum adds
    if (
        not name
        or not name.isprintable()  # so it has no lone surrogates, and can be encoded
        or set(name) & set(forbidden)
        or name[0] in f"{first}-"
        or len(name.encode()) > most
    ):
        raise ValueError(_must_be(parameter, value, allowed))
    return name


def check_text(parameter: str, value: Any, what: str) -> Secret:
    """Return a string that can be encoded and has no NUL; the message does not show it.

    Parameters
    ----------
    value
        A string, or a `Secret` that holds one.
    what
        What it must be, for the message: ``"a URL"``.
    """
    value = Secret(value)  # no traceback shows it
    kind = type(value.reveal())
    given = "a string" if issubclass(kind, str) else f"of type {kind.__name__}"
    message = (
        f"{parameter} is {given}: it must be {what}. It must not be empty, and must have no NUL and"
        " no lone surrogate"
    )
    if not issubclass(kind, str):
        raise TypeError(message)
    text = Secret(str.__str__(value.reveal()))
    try:
        is_text = b"\0" not in text.reveal().encode()
    except UnicodeEncodeError:
        is_text = False
    if not is_text or not text.reveal().strip():
        raise ValueError(message)
    return text


def check_secret(parameter: str, value: Any) -> Secret:
    """Return a secret; the message never shows it."""
    return check_text(parameter, value, "a secret, as `nbstreamq secret` prints one")


def check_store(parameter: str, value: Any) -> Address:
    """Return the fsspec URL for large values; it may have a password."""
    what = "an fsspec URL, such as 's3://bucket/folder', or the absolute path of a shared folder"
    url = Address(check_text(parameter, value, what))
    if url.reveal().startswith("/"):
        return Address(f"file://{url.reveal()}")
    if not _has_scheme(url):
        raise ValueError(f"{parameter} is a string without '://': it must be {what}")
    return url


def _has_scheme(url: Address) -> bool:
    scheme, mark, _ = url.reveal().partition("://")
    return bool(mark) and all(part.isalnum() for part in scheme.split("::"))


def check_choice(parameter: str, value: Any, choices: Collection[str]) -> str:
    """Return `value`, which is one of `choices`."""
    allowed = " or ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(_must_be(parameter, value, allowed))
    if value not in choices:
        raise ValueError(_must_be(parameter, value, allowed))
    return str.__str__(value)


# -- everything else ---------------------------------------------------------------------------


def check_flag(parameter: str, value: Any) -> bool:
    """Return True or False; a bool of NumPy is accepted, too."""
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise TypeError(_must_be(parameter, value, "True or False"))


def check_env(parameter: str, value: Any) -> Literal["sync"]:
    """Return the word ``sync``."""
    if not isinstance(value, str):
        raise TypeError(_must_be(parameter, value, "'sync' or None"))
    if value != "sync":
        raise ValueError(_must_be(parameter, value, "'sync' or None"))
    return "sync"


def check_callable(parameter: str, value: Any, *, instead: str = "") -> None:
    """Raise TypeError if `value` can't be called."""
    if not callable(value):
        allowed = f"{instead and instead + ' or '}a function or another callable"
        raise TypeError(_must_be(parameter, value, allowed))


def check_iterable(parameter: str, value: Any) -> None:
    """Raise TypeError if `value` can't be iterated; it is not iterated here."""
    if getattr(type(value), "__iter__", None) is None:  # Calling it may start processes.
        try:
            iter(value)
        except TypeError:
            raise TypeError(_must_be(parameter, value, "an iterable")) from None
