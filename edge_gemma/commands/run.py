"""`edge-gemma run`: continue a text. Knows the terminal and the API, no kernels."""

from __future__ import annotations

import argparse
import ctypes
import secrets
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from edge_gemma.commands import options, terminal

if TYPE_CHECKING:
    from edge_gemma.engine.sampler import SamplingParams
    from edge_gemma.gemma import Gemma
    from edge_gemma.streams import Completion

EXIT_INTERRUPTED = 130
NO_LIMIT, UNLIMITED = -1, 2**31
DESCRIPTION = """\
Continue a text. The continuation goes to stdout as it is made, a line about speed to stderr. Ctrl-C ends it.

The model's weights are used from the file where they lie; it must not be changed meanwhile."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument(
        "-f", "--file", metavar="FILE", help="read it from FILE (UTF-8), or from stdin for -, less one last line break"
    )
    add_generation(parser, 256)
    parser.add_argument("--parse-special", action="store_true", help="<end_of_turn> and the like become control tokens")
    parser.add_argument("--echo", action="store_true", help="print the prompt too")
    _add_sampling(parser)
    model = parser.add_argument_group("model")
    model.add_argument(
        "-c",
        "--context",
        type=options.integer,
        metavar="N",
        help="tokens of prompt and answer together; default: at most 8192",
    )
    options.add_threads(model)
    options.add_kv_type(model)
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="no line about speed")
    volume.add_argument("-v", "--verbose", action="store_true", help="more about what was done, on stderr")


def add_generation(parser: argparse.ArgumentParser, default: int) -> None:
    """-n."""
    parser.add_argument(
        "-n", "--max-tokens", type=_token_limit, default=default, metavar="N",
        help=f"most tokens to make, -1 for as many as fit; default: {default}",
    )  # fmt: skip


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add(
        "--temp",
        "--temperature",
        type=options.real,
        default=0.8,
        metavar="T",
        help="0 takes the best token; default: 0.8",
    )
    add(
        "-s",
        "--seed",
        type=options.integer,
        metavar="S",
        help="0 or more; the same seed gives the same text; default: random",
    )
    add("--top-k", type=options.integer, default=40, metavar="K", help="keep the K best tokens, 0 all; default: 40")
    add(
        "--top-p",
        type=options.real,
        default=0.95,
        metavar="P",
        help="keep the best tokens of probability P; default: 0.95",
    )
    add(
        "--min-p", type=options.real, default=0.05, metavar="P", help="keep those P times as probable as the best; 0.05"
    )
    add(
        "--repeat-penalty",
        type=options.real,
        default=1.0,
        metavar="X",
        help="divide logits of recent tokens; default: 1",
    )
    add(
        "--repeat-last-n",
        type=options.integer,
        default=64,
        metavar="N",
        help="how many tokens are recent, -1 all; default: 64",
    )
    add(
        "--presence-penalty", type=options.real, default=0.0, metavar="X", help="subtract for recent tokens; default: 0"
    )
    add("--frequency-penalty", type=options.real, default=0.0, metavar="X", help="subtract per recent use; default: 0")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be given several times")


def run(args: argparse.Namespace) -> int:
    """Generate and print."""
    prompt = _prompt(args)
    params = _sampling(args)  # what can be checked without the model is, before it is opened
    from edge_gemma.gemma import Gemma

    start, progress = time.perf_counter(), terminal.kernel_progress()
    with Gemma(args.model, args.context, args.threads, args.kv_type, progress=progress) as model:
        _return_free_memory()
        opened = time.perf_counter() - start
        if args.echo:
            terminal.write(prompt)
        ids = model.tokenize(prompt, parse_special=args.parse_special)
        answer, interrupted = print_stream(model, ids, args.max_tokens, params, stop=args.stop)
        terminal.write("\n")
        if args.verbose:
            terminal.say(_details(model, params, answer, opened))
    if not args.quiet:
        terminal.say(speed(answer))
    return EXIT_INTERRUPTED if interrupted else 0


def _return_free_memory() -> None:
    """What opening a model has left in the heap, 7 MB, back to the system: with glibc, which does so when asked."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def print_stream(
    model: Gemma, prompt: list[int], max_tokens: int, params: SamplingParams, *, stop: list[str]
) -> tuple[Completion, bool]:
    """Print the continuation of `prompt` as it is made; the whole of it, and whether Ctrl-C ended it."""
    from dataclasses import asdict

    reading = terminal.prompt_progress()

    def on_progress(done: int, total: int) -> None:
        reading(done, total)
        if interrupt.seen:  # it came before the stream began, which forgets earlier cancels
            model.cancel()

    limit = UNLIMITED if max_tokens == NO_LIMIT else max_tokens
    with terminal.Interrupt(model.cancel) as interrupt:
        stream = model.stream(prompt, max_tokens=limit, stop=stop, on_progress=on_progress, **asdict(params))
        for piece in stream:
            terminal.write(piece)
    return stream.completion, interrupt.seen


def speed(answer: Completion) -> str:
    """One line on how fast it was."""
    if answer.timings is None:
        return f"prompt {answer.usage.prompt_tokens} tokens, not read"
    return (
        f"prompt {_rate(answer.usage.prompt_tokens, answer.timings.prompt_per_second)}, "
        f"generation {_rate(answer.usage.completion_tokens, answer.timings.completion_per_second)}"
    )


def _rate(tokens: int, per_second: float) -> str:
    return f"{tokens} token{'s' if tokens != 1 else ''}" + (f" at {per_second:.1f} tok/s" if per_second else "")


def _details(model: Gemma, params: SamplingParams, answer: Completion, opened: float) -> str:
    plan = model.plan
    sampling = "greedy" if params.temperature == 0 else f"seed {params.seed}"
    return (
        f"opened in {opened:.2f} s, context {model.context}, {model.threads} threads, "
        f"memory {plan.weights / 1e6:.0f} MB of the file + {plan.own / 1e6:.0f} MB\n"
        f"{sampling}, ended by {answer.finish_reason}"
    )


def _prompt(args: argparse.Namespace) -> str:
    if args.file is not None:
        return options.read_text(args.file).removesuffix("\n").removesuffix("\r")
    text: str = args.prompt
    return text


def _sampling(args: argparse.Namespace) -> SamplingParams:
    """The sampling arguments, checked; a seed is drawn here so that it can be told."""
    from edge_gemma.engine.sampler import SamplingParams
    from edge_gemma.text.stop_strings import StopStrings

    StopStrings(args.stop)
    return SamplingParams(
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repeat_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        penalty_last_n=args.repeat_last_n,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
    )


def _token_limit(text: str) -> int:
    """The value of -n. argparse names the argument."""
    limit = options.integer(text)
    if limit != NO_LIMIT and not 1 <= limit <= UNLIMITED:
        raise argparse.ArgumentTypeError(f"{limit} is neither {NO_LIMIT} nor in 1..{UNLIMITED}")
    return limit
