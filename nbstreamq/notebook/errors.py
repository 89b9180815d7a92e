"""How IPython shows our errors about what was given: without any frame of nbstreamq."""

from __future__ import annotations

import sys
from typing import Any

from ..tracebacks import on_shortened, without_last_frames

__all__ = ["hide_our_frames"]


def hide_our_frames(shell: Any) -> None:
    """Have `shell` end the tracebacks of shortened errors at the user's own code.

    IPython leaves out frames that ask for it, except the last one, which is ours.
    """

    def render() -> list[str]:
        # Not a variable of this function: it would keep the error and its frames alive.
        kind, error, traceback = sys.exc_info()
        shown = without_last_frames(traceback) or traceback
        lines: list[str] = shell.InteractiveTB.structured_traceback(kind, error, shown, tb_offset=1)
        return lines

    def adapt(error: BaseException) -> None:
        # IPython's name of the method by which an error shows itself.
        error._render_traceback_ = render  # type: ignore[attr-defined]

    on_shortened(adapt)
