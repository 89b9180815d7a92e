"""`nbstreamq completion`: what a shell needs to complete commands and options.

The shell runs ``nbstreamq completion --words="WORD ..."`` at each Tab, so what it offers is always
what the parser of the installed version takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

from .parsing import Commands, Parser, add_command

_SCRIPTS = {
    "bash": """\
_nbstreamq() {
    local words="${COMP_WORDS[*]:1:COMP_CWORD}"
    mapfile -t COMPREPLY < <(nbstreamq completion --words="$words" 2>/dev/null)
}
complete -o default -F _nbstreamq nbstreamq
""",
    "zsh": """\
#compdef nbstreamq
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_nbstreamq() {
    local -a found
    found=(${(f)"$(nbstreamq completion --words="${words[2,CURRENT]}" 2>/dev/null)"})
    (( $#found )) && compadd -a found || _files
}
compdef _nbstreamq nbstreamq
""",
    "fish": """\
function __nbstreamq
    set -l words (commandline -opc) (commandline -ct)
    set -l found (nbstreamq completion --words="$words[2..-1]" 2>/dev/null)
    if set -q found[1]
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c nbstreamq -f -a '(__nbstreamq)'
""",
}
_WHERE = {
    "bash": "nbstreamq completion bash >> ~/.bashrc",
    "zsh": "nbstreamq completion zsh >> ~/.zshrc",
    "fish": "nbstreamq completion fish > ~/.config/fish/completions/nbstreamq.fish",
}


def add_completion(commands: Commands, parser: Callable[[], Parser]) -> None:
    """Add the command to the parser; `parser` returns that parser."""
    does = "print the lines that have a shell complete commands and options"
    completion = add_command(commands, "completion", does, _WHERE["bash"])
    completion.add_argument("shell", nargs="?", choices=_SCRIPTS, help="the shell")
    completion.add_argument("--words", help=argparse.SUPPRESS)

    def run(options: argparse.Namespace) -> None:
        if options.words is not None:
            for word in complete(parser(), options.words.split(" ")):
                print(word)
        elif options.shell is None:
            raise ValueError(f"which shell is it? {', '.join(_SCRIPTS)}")
        else:
            print(f"# To install: {_WHERE[options.shell]}\n{_SCRIPTS[options.shell]}", end="")

    completion.set_defaults(run=run)


def complete(parser: argparse.ArgumentParser, words: Sequence[str]) -> list[str]:
    """Return what may stand for the last of `words`, which is not finished."""
    *before, last = words
    for word in before:
        parser = _commands_of(parser).get(word, parser)
    offered = _options_of(parser) if last.startswith("-") else _commands_of(parser)
    return sorted(word for word in offered if word.startswith(last))


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            found |= action.choices
    return found


def _options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:  # noqa: SLF001
        if action.help != argparse.SUPPRESS:
            yield from action.option_strings
