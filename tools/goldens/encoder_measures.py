"""What a quantized file of the real Gemma 3 270M costs: errors of its weights, divergence on two texts. Knows no maker.

The texts are disjoint in kind: the Devil's Dictionary of `real.py`, and the reference of Python's `pydoc_data.topics`
(prose and code, of Python 3.11). The importance matrix is made of other windows of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.goldens.real import BOS, DATA, WINDOW, divergence, reference_top

MEASURED = 4  # windows of each text: 2,044 positions
CALIBRATION = {"dictionary": slice(16, 40), "python": slice(8, 24)}
SAMPLE = 1 << 17  # about so many values of a matrix are compared, whole rows spread over it

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Reference = dict[str, npt.NDArray[Any]]


def texts(source: Path) -> dict[str, Ids]:
    """Windows of each text, (windows, WINDOW), with the model's own tokenizer."""
    import pydoc_data.topics

    from edge_gemma.gguf.file import GgufFile
    from edge_gemma.text.tokenizer import Tokenizer

    with np.load(DATA / "text_ids.npz") as file:
        dictionary = file["ids"]
    topics = pydoc_data.topics.topics
    with GgufFile.open(source) as model:
        python = Tokenizer.from_gguf(model).encode("\n\n".join(topics[key] for key in sorted(topics)), add_bos=False)
    return {"dictionary": _windows(dictionary, 40), "python": _windows(python, 24)}


def _windows(ids: npt.ArrayLike, count: int) -> Ids:
    body = np.asarray(ids, np.int32)[: count * (WINDOW - 1)].reshape(count, WINDOW - 1)
    return np.concatenate([np.full((count, 1), BOS, np.int32), body], axis=1)


def calibrate(source: Path, out: Path) -> None:
    """An importance matrix of windows that are not measured."""
    from edge_gemma.measure.activation_stats import ActivationStats
    from edge_gemma.quantize import imatrix

    cut = np.concatenate([windows[CALIBRATION[name]] for name, windows in texts(source).items()])
    with ActivationStats(source, WINDOW) as stats:
        for window in cut:
            stats.add(window.tolist())
        sizes = {"chunks": len(cut), "chunk_size": WINDOW}
        imatrix.write(out, stats.sums, stats.rows, datasets=list(CALIBRATION), force=True, **sizes)


# ---- divergence ------------------------------------------------------------------------------------------------------


def _logits(path: Path, windows: Ids) -> Iterator[Floats]:
    """(WINDOW - 1, vocabulary) for each window."""
    from edge_gemma import Gemma

    with Gemma(path, context=WINDOW, threads=2, kv_type="f32") as model:
        for window in windows:
            yield model.logits(window.tolist())[:-1]


def reference(source: Path, folder: Path) -> Reference:
    """Windows of the two texts, and best ids and their log-probabilities in the source's own run; kept in `folder`."""
    path = folder / "reference.npz"
    if not path.exists():
        measured = np.concatenate([windows[:MEASURED] for windows in texts(source).values()])
        tops = [[reference_top(row) for row in window] for window in _logits(source, measured)]
        ids, log_p = ([[top[i] for top in window] for window in tops] for i in range(2))
        np.savez(path, windows=measured, ids=ids, log_p=log_p)
    with np.load(path) as file:
        return dict(file)


def divergences(path: Path, top: Reference) -> dict[str, list[float]]:
    """For each text the mean divergence, and the share of positions with the same best token."""
    kl, same, scratch = [], [], None
    for window, best, log in zip(_logits(path, top["windows"]), top["ids"], top["log_p"], strict=True):
        scratch = np.empty_like(window[0]) if scratch is None else scratch
        kl.append(np.mean([divergence(*row, scratch) for row in zip(best, log, window, strict=True)]))
        same.append((window.argmax(axis=1) == best[:, 0]).mean())
    return {"kl": _by_text(kl), "top_1": _by_text(same)}


def _by_text(values: list[Any]) -> list[float]:
    return np.reshape(values, (-1, MEASURED)).mean(axis=1).tolist()


# ---- weights ---------------------------------------------------------------------------------------------------------


def weight_errors(path: Path, source: Path, importance: dict[str, Floats]) -> dict[str, float]:
    """RMS of the errors of all matrices over RMS of their values; the same with squares weighted by column.

    The weights have mean 1 in each matrix. A matrix without importance has none but ones.
    """
    from edge_gemma.gguf.file import GgufFile
    from edge_gemma.quantize import blocks

    sums = np.zeros((2, 2))
    with GgufFile.open(path) as file, GgufFile.open(source) as original:
        for name, tensor in file.tensors.items():
            if len(tensor.shape) == 2:
                step = max(1, tensor.shape[0] * tensor.shape[1] // SAMPLE)
                exact = blocks.decode(original.data(original.tensors[name])[::step], "F32").astype(np.float64)
                raw = np.ascontiguousarray(file.data(tensor)[::step])
                squares = (blocks.decode(raw, tensor.format.name).reshape(exact.shape) - exact) ** 2, exact**2
                columns = importance.get(name, np.ones(tensor.shape[1], np.float32)).astype(np.float64)
                for i, weights in enumerate((np.ones_like(columns), columns / columns.mean())):
                    sums[i] += [step * float(np.sum(square @ weights)) for square in squares]
    plain, weighted = np.sqrt(sums[:, 0] / sums[:, 1]).tolist()
    return {"rmse": plain, "weighted": weighted}


def measure(source: Path, folder: Path, *, delete: bool, most: int | None = None) -> None:
    """Add to results.json what is not in it, of `most` files. `delete` each then: they are large together."""
    from edge_gemma.quantize import imatrix

    results_path = folder / "results.json"
    top, importance = reference(source, folder), imatrix.read(folder / "imatrix.gguf")
    for path in sorted(folder.glob("*s-*.gguf"))[:most]:
        results = json.loads(results_path.read_text()) if results_path.exists() else {}
        if path.stem not in results:
            entry = {"bytes": path.stat().st_size, **weight_errors(path, source, importance), **divergences(path, top)}
            results_path.write_text(json.dumps(results | {path.stem: entry}, indent=1))
            print(path.stem, entry, flush=True)
        if delete:
            path.unlink()
