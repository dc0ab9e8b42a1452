"""`edge-gemma imatrix`: an importance matrix from a text, for `quantize --imatrix`. Knows no kernel."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_gemma.atomic_file import check_destination
from edge_gemma.commands import options, terminal
from edge_gemma.commands.calibrate import Statistics, of_self_generated_text, of_text

DESCRIPTION = """\
Read a text with a model and write how much each input column of each matrix is used: the importance matrix that
`quantize --imatrix` and llama-quantize take. Use a wide model (F16, Q8_0) and a text like those it will see; some
20,000 tokens do. It is cut into windows as for `perplexity`. Without a text the model writes one itself, which is
nearly as good; `quantize --calibrate` does the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    options.add_windows(parser, without="default: one that the model writes")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, type=Path, help="the file to write (GGUF)")
    parser.add_argument("-f", "--force", action="store_true", help="replace FILE if it exists")
    own = parser.add_argument_group("without TEXT")
    own.add_argument("--tokens", type=options.positive, metavar="N", help="how many the model writes; default: 2048")
    own.add_argument("--seed", type=options.integer, default=0, metavar="S", help="of what it writes; default: 0")
    options.add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Collect and write."""
    if args.text is None and args.windows is not None:
        raise ValueError("--windows is for a TEXT")
    if args.text is not None and args.tokens is not None:
        raise ValueError("--tokens is for what the model writes, without a TEXT")
    text = None if args.text is None else options.read_text(args.text)
    from edge_gemma.quantize import imatrix

    check_destination(args.output, force=args.force, sources=[Path(args.model)])  # before the long part
    found = _statistics(args, text)
    imatrix.write(
        args.output,
        found.sums,
        found.rows,
        datasets=[found.dataset],
        chunks=found.windows,
        chunk_size=found.context,
        force=args.force,
    )
    terminal.say(f"{args.output}: {len(found.sums)} matrices, {found.rows} tokens in {found.windows} windows")
    return 0


def _statistics(args: argparse.Namespace, text: str | None) -> Statistics:
    if text is None:
        return of_self_generated_text(args.model, args.tokens, args.seed, args.threads)
    return of_text(args.model, text, Path(args.text).name, args.context, args.windows, args.threads)
