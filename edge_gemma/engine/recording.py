"""A model recorded for steps of one regime: the body, tokens to the last layer's output, and the head, that to logits.

Knows no threads and no sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.gguf.file import Tensor
from edge_gemma.graph.cache import layer_caches
from edge_gemma.graph.program import Program
from edge_gemma.graph.recorder import Recorded, words_of
from edge_gemma.kernels.layout import logit_groups
from edge_gemma.kernels.operations import Kernel, Regime
from edge_gemma.models.architecture import Config, record, record_logits
from edge_gemma.models.weights import Weights


class Recording:
    """Program and table of one regime. The head reads rows of any regime's last layer, and writes where it is told.

    With `observe`, the input of the product with the vocabulary is observed, too, and there is no head.
    `options`: of `Program`.
    """

    def __init__(
        self,
        regime: Regime,
        chunk: int,
        address_of: Callable[[Tensor], int],
        kv_type: str,
        config: Config,
        weights: Weights,
        context: int,
        *,
        observe: bool = False,
        **options: Any,
    ) -> None:
        self.program = Program(regime, chunk, address_of, kv_type, observe=observe, **options)
        self.x = record(self.program, config, weights, layer_caches(config.states, context, kv_type))
        """The last layer's output."""
        if observe:
            out = weights.output
            self.program.observe(
                self.program.rms_norm(self.x, weights.output_norm, config.rms_eps, out="h", takers=(out,)), out
            )
        self._body = len(self.program)
        self._last = self.program.outside(self.x.name, self.x.columns, self.x.stride)
        self._logits = self.program.outside("logits", config.vocab_size, 4 * config.vocab_size)
        groups = logit_groups(config.vocab_size)
        self._maxima = self.program.outside("maxima", groups, 4 * groups)
        if not observe:
            record_logits(self.program, config, weights, self._last, self._logits)
            self.program.group_maxima(self._logits, self._maxima)

    @property
    def recorded(self) -> list[Recorded]:
        """What each row of the table is."""
        return self.program.recorded

    @property
    def arguments(self) -> list[dict[str, int]]:
        """Those of each row of the table, by name."""
        rows = zip(self.table, self.recorded, strict=True)
        return [dict(zip(r.operation.arguments, row[list(r.operation.slots)].tolist(), strict=True)) for row, r in rows]

    def link(self, addresses: dict[Kernel, int]) -> None:
        """Make the table, of kernels that lie at these addresses."""
        self.table = self.program.table(addresses)
        outside = self._last, self._logits, self._maxima
        self._words = [words_of(self.table, rows) for rows in outside]

    @property
    def body(self) -> NDArray[np.int64]:
        """The part of the table up to the last layer's output."""
        return self.table[: self._body]

    @property
    def head(self) -> NDArray[np.int64]:
        """The part from there to the logits."""
        return self.table[self._body :]

    def point_head(self, last: int, logits: int, maxima: int) -> None:
        """Have the head read rows at address `last`, and write to the other two."""
        for words, address in zip(self._words, (last, logits, maxima), strict=True):
            self.table[words] = address
