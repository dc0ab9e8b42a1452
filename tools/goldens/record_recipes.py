"""Record which format llama-quantize gives each tensor, for models of many sizes: `tests/quantize/data/recipes.json`.

    python -m tools.goldens.record_recipes

Needs llama-cpp-python. Every model is tiny where its sizes do not matter: 32 or 256 hidden columns, few tokens.
Format of the record: {model: {mix: {"file_type": n, "tensors": {format: "names, joined by spaces"}}}}, where names of
layers are collected as role:layers, as in attn_v:0,1,5.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import llama_cpp

from tests.goldens.cases import Case
from tests.goldens.every_case import AnyCase, write_gguf
from tests.goldens.gemma4_cases import Gemma4Case
from tests.goldens.llama_cases import LlamaCase

OUT = Path(__file__).parents[2] / "tests/quantize/data/recipes.json"
FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
    "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
    "F32": 0, "F16": 1, "BF16": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What a choice may depend on."""

    architecture: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool = True
    pure: bool = False
    experts: int = 0
    expert_hidden: int = 256
    per_layer: int = 0
    shared: int = 0
    single: bool = False

    @property
    def gemma4(self) -> Gemma4Case:
        local = "".join("G" if i % 6 == 5 else "L" for i in range(self.layers - 1)) + "G"
        return Gemma4Case(
            "x", local, self.width, self.hidden, self.heads, self.kv_heads, self.kv_heads, self.head_dim, self.head_dim,
            tied=self.tied, experts=self.experts, expert_hidden=self.expert_hidden, per_layer=self.per_layer,
            shared=self.shared, single=self.single,
        )  # fmt: skip

    @property
    def case(self) -> AnyCase:
        if self.architecture == "gemma4":
            return self.gemma4
        if self.architecture == "llama":
            sizes = self.layers, self.width, self.hidden, self.heads, self.kv_heads, self.head_dim
            return LlamaCase("x", *sizes, tied=self.tied)
        caps = {"attention_cap": 50.0, "final_cap": 30.0} if self.architecture == "gemma2" else {}
        scalar, local = self.head_dim, "L" * (self.layers - 1) + "G"
        if self.architecture == "gemma2":
            local = "".join("LG"[i % 2] for i in range(self.layers))
        if self.architecture == "gemma3":
            local = "".join("G" if i % 6 == 5 else "L" for i in range(self.layers))
        if self.architecture == "gemma":
            local = "G" * self.layers
        return Case(
            "x", self.architecture, local, self.width, self.hidden, self.heads, self.kv_heads, self.head_dim, scalar,
            tied=self.tied, **caps,
        )  # fmt: skip


MODELS = {
    "gemma-18-mqa": Sizes("gemma", 18, 256, 256, 8, 1, 32),
    "gemma-28-mha": Sizes("gemma", 28, 256, 256, 8, 8, 32),
    "gemma2-26": Sizes("gemma2", 26, 256, 256, 8, 4, 32),
    "gemma2-42": Sizes("gemma2", 42, 256, 256, 8, 4, 32),
    "gemma2-46": Sizes("gemma2", 46, 256, 256, 8, 4, 32),
    "gemma2-5-untied": Sizes("gemma2", 5, 256, 512, 8, 4, 32, tied=False),
    "gemma3-18-narrow": Sizes("gemma3", 18, 160, 256, 4, 1, 64),
    "gemma3-26-narrow": Sizes("gemma3", 26, 96, 256, 4, 1, 64),
    "gemma3-34": Sizes("gemma3", 34, 256, 256, 8, 4, 32),
    "gemma3-48": Sizes("gemma3", 48, 256, 256, 8, 4, 32),
    "gemma3-62": Sizes("gemma3", 62, 256, 256, 8, 4, 32),
    "gemma3-6-odd": Sizes("gemma3", 6, 80, 144, 4, 1, 32),
    "llama-30-narrow": Sizes("llama", 30, 96, 256, 9, 3, 32),
    "llama-24-head-80": Sizes("llama", 24, 256, 256, 16, 4, 80, tied=False),
    "llama-32-mha": Sizes("llama", 32, 256, 256, 4, 4, 64, tied=False),
    "llama-80": Sizes("llama", 80, 256, 256, 8, 1, 32, tied=False),
    "gemma3-26-narrow-pure": Sizes("gemma3", 26, 96, 256, 4, 1, 64, pure=True),
    "gemma2-26-pure": Sizes("gemma2", 26, 256, 256, 8, 4, 32, pure=True),
    "gemma4-35-shared": Sizes("gemma4", 35, 256, 256, 8, 1, 32, per_layer=64, shared=17),
    "gemma4-42-shared": Sizes("gemma4", 42, 256, 256, 8, 2, 32, per_layer=256, shared=18),
    "gemma4-48-single": Sizes("gemma4", 48, 256, 256, 8, 4, 32, single=True),
    "gemma4-30-experts": Sizes("gemma4", 30, 256, 288, 8, 4, 32, single=True, experts=16, expert_hidden=96),
    "gemma4-9-experts": Sizes("gemma4", 9, 256, 256, 8, 1, 32, single=True, experts=8),
    "gemma4-12-untied": Sizes("gemma4", 12, 256, 256, 8, 4, 32, tied=False, per_layer=32),
    "gemma4-12-narrow-pure": Sizes("gemma4", 12, 96, 288, 8, 4, 32, per_layer=32, pure=True),
}


def main() -> None:
    llama_cpp.llama_backend_init()
    record = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in MODELS.items():
            source = Path(folder) / f"{name}.gguf"
            write_gguf(sizes.case, source)
            record[name] = {"sizes": asdict(sizes)} | {mix: _chosen(source, mix, sizes.pure) for mix in FILE_TYPES}
            source.unlink()
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(record, indent=1) + "\n")


def _chosen(source: Path, mix: str, pure: bool) -> dict[str, object]:
    out = source.with_name("out.gguf")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.pure = FILE_TYPES[mix], 1, pure
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(f"{source.name}: llama_model_quantize to {mix} gave {status}")
    reader = gguf.GGUFReader(out)
    formats = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    file_type = int(reader.fields["general.file_type"].parts[-1][0])
    return {"file_type": file_type, "tensors": collected(formats)}


def collected(formats: dict[str, str]) -> dict[str, str]:
    """Format -> names of the matrices that have it; vectors, which are always F32, and what is kept as it was left
    out."""
    by_format: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for name, chosen in formats.items():
        if any(part in name for part in ("norm", "scale", "rope_freqs", "ffn_gate_inp", "per_layer_model_proj")):
            continue
        stem = name.removesuffix(".weight")
        if stem.startswith("blk."):
            _, layer, role = stem.split(".")
            by_format[chosen][role].append(int(layer))
        else:
            by_format[chosen][stem] = []
    return {
        chosen: " ".join(
            f"{role}:{','.join(map(str, sorted(at)))}" if at else role for role, at in sorted(roles.items())
        )
        for chosen, roles in sorted(by_format.items())
    }


if __name__ == "__main__":
    main()
