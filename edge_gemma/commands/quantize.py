"""`edge-gemma quantize`: arguments, progress on the terminal, a closing line. Knows no conversion."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from edge_gemma.errors import CheckpointError, EdgeGemmaError, OutputError
from edge_gemma.progress import Progress
from edge_gemma.quantize.recipe import TYPES, Overrides

if TYPE_CHECKING:
    from edge_gemma.quantize.plan import Plan

DESCRIPTION = """\
Convert a checkpoint of Gemma or of the Llama family to a GGUF file that this program and llama.cpp run. SRC is a
Hugging Face folder (safetensors or PyTorch files, config.json, tokenizer) or a GGUF file. OUT appears under its name
when it is complete, or not at all; what a killed run left beside it is removed by the next. Exit status: 0 written, 2
wrong input or arguments, 3 OUT could not be written (disk full), 130 interrupted (Ctrl-C, SIGTERM)."""
EXIT_INPUT, EXIT_OUTPUT, EXIT_INTERRUPTED = 2, 3, 130
TYPE_HELP = (
    "default: Q4_0. The names are llama-quantize's, and so is the choice of each tensor's format; EG4 and EG8 are the "
    "best that was found in the bytes of a Q4_0 and a Q8_0 file"
)
CALIBRATE_HELP = (
    "have the model write 2,048 tokens, and make the importance matrix of them: much less error, for the time it takes "
    "(35 s for 2B on two cores) and the disk space of a Q8_0 file meanwhile"
)
LINE_SECONDS = 5.0  # between lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `quantize` to a parser, the program's own or a subcommand's."""
    parser.add_argument("source", metavar="SRC", help="a Hugging Face folder or a GGUF file")
    parser.add_argument("destination", metavar="OUT", nargs="?", help="the GGUF file to write")
    types = parser.add_argument_group("types")
    types.add_argument("--type", "-t", default="Q4_0", type=str.upper, choices=list(TYPES), help=TYPE_HELP)
    types.add_argument(
        "--tensor-type",
        metavar="PATTERN=TYPE",
        action="append",
        default=[],
        type=parse_tensor_type,
        help="the type of tensors in whose name the regular expression is found; repeatable, the first one found holds",
    )
    types.add_argument("--token-embedding-type", metavar="TYPE", type=str.upper, help="the type of the embedding")
    types.add_argument(
        "--output-type", metavar="TYPE", type=str.upper, help="of the output, or an embedding used as it"
    )
    types.add_argument("--pure", action="store_true", help="no exceptions: every matrix gets the type's main format")
    weights = types.add_mutually_exclusive_group()
    weights.add_argument("--imatrix", metavar="FILE", help="importance matrix, as `edge-gemma imatrix` writes it")
    weights.add_argument("--calibrate", action="store_true", help=CALIBRATE_HELP)
    parser.add_argument("--requantize", action="store_true", help="accept a source that is quantized already")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written, and write nothing")
    parser.add_argument(
        "--lora",
        metavar="PATH[:SCALE]",
        action="append",
        default=[],
        type=parse_lora,
        help="folder of a PEFT LoRA adapter to merge, SCALE times (default 1); repeatable, merged in the order given",
    )
    parser.add_argument(
        "--compare", metavar="TEXT", help="measure OUT beside SRC on this text file, and write the result into OUT"
    )
    parser.add_argument("--compare-windows", type=int, metavar="N", help="use the text's first N windows of 512 tokens")
    parser.add_argument("--force", "-f", action="store_true", help="replace OUT if it exists")
    parser.add_argument("--quiet", "-q", action="store_true", help="print errors only")


def parse_lora(text: str) -> tuple[Path, float]:
    """PATH or PATH:SCALE of the command line; the scale is 1 if it is not given."""
    path, colon, number = text.rpartition(":")
    try:
        scale = float(number)
    except ValueError:  # the colon of a Windows drive, or none
        return Path(text), 1.0
    return (Path(path), scale) if colon and path else (Path(text), 1.0)


def parse_tensor_type(text: str) -> tuple[str, str]:
    """PATTERN=TYPE of the command line. Raises ArgumentTypeError."""
    pattern, equals, name = text.rpartition("=")
    if not (equals and pattern and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form PATTERN=TYPE")
    return pattern, name.upper()


def overrides(args: argparse.Namespace) -> Overrides:
    """What `args` say about single tensors. Raises CheckpointError."""
    return Overrides(tuple(args.tensor_type), args.token_embedding_type, args.output_type, args.pure)


def run(args: argparse.Namespace) -> int:
    """Convert as `args` say and return 0. Errors are raised, for the caller to print; see `exit_status`."""
    from edge_gemma.commands.calibrate import calibrator
    from edge_gemma.commands.compare_written import comparer
    from edge_gemma.quantize.convert import plan, quantize

    if args.dry_run:
        if args.calibrate:
            raise CheckpointError("--calibrate runs the model, --dry-run does not: leave one of them away")
        said = overrides(args)
        _print_plan(plan(args.source, args.type, overrides=said, imatrix=args.imatrix, lora=args.lora))
        return 0
    if args.destination is None:
        raise CheckpointError("OUT is missing: the file to write")
    if args.compare_windows is not None and (args.compare is None or args.compare_windows < 1):
        raise CheckpointError("--compare-windows is for --compare, and at least 1")
    compare = None if args.compare is None else comparer(args.compare, args.compare_windows, quiet=args.quiet)
    with _terminated_as_interrupted(), progress_display(args.quiet) as progress:
        report = quantize(
            args.source,
            args.destination,
            args.type,
            overrides=overrides(args),
            imatrix=args.imatrix,
            calibrate=calibrator(quiet=args.quiet) if args.calibrate else None,
            lora=args.lora,
            requantize=args.requantize,
            compare=compare,
            force=args.force,
            progress=progress,
            kernel_progress=None if args.quiet else _kernel_line(),
        )
    if not args.quiet:
        for notice in report.notices:
            print(f"note: {notice}", file=sys.stderr)
        size, rate = report.bytes_out / 1e6, report.bytes_in / 1e6 / report.seconds
        print(
            f"{args.destination}: {size:.1f} MB, {report.tensors} tensors, {report.bits_per_weight:.2f} bits a weight, "
            f"in {report.seconds:.1f} s ({rate:.0f} MB/s)"
        )
    return 0


def _print_plan(made: Plan) -> None:
    """One line per tensor: name, shape, format now and then, bytes; then the sum."""
    width = max(len(info.name) for info in made.infos)
    for tensor, info in zip(made.source.tensors, made.infos, strict=True):
        shape = " x ".join(map(str, info.shape))
        print(f"{info.name:{width}}  {shape:>15}  {tensor.format.name:>6} -> {info.format.name:6}  {info.nbytes:>12,}")
    size = made.nbytes + len(made.header({}))
    print(f"{made.type}: {len(made.infos)} tensors, {size / 1e6:.1f} MB, {made.bits_per_weight:.2f} bits a weight")


def _kernel_line() -> Progress:
    """A `kernel_progress` that says once what takes the time."""
    said: list[str] = []

    def show(done: int, total: int, name: str) -> None:
        if not said:
            said.append(name)
            print(f"compiling {total} kernels, once", file=sys.stderr, flush=True)

    return show


def exit_status(error: BaseException) -> int:
    """The exit status for an error of `run`: 3 when the output could not be written, 130 for Ctrl-C, else 2."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_OUTPUT if isinstance(error, OutputError) else EXIT_INPUT


def main(arguments: list[str] | None = None) -> int:
    """`python -m edge_gemma.quantize`. Returns the exit status; prints an error as one line."""
    parser = argparse.ArgumentParser("edge-gemma quantize", description=DESCRIPTION)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        return run(args)
    except (EdgeGemmaError, OSError, KeyboardInterrupt) as error:
        text = "interrupted" if isinstance(error, KeyboardInterrupt) else " ".join(str(error).split())
        print(f"{parser.prog}: error: {text}", file=sys.stderr)
        return exit_status(error)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM clean up as Ctrl-C does, while we run in the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before: Any = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def progress_display(quiet: bool) -> Iterator[Progress | None]:
    """A `progress` for `quantize`: a bar on a terminal, else a line every few seconds, None where `quiet`."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from tqdm import tqdm

        with tqdm(unit="B", unit_scale=True, unit_divisor=1000, leave=False) as bar:

            def show(done: int, total: int, name: str) -> None:
                if done < bar.n:  # the next file
                    bar.reset()
                bar.total = total
                bar.set_description(name, refresh=False)
                bar.update(done - bar.n)

            yield show
    else:
        yield _line_printer()


def _line_printer() -> Progress:
    """Progress as plain lines, for logs: one every few seconds."""
    started = shown = time.monotonic()
    before = 0

    def show(done: int, total: int, name: str) -> None:
        nonlocal started, shown, before
        now = time.monotonic()
        if done < before:  # the next file
            started = shown = now
        before = done
        if now - shown < LINE_SECONDS and done < total:
            return
        shown = now
        rate = done / 1e6 / max(now - started, 1e-3)
        print(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB, {rate:.0f} MB/s, {name}", file=sys.stderr, flush=True)

    return show
