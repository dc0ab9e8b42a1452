"""This project and llama.cpp on the same files, in one run, by turns.

    python bench/side_by_side.py --peer-python PYTHON "NAME=MODEL.gguf" ... -o RESULT.json

PYTHON is an interpreter that has llama-cpp-python, built from source for this machine. Every round runs ours, then the
peer, each in a process of its own that warms up before it measures; ratios are taken round by round, so that a machine
whose speed drifts does not distort them. The machine's limits are measured in every round, beside the two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROMPT = "The quick brown fox jumps over the lazy dog, and then it"


def run_json(command: list[str]) -> Any:
    """The JSON that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def environment(**more: str) -> dict[str, str]:
    """Ours, with the checkout importable."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def ours(model: Path, prompt: int, generate: int, depth: int, threads: int) -> dict[str, float]:
    """Tokens per second of one process."""
    options = ["-p", str(prompt), "-n", str(generate), "-d", str(depth), "-t", str(threads), "-r", "1", "--json"]
    rows = run_json([sys.executable, "-m", "edge_gemma", "bench", str(model), *options])
    return {("prompt" if row["n_prompt"] else "generate"): row["avg_ts"] for row in rows}


def peer(python: str, model: Path, prompt: int, generate: int, depth: int, threads: int) -> dict[str, float]:
    """Tokens per second of one process of llama.cpp."""
    options = ["-p", str(prompt), "-n", str(generate), "-d", str(depth), "-t", str(threads), "-r", "1", "--json"]
    row = run_json([python, "-P", str(HERE / "peer_llama.py"), str(model), *options])
    return {key: row[key]["mean"] for key in ("prompt", "generate") if row[key]}


def limits(threads: int, size: int) -> dict[str, float]:
    """Bandwidth and dot-product peak, just now."""
    row = run_json([sys.executable, str(HERE / "limits.py"), "-t", str(threads), "--bytes", str(size), "--json"])
    return {key: row[key] for key in ("read_bytes_per_s", "dot_macs_per_s")}


# ---- start and memory --------------------------------------------------------------------------------------------


def first_token(model: Path, threads: int, cache: str | None) -> dict[str, float]:
    """Seconds from starting a process to its first piece of text, and the memory it has at its end.

    cache: a folder for compiled kernels; a new one makes it the first start ever.
    """
    command = [sys.executable, "-m", "edge_gemma", "run", str(model), "-p", PROMPT, "-n", "2", "--temp", "0"]
    more = {"EDGE_GEMMA_CACHE_DIR": cache} if cache else {}
    start = time.perf_counter()
    with subprocess.Popen(
        [*command, "--threads", str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(PYTHONUNBUFFERED="1", **more),
    ) as process:
        assert process.stdout
        if not process.stdout.read(1):
            raise SystemExit(f"{model}: no text came")
        seconds = time.perf_counter() - start
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return {"seconds": seconds, "peak_rss_bytes": usage.ru_maxrss * 1024}


def starts(model: Path, threads: int) -> dict[str, Any]:
    """The first start ever, and the median of five warm ones."""
    with tempfile.TemporaryDirectory() as folder:
        cold = first_token(model, threads, folder)
        warm = [first_token(model, threads, folder) for _ in range(5)]
    return {
        "cold_seconds": cold["seconds"],
        "warm_seconds": statistics.median(w["seconds"] for w in warm),
        "warm_values": [w["seconds"] for w in warm],
        "peak_rss_bytes": statistics.median(w["peak_rss_bytes"] for w in warm),
        "file_bytes": model.stat().st_size,
    }


# ---- the comparison ----------------------------------------------------------------------------------------------


def compare(named: str, args: argparse.Namespace) -> dict[str, Any]:
    """All rounds of one model, and medians. `named` is a path, or NAME=path."""
    name, _, path = named.rpartition("=")
    model = Path(path)
    shape = (args.prompt, args.generate, args.depth, args.threads)
    rounds = []
    for number in range(args.rounds):
        print(f"{model.name}: round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        limit = limits(args.threads, min(model.stat().st_size, 1 << 30))
        rounds.append({"ours": ours(model, *shape), "peer": peer(args.peer_python, model, *shape), "limits": limit})
    result: dict[str, Any] = {"model": name or model.name, "file_bytes": model.stat().st_size, "rounds": rounds}
    for kind in rounds[0]["ours"]:
        result[kind] = {
            "ours": statistics.median(r["ours"][kind] for r in rounds),
            "peer": statistics.median(r["peer"][kind] for r in rounds),
            "ratio": statistics.median(r["ours"][kind] / r["peer"][kind] for r in rounds),
        }
    for key in rounds[0]["limits"]:
        result[key] = statistics.median(r["limits"][key] for r in rounds)
    return result | {"starts": starts(model, args.threads)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare with llama.cpp on the same files.")
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL")
    parser.add_argument("--peer-python", required=True, help="an interpreter that has llama-cpp-python")
    parser.add_argument("-p", dest="prompt", type=int, default=512)
    parser.add_argument("-n", dest="generate", type=int, default=32)
    parser.add_argument("-d", dest="depth", type=int, default=0)
    parser.add_argument("-t", dest="threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", dest="output", type=Path, required=True, help="the result, as JSON")
    args = parser.parse_args()
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": args.threads,
        "n_prompt": args.prompt,
        "n_gen": args.generate,
        "models": [compare(model, args) for model in args.models],
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(f"written to {args.output}; `python bench/report.py {args.output}` puts it into the README")


if __name__ == "__main__":
    main()
