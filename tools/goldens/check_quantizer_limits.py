"""What the test suite has in small, in earnest: 200 kills, a disk that fills up (needs root), a checkpoint of 8 GB.

    python tools/goldens/check_quantizer_limits.py WORK

WORK is an empty folder with 4 GB free. Prints what was found and exits with 1 if anything is wrong.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.quantize import tiny_checkpoint as tiny  # noqa: E402
from tests.quantize.forking import random_kills  # noqa: E402

KILLS = 200
HIDDEN, INTERMEDIATE = 4096, 163840  # three matrices of 2.7 GB
MEMORY_MB = 400
OLD = b"what was there before"


def main(work: Path) -> int:
    checks = {"200 kills": kills, "a disk that fills up": full_disk, "8 GB": large_checkpoint}
    wrong = 0
    for name, check in checks.items():
        folder = work / check.__name__
        folder.mkdir()
        problem = check(folder)
        wrong += bool(problem)
        print(f"{name}: {problem or 'as it should be'}", flush=True)
    return 1 if wrong else 0


def kills(folder: Path) -> str:
    """SIGKILL at random times of a conversion that takes a tenth of a second."""
    tiny.write_checkpoint(folder / "hf", "gemma3")
    (folder / "work").mkdir()
    cases = json.dumps([asdict(case) for case in random_kills(KILLS, seed=time.time_ns())])
    command = [sys.executable, "-m", "tests.quantize.forking", str(folder / "hf"), str(folder / "work"), cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    outcomes = json.loads(done.stdout)["outcomes"]
    print("  ", dict(Counter((o["status"], o["destination"], o["leftovers"]) for o in outcomes)))
    bad = [o for o in outcomes if o["destination"] == "broken" or o["rerun"] or o["status"] not in (0, -9)]
    return f"{len(bad)} outcomes are wrong, such as {bad[0]}" if bad else ""


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A tmpfs of `size` bytes on `folder`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(folder: Path) -> str:
    """The disk has room when it is asked, and none left when half is written; then none from the start."""
    tiny.write_checkpoint(folder / "hf", "gemma", hidden_size=1024, intermediate_size=8192)
    disk = folder / "disk"
    disk.mkdir()
    with small_disk(disk, 240 << 20):
        (disk / "out.gguf").write_bytes(OLD)
        code = FILL.replace("FILLER", str(disk / "filler"))
        full = run([sys.executable, "-c", code, str(folder / "hf"), str(disk / "out.gguf")])
        before = run([*QUANTIZE, str(folder / "hf"), str(disk / "out.gguf")])
        print("  ", full.stderr.strip(), "|", before.stderr.strip())
        left = sorted(entry.name for entry in disk.iterdir())
        intact = (disk / "out.gguf").read_bytes() == OLD
    if "No space left" not in full.stderr or "are free" not in before.stderr:
        return "the messages are others"
    if (full.returncode, before.returncode) != (3, 3):
        return f"exit statuses {full.returncode} and {before.returncode}"
    return (
        "" if intact and left == ["filler", "out.gguf"] else f"the disk holds {left}, the old file is intact: {intact}"
    )


QUANTIZE = [sys.executable, "-m", "edge_gemma.quantize", "--force", "--quiet", "--type", "F16"]
FILL = """
import os, sys
from edge_gemma.commands import quantize as cli
from edge_gemma.quantize import convert
original = convert.quantize
def fill(done, total, name):
    if done > total // 2 and not os.path.exists("FILLER"):
        with open("FILLER", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass
convert.quantize = lambda *a, **o: original(*a, **o | {"progress": fill})
sys.exit(cli.main([*sys.argv[1:], "--force", "--quiet", "--type", "F16"]))
"""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def large_checkpoint(folder: Path) -> str:
    """Anonymous memory while 8 GB of weights, which are a hole on the disk, are quantized."""
    sizes = {"num_hidden_layers": 1, "hidden_size": HIDDEN, "head_dim": 256}
    config = tiny.make_config("gemma", intermediate_size=INTERMEDIATE, **sizes)
    shapes = tiny.hf_tensors({**config, "intermediate_size": 1}, "gemma")
    header, offset = {}, 0
    for name, values in shapes.items():
        shape = [INTERMEDIATE if n == 1 else n for n in values.shape]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * math.prod(shape)]}
        offset += 4 * math.prod(shape)
    (folder / "hf").mkdir()
    (folder / "hf/config.json").write_text(json.dumps(config))
    tiny.write_tokenizer(folder / "hf")
    path = folder / "hf/model.safetensors"
    tiny.write_raw_safetensors(path, json.dumps(header).encode(), b"")
    os.truncate(path, path.stat().st_size + offset)
    started = time.monotonic()
    command = [sys.executable, "-m", "edge_gemma.quantize", str(folder / "hf"), str(folder / "out.gguf"), "--quiet"]
    process = subprocess.Popen(command, cwd=ROOT)
    peak = 0
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1]) >> 10 if found else 0)
        time.sleep(0.02)
    print(f"   {offset / 1e9:.1f} GB, peak {peak} MB, {time.monotonic() - started:.0f} s")
    (folder / "out.gguf").unlink(missing_ok=True)
    return "" if process.returncode == 0 and peak < MEMORY_MB else f"exit status {process.returncode}, peak {peak} MB"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
