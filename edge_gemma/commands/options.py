"""Arguments that several commands share, and the texts they read. Knows no model."""

from __future__ import annotations

import argparse
import codecs
import sys

from edge_gemma.gguf.file_kind import POINTER, expanded, is_lfs_pointer

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
        "--kv-type",
        choices=("f16", "f32", "q8_0"),
        default="f16",
        help="precision of the key-value cache; default: f16; q8_0 takes half the memory",
    )


def positive(text: str) -> int:
    """A count. argparse names the argument."""
    if integer(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def integer(text: str) -> int:
    """An integer. argparse names the argument."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer") from None


def real(text: str) -> float:
    """A number. argparse names the argument."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def add_windows(parser: argparse._ActionsContainer, *, without: str | None = None) -> None:
    """The positional TEXT, --context and --windows. `without`: what is done if there is no TEXT, where that may be."""
    text, nargs = "a UTF-8 text file, or - for stdin", None if without is None else "?"
    parser.add_argument("text", metavar="TEXT", nargs=nargs, help=f"{text}; {without}" if without else text)
    parser.add_argument(
        "-c", "--context", type=integer, default=512, metavar="N", help="tokens of a window; default: 512"
    )
    parser.add_argument("--windows", type=integer, metavar="N", help="use the first N windows; default: the whole text")


def read_text(name: str) -> str:
    """The UTF-8 text in file `name`, or of stdin for "-": exactly, but for a mark of byte order in front.

    Raises OSError, or ValueError that says what the file is instead, or names the byte.
    """
    if name == "-":
        raw = sys.stdin.buffer.read(TEXT_LIMIT + 1) if sys.stdin else b""
    else:
        with expanded(name).open("rb") as file:
            raw = file.read(TEXT_LIMIT + 1)
    where = "standard input" if name == "-" else name
    if len(raw) > TEXT_LIMIT:
        raise ValueError(f"{where}: more than {TEXT_LIMIT} bytes of text")
    if is_lfs_pointer(raw):
        raise ValueError(f"{where}: {POINTER}")
    if _is_utf16(raw):
        raise ValueError(f"{where}: UTF-16 text (as Windows' PowerShell and Notepad write it); save it as UTF-8")
    try:
        return raw.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _is_utf16(raw: bytes) -> bool:
    """By its mark of byte order (UTF-32's begins alike), or because every other byte is zero, as in Latin script."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        return True
    even, odd = raw[:1024:2], raw[1:1024:2]
    return len(odd) > 1 and (not any(even) or not any(odd))
