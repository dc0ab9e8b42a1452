"""`edge-gemma tune`: measure how this machine reads weights fastest, and show it. Knows no kernel."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from edge_gemma.commands import options, terminal

if TYPE_CHECKING:
    from edge_gemma.kernels.tuning.tuner import Measurement, Result

DESCRIPTION = """\
Measure which way of asking memory for weights is fastest on this machine, keep it for all later starts, and print a
table. The first start with a model does so too, for a second and with fewer candidates. Results do not depend on it,
speed does. Without MODEL, matrices of usual sizes are tried. EDGE_GEMMA_TUNE=off leaves everything at its default."""

SECONDS = 2.0
"""Of measuring for each class, unless said otherwise."""
USUAL = [(name, columns) for name in ("Q4_0", "Q4_K", "Q6_K", "Q8_0") for columns in (512, 2304, 9216)]
"""Formats and columns where there is no model: rows of 512 fit any first-level cache, those of 9216 none."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a GGUF file; default: matrices of usual sizes")
    options.add_threads(parser)
    text = f"seconds to measure each class of matrices; default: {SECONDS:g}"
    parser.add_argument("--seconds", type=_seconds, default=SECONDS, metavar="S", help=text)
    parser.add_argument("--dry-run", action="store_true", help="show what would be chosen, and keep what was")
    parser.add_argument("--json", action="store_true", help="print one JSON object; rates in bytes per second")


def _seconds(text: str) -> float:
    if not 0 < (value := options.real(text)) <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..600")
    return value


def run(args: argparse.Namespace) -> int:
    """Measure, keep, print. 1 if the machine was too busy to say anything."""
    from edge_gemma.cores import default_threads
    from edge_gemma.kernels.tuning import tuner
    from edge_gemma.kernels.tuning.choices import Tuning, load, save
    from edge_gemma.kernels.tuning.strategies import STRATEGIES

    threads = args.threads or default_threads()
    classes = tuner.by_class(_matrices(args.model))
    if not classes:
        raise ValueError(f"{args.model}: it has no quantized weights, so there is nothing to tune")
    status = terminal.Status()
    status.show(f"measuring {len(classes)} classes of matrices")
    result = tuner.measure(
        classes, list(STRATEGIES), threads, args.seconds * len(classes), (), terminal.kernel_progress()
    )
    status.clear()
    kept = not args.dry_run and not result.disturbed and save(Tuning({**load().measured, **result.best}))
    report = _as_dict(result, threads, kept)
    terminal.write(json.dumps(report, indent=2) + "\n" if args.json else _text(result, threads, kept))
    return int(result.disturbed)


def _matrices(model: str | None) -> list[Any]:
    from edge_gemma.formats import FORMATS
    from edge_gemma.kernels.tuning.tuner import Matrix

    if model is None:
        return [Matrix(name, FORMATS[name].row_bytes(columns), 1) for name, columns in USUAL]
    from edge_gemma.engine.runner import product_matrices
    from edge_gemma.gguf.file import GgufFile
    from edge_gemma.models.registry import read_config
    from edge_gemma.models.weights import Weights

    with GgufFile.open(model) as file:
        return product_matrices(Weights.bind(file, read_config(file)))


def _as_dict(result: Result, threads: int, kept: bool) -> dict[str, Any]:
    return {
        "machine": _machine(),
        "threads": threads,
        "rounds": result.rounds,
        "processor_time_received": round(result.received, 3),
        "disturbed": result.disturbed,
        "kept": kept,
        "classes": {
            one.matrix_class: {
                "format": one.matrix.format,
                "row_bytes": one.matrix.row_bytes,
                "default": one.default,
                "best": one.best,
                "median_bytes_per_s": {name: round(one.median(name)) for name in one.rates},
                "rounds_won": {name: round(one.wins(name), 3) for name in one.rates},
            }
            for one in result.measurements
        },
    }


def _machine() -> dict[str, Any]:
    from dataclasses import asdict

    from edge_gemma.kernels import caches
    from edge_gemma.kernels.isa import current, target
    from edge_gemma.measure.speed import cpu_info

    return {"cpu": cpu_info(), "llvm_cpu": target()[0], "isa": current().name, "caches": asdict(caches.sizes())}


def _text(result: Result, threads: int, kept: bool) -> str:
    machine = _machine()
    sizes = ", ".join(f"{name} {size >> 10} KB" for name, size in machine["caches"].items())
    head = f"{machine['cpu']} ({machine['llvm_cpu']}, {machine['isa']}): {sizes}; {threads} threads\n\n"
    names = list(dict.fromkeys(name for one in result.measurements for name in one.rates))
    rows = [("class", "matrix", *names, "chosen"), *(_cells(one, names) for one in result.measurements)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = "".join(
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) + "\n"
        for row in rows
    )
    return (
        head
        + table
        + f"\nGB/s, medians of {result.rounds} rounds by turns; * is the default. {_verdict(result, kept)}\n"
    )


def _cells(one: Measurement, names: list[str]) -> tuple[str, ...]:
    rates = (f"{one.median(name) / 1e9:.1f}{'*' if name == one.default else ' '}" for name in names)
    return (one.matrix_class, f"{one.matrix.format}, rows of {one.matrix.row_bytes} B", *rates, one.best)


def _verdict(result: Result, kept: bool) -> str:
    if result.disturbed:
        return f"Nothing is kept: other programs were running (the threads got {result.received:.0%} of their time)."
    return "Kept for later starts." if kept else "Nothing is kept."
