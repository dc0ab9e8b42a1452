"""What a model file is: architecture, hyper-parameters, types, bits per weight, memory. Knows no weights' values.

What cannot be run is not described: the same checks are made as when a model is opened.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from edge_gemma.cores import default_threads
from edge_gemma.engine.memory_plan import KvType, default_chunk, memory_plan
from edge_gemma.engine.runner import product_matrices, require_head_step
from edge_gemma.gguf.file import GgufFile, Tensor
from edge_gemma.gguf.metadata import shown
from edge_gemma.kernels.tuning.choices import tuned_choices
from edge_gemma.kernels.tuning.tuner import by_class
from edge_gemma.models.architecture import Config
from edge_gemma.models.layers import LayerConfig
from edge_gemma.models.registry import read_config
from edge_gemma.models.weights import Weights
from edge_gemma.text.tokenizer import Tokenizer

DEFAULT_CONTEXT = 4096
MARGIN = "  "
SHOWN = (
    "d_model",
    "n_heads",
    "vocab_size",
    "context_length",
    "rms_eps",
    "attn_scale",
    "attn_softcap",
    "final_softcap",
    "embedding_scale",
)
"""Hyper-parameters of the model as a whole."""


def describe(
    path: str | os.PathLike[str],
    context: int | None = None,
    *,
    chunk: int | None = None,
    threads: int | None = None,
    kv_type: KvType = "f16",
) -> dict[str, Any]:
    """All facts about the model in `path`, ready for JSON; sizes in bytes.

    `context` (default: 4096, or the model's limit if lower) is what the memory section is computed for; chunk, threads
    and cache are those of `Gemma`, with the same defaults. Raises what `GgufFile.open`, `read_config`,
    `Weights.bind`, `Tokenizer.from_gguf` and `memory_plan` raise: a file that `Gemma` refuses is refused here.
    """
    with GgufFile.open(path) as file:
        config = read_config(file)
        require_head_step(file, config)
        weights = Weights.bind(file, config)
        Tokenizer.from_gguf(file)
        if context is None:
            context = min(DEFAULT_CONTEXT, config.context_length)
        run = {"chunk": chunk or default_chunk(config), "threads": threads or default_threads()}
        plan = memory_plan(config, weights, context, **run, kv_type=kv_type)
        tensors = list(weights.tensors())
        classes = by_class(product_matrices(weights))
        return {
            "path": str(file.path),
            "file_size": file.size,
            "gguf_version": file.version,
            "name": _name(file),
            "architecture": config.architecture,
            "parameters": sum(math.prod(t.shape) for t in tensors),
            "bits_per_weight": _bits_per_weight(tensors),
            "tied_output": weights.output is weights.token_embd,
            "hyper_parameters": _hyper_parameters(config),
            "types": _types(tensors),
            "memory": {"context": context, "kv_type": kv_type, **run, **asdict(plan), "total": plan.total},
            "strategies": tuned_choices().describe(classes),
            "tensors": [_tensor_row(t) for t in tensors],
        }


def render(info: dict[str, Any]) -> str:
    """The dictionary of `describe` as aligned text of several lines, safe to print on a terminal."""
    return "\n".join(_lines(info))


def _lines(info: dict[str, Any]) -> Iterator[str]:
    memory = info["memory"]
    yield shown(info["path"])
    yield from _pairs(
        [
            ("name", shown(info["name"]) or "-"),
            ("architecture", info["architecture"] + (", tied output" if info["tied_output"] else ", untied output")),
            ("file", f"{_size(info['file_size'])}, GGUF version {info['gguf_version']}"),
            ("parameters", f"{info['parameters']:,}"),
            ("bits per weight", f"{info['bits_per_weight']:.2f}"),
        ]
    )
    yield from ("", "Hyper-parameters")
    yield from _pairs(_of_all_layers(info["hyper_parameters"]))
    yield from ("", "Types")
    rows = [(name, f"{t['tensors']}", f"{t['parameters']:,}", _size(t["bytes"])) for name, t in info["types"].items()]
    yield from _table(("type", "tensors", "parameters", "size"), rows)
    yield from ("", f"Memory at a context of {memory['context']:,} ({memory['kv_type']} cache)")
    kinds = ("weights", "kv_cache", "buffers", "tokenizer", "total")
    yield from _pairs((name.replace("_", " "), _size(memory[name])) for name in kinds)
    yield from ("", "How weights are asked for on this machine")
    yield from _pairs(info["strategies"].items() or [("-", "no quantized weights")])
    yield from ("", "Tensors")
    listed = [(t["name"], t["type"], " x ".join(map(str, t["shape"])), _size(t["bytes"])) for t in info["tensors"]]
    yield from _table(("name", "type", "shape", "size"), listed)


def _name(file: GgufFile) -> str:
    """The model's name, "" where the file has none: for people only, so that whatever stands there is no fault."""
    name = file.metadata.get("general.name")
    return name if isinstance(name, str) else ""


def _tensor_row(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "type": tensor.format.name,
        "shape": list(tensor.shape),
        "offset": tensor.offset,
        "bytes": tensor.nbytes,
    }


def _bits_per_weight(tensors: Sequence[Tensor]) -> float:
    return 8 * sum(t.nbytes for t in tensors) / sum(math.prod(t.shape) for t in tensors)


def _types(tensors: Iterable[Tensor]) -> dict[str, dict[str, int]]:
    """Per type: number of tensors, parameters and bytes; the type with most bytes first."""
    totals: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        row = totals.setdefault(tensor.format.name, {"tensors": 0, "parameters": 0, "bytes": 0})
        row["tensors"] += 1
        row["parameters"] += math.prod(tensor.shape)
        row["bytes"] += tensor.nbytes
    return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def _hyper_parameters(config: Config) -> dict[str, Any]:
    """Those of the model, and under "layers" those of each layer."""
    return {name: getattr(config, name) for name in SHOWN} | {"layers": [_layer(layer) for layer in config.layers]}


def _layer(layer: LayerConfig) -> dict[str, Any]:
    facts = asdict(layer)
    rope = facts.pop("rope")
    return facts | {f"rope_{name}": value for name, value in rope.items()}


def _of_all_layers(hyper_parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values; one that is not the same in all layers with the number of layers that have it."""
    layers = hyper_parameters["layers"]
    yield from ((name, _value(value)) for name, value in hyper_parameters.items() if name != "layers")
    yield "n_layers", str(len(layers))
    for name in layers[0]:
        counts = Counter(_value(layer[name]) for layer in layers)
        each = [f"{value} in {count}" for value, count in counts.items()]
        yield name, ", ".join(each) if len(each) > 1 else next(iter(counts))
    local = "".join("G" if layer["window"] is None else "L" for layer in layers)
    yield "local layers", f"{local.count('L')} of {len(layers)}: {local}"


def _value(value: Any) -> str:
    match value:
        case None:
            return "none"
        case float():
            return f"{value:.6g}"
        case _:
            return str(value)


def _pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    listed = list(pairs)
    width = max(len(name) for name, _ in listed)
    return (f"{MARGIN}{name:<{width}}{MARGIN}{value}" for name, value in listed)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their widest cell: the first flush left, the others right."""
    table = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield (MARGIN + MARGIN.join(cells)).rstrip()


def _size(nbytes: int) -> str:
    """Decimal units, as file managers and the sizes of published models use."""
    for unit, divisor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= divisor:
            return f"{nbytes / divisor:.2f} {unit}"
    return f"{nbytes} B"
