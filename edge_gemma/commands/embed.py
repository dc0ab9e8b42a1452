"""`edge-gemma embed`: embeddings of texts, one JSON list a line, or a NumPy file."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from edge_gemma.commands import options, terminal

DESCRIPTION = """Embeddings of texts by an embedding model: for each text a list of numbers of length 1, whose products
say how near texts are. Texts are arguments, or the lines of a file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    options.add_model(parser)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text; or use -f")
    parser.add_argument("-f", "--file", metavar="FILE", help="texts are the lines of FILE (UTF-8), of stdin for -")
    parser.add_argument("-o", "--output", metavar="OUT.npy", help="write a NumPy array, float32 (texts, dimensions)")
    parser.add_argument("--prompt", metavar="NAME", help="what the texts are for, such as query or document")
    parser.add_argument("--dimensions", type=options.positive, metavar="N", help="keep the first N of each embedding")
    parser.add_argument("--truncate", action="store_true", help="cut off texts that are too long")
    parser.add_argument("-c", "--context", type=options.positive, metavar="N", help="most tokens of a text")
    options.add_threads(parser)


def run(args: argparse.Namespace) -> int:
    """Print or write the embeddings."""
    if bool(args.texts) == (args.file is not None):
        raise ValueError("give TEXTs or -f FILE, one of them")
    texts = args.texts or options.read_text(args.file).splitlines()
    from edge_gemma import Gemma
    from edge_gemma.atomic_file import AtomicFile

    with Gemma(args.model, args.context, args.threads, progress=terminal.kernel_progress()) as model:
        rows = model.embed(texts, prompt=args.prompt, dimensions=args.dimensions, truncate=args.truncate)
    if args.output is None:
        terminal.write("".join(json.dumps([round(float(x), 8) for x in row]) + "\n" for row in rows))
        return 0
    import numpy as np

    made = io.BytesIO()
    np.save(made, rows)
    with AtomicFile(Path(args.output), made.tell(), force=True) as file:
        file.write(made.getvalue())
        file.flush()
    return 0
