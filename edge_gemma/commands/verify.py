"""`edge-gemma verify`: is a model file sound and unchanged? Knows only how to ask and print."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from edge_gemma.commands import options, terminal
from edge_gemma.errors import CheckpointError

if TYPE_CHECKING:
    from edge_gemma.quantize.verification import Verification

EXIT_DIFFERS = 1
DESCRIPTION = """\
Check a model file: its structure, that every number and scale in it is finite, and, if it tells its provenance (files
of `edge-gemma quantize` do), that no tensor was changed since. With --against, recompute how far each tensor is from
the checkpoint the file was made of. Exit status: 0 all is well, 1 damaged or different, 2 not usable at all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    parser.add_argument("--against", metavar="SRC", type=Path, help="the Hugging Face folder or GGUF file it is from")
    parser.add_argument(
        "--lora",
        metavar="PATH[:SCALE]",
        action="append",
        default=[],
        help="an adapter that was merged into SRC, as for `quantize`; repeatable, in the same order",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Check and print."""
    from edge_gemma.commands.quantize import parse_lora
    from edge_gemma.quantize.convert import open_source
    from edge_gemma.quantize.verification import verify

    if args.lora and args.against is None:
        raise CheckpointError("--lora is for --against: name the checkpoint that the adapter was merged into")
    source = None if args.against is None else open_source(args.against, [parse_lora(text) for text in args.lora])
    status = terminal.Status()

    def progress(done: int, total: int, name: str) -> None:
        status.show(f"reading {100 * done // total} %, {name}")

    result = verify(Path(args.model), source, progress)
    status.clear()
    if args.json:
        errors = {name: error if math.isfinite(error) else None for name, error in result.errors.items()}
        fields = {"ok": result.ok, "tensors": result.tensors, "provenance": result.has_provenance}
        terminal.write(json.dumps(fields | {"problems": result.problems, "errors": errors}, indent=2) + "\n")
    else:
        terminal.write(render(args.model, result))
    return 0 if result.ok else EXIT_DIFFERS


def render(name: str, result: Verification) -> str:
    """The result as lines of text."""
    lines = [*result.problems]
    if result.errors:
        worst = max(result.errors, key=lambda tensor: result.errors[tensor])
        lines.append(f"largest relative error: {result.errors[worst]:.4g}, {worst}")
    provenance = "" if result.has_provenance else "; it does not tell its provenance"
    verdict = "sound" if result.ok else f"{len(result.problems)} problems"
    lines.append(f"{name}: {verdict}, {result.tensors} tensors{provenance}")
    return "".join(f"{terminal.one_line(line)}\n" for line in lines)
