"""What the recorder writes into the table beside each operation's arguments."""

from __future__ import annotations

from itertools import pairwise

from edge_gemma.config import GemmaConfig
from edge_gemma.engine import Engine
from edge_gemma.gguf import GgufFile
from edge_gemma.kernels import operations as ops
from edge_gemma.weights import Weights
from tests.conftest import TinyGguf


def test_each_product_knows_the_matrix_of_the_next(tiny_gguf: TinyGguf) -> None:
    with GgufFile.open(tiny_gguf("gemma3-256", "Q6_K")) as file:
        config = GemmaConfig.from_gguf(file)
        weights = Weights.bind(file, config)
        engine = Engine(file, config, weights, context=16, chunk=8, threads=1, kv_type="f16")
        engine.close()
        is_product = [recorded.operation is ops.MATMUL for recorded in engine._program.recorded]
        products = engine._table[is_product]
        matrices = [[file.data(t).ctypes.data, t.row_bytes, t.shape[0]] for t in weights.tensors() if len(t.shape) == 2]
    assert len(products) == 7 * len(weights.layers) + 1
    for this, following in pairwise(products):
        assert this[list(ops.NEXT)].tolist() == following[list(ops.MATMUL.slots[:3])].tolist()
        assert this[list(ops.NEXT)].tolist() in matrices
    assert not products[-1, ops.NEXT].any()
