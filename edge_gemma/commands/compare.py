"""`edge-gemma compare`: how far a model is from a reference. Knows only how to ask and print."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from edge_gemma.commands import options, terminal

if TYPE_CHECKING:
    from edge_gemma.measure.quality import Comparison

DESCRIPTION = """\
Compare what MODEL and REFERENCE predict for each token of a text: the Kullback-Leibler divergence from REFERENCE, how
often both think the same token best, and what that does to perplexity. The text is cut into windows as for
`perplexity`. A reference is usually the same model before it was quantized."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    parser.add_argument("reference", metavar="REFERENCE", help="the GGUF file to compare it with")
    options.add_windows(parser)
    options.add_threads(parser)
    options.add_kv_type(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help='draw the divergences into FILE (png, svg, pdf); needs pip install "edge-gemma[plot]"',
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, draw."""
    text = options.read_text(args.text)
    from edge_gemma.measure.quality_plot import check, save

    if args.plot is not None:
        check(args.plot)
    comparison = _compare(args, text)
    if args.json:
        terminal.write(json.dumps(comparison.summary() | {"context": args.context}, indent=2) + "\n")
    else:
        terminal.write(render(comparison, args.context))
    if args.plot is not None:
        save(comparison, f"{Path(args.model).name} beside {Path(args.reference).name}", args.plot)
    return 0


def _compare(args: argparse.Namespace, text: str) -> Comparison:
    from edge_gemma.gemma import Gemma
    from edge_gemma.measure.quality import compare, text_windows

    options_ = (args.context, args.threads, args.kv_type)
    progress = terminal.kernel_progress()
    with (
        Gemma(args.model, *options_, progress=progress) as model,
        Gemma(args.reference, *options_, progress=progress) as reference,
    ):
        windows = text_windows(model, text, args.context, args.windows)
        if text_windows(reference, text, args.context, args.windows) != windows:
            raise ValueError("the models' vocabularies differ: they cut the text into different tokens")
        return compare(model, reference, windows, terminal.token_progress("reading the text with both"))


def render(comparison: Comparison, context: int) -> str:
    """The figures as lines of text."""
    c = comparison
    lines = (
        ("KL divergence, mean", f"{c.kl_mean:.6f} ± {c.kl_error:.6f} nats"),
        ("KL divergence, 99%", f"{c.kl_p99:.6f} nats"),
        ("same best token", f"{100 * c.top_1:.3f} %"),
        ("perplexity", f"{c.perplexity:.4f}, of the reference {c.reference_perplexity:.4f}"),
        ("perplexity ratio", f"{c.perplexity_ratio:.6f}"),
        ("probability change, RMS", f"{100 * c.rms_probability_change:.4f} %"),
        ("tokens", f"{len(c.divergence)} in {c.windows} windows of {context}"),
    )
    return "".join(f"{name:<24} {value}\n" for name, value in lines)
