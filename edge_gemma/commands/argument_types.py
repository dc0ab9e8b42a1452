"""How the command line is parsed and explained: mistakes named as what they are, help that fits the terminal.

Knows no command: `cli.py` hangs them in.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from edge_gemma.commands import terminal

EXIT_INPUT = 2
MARGIN = 2  # argparse's, at the right
LONG_CHOICES = 20
# What other programs call it.
_COMMANDS_ELSEWHERE = {"chat": "run", "generate": "run", "complete": "run", "convert": "quantize", "help": "--help"}
_OPTIONS_ELSEWHERE = {"--n-predict": "--max-tokens", "--predict": "--max-tokens", "--ctx-size": "--context"}
_MODEL_OPTIONS = ("-m", "--model")


class Help(argparse.HelpFormatter):
    """Paragraphs are filled; lines that begin with a space stay lines. No word is cut at a hyphen."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_filled(text, width, indent))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        if _has_long_choices(action):
            return lambda count: (action.dest.upper(),) * count
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return f"{action.help}. One of: %(choices)s" if _has_long_choices(action) else action.help


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage in front of it."""

    def __init__(self, **options: Any) -> None:
        options |= {"allow_abbrev": False, "formatter_class": Help}
        if sys.version_info >= (3, 14):
            options["color"] = False
        super().__init__(**options)
        self._intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an optional positional may stand behind options, too: `quantize SRC -t Q4_0 OUT`.

        An option or command that does not exist is named before anything is missed.
        """
        given = sys.argv[1:] if args is None else list(args)
        if self._intermixing:
            return super().parse_known_args(given, namespace)
        self._check_names(given)
        parsed, rest = super().parse_known_args(given, namespace)
        if not rest or self._subparsers is not None:
            return parsed, rest
        self._intermixing = True  # argparse's way of taking them calls this again
        try:
            parsed, rest = self.parse_known_intermixed_args(given, namespace)
        finally:
            self._intermixing = False
        if rest:
            self.error(f"not expected: {' '.join(rest)} (a text of several words goes in quotes)")
        return parsed, rest

    def format_help(self) -> str:
        """The help for a terminal as wide as ours. Of options the usage names those that must be given."""
        lines = _wrapped(f"usage: {self._usage()}", _width(), "", "    ")
        self.usage = "\n".join(lines).removeprefix("usage: ").replace("%", "%%")
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print `message` and exit with 2."""
        terminal.say(f'edge-gemma: error: {terminal.one_line(message)} (see "{self.prog} --help")')
        self.exit(EXIT_INPUT)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Where argparse prints help and version; it would ignore a full disk."""
        terminal.write(message)

    def _check_names(self, given: list[str]) -> None:
        """Exit for an option that does not exist, or in the main parser for such a command."""
        before = ""
        for text in given:
            if text == "--":
                return
            if _is_option(text):
                self._check_option(text, before)
            elif self._subparsers is not None:
                self._check_command(text)
                return
            before = text

    def _check_option(self, text: str, before: str) -> None:
        known, name = self._option_string_actions, text.split("=", 1)[0]
        mistyped = f"-{name}" in known  # -prompt, of which -p would take "rompt" as its value
        if name in known or (text[:2] in known and text[1] != "-" and not mistyped):
            return
        near = [f"-{name}"] if mistyped else difflib.get_close_matches(name, known, 1, 0.6)
        found = _OPTIONS_ELSEWHERE.get(name, "".join(near))
        message = f"there is no option {name}"
        if found in known:
            message += f"; did you mean {found}?"
        elif name in _MODEL_OPTIONS:
            message += "; the model's file is named without one"
        if before in known and known[before].nargs != 0:
            message += f'; what begins with "-" is a value only as {max(known[before].option_strings, key=len)}={text}'
        self.error(message)

    def _check_command(self, text: str) -> None:
        commands = [str(name) for action in self._actions if not action.option_strings for name in action.choices or ()]
        if text in commands:
            return
        found = _COMMANDS_ELSEWHERE.get(text) or "".join(difflib.get_close_matches(text, commands, 1, 0.5))
        advice = f"did you mean {found}?" if found else f"there are {', '.join(commands)}"
        if text.lower().endswith(".gguf") or Path(text).is_file():
            advice = f'to run a model: edge-gemma run "{text}" -p "Once upon a time"'
        self.error(f"there is no command {text!r}; {advice}")

    def _usage(self) -> str:
        groups = [group._group_actions for group in self._mutually_exclusive_groups if group.required]
        alone = [action for action in self._actions if not any(action in group for group in groups)]
        positional = [_positional(action) for action in alone if not action.option_strings]
        required = [_required(action) for action in alone if action.option_strings and action.required]
        either = [f"({' | '.join(map(_required, group))})" for group in groups]
        return " ".join([self.prog, "[options]", *positional, *required, *either])


def _positional(action: argparse.Action) -> str:
    """A positional as it stands in a usage."""
    if isinstance(action, argparse._SubParsersAction):
        return f"{action.metavar} ..."
    return f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar)


def _required(action: argparse.Action) -> str:
    """An argument that must be there as it stands in a usage."""
    return " ".join([*action.option_strings[:1], str(action.metavar)])


def _is_option(text: str) -> bool:
    """As argparse sees it: not a negative number, not a text with a space."""
    if len(text) < 2 or text[0] != "-" or " " in text:
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def _has_long_choices(action: argparse.Action) -> bool:
    choices = action.choices
    return action.metavar is None and choices is not None and len(",".join(map(str, choices))) > LONG_CHOICES


def _filled(text: str, width: int, indent: str) -> Iterator[str]:
    """The lines of `text`, none longer than `width`."""
    flowing: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip() and not line.startswith(" "):
            flowing.append(line)
            continue
        if flowing:
            yield from _wrapped(" ".join(flowing), width, indent, indent)
            flowing = []
        start = indent + line[: len(line) - len(line.lstrip())]
        yield from _wrapped(line.strip(), width, start, start + "  ") if line.strip() else [""]


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _width() -> int:
    return max(shutil.get_terminal_size().columns - MARGIN, 11)
