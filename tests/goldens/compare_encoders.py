"""Our quantizer beside llama-quantize on the real Gemma 3 270M: size, weight error, divergence; writes docs/quality.md.

    python -m tests.goldens.compare_encoders theirs SOURCE FOLDER [--imatrix FILE]   needs llama-cpp-python
    python -m tests.goldens.compare_encoders ours SOURCE FOLDER [--imatrix FILE]
    python -m tests.goldens.compare_encoders measure SOURCE FOLDER                   every file there is, once
    python -m tests.goldens.compare_encoders report FOLDER                           the tables, into docs/quality.md

SOURCE is the model as F32 GGUF. Files are called `ours-Q4_0.gguf`, `theirs-Q4_0-imatrix.gguf` and so on. The text and
the formulas are those of `real.py`; the reference is the source itself, run by us.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.goldens.real import COMPARED, DATA, WINDOW, divergence, reference_top, windows

DOCS = Path(__file__).parents[2] / "docs/quality.md"
BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
MIXES = [
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M",
    "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",
]  # fmt: skip
PURE = ["Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"]
"""Also with every matrix in this one format, the embedding too: what the format itself does."""

Floats = npt.NDArray[np.float32]


def tasks() -> list[tuple[str, bool]]:
    return [(mix, False) for mix in MIXES] + [(mix, True) for mix in PURE]


def file_name(maker: str, mix: str, pure: bool, imatrix: object) -> str:
    return f"{maker}-{mix}{'-pure' if pure else ''}{'-imatrix' if imatrix else ''}.gguf"


def make_ours(source: Path, folder: Path, imatrix: Path | None) -> None:
    from edge_gemma.quantize import quantize
    from edge_gemma.quantize.recipe import Overrides

    for mix, pure in [*tasks(), ("EG4", False), ("EG8", False)]:
        out = folder / file_name("ours", mix, pure, imatrix)
        quantize(source, out, mix, overrides=Overrides(pure=pure), imatrix=imatrix, force=True)
        print(out, flush=True)


def make_theirs(source: Path, folder: Path, imatrix: Path | None) -> None:
    import llama_cpp

    from tests.goldens.record_recipes import FILE_TYPES

    llama_cpp.llama_backend_init()
    entries = _peer_imatrix(imatrix) if imatrix else None
    for mix, pure in tasks():
        out = folder / file_name("theirs", mix, pure, imatrix)
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.pure = FILE_TYPES[mix], 2, pure
        if entries is not None:
            params.imatrix = ctypes.cast(entries, type(params.imatrix))
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
        if status != 0:
            raise RuntimeError(f"llama_model_quantize to {mix} gave {status}")


def _peer_imatrix(path: Path) -> Any:
    """llama_model_imatrix_data entries (name, data, size), ended by a null name; kept alive by the process."""
    import gguf
    import llama_cpp

    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(path).tensors}
    sums = {name.removesuffix(".in_sum2"): data.ravel() for name, data in tensors.items() if name.endswith(".in_sum2")}
    means = {name: data / tensors[name + ".counts"].ravel()[0] for name, data in sums.items()}
    entries = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, data) in zip(entries, means.items(), strict=False):
        values = np.ascontiguousarray(data, np.float32)
        _KEPT.append(values)
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


_KEPT: list[Floats] = []


def logits(path: Path, count: int = COMPARED) -> Iterator[Floats]:
    """(count, WINDOW - 1, vocabulary), one window at a time."""
    from edge_gemma import Gemma

    with np.load(DATA / "text_ids.npz") as file:
        text = windows(file["ids"])
    with Gemma(path, context=WINDOW, threads=2, kv_type="f32") as model:
        for window in text[:count]:
            yield model.logits(window.tolist())[:-1]


def reference(source: Path, folder: Path) -> tuple[npt.NDArray[np.int32], Floats]:
    """Best ids and their log-probabilities in the source's own run, (COMPARED, WINDOW - 1, TOP)."""
    path = folder / "reference.npz"
    if not path.exists():
        tops = [[reference_top(row) for row in window] for window in logits(source)]
        np.savez(path, ids=[[i for i, _ in w] for w in tops], log_p=[[p for _, p in w] for w in tops])
    with np.load(path) as file:
        return file["ids"], file["log_p"]


def divergences(path: Path, ids: npt.NDArray[np.int32], log_p: Floats) -> dict[str, float]:
    """Mean divergence and share of positions with the same best token."""
    values, same = [], []
    for window, best, log in zip(logits(path, len(ids)), ids, log_p, strict=True):
        values += [divergence(*row) for row in zip(best, log, window, strict=True)]
        same.append((window.argmax(axis=1) == best[:, 0]).mean())
    return {"kl": float(np.mean(values)), "top_1": float(np.mean(same))}


def weight_error(path: Path, source: Path) -> dict[str, float]:
    """RMS of the errors of all matrices over RMS of their values; a sixteenth of the embedding's rows."""
    from edge_gemma.gguf import GgufFile
    from edge_gemma.quantize import blocks

    error = power = 0.0
    with GgufFile.open(path) as file, GgufFile.open(source) as original:
        for name, tensor in file.tensors.items():
            if len(tensor.shape) == 2:
                step = 16 if name == "token_embd.weight" else 1
                exact = blocks.decode(original.data(original.tensors[name])[::step], "F32").astype(np.float64)
                raw = np.ascontiguousarray(file.data(tensor)[::step])
                error += step * float(
                    ((blocks.decode(raw, tensor.format.name).reshape(exact.shape) - exact) ** 2).sum()
                )
                power += step * float((exact**2).sum())
    return {"rmse": float(np.sqrt(error / power))}


def measure(source: Path, folder: Path) -> None:
    """Add to results.json what is not in it."""
    results_path = folder / "results.json"
    results = json.loads(results_path.read_text()) if results_path.exists() else {}
    top = reference(source, folder)
    for path in sorted(folder.glob("*.gguf")):
        if path.stem not in results:
            entry = {"bytes": path.stat().st_size} | weight_error(path, source) | divergences(path, *top)
            results[path.stem] = entry
            results_path.write_text(json.dumps(results, indent=1))
            print(path.stem, entry, flush=True)


def table(results: dict[str, dict[str, float]], suffix: str) -> list[str]:
    lines = [
        "| type | MB | weight error, theirs | ours | divergence, theirs | ours | | top-1, theirs | ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for mix, pure in tasks():
        stem = f"{mix}{'-pure' if pure else ''}{suffix}"
        ours, theirs = results.get(f"ours-{stem}"), results.get(f"theirs-{stem}")
        if ours and theirs:
            label = f"{mix}, pure" if pure else mix
            change = f"{100 * (ours['kl'] / theirs['kl'] - 1):+.0f}%"
            lines.append(
                f"| {label} | {ours['bytes'] / 1e6:.1f} | {theirs['rmse']:.4f} | {ours['rmse']:.4f} "
                f"| {theirs['kl']:.4f} | {ours['kl']:.4f} | {change} | {theirs['top_1']:.1%} | {ours['top_1']:.1%} |"
            )
    return lines


def presets(results: dict[str, dict[str, float]]) -> list[str]:
    lines = ["| file | MB | divergence | top-1 |", "|---|---|---|---|"]
    for stem in ("ours-EG4", "theirs-Q4_0", "theirs-Q4_K_M", "ours-EG8", "theirs-Q8_0", "ours-EG4-imatrix"):
        if entry := results.get(stem):
            maker, _, name = stem.partition("-")
            label = f"{name.replace('-', ', ')} ({'llama-quantize' if maker == 'theirs' else 'ours'})"
            lines.append(f"| {label} | {entry['bytes'] / 1e6:.1f} | {entry['kl']:.4f} | {entry['top_1']:.1%} |")
    return lines


def report(folder: Path) -> None:
    """Replace what is between the markers of docs/quality.md."""
    results = json.loads((folder / "results.json").read_text())
    parts = ["## Without an importance matrix", "", *table(results, ""), ""]
    parts += ["## With an importance matrix", "", *table(results, "-imatrix"), ""]
    parts += ["## Presets", "", *presets(results)]
    text = DOCS.read_text("utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCS.write_text("\n".join([head, *parts, tail]), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare our quantizer with llama-quantize.")
    parser.add_argument("step", choices=["theirs", "ours", "measure", "report"])
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="SOURCE FOLDER, or FOLDER for report")
    parser.add_argument("--imatrix", type=Path)
    args = parser.parse_args()
    if args.step == "report":
        report(*args.paths)
    elif args.step == "measure":
        measure(*args.paths)
    else:
        (make_ours if args.step == "ours" else make_theirs)(*args.paths, args.imatrix)


if __name__ == "__main__":
    main()
