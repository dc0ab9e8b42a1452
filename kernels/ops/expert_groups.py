"""The groups that `router.dispatch` makes, as products of experts read them. Knows no format.

A result is a row in the order of the groups; its input is the row of X that `sources` names, or where that is null,
the row of X of the same number.
"""

from __future__ import annotations

from typing import Any

from ..layout import LINE
from ..operations import EXPERTS, STEP_ROWS, STEP_SCRATCH, STEP_SCRATCH_BYTES
from ..simd.atomics import set_word, word
from ..simd.decorators import inlined

_W, _, _, _, _X, _X_STRIDE, _Y, _Y_STRIDE, _EXPERT_BYTES, _GROUPS, _SOURCES, _ = EXPERTS.slots


@inlined
def chosen(op: Any) -> Any:
    """Experts that have rows in this step."""
    return word(word(op, _GROUPS), 0)


@inlined
def expert_of(op: Any, group: Any) -> Any:
    """The expert's number."""
    return word(word(op, _GROUPS), 1 + 2 * group)


@inlined
def matrix_of(op: Any, group: Any) -> Any:
    """Address of the expert's matrix."""
    return word(op, _W) + expert_of(op, group) * word(op, _EXPERT_BYTES)


@inlined
def results_of(op: Any, group: Any) -> Any:
    """The first of the group's results, and how many there are: at least 1, at most the rows of the step."""
    first = word(word(op, _GROUPS), 2 + 2 * group)
    return first, word(word(op, _GROUPS), 4 + 2 * group) - first


@inlined
def result_at(op: Any, group: Any) -> Any:
    """Address of the group's first result."""
    return word(op, _Y) + results_of(op, group)[0] * word(op, _Y_STRIDE)


@inlined
def input_of(op: Any, result: Any) -> Any:
    """Address of the row of X that a result is made of."""
    if word(op, _SOURCES) != 0:
        result = word(word(op, _SOURCES), result)
    return word(op, _X) + result * word(op, _X_STRIDE)


@inlined
def list_inputs(op: Any, first: Any, count: Any, addresses: Any) -> None:
    """The inputs of `count` results, to the words at `addresses`."""
    for t in range(count):
        set_word(addresses, t, input_of(op, first + t))


@inlined
def listed(addresses: Any, _stride: Any, t: Any) -> Any:
    """Input t of a list, for loops that take a function from the number of a row to its address."""
    return word(addresses, t)


@inlined
def scratch(step: Any, thread: Any) -> Any:
    """The thread's list of addresses, and the memory behind it, as `layout.expert_scratch` counts them."""
    addresses = word(step, STEP_SCRATCH) + thread * word(step, STEP_SCRATCH_BYTES)
    return addresses, addresses + (8 * word(step, STEP_ROWS) + LINE - 1) // LINE * LINE
