"""A model recorded for steps of one regime: the body, tokens to the last layer's output, and the head, that to logits,
or an encoder's pooled rows to embeddings.

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
from edge_gemma.graph.recorder import Buffer, Recorded, words_of
from edge_gemma.kernels.layout import logit_groups
from edge_gemma.kernels.operations import Kernel, Regime
from edge_gemma.models.architecture import Config, record, record_logits
from edge_gemma.models.weights import Weights


class Recording:
    """Program and table of one regime. The head reads rows of any regime's last layer, and writes where it is told.

    With `observe`, the input of the product with the vocabulary is observed, too, and there is no head: so what goes
    into an encoder's dense layers is not.
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
        if observe and config.embedding is None:
            out = weights.output
            self.program.observe(
                self.program.rms_norm(self.x, weights.output_norm, config.rms_eps, out="h", consumers=(out,)), out
            )
        self._body = len(self.program)
        self._placeholders: list[Buffer] = []
        if config.embedding is not None and not observe:
            self._record_embedding(config, weights)
        elif not observe:
            self._record_logits(config, weights)

    def _record_logits(self, config: Config, weights: Weights) -> None:
        p, columns, groups = self.program, config.vocab_size, logit_groups(config.vocab_size)
        last = p.placeholder(self.x.name, self.x.columns, self.x.stride)
        logits, maxima = p.placeholder("logits", columns, 4 * columns), p.placeholder("maxima", groups, 4 * groups)
        self._placeholders = [last, logits, maxima]
        record_logits(p, config, weights, last, logits)
        p.group_maxima(logits, maxima)

    def _record_embedding(self, config: Config, weights: Weights) -> None:
        """Of as many rows as there are texts, one after the other without a gap."""
        assert config.embedding is not None
        if config.embedding.dense:
            p, D, width = self.program, config.d_model, config.embedding.width
            self._placeholders = [p.placeholder("pooled rows", D, 4 * D), p.placeholder("embeddings", width, 4 * width)]
            config.model.record_embedding(p, config, weights, *self._placeholders)

    @property
    def recorded(self) -> list[Recorded]:
        """What each row of the table is."""
        return self.program.recorded

    @property
    def recorded_body(self) -> list[Recorded]:
        """What each row of `body` is."""
        return self.recorded[: self._body]

    @property
    def recorded_head(self) -> list[Recorded]:
        """What each row of `head` is."""
        return self.recorded[self._body :]

    @property
    def arguments(self) -> list[dict[str, int]]:
        """Those of each row of the table, by name."""
        rows = zip(self.table, self.recorded, strict=True)
        return [dict(zip(r.operation.arguments, row[list(r.operation.slots)].tolist(), strict=True)) for row, r in rows]

    def link(self, addresses: dict[Kernel, int]) -> None:
        """Make the table, of kernels that lie at these addresses."""
        self.table = self.program.table(addresses)
        self._words = [words_of(self.table, placeholder) for placeholder in self._placeholders]

    @property
    def body(self) -> NDArray[np.int64]:
        """The part of the table up to the last layer's output."""
        return self.table[: self._body]

    @property
    def head(self) -> NDArray[np.int64]:
        """The part from there to the logits."""
        return self.table[self._body :]

    def point_head(self, *addresses: int) -> None:
        """Have the head read rows at the first address, and write to the others: logits and maxima, or embeddings."""
        for words, address in zip(self._words, addresses, strict=True):
            self.table[words] = address
