"""Arguments that several commands share, and the texts they read. Knows no model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

TEXT_LIMIT = 2**26
"""Bytes; the tokenizer takes no more."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """The positional MODEL."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file")


def add_threads(parser: argparse._ActionsContainer) -> None:
    """--threads."""
    text = "most threads to use; default: one for each fast physical core"
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help=text)


def add_kv_type(parser: argparse._ActionsContainer) -> None:
    """--kv-type."""
    parser.add_argument(
        "--kv-type", choices=("f16", "f32"), default="f16", help="precision of the key-value cache; default: f16"
    )


def positive(text: str) -> int:
    """A count. argparse names the argument."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def add_windows(parser: argparse._ActionsContainer, *, without: str | None = None) -> None:
    """The positional TEXT, --context and --windows. `without`: what is done if there is no TEXT, where that may be."""
    text, nargs = "a UTF-8 text file, or - for stdin", None if without is None else "?"
    parser.add_argument("text", metavar="TEXT", nargs=nargs, help=f"{text}; {without}" if without else text)
    parser.add_argument("-c", "--context", type=int, default=512, metavar="N", help="tokens of a window; default: 512")
    parser.add_argument("--windows", type=int, metavar="N", help="use the first N windows; default: the whole text")


def read_text(name: str) -> str:
    """The UTF-8 text in file `name`, or of stdin for "-", exactly. Raises OSError, or ValueError naming the byte."""
    if name == "-":
        raw = sys.stdin.buffer.read(TEXT_LIMIT + 1) if sys.stdin else b""
    else:
        with Path(name).open("rb") as file:
            raw = file.read(TEXT_LIMIT + 1)
    where = "standard input" if name == "-" else name
    if len(raw) > TEXT_LIMIT:
        raise ValueError(f"{where}: more than {TEXT_LIMIT} bytes of text")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start}") from error
