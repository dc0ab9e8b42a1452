"""`edge-gemma imatrix`: an importance matrix from a text, for `quantize --imatrix`. Knows no kernel."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_gemma.commands import options, terminal

DESCRIPTION = """\
Read a text with a model and write how much each input column of each matrix is used: the importance matrix that
`quantize --imatrix` and llama-quantize take. Use a full-precision model and a text like those the model will see; some
100,000 tokens do. The text is cut into windows as for `perplexity`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    options.add_windows(parser)
    parser.add_argument("-o", "--output", metavar="FILE", required=True, type=Path, help="the file to write (GGUF)")
    parser.add_argument("-f", "--force", action="store_true", help="replace FILE if it exists")
    options.add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Collect and write."""
    text = options.read_text(args.text)
    from edge_gemma.importance import Observer
    from edge_gemma.quality import windows
    from edge_gemma.quantize import imatrix
    from edge_gemma.quantize.atomic_file import check_destination

    check_destination(args.output, force=args.force, sources=[Path(args.model)])  # before the long part
    with Observer(args.model, args.context, args.threads, terminal.kernel_progress()) as observer:
        tokenizer = observer.tokenizer
        cut = windows(tokenizer.encode(text, add_bos=False), tokenizer.bos_id, args.context, args.windows)
        progress = terminal.token_progress("reading the text")
        for window in cut:
            observer.add(window)
            progress(observer.rows, sum(map(len, cut)))
        imatrix.write(
            args.output,
            observer.sums,
            observer.rows,
            datasets=[Path(args.text).name],
            chunks=len(cut),
            chunk_size=args.context,
            force=args.force,
        )
        terminal.say(f"{args.output}: {len(observer.sums)} matrices, {observer.rows} tokens in {len(cut)} windows")
    return 0
