"""`edge-gemma perplexity`: how well a model predicts a text. Knows only how to ask and print."""

from __future__ import annotations

import argparse
import json

from edge_gemma.commands import options, terminal

DESCRIPTION = """\
Measure the perplexity of a model on a text: the exponential of the mean of -log p(token). The text is cut into
windows of --context tokens that each begin with <bos>, so every token is predicted once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    options.add_windows(parser)
    options.add_threads(parser)
    options.add_kv_type(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    text = options.read_text(args.text)
    from edge_gemma.gemma import Gemma
    from edge_gemma.measure.quality import perplexity, text_windows

    progress = terminal.kernel_progress()
    with Gemma(args.model, args.context, args.threads, args.kv_type, progress=progress) as model:
        windows = text_windows(model, text, args.context, args.windows)
        result = perplexity(model, windows, terminal.token_progress("reading the text"))
    if args.json:
        fields = {"perplexity": result.value, "error": result.error}
        fields |= {"tokens": result.tokens, "windows": result.windows, "context": args.context}
        terminal.write(json.dumps(fields, indent=2) + "\n")
    else:
        where = f"{result.tokens} tokens in {result.windows} windows of {args.context}"
        terminal.write(f"perplexity {result.value:.4f} ± {result.error:.4f} over {where}\n")
    return 0
