"""`edge-gemma bench`: speed as a table or JSON. Knows no measuring."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from edge_gemma.commands import options, terminal

if TYPE_CHECKING:
    from edge_gemma.measure.profile import Outside, Profile, StepProfile
    from edge_gemma.measure.profile_parts import Part

DESCRIPTION = """\
Measure the speed of prompts (pp) and of generation (tg), without tokenizing and sampling, as llama-bench does.
-p, -n, -d and -t take lists, such as -t 1,2,4: every combination is measured. Let the machine be idle.
With --profile, where the time goes: of a decode step after -d tokens, of the loop around -n of them, and of a chunk of
-p tokens (or of as many as the model reads at a time), operation by operation."""
PARTS = ("operation", "count", "us", "share", "MB", "GB/s", "MMAC", "GMAC/s")
COLUMNS = ("model", "size", "params", "threads", "test", "t/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    add = parser.add_argument
    add("-p", "--n-prompt", type=_integers, default=[512], metavar="N,...", help="prompt lengths, 0 for none; 512")
    add("-n", "--n-gen", type=_integers, default=[128], metavar="N,...", help="tokens to generate, 0 for none; 128")
    add("-d", "--n-depth", type=_integers, default=[0], metavar="N,...", help="tokens in the context before; 0")
    add("-t", "--threads", type=_integers, default=[], metavar="N,...", help="default: fast physical cores")
    add(
        "-r", "--repetitions", type=options.integer, default=5, metavar="N", help="timed repetitions after a warm-up; 5"
    )
    options.add_kv_type(parser)
    add("--profile", action="store_true", help="measure each kind of operation; one value each of -p, -n, -d and -t")
    add("--json", action="store_true", help="print JSON: a list with llama-bench's fields, or the profile")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.profile:
        return _profile(args)
    from edge_gemma.measure.speed import bench, plan_tests

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


# ---- the profile -------------------------------------------------------------------------------------------------


def _profile(args: argparse.Namespace) -> int:
    from edge_gemma.measure.profile import as_dict, profile

    status = terminal.Status()
    result = profile(
        args.model,
        n_prompt=_single("-p", args.n_prompt),
        n_gen=_single("-n", args.n_gen),
        n_depth=_single("-d", args.n_depth),
        threads=_single("-t", args.threads) if args.threads else None,
        repeats=args.repetitions,
        kv_type=args.kv_type,
        kernel_progress=terminal.kernel_progress(),
        notice=lambda text: status.show(f"measuring {text}"),
    )
    status.clear()
    terminal.write(json.dumps(as_dict(result), indent=2) + "\n" if args.json else _profile_text(result))
    return 0


def _single(name: str, values: list[int]) -> int:
    if len(values) != 1:
        raise ValueError(f"{name}: a profile is of one value, got {len(values)}")
    return values[0]


def _profile_text(result: Profile) -> str:
    steps = "\n".join(_step_text(step) for step in (result.decode, result.prefill) if step)
    strategies = "; ".join(f"{name}: {how}" for name, how in result.about["strategies"].items())
    outside = f"\n{_outside_text(result.outside)}" if result.outside else ""
    return f"{steps}{outside}\nweights are asked for: {strategies}\n"


def _step_text(step: StepProfile) -> str:
    """A table of the operations, the longest first."""
    what = "decode step" if step.kind == "decode" else f"chunk of {step.rows} tokens"
    rows = [PARTS, *(_part_cells(part, part.us / step.sum_us) for part in step.parts)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    title = f"{what} at position {step.position}: {step.whole_us:.0f} us; operation by operation {step.sum_us:.0f} us"
    return "\n".join([title, *lines]) + "\n"


def _part_cells(part: Part, share: float) -> tuple[str, ...]:
    """Figures that say nothing of an operation are left out."""
    size, macs = part.weight_bytes + part.kv_bytes, part.macs
    memory = (f"{size / 1e6:.1f}", f"{part.gb_per_s:.1f}") if size else ("", "")
    products = (f"{macs / 1e6:.1f}", f"{part.gmac_per_s:.1f}") if macs else ("", "")
    label = f"{part.label} ({', '.join(part.formats)})" if part.formats else part.label
    return (label, str(part.count), f"{part.us:.1f}", f"{share:.1%}", *memory, *products)


def _outside_text(outside: Outside) -> str:
    return (
        f"outside the program, of {outside.steps} streamed tokens {outside.share:.1%}: "
        f"threads {outside.threads_us:.0f} us, sampling {outside.sampling_us:.0f} us, "
        f"detokenizing {outside.detokenizing_us:.0f} us, Python {outside.python_us:.0f} us; "
        f"inside {outside.program_us:.0f} us\n"
    )
