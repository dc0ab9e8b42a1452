"""Keys and values position by position, and as a page has them for the kernels' vectors. Knows no address.

    plain  [position][keys, values][head][dim]                                       the same on every instruction set
    page   | keys of each head [SPAN / LANES][dim][LANES] | values of each head [SPAN][dim] |

As integers of an element's size: no bit of a value is touched.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_gemma.graph.states import AttentionState
from edge_gemma.kernels.layout import LANES, SPAN

Elements = NDArray[np.uint16] | NDArray[np.uint32]


ELEMENT_BYTES = {"f16": 2, "f32": 4}
"""Of the types whose pages consist of elements and nothing else."""


def elements(raw: bytes | bytearray | NDArray[np.uint8], element_bytes: int) -> Elements:
    """A view of bytes, as the integers of the arrays here."""
    view: Elements = np.frombuffer(raw, f"<u{element_bytes}")
    return view


def plain_of(page: NDArray[np.uint8], state: AttentionState, count: int, element_bytes: int) -> Elements:
    """The first `count` positions of `page`, (count, 2, kv_heads, head_dim); the rest of a page may be anything."""
    keys, values = _keys_and_values(page, state, element_bytes)
    plain: Elements = np.empty((count, 2, *values.shape[1:]), values.dtype)
    plain[:, 0] = keys[: -(-count // LANES)].reshape(-1, *values.shape[1:])[:count]
    plain[:, 1] = values[:count]
    return plain


def page_of(plain: Elements, state: AttentionState) -> NDArray[np.uint8]:
    """A page that begins with `plain`, (count, 2, kv_heads, head_dim), and is zero behind that."""
    count, size = len(plain), plain.dtype.itemsize
    page = np.zeros(2 * state.kv_heads * SPAN * state.head_dim * size, np.uint8)
    keys, values = _keys_and_values(page, state, size)
    whole = count // LANES
    keys[:whole] = plain[: whole * LANES, 0].reshape(whole, LANES, *values.shape[1:])
    if count % LANES:
        keys[whole, : count % LANES] = plain[whole * LANES :, 0]
    values[:count] = plain[:, 1]
    return page


def _keys_and_values(page: NDArray[np.uint8], state: AttentionState, element_bytes: int) -> tuple[Elements, Elements]:
    """Views of both: keys (SPAN / LANES, LANES, heads, dim), values (SPAN, heads, dim)."""
    keys, values = elements(page, element_bytes).reshape(2, -1)
    heads, dim = state.kv_heads, state.head_dim
    return (
        keys.reshape(heads, SPAN // LANES, dim, LANES).transpose(1, 3, 0, 2),
        values.reshape(heads, SPAN, dim).transpose(1, 0, 2),
    )
