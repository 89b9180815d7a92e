"""Secrets, and addresses with passwords, which no traceback, log or notebook shows."""

from __future__ import annotations

import math
import re
import string
from typing import NoReturn

#: Fewest bits of a secret: 16 random bytes. Anybody who reads one signed message can try billions
#: of guesses a second.
MIN_BITS = 128
#: A secret with fewer different characters is not random, however long it is.
MIN_DIFFERENT = 8
_CLASSES = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


class Secret:
    """A string that only `reveal` shows.

    Debuggers, IPython's verbose tracebacks and rich show the local variables of each frame. So a
    function that gets a secret as a plain string wraps it before anything else.

    Parameters
    ----------
    text
        The string, or a secret that holds it. It is not checked here, where the caller's variables
        still hold the plain string: see `choose_secret`.

    Examples
    --------
    >>> Secret("sesame")
    Secret(...)
    """

    __slots__ = ("_text",)

    def __init__(self, text: str | Secret) -> None:
        self._text: str = text.reveal() if isinstance(text, Secret) else text

    def reveal(self) -> str:
        """Return the text. Use it in the same expression, and never keep it in a variable."""
        return self._text

    def parts(self) -> list[Secret]:
        """Return the secrets in ``new,old``, the first one first."""
        return [Secret(part.strip()) for part in self._text.split(",") if part.strip()]

    def is_strong(self) -> bool:
        """Return whether each part can hold 128 bits of randomness."""
        parts = self.parts()
        return bool(parts) and all(_bits(part) >= MIN_BITS for part in parts)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "Secret(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A secret can't be pickled: it would be stored with the pickle. Pass it in the"
            " environment, as NBSTREAMQ_SECRET or NBSTREAMQ_URL."
        )


class Address(Secret):
    """The URL of a server or a store; its text shows no password."""

    __slots__ = ()

    def has_password(self) -> bool:
        """Return whether it contains a password, and must not be shown as it is."""
        return str(self) != self._text

    def __str__(self) -> str:
        url = re.sub(r"((?:://|^(?!.*://))[^/@:]*):.*@", r"\1:***@", self._text)
        return re.sub(r"([?&](?:(?:ssl_)?password|ssl_ca_data)=)[^&#]*", r"\1***", url)

    def __repr__(self) -> str:
        return repr(str(self))


def hide_password(url: str | Address) -> str:
    """Return `url` without its password, for an error message or a repr."""
    return str(Address(url))


def without_frames(error: BaseException) -> BaseException:
    """Return `error` without its traceback: the frames of a library hold the password."""
    linked: BaseException | None = error
    seen = set[int]()
    while linked is not None and id(linked) not in seen:  # causes may go round in a circle
        seen.add(id(linked))
        linked.__traceback__ = None
        linked = linked.__cause__ or linked.__context__
    return error


def _bits(secret: Secret) -> float:
    """Return how many bits a random string of these characters and this length has."""
    used = set(secret.reveal())
    if len(used) < MIN_DIFFERENT:
        return 0.0
    if used <= set(string.hexdigits.lower()) or used <= set(string.hexdigits.upper()):
        n_characters = 10 if used <= set(string.digits) else 16
    else:
        n_characters = sum(len(c) for c in _CLASSES if used & set(c))
        n_characters += 33 if used - set().union(*_CLASSES) else 0
    return len(secret.reveal()) * math.log2(n_characters)
