"""`edge-gemma`: finds the subcommand, and turns every error into one line and an exit status. Knows no model.

Exit status: 0 done, 1 anything not listed here, 2 wrong usage or input, 3 output could not be written,
130 interrupted by Ctrl-C, 141 the reader of our output went away.
"""

from __future__ import annotations

import os
import traceback
from importlib import import_module

from edge_gemma import __version__
from edge_gemma.commands import terminal
from edge_gemma.commands.argument_types import EXIT_INPUT, Parser
from edge_gemma.errors import EdgeGemmaError, OutputError, is_out_of_memory

EXIT_OTHER, EXIT_OUTPUT, EXIT_INTERRUPTED, EXIT_PIPE = 1, 3, 130, 141

COMMANDS = {
    "demo": ("edge_gemma.commands.demo", "quantize a small real Gemma, run it, and show speed and memory"),
    "run": ("edge_gemma.commands.run", "continue a text with a model"),
    "quantize": ("edge_gemma.commands.quantize", "convert a Hugging Face folder or a GGUF file to a smaller GGUF file"),
    "embed": ("edge_gemma.commands.embed", "embeddings of texts by an embedding model"),
    "info": ("edge_gemma.commands.info", "describe a model file, and the memory it will take"),
    "tokenize": ("edge_gemma.commands.tokenize", "show the tokens of a text"),
    "bench": ("edge_gemma.commands.bench", "measure prompt and generation speed"),
    "tune": ("edge_gemma.commands.tune", "measure how this machine reads weights fastest"),
    "perplexity": ("edge_gemma.commands.perplexity", "measure how well a model predicts a text"),
    "compare": ("edge_gemma.commands.compare", "measure how far a model is from another, usually its original"),
    "verify": ("edge_gemma.commands.verify", "check that a model file is sound, unchanged, and what it was made of"),
    "imatrix": ("edge_gemma.commands.imatrix", "collect an importance matrix from a text, for better quantizing"),
}
EPILOG = """\
examples:
  edge-gemma demo
  edge-gemma quantize ~/models/gemma-2-2b gemma-2-2b-q4_0.gguf --type Q4_0
  edge-gemma run gemma-2-2b-q4_0.gguf -p "The capital of France is" -n 64
  edge-gemma bench gemma-2-2b-q4_0.gguf -p 512 -n 128 -t 1,2

environment:
  EDGE_GEMMA_CACHE_DIR
      your own folder for compiled kernels and the demo's model
  EDGE_GEMMA_ISA
      use a lower instruction set: avxvnni, avx2, neon, generic
  EDGE_GEMMA_COMPILE_WORKERS
      the most processes to help compile kernels (7); 0 for none
  EDGE_GEMMA_TUNE
      off: do not measure at the first start how weights are read fastest
  EDGE_GEMMA_DEBUG
      set to 1 for a traceback with each error

"edge-gemma COMMAND --help" explains each command."""


def parser() -> Parser:
    """The parser of the whole command line; its result has the subcommand's function as `run`."""
    top = Parser(prog="edge-gemma", description="Run Google's Gemma models on an ordinary CPU.", epilog=EPILOG)
    top.add_argument("--version", action="version", version=f"edge-gemma {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        command = import_module(module)
        sub = commands.add_parser(name, help=summary, description=command.__dict__.get("DESCRIPTION", summary))
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's). Returns the exit status; prints errors."""
    terminal.prepare()
    try:
        args = parser().parse_args(arguments)
        status: int = args.run(args)
        terminal.flush()
    except SystemExit as end:  # --help, --version, wrong usage
        return end.code if isinstance(end.code, int) else EXIT_OTHER
    except BaseException as error:
        return report(error)
    return status


def report(error: BaseException) -> int:
    """Print `error` as one line, or as a traceback where EDGE_GEMMA_DEBUG is set. Returns the exit status for it."""
    terminal.discard_output()
    terminal.Status().clear()
    status = exit_status(error)
    if status == EXIT_PIPE:
        return status
    if os.environ.get("EDGE_GEMMA_DEBUG", "") not in ("", "0"):
        terminal.say(traceback.format_exc())
    terminal.say("edge-gemma: interrupted" if status == EXIT_INTERRUPTED else f"edge-gemma: error: {describe(error)}")
    return status


def exit_status(error: BaseException) -> int:
    """The exit status for an error."""
    match error:
        case KeyboardInterrupt():
            return EXIT_INTERRUPTED
        case BrokenPipeError():
            return EXIT_PIPE
        case OutputError():
            return EXIT_OUTPUT
        case OSError() if is_out_of_memory(error):
            return EXIT_OTHER
        case ValueError() | OSError():
            return EXIT_INPUT
        case _:
            return EXIT_OTHER


def describe(error: BaseException) -> str:
    """One line for `error`."""
    match error:
        case EdgeGemmaError():
            text = str(error)
        case OSError() | MemoryError() if is_out_of_memory(error):
            text = "out of memory"
        case OSError(filename=str() | bytes() as name, strerror=str() as reason):
            text = f"{os.fsdecode(name)}: {reason}" if name else reason
        case ValueError() | OSError():
            text = str(error)
        case _:
            text = f"internal error, {type(error).__name__}: {error}; EDGE_GEMMA_DEBUG=1 shows where"
    return terminal.one_line(text) or type(error).__name__
