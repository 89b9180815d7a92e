"""Write docs/protocol.md from the docstrings of the protocol: ``python docs/generate.py``.

With ``--check`` nothing is written; it exits with 1 if the file is not what it would be.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = Path(__file__).parent / "protocol.md"
SOURCE = ROOT / "nbstreamq" / "wire"
#: Heading -> module, and the name in it whose docstring follows; None: the module's own.
PARTS: tuple[tuple[str, str, str | None], ...] = (
    ("## Keys", "keys.py", None),
    ("### Which lanes a waiting worker may serve", "keys.py", "deeper_lanes"),
    ("## States", "messages.py", "State"),
)
HEAD = """# The protocol

<!-- Written by docs/generate.py from nbstreamq/wire/keys.py and messages.py: change it there. -->

The steps between the states, each with its script, and what each party may crash between, are in
[architecture.md](architecture.md#the-life-of-a-task).
"""
_RULE = re.compile(r"=+( +=+)+")


def main() -> None:
    """Write the file, or check it."""
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            sys.exit("docs/protocol.md is not up to date: run `python docs/generate.py`.")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        TARGET.write_text(text, encoding="utf-8")


def page() -> str:
    """Return the whole text."""
    parts = [f"{heading}\n\n{markdown(docstring(*where))}\n" for heading, *where in PARTS]
    return "\n".join([HEAD, *parts])


def docstring(file: str, name: str | None) -> str:
    """Return a docstring of `file`, which is read and not run."""
    tree: ast.AST = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
    if name is not None:
        tree = next(node for node in ast.walk(tree) if getattr(node, "name", None) == name)
    text = ast.get_docstring(tree)  # type: ignore[arg-type]
    if text is None:
        sys.exit(f"{file}: {name or 'the module'} has no docstring.")
    return text


def markdown(text: str) -> str:
    """Return a docstring as Markdown: its tables, its drawings, and its code."""
    lines = iter(text.splitlines())
    return "\n".join(_blocks(lines)).strip()


def _blocks(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if _RULE.fullmatch(line):
            yield from _table(line, lines)
        elif line == "::":
            yield from _drawing(lines)
        else:
            yield _code(line)


def _code(text: str) -> str:
    return text.replace("``", "`")


def _table(rule: str, lines: Iterator[str]) -> Iterator[str]:
    """Turn a simple table, whose first rule was read, into one of Markdown."""
    starts = [match.start() for match in re.finditer("=+", rule)]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    n_rules = 1
    for line in lines:
        if _RULE.fullmatch(line):
            n_rules += 1
            if n_rules == 3:  # above the head, below it, and at the end
                return
            yield "|" + "---|" * len(spans)
        else:
            yield "| " + " | ".join(_code(line[a:b].strip()) for a, b in spans) + " |"


def _drawing(lines: Iterator[str]) -> Iterator[str]:
    """Fence an indented block."""
    yield "```text"
    body = []
    for line in lines:
        if line and not line.startswith(" "):
            yield from (*_dedent(body), "```", "", _code(line))
            return
        body.append(line)
    yield from (*_dedent(body), "```")


def _dedent(body: list[str]) -> list[str]:
    text = "\n".join(line[4:] for line in body)
    return text.strip("\n").splitlines()


if __name__ == "__main__":
    main()
