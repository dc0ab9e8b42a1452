"""`edge-gemma info`: what a model file is. Knows only how to ask and print."""

from __future__ import annotations

import argparse
import json

from edge_gemma.commands import options, terminal

DESCRIPTION = """\
Show architecture, hyper-parameters, the type of each tensor, bits per weight, and the memory the model takes for a
given context."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    parser.add_argument(
        "-c", "--context", type=options.integer, metavar="N", help="tokens to plan memory for; default: 4096"
    )
    options.add_threads(parser)
    options.add_kv_type(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    from edge_gemma.measure.info import describe, render

    info = describe(args.model, args.context, threads=args.threads, kv_type=args.kv_type)
    terminal.write((json.dumps(info, indent=2, ensure_ascii=False) if args.json else render(info)) + "\n")
    return 0
