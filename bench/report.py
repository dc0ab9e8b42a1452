"""Put a result of `side_by_side.py` into the README, between its markers.

python bench/report.py bench/results/RESULT.json            # rewrite the README's table
python bench/report.py bench/results/RESULT.json --check    # exit 1 if the README's table is another
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
HEADER = (
    "| model | prompt tok/s | llama.cpp | ratio | generated tok/s | llama.cpp | ratio | first token | memory | file |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


def table(result: dict[str, Any]) -> str:
    """The table in Markdown, with a sentence that says where the figures come from."""
    rows = "".join(_row(model) for model in result["models"])
    bandwidth = max(model["read_bytes_per_s"] for model in result["models"]) / 1e9
    peak = max(model["dot_macs_per_s"] for model in result["models"]) / 1e9
    return (
        f"{HEADER}{rows}\n"
        f"Measured {result['date']} on {result['machine']} (a shared virtual machine: ratios count, not absolute "
        f"figures), {result['threads']} threads, prompts of {result['n_prompt']} tokens, {result['n_gen']} generated; "
        f"medians of runs by turns. In the same minutes the machine read {bandwidth:.0f} GB/s and did {peak:.0f} "
        "billion int8 products per second. First token: from starting the process, kernels compiled before; memory: "
        "the most that was resident, the mapped file included.\n"
    )


def _row(model: dict[str, Any]) -> str:
    prompt, generate, starts = model["prompt"], model["generate"], model["starts"]
    cells = [
        model["model"],
        *(f"{prompt['ours']:.0f}", f"{prompt['peer']:.0f}", f"{prompt['ratio']:.2f}"),
        *(f"{generate['ours']:.1f}", f"{generate['peer']:.1f}", f"{generate['ratio']:.2f}"),
        f"{starts['warm_seconds']:.2f} s",
        f"{starts['peak_rss_bytes'] / 1e6:.0f} MB",
        f"{starts['file_bytes'] / 1e6:.0f} MB",
    ]
    return "| " + " | ".join(cells) + " |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate the README's table of figures.")
    parser.add_argument("result", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the README differs")
    args = parser.parse_args()
    text = README.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    wanted = f"{before}{BEGIN}\n{table(json.loads(args.result.read_text('utf-8')))}{END}{after}"
    if args.check:
        sys.exit(wanted != text)
    README.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
