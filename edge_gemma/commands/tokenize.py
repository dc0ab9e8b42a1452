"""`edge-gemma tokenize`: the tokens of a text. Compiles nothing and loads no weights."""

from __future__ import annotations

import argparse
import json

from edge_gemma.commands import options, terminal

DESCRIPTION = "Show the tokens of a text: the id and the vocabulary's spelling of each, one a line."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text; or use -f")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the text from FILE (UTF-8), or from stdin for -")
    parser.add_argument("--no-bos", action="store_true", help="no BOS in front")
    parser.add_argument("--parse-special", action="store_true", help="<end_of_turn> and the like become control tokens")
    parser.add_argument("--json", action="store_true", help='print {"count": ..., "ids": [...], "tokens": [...]}')


def run(args: argparse.Namespace) -> int:
    """Print the tokens."""
    if (args.text is None) == (args.file is None):
        raise ValueError("give a TEXT or -f FILE, one of them")
    text = options.read_text(args.file) if args.text is None else args.text
    from edge_gemma.gguf.file import GgufFile
    from edge_gemma.text.tokenizer import Tokenizer

    with GgufFile.open(args.model) as file:
        tokenizer = Tokenizer.from_gguf(file)
        ids = tokenizer.encode(text, add_bos=False if args.no_bos else None, parse_special=args.parse_special)
        tokens = [tokenizer.token_text(i) for i in ids]
    if args.json:
        terminal.write(json.dumps({"count": len(ids), "ids": ids, "tokens": tokens}, ensure_ascii=False) + "\n")
    else:
        terminal.write("".join(f"{i:7}  {token!r}\n" for i, token in zip(ids, tokens, strict=True)))
    return 0
