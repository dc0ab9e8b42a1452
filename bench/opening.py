"""What opening a model costs: seconds and memory of the reader and of the tokenizer, each in a process of its own.

    python bench/opening.py MODEL.gguf [--repeats 7]

Warm means that the file is in the page cache. Memory is anonymous memory: the mapping itself is shared and not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ONE = """
import json, sys, time
import psutil
from edge_gemma.models.config import GemmaConfig
from edge_gemma.gguf.file import GgufFile
from edge_gemma.text.tokenizer import Tokenizer
from edge_gemma.models.weights import Weights

def anonymous():
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)

before, start = anonymous(), time.perf_counter()
file = GgufFile.open(sys.argv[1])
Weights.bind(file, GemmaConfig.from_gguf(file))
read, between = time.perf_counter(), anonymous()
tokenizer = Tokenizer.from_gguf(file)
done, after = time.perf_counter(), anonymous()
print(json.dumps({"reader_s": read - start, "tokenizer_s": done - read, "all_s": done - start,
                  "reader_bytes": between - before, "all_bytes": after - before}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the opening of a model file.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    command = [sys.executable, "-c", ONE, str(args.model)]
    rows = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(args.repeats + 1)
    ][1:]  # the first one warms the page cache
    for key in rows[0]:
        values = [row[key] for row in rows]
        scale, unit = (1, "s") if key.endswith("_s") else (1e-6, "MB")
        print(
            f"{key:14} median {statistics.median(values) * scale:7.3f} {unit}, worst {max(values) * scale:.3f} {unit}"
        )


if __name__ == "__main__":
    main()
