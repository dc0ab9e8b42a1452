"""Record small files of torch.save and of PEFT into tests/quantize/data, for tests that have neither.

Run from the checkout, in an environment with torch, transformers and peft:
    python tools/goldens/record_torch_files.py
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

DATA = Path(__file__).resolve().parents[2] / "tests/quantize/data"
PROTOCOLS = (2, 3, 4, 5)


def ramp(*shape: int) -> torch.Tensor:
    """0, 1, 2, ... in halves: exact in each dtype."""
    return (torch.arange(torch.Size(shape).numel(), dtype=torch.float32) / 2).reshape(shape)


class Tied(torch.nn.Module):
    """Two parameters that are one, as a model with tied embeddings has them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 4, bias=False)
        self.first.weight = torch.nn.Parameter(ramp(4, 3))
        self.second = torch.nn.Linear(3, 4, bias=False)
        self.second.weight = self.first.weight


def files() -> dict[str, Any]:
    """File name -> what is saved in it."""
    base = ramp(6, 4)
    return {
        "dtypes.bin": {"f32": ramp(2, 3), "f16": ramp(2, 3).half(), "bf16": ramp(2, 3).bfloat16(), "vector": ramp(5)},
        "views.bin": {"whole": base, "rows": base[2:5], "vector": base[1], "single": base[3:4, :1]},
        "tied.bin": Tied().state_dict(),  # an OrderedDict with versions of modules as an attribute
        "parameters.bin": OrderedDict(a=torch.nn.Parameter(ramp(2, 2)), b=torch.nn.Parameter(ramp(3), False)),
        "transposed.bin": {"a": ramp(2, 3).T},
        "expanded.bin": {"a": ramp(3).expand(2, 3)},
        "int64.bin": {"a": torch.arange(4)},
        "float64.bin": {"a": ramp(4).double()},
        "nested.bin": {"model": {"a": ramp(2, 2)}, "step": 3},
        "tensor.bin": ramp(4),
        "whole-module.bin": torch.nn.Linear(2, 2),
    }


def write_torch_files() -> None:
    for name, value in files().items():
        torch.save(value, DATA / name)
    for protocol in PROTOCOLS:
        torch.save({"a": ramp(4, 2), "b": ramp(3)}, DATA / f"protocol-{protocol}.bin", pickle_protocol=protocol)
    torch.save({"a": ramp(4, 2)}, DATA / "legacy.bin", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), DATA / "program.bin")


TEXT = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "sliding_window": 16,
}
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


def write_adapter(name: str, model: Any, safe: bool, **config: Any) -> None:
    """An adapter of `model` with seeded random matrices; in `expected.pt` every 4th row and column of what it adds."""
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(base_model_name_or_path="base/of-the-test", **config))
    expected = {}
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.copy_((torch.randn(parameter.shape) / 4).bfloat16())
        for key, module in adapted.named_modules():
            if hasattr(module, "get_delta_weight"):
                expected[key] = module.get_delta_weight("default")[::4, ::4].contiguous()
    shutil.rmtree(DATA / name, ignore_errors=True)
    adapted.save_pretrained(DATA / name, safe_serialization=safe)
    (DATA / name / "README.md").unlink()
    torch.save(expected, DATA / name / "expected.pt")
    print(name, *json.loads((DATA / name / "adapter_config.json").read_text()))


def write_adapters() -> None:
    def gemma2() -> Any:
        return Gemma2ForCausalLM(Gemma2Config(**TEXT))

    write_adapter("adapter-gemma2", gemma2(), True, r=2, lora_alpha=3, target_modules=["q_proj"], layers_to_transform=1)
    write_adapter(
        "adapter-bin", gemma2(), False, r=2, target_modules=["o_proj"], layers_to_transform=0, use_rslora=True
    )
    pattern = {"rank_pattern": {"layers.1.mlp.up_proj": 3}, "alpha_pattern": {"mlp.up_proj": 5}}
    targets = ["up_proj", "v_proj"]
    write_adapter("adapter-patterns", gemma2(), True, r=1, target_modules=targets, layers_to_transform=1, **pattern)
    both = Gemma3ForConditionalGeneration(Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4))
    write_adapter("adapter-multimodal", both, True, r=1, target_modules=["k_proj"], layers_to_transform=0)


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    write_torch_files()
    write_adapters()
