"""Our quantizer beside llama-quantize on the real Gemma 3 270M: size, weight error, divergence; writes docs/quality.md.

    python -m tools.goldens.compare_encoders calibrate SOURCE FOLDER                 FOLDER/imatrix.gguf
    python -m tools.goldens.compare_encoders theirs SOURCE FOLDER [--imatrix]        needs llama-cpp-python
    python -m tools.goldens.compare_encoders ours SOURCE FOLDER [--imatrix | --calibrate]
    python -m tools.goldens.compare_encoders measure SOURCE FOLDER [--delete]        every file there is, once
    python -m tools.goldens.compare_encoders report FOLDER [NOISY_FOLDER ...]        the tables, into docs/quality.md

SOURCE is the model as F32 GGUF, or what `make_noisy_model.py` makes of it. Files are called `ours-Q4_0.gguf`,
`theirs-Q4_0-imatrix.gguf`, `ours-Q4_0-calibrated.gguf` and so on; `--only` takes some of the types. What is measured is
in `encoder_measures.py`; the reference is the source itself, run by us.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

DOCS = Path(__file__).parents[2] / "docs/quality.md"
BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
MIXES = [
    "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M",
    "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0",
]  # fmt: skip
PURE = ["Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0"]
"""Also with every matrix in this one format, the embedding too: what the format itself does."""
PRESETS = ["EG4", "EG8"]
HEADER = 2  # lines of a table
LIKE = {"EG4": "Q4_0", "EG8": "Q8_0"}
IMATRIX, CALIBRATED = "-imatrix", "-calibrated"
"""End the names of files made with an importance matrix: of other windows of the texts, or of the model's own text."""

Floats = npt.NDArray[np.float32]
Results = dict[str, dict[str, Any]]


def tasks(only: Sequence[str]) -> list[tuple[str, bool]]:
    every = [(mix, False) for mix in MIXES] + [(mix, True) for mix in PURE]
    return [(mix, pure) for mix, pure in every if not only or stem_of(mix, pure) in only]


def stem_of(mix: str, pure: bool) -> str:
    return f"{mix}-pure" if pure else mix


def path_of(folder: Path, maker: str, mix: str, pure: bool, suffix: str) -> Path:
    return folder / f"{maker}-{stem_of(mix, pure)}{suffix}.gguf"


def make_ours(source: Path, folder: Path, suffix: str, only: Sequence[str]) -> None:
    from edge_gemma.commands.calibrate import calibrator
    from edge_gemma.quantize import quantize
    from edge_gemma.quantize.recipe import Overrides

    weights = folder / "imatrix.gguf" if suffix == IMATRIX else None
    calibrate = calibrator(quiet=True) if suffix == CALIBRATED else None
    presets = [(mix, False) for mix in PRESETS if not only or mix in only]
    for mix, pure in [*tasks(only), *presets]:
        out = path_of(folder, "ours", mix, pure, suffix)
        quantize(source, out, mix, overrides=Overrides(pure=pure), imatrix=weights, calibrate=calibrate, force=True)
        print(out, flush=True)


def make_theirs(source: Path, folder: Path, suffix: str, only: Sequence[str]) -> None:
    import llama_cpp

    from tools.goldens.record_recipes import FILE_TYPES

    llama_cpp.llama_backend_init()
    entries = _peer_imatrix(folder / "imatrix.gguf") if suffix else None
    for mix, pure in tasks(only):
        out = path_of(folder, "theirs", mix, pure, suffix)
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


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(results: Results, suffix: str) -> list[str]:
    error = "weighted" if suffix else "rmse"
    lines = [
        "| type | MB | weight error, theirs | ours | divergence, theirs | ours | text 1 | text 2 "
        "| top-1, theirs | ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for mix, pure in tasks([]):
        ours, theirs = (results.get(f"{maker}-{stem_of(mix, pure)}{suffix}") for maker in ("ours", "theirs"))
        if ours and theirs:
            label = f"{mix}, pure" if pure else mix
            changes = " | ".join(f"{100 * (a / b - 1):+.1f}%" for a, b in zip(ours["kl"], theirs["kl"], strict=True))
            lines.append(
                f"| {label} | {ours['bytes'] / 1e6:.1f} | {theirs[error]:.4f} | {ours[error]:.4f} "
                f"| {_mean(theirs, 'kl'):.4f} | {_mean(ours, 'kl'):.4f} | {changes} "
                f"| {_mean(theirs, 'top_1'):.1%} | {_mean(ours, 'top_1'):.1%} |"
            )
    return lines


def calibrated(results: Results) -> list[str]:
    """Mean divergence of both texts: llama-quantize's files and ours, by where the importance matrix is from."""
    lines = [
        "| type | theirs, no matrix | theirs, of texts | ours, no matrix | ours, calibrated | ours, of texts |",
        "|---|---|---|---|---|---|",
    ]
    for mix, pure in [*tasks([]), *((preset, False) for preset in PRESETS)]:
        stem = stem_of(mix, pure)
        if f"ours-{stem}{CALIBRATED}" in results:
            made = [("theirs", ""), ("theirs", IMATRIX), ("ours", ""), ("ours", CALIBRATED), ("ours", IMATRIX)]
            found = [results.get(f"{maker}-{stem}{suffix}") for maker, suffix in made]
            cells = [f" {_mean(entry, 'kl'):.4f} |" if entry else " |" for entry in found]
            lines.append(f"| {f'{mix}, pure' if pure else mix} |{''.join(cells)}")
    return lines


def presets(results: Results) -> list[str]:
    lines = ["| file | bytes | weight error | divergence | top-1 |", "|---|---|---|---|---|"]
    for suffix in ("", IMATRIX):
        for preset, like in LIKE.items():
            for stem in (f"ours-{preset}{suffix}", f"ours-{like}{suffix}", f"theirs-{like}{suffix}"):
                if entry := results.get(stem):
                    maker, name = stem.split("-", 1)
                    label = f"{name.replace('-', ', ')} ({'llama-quantize' if maker == 'theirs' else 'ours'})"
                    figures = f"{entry['rmse']:.4f} | {_mean(entry, 'kl'):.4f} | {_mean(entry, 'top_1'):.1%}"
                    lines.append(f"| {label} | {entry['bytes']:,} | {figures} |")
    return lines


def draws(noisy: Sequence[Results]) -> list[str]:
    """How much more ours diverges than theirs, mean of both texts, for types measured with every draw of the noise."""
    every = [stem_of(*task) for task in tasks([]) if all(f"ours-{stem_of(*task)}" in results for results in noisy)]
    lines = [
        "| type |" + "".join(f" draw {i + 1} |" for i in range(len(noisy))) + " mean |",
        "|---" * (len(noisy) + 2) + "|",
    ]
    for stem in every:
        ratios = [_mean(results[f"ours-{stem}"], "kl") / _mean(results[f"theirs-{stem}"], "kl") for results in noisy]
        lines.append(f"| {stem} |" + "".join(f" {100 * (r - 1):+.1f}% |" for r in [*ratios, float(np.mean(ratios))]))
    return lines


def _mean(entry: dict[str, Any], key: str) -> float:
    return float(np.mean(entry[key]))


def report(folders: Sequence[Path]) -> None:
    """Replace what is between the markers of docs/quality.md."""
    parts: list[str] = []
    every: list[Results] = [json.loads((folder / "results.json").read_text()) for folder in folders]
    for results, model in zip(every, ("the published weights", "weights on no grid"), strict=False):
        for title, lines in (
            ("without an importance matrix", table(results, "")),
            ("with an importance matrix", table(results, IMATRIX)),
            ("calibrated by text of the model itself", calibrated(results)),
            ("presets", presets(results)),
        ):
            if len(lines) > HEADER:
                parts += [f"## {model[0].upper()}{model[1:]}: {title}", "", *lines, ""]
    if every[2:]:
        parts += ["## Weights on no grid: other draws of the noise", "", *draws(every[1:]), ""]
    text = DOCS.read_text("utf-8")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCS.write_text("\n".join([head, *parts[:-1], tail]), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare our quantizer with llama-quantize.")
    parser.add_argument("step", choices=["calibrate", "theirs", "ours", "measure", "report"])
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="SOURCE FOLDER; for report FOLDERs")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--imatrix", action="store_const", const=IMATRIX, dest="suffix", help="FOLDER/imatrix.gguf")
    weights.add_argument("--calibrate", action="store_const", const=CALIBRATED, dest="suffix", help="for ours")
    parser.set_defaults(suffix="")
    parser.add_argument("--only", nargs="+", default=[], metavar="TYPE", help="such as Q4_K_M, Q4_0-pure")
    parser.add_argument("--most", type=int, help="measure so many files and stop")
    parser.add_argument("--delete", action="store_true", help="delete files when they are measured")
    args = parser.parse_args()
    if args.step == "report":
        return report(args.paths)
    source, folder = args.paths
    if args.step in ("theirs", "ours"):
        return (make_ours if args.step == "ours" else make_theirs)(source, folder, args.suffix, args.only)
    from tools.goldens.encoder_measures import calibrate, measure

    if args.step == "calibrate":
        calibrate(source, folder / "imatrix.gguf")
    else:
        measure(source, folder, delete=args.delete, most=args.most)


if __name__ == "__main__":
    main()
