"""What tasks print, shown where the client prints."""

from __future__ import annotations

import json
import re
import sys

from ..protocol.messages import Event

__all__ = ["echo"]

#: `splitlines` knows more of them, such as a form feed.
_LINE_ENDS = re.compile(r"\r\n|\n|\r")


def echo(name: str, event: Event) -> None:
    """Show what a task printed, each line marked with the function's name and the item's index."""
    for item, stream, text in json.loads(event.body):
        target = sys.stderr if stream == "stderr" else sys.stdout
        mark = f"[{name} {event.n + item}] "
        for line in _LINE_ENDS.split(text.removesuffix("\n")):
            try:
                target.write(f"{mark}{line}\n")
            except UnicodeEncodeError:  # not in the terminal's encoding, or half a surrogate pair
                coding = getattr(target, "encoding", None) or "ascii"
                plain = line.encode(coding, "backslashreplace").decode(coding)
                target.write(f"{mark}{plain}\n")
        target.flush()
