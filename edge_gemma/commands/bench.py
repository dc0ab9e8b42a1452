"""`edge-gemma bench`: speed as a table or JSON. Knows no measuring."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from edge_gemma.commands import options, terminal

DESCRIPTION = """\
Measure the speed of prompts (pp) and of generation (tg), without tokenizing and sampling, as llama-bench does.
-p, -n, -d and -t take lists, such as -t 1,2,4: every combination is measured. Let the machine be idle."""
COLUMNS = ("model", "size", "params", "threads", "test", "t/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    add = parser.add_argument
    add("-p", "--n-prompt", type=_integers, default=[512], metavar="N,...", help="prompt lengths, 0 for none; 512")
    add("-n", "--n-gen", type=_integers, default=[128], metavar="N,...", help="tokens to generate, 0 for none; 128")
    add("-d", "--n-depth", type=_integers, default=[0], metavar="N,...", help="tokens in the context before; 0")
    add("-t", "--threads", type=_integers, default=[], metavar="N,...", help="default: fast physical cores")
    add("-r", "--repetitions", type=int, default=5, metavar="N", help="timed repetitions after a warm-up; 5")
    options.add_kv_type(parser)
    add("--json", action="store_true", help="print a JSON list with llama-bench's fields, one object a test")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from edge_gemma.bench import bench, plan_tests

    tests = plan_tests(args.n_prompt, args.n_gen, args.n_depth)
    status = terminal.Status()
    rows = bench(
        args.model,
        tests,
        threads=args.threads,
        repeats=args.repetitions,
        kv_type=args.kv_type,
        kernel_progress=terminal.kernel_progress(),
        notice=lambda text: status.show(f"measuring {text}"),
    )
    if args.json:
        listed = list(rows)
        status.clear()
        terminal.write(json.dumps(listed, indent=2) + "\n")
    else:
        _print_table(rows, status)
    return 0


def _print_table(rows: Iterable[dict[str, Any]], status: terminal.Status) -> None:
    """A Markdown table; each row as soon as it is measured."""
    for number, row in enumerate(rows):
        cells = (
            row["model_type"],
            f"{row['model_size'] / 2**20:.2f} MiB",
            f"{row['model_n_params'] / 1e6:.2f} M",
            str(row["n_threads"]),
            _test_name(row),
            f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
        )
        widths = [max(len(name), len(cell)) for name, cell in zip(COLUMNS, cells, strict=True)]
        widths[4], widths[5] = max(widths[4], 15), max(widths[5], 20)
        status.clear()
        if not number:
            terminal.write(_line([f"{name:<{w}}" for name, w in zip(COLUMNS, widths, strict=True)]))
            terminal.write(_line(["-" * (w - 1) + (":" if i else "-") for i, w in enumerate(widths)]))
        aligned = (
            f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        terminal.write(_line(aligned))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _test_name(row: dict[str, Any]) -> str:
    name = f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
    return name + (f" @ d{row['n_depth']}" if row["n_depth"] else "")


def _integers(text: str) -> list[int]:
    """Integers between commas. argparse names the argument of a ValueError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of integers") from None
