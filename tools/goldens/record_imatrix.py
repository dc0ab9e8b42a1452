"""llama.cpp's own importance matrix of the real Gemma 3 270M, and its quantizer fed with ours; needs llama-cpp-python.

    python tools/goldens/record_imatrix.py record MODEL.gguf                       data/imatrix_270m.npz
    python tools/goldens/record_imatrix.py quantize F32.gguf IMATRIX.gguf OUT.gguf

The package has no llama-imatrix, but its evaluation callback shows the same inputs of the same products: `record` sums
their squares over the first window of the text (read back by tests/measure/test_activation_stats.py). The last layer is
left out, of which llama.cpp computes only rows that are asked for. `quantize` gives our file's means to
llama_model_quantize as llama-quantize does (Q4_K_M), and says what it answered and how many tensors the importances
changed.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as lc
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.goldens.real import DATA, WINDOW, windows

LAYERS = (0, 5, 16)  # local, global, local
MATRICES = ("attn_q", "attn_output", "ffn_gate", "ffn_down")
F32 = 0


class GgmlTensor(ctypes.Structure):
    """The beginning of struct ggml_tensor (ggml.h)."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class Collector:
    """An evaluation callback that sums the squares of what matrices are multiplied with."""

    def __init__(self, names: set[str]) -> None:
        self.sums: dict[str, Any] = {}
        self._names = names
        kind = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
        self.callback = kind(self._see)

    def _see(self, address: int, asked: bool, _data: Any) -> bool:
        tensor = GgmlTensor.from_address(address)
        if not tensor.src[0] or not tensor.src[1]:
            return False
        weights, x = (GgmlTensor.from_address(tensor.src[i]) for i in range(2))
        name = weights.name.decode("utf-8", "replace")
        if name not in self._names or x.type != F32 or x.ne[0] != weights.ne[0]:
            return False
        if not asked:
            shape = (x.ne[1] * x.ne[2] * x.ne[3], x.ne[0])
            assert x.nb[1] == 4 * x.ne[0]
            values = np.ctypeslib.as_array(ctypes.cast(x.data, ctypes.POINTER(ctypes.c_float)), shape)
            assert len(values) == WINDOW and name not in self.sums
            self.sums[name] = (values.astype(np.float64) ** 2).sum(axis=0)
        return True


def record(model_path: str) -> None:
    names = {f"blk.{layer}.{matrix}.weight" for layer in LAYERS for matrix in MATRICES}
    collector = Collector(names)
    lc.llama_backend_init()
    loading = lc.llama_model_default_params()
    loading.use_extra_bufts = False
    model = lc.llama_model_load_from_file(model_path.encode(), loading)
    params = lc.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = WINDOW
    params.cb_eval = ctypes.cast(collector.callback, type(params.cb_eval))
    context = lc.llama_init_from_model(model, params)
    with np.load(DATA / "text_ids.npz") as file:
        window = windows(file["ids"])[0].tolist()
    tokens = (lc.llama_token * WINDOW)(*window)  # the batch only points to it
    assert lc.llama_decode(context, lc.llama_batch_get_one(tokens, WINDOW)) == 0
    assert collector.sums.keys() == names
    np.savez_compressed(DATA / "imatrix_270m.npz", **{name: v.astype(np.float32) for name, v in collector.sums.items()})


def quantize(source: str, imatrix: str, out: str) -> None:
    tensors = {t.name: np.array(t.data).reshape(-1) for t in gguf.GGUFReader(imatrix).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    means = {name: np.float32(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"]) for name in names}
    entries = (lc.llama_model_imatrix_data * (len(means) + 1))()  # ends with an entry without name
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = lc.llama_model_quantize_default_params()
    params.ftype = lc.LLAMA_FTYPE_MOSTLY_Q4_K_M
    for path in (out + ".plain", out):
        print(path, lc.llama_model_quantize(source.encode(), path.encode(), ctypes.byref(params)))
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    plain, weighted = ({t.name: t.data for t in gguf.GGUFReader(path).tensors} for path in (out + ".plain", out))
    changed = [name for name in plain if not np.array_equal(plain[name], weighted[name])]
    print(f"{len(changed)} of {len(means)} matrices differ")


if __name__ == "__main__":
    {"record": record, "quantize": quantize}[sys.argv[1]](*sys.argv[2:])
