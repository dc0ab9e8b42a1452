"""`edge-gemma demo`: quantize a real model, run it, and show what it took. Knows no conversion and no kernels."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edge_gemma.commands import options, terminal
from edge_gemma.commands.run import EXIT_INTERRUPTED, add_generation, print_stream, speed

PROMPT = "The three most important things about the ocean are"
SEED = 3
DESCRIPTION = """\
Quantize the real Gemma 3 270M (a base model, which continues texts) to Q4_0, run it, and show speed and memory.
The files are kept in the user's cache folder, or in $EDGE_GEMMA_CACHE_DIR, for the next time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("-p", "--prompt", default=PROMPT, metavar="TEXT", help=f'default: "{PROMPT}"')
    add_generation(parser, 96)
    options.add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Quantize if need be, generate, print the closing line."""
    path = _prepared()
    from edge_gemma.engine.sampler import SamplingParams
    from edge_gemma.gemma import Gemma

    with Gemma(path, threads=args.threads, progress=terminal.kernel_progress()) as model:
        terminal.write(args.prompt)
        answer, interrupted = print_stream(
            model, model.tokenize(args.prompt), args.max_tokens, SamplingParams(seed=SEED), stop=[]
        )
        resident = _resident()
    compiler = " with the compiler, which is needed this once" if "numba" in sys.modules else ""
    memory, size = f"{resident / 1e6:.0f} MB{compiler}", f"{path.stat().st_size / 1e6:.0f} MB"
    terminal.write(f"\n\n{speed(answer)}; memory {memory}; file {size}\n")
    if not interrupted:
        terminal.say(f'next: edge-gemma run "{path}" -p "Once upon a time"')
    return EXIT_INTERRUPTED if interrupted else 0


def _prepared() -> Path:
    """The quantized model."""
    from edge_gemma.commands import demo_model

    made = demo_model.files()
    if not demo_model.is_ready(made.quantized):
        from edge_gemma.commands.quantize import progress_display
        from edge_gemma.quantize import quantize

        terminal.say(f"unpacking Gemma 3 270M to {made.source}")
        demo_model.assemble(made.source)
        terminal.say(f"quantizing it to {demo_model.TYPE}, {made.quantized}")
        with progress_display(quiet=False) as progress:
            demo_model.quantize(quantize, made, progress)
    return made.quantized


def _resident() -> int:
    """Bytes of memory this process has in use, the model's pages included."""
    import psutil

    used: int = psutil.Process().memory_info().rss
    return used
