"""Measure where the time goes, and put it into docs/performance.md, between its markers.

    python bench/performance.py "2B=MODEL.gguf" "2B=MODEL.gguf@4096" ...   # measure these, and rewrite the tables
    python bench/performance.py                                            # rewrite the tables from what is stored
    python bench/performance.py --check                                    # exit 1 if the document has other tables

An argument is NAME=MODEL, with @DEPTH for that many tokens of context. Each is `edge-gemma bench --profile` in a
process of its own, with the limits of the machine measured before and after; bench/results/profile.json keeps it, in
place of what was there for this name and depth. Let the machine be idle.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT, DOCUMENT = ROOT / "bench/results/profile.json", ROOT / "docs/performance.md"
BEGIN, END = "<!-- profile:begin -->", "<!-- profile:end -->"
Entry = dict[str, Any]
"""name, date, profile (as `bench --profile --json` prints it), limits."""

COLUMNS = "| operation | decode us | share | GB/s | chunk ms | share | GMAC/s |\n|---|---:|---:|---:|---:|---:|---:|\n"


# ---- measuring ---------------------------------------------------------------------------------------------------


def run_json(*command: str) -> Any:
    """The JSON that a Python program of this checkout prints."""
    paths = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": paths}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def asked_for(argument: str) -> tuple[str, str, int]:
    """Name, path and depth of NAME=MODEL or NAME=MODEL@DEPTH."""
    name, _, place = argument.rpartition("=")
    path, _, depth = place.rpartition("@")
    if not path or not depth.isdecimal():
        path, depth = place, "0"
    return name or Path(path).stem, path, int(depth)


def measure(argument: str, threads: int, prompt: int, steps: int, repeats: int) -> Entry:
    """The entry of an argument."""
    name, model, depth = asked_for(argument)
    sizes = ["-p", str(prompt), "-n", str(steps), "-d", str(depth), "-t", str(threads), "-r", str(repeats)]
    limits = [_limits(threads)]
    profile = run_json("-m", "edge_gemma", "bench", model, "--profile", "--json", *sizes)
    profile["model_filename"] = Path(model).name
    limits.append(_limits(threads))
    return {
        "name": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "limits": {key: statistics.mean(one[key] for one in limits) for key in limits[0]},
        "profile": profile,
    }


def _limits(threads: int) -> dict[str, float]:
    row = run_json(str(ROOT / "bench/limits.py"), "-t", str(threads), "--json")
    return {key: row[key] for key in ("read_bytes_per_s", "dot_macs_per_s")}


def merged(entries: list[Entry], new: list[Entry]) -> list[Entry]:
    """`entries` with `new` ones in the place of those of the same name and depth, and the others after them."""
    by_key = {_key(entry): entry for entry in [*entries, *new]}
    return list(by_key.values())


def _key(entry: Entry) -> tuple[str, int]:
    return entry["name"], entry["profile"]["n_depth"]


# ---- the tables --------------------------------------------------------------------------------------------------


def generated(entries: list[Entry]) -> str:
    """What belongs between the markers."""
    return "\n" + "\n".join(_section(entry) for entry in entries) + "\n"


def _section(entry: Entry) -> str:
    profile = entry["profile"]
    depth, prefill = profile["n_depth"], profile["prefill"]
    title = f"### {entry['name']}" + (f", after {depth} tokens" if depth else "")
    parts = {side: {part["label"]: part for part in profile[side]["parts"]} for side in ("decode", "prefill")}
    labels = dict.fromkeys([*parts["decode"], *parts["prefill"]])
    rows = "".join(_row(label, parts["decode"].get(label), parts["prefill"].get(label)) for label in labels)
    columns = COLUMNS.replace("chunk", f"chunk of {prefill['rows']},")
    return f"{title}\n\n{columns}{rows}\n{_sentences(entry)}"


def _row(label: str, decode: dict[str, Any] | None, prefill: dict[str, Any] | None) -> str:
    cells = [label, "", "", "", "", "", ""]
    one = decode or prefill
    if one and one["formats"]:
        cells[0] += f" ({', '.join(one['formats'])})"
    if decode:
        cells[1:3] = f"{decode['us']:.0f}", f"{decode['share']:.1%}"
        cells[3] = f"{decode['gb_per_s']:.1f}" if decode["gb_per_s"] >= 1 else ""
    if prefill:
        cells[4:6] = f"{prefill['us'] / 1e3:.1f}", f"{prefill['share']:.1%}"
        cells[6] = f"{prefill['gmac_per_s']:.0f}" if prefill["macs"] else ""
    return "| " + " | ".join(cells) + " |\n"


def _sentences(entry: Entry) -> str:
    """What the whole steps come to, beside the limits."""
    profile, limits = entry["profile"], entry["limits"]
    decode, prefill, outside = profile["decode"], profile["prefill"], profile["outside"]
    read = sum(part["weight_bytes"] + part["kv_bytes"] for part in decode["parts"]) / decode["whole_us"] / 1e3
    products = [part for part in prefill["parts"] if part["label"].startswith("matmul")]
    rate = sum(part["macs"] for part in products) / sum(part["us"] for part in products) / 1e3
    bandwidth, peak = limits["read_bytes_per_s"] / 1e9, limits["dot_macs_per_s"] / 1e9
    without = prefill["whole_us"] / prefill["rows"]
    return (
        f"Decode step: {decode['whole_us'] / 1e3:.2f} ms in the program, {read:.1f} GB/s of weights and cache, where a "
        f"plain pass over memory read {bandwidth:.1f} GB/s beside it ({read / bandwidth:.0%}). Chunk: "
        f"{prefill['whole_us'] / 1e3:.1f} ms, {without:.0f} us a token; its products {rate:.0f} GMAC/s, "
        f"{rate / peak:.0%} of the {peak:.0f} of the bare instruction. Outside the program, of a streamed token "
        f"{outside['share']:.1%}: waking the threads {outside['threads_us']:.0f} us, sampling "
        f"{outside['sampling_us']:.0f}, detokenizing {outside['detokenizing_us']:.0f}, Python "
        f"{outside['python_us']:.0f}. ({entry['date']}, {profile['cpu_info']}, {profile['isa']}, "
        f"{profile['n_threads']} threads, medians of {profile['repetitions']}.)\n"
    )


def filled(text: str, tables: str) -> str:
    """`text` with `tables` between the markers. Raises ValueError without markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{tables}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure where the time goes, and generate the tables.")
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL[@DEPTH]")
    parser.add_argument("-t", dest="threads", type=int, default=2)
    parser.add_argument("-p", dest="prompt", type=int, default=256)
    parser.add_argument("-n", dest="steps", type=int, default=32)
    parser.add_argument("-r", dest="repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the document has other tables")
    args = parser.parse_args()
    entries: list[Entry] = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else []
    if args.models and not args.check:
        new = [measure(model, args.threads, args.prompt, args.steps, args.repeats) for model in args.models]
        entries = merged(entries, new)
        RESULT.write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    text = DOCUMENT.read_text("utf-8")
    wanted = filled(text, generated(entries))
    if args.check:
        if wanted != text:
            print(
                f"{DOCUMENT.name} does not show {RESULT.name}; `python {Path(__file__).name}` makes it", file=sys.stderr
            )
        return int(wanted != text)
    DOCUMENT.write_text(wanted, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
