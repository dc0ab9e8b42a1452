"""Proof that llama.cpp loads every file we write, and that real transformers folders convert.

    python tools/goldens/check_llama_cpp_loads.py make FOLDER        (needs torch and transformers 5)
    python -m edge_gemma.quantize ...                                (see `convert`, run with the project's Python)
    python tools/goldens/check_llama_cpp_loads.py convert FOLDER     (needs edge_gemma only)
    python tools/goldens/check_llama_cpp_loads.py load FOLDER        (needs llama-cpp-python; torch for the comparison)

`make` saves small random models with transformers (text-only and multimodal). `convert` writes every type of each.
`load` generates from every file with llama.cpp and compares the logits of the F32 file with transformers'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0"]
NAMES = ["gemma", "gemma2", "gemma3", "gemma3-multimodal", "gemma4", "gemma4-experts"]
NAMES += ["llama3", "llama-biased", "danube", "danube3"]
IDS = [2, 300, 310, 320, 280, 290, 301, 305, 333, 350, 277, 288, 299, 311, 322, 344, 355, 366, 370, 375, 281, 282]
SMALL = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
WINDOWED = {"sliding_window": 8, "query_pre_attn_scalar": 32}
GEMMA4 = SMALL | {"num_hidden_layers": 12, "sliding_window": 8, "global_head_dim": 64, "final_logit_softcapping": 30.0}
SHARING = {"hidden_size_per_layer_input": 32, "num_kv_shared_layers": 6, "use_double_wide_mlp": True}
SHARING |= {"vocab_size_per_layer_input": 384}
EXPERTS = {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
EXPERTS |= {"enable_moe_block": True, "num_experts": 16, "top_k_experts": 2, "moe_intermediate_size": 32}


def models() -> dict[str, object]:
    import transformers as t

    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    text = {**SMALL, **WINDOWED}
    scaled = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    both = t.Gemma3Config(text_config={**text, "rope_parameters": scaled}, vision_config=vision, mm_tokens_per_image=1)
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64}
    made = (
        t.GemmaForCausalLM(t.GemmaConfig(**SMALL)),
        t.Gemma2ForCausalLM(t.Gemma2Config(**text)),
        t.Gemma3ForCausalLM(t.Gemma3TextConfig(**text)),
        t.Gemma3ForConditionalGeneration(both),
        t.Gemma4ForCausalLM(t.Gemma4TextConfig(**GEMMA4, **SHARING)),
        t.Gemma4ForCausalLM(t.Gemma4TextConfig(**GEMMA4, **EXPERTS)),
        t.LlamaForCausalLM(t.LlamaConfig(**SMALL, rope_parameters=rope, tie_word_embeddings=True)),
        t.LlamaForCausalLM(t.LlamaConfig(**SMALL, attention_bias=True)),
        t.MistralForCausalLM(t.MistralConfig(**SMALL | {"head_dim": 80}, sliding_window=None)),
        t.LlamaForCausalLM(t.LlamaConfig(**SMALL | {"head_dim": 120})),
    )
    return dict(zip(NAMES, made, strict=True))


def make(folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    for name, model in models().items():
        with torch.no_grad():
            scales = {key: buffer for key, buffer in model.named_buffers() if "layer_scalar" in key}
            for key, weight in (dict(model.named_parameters()) | scales).items():
                usual = name.startswith("gemma4") and (
                    "norm" in key or "scal" in key
                )  # not stored as what is added to 1
                weight.normal_(1.0 if usual else 0.0, 0.1 if "norm" in key or usual else 0.15)
        model.save_pretrained(folder / name)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([IDS])).logits[0]
        (folder / f"{name}.json").write_text(json.dumps(logits.float().tolist()), "utf-8")
    sys.path.append(ROOT)  # not earlier: transformers would take our kernels/ for another package
    from tests.quantize.tiny_checkpoint import write_tokenizer

    for name in NAMES:
        write_tokenizer(folder / name, "json" if "multimodal" in name or "gemma4" in name else "model")


def convert(folder: Path) -> None:
    sys.path.append(ROOT)
    from edge_gemma.quantize import quantize

    for source in sorted(path for path in folder.iterdir() if path.is_dir()):
        for kind in TYPES:
            report = quantize(source, folder / f"{source.name}-{kind}.gguf", kind, force=True)
            print(source.name, kind, report.tensors, f"{report.bits_per_weight:.2f}", report.notices)


def load(folder: Path) -> None:
    import llama_cpp
    import numpy as np

    for path in sorted(folder.glob("*.gguf")):
        name = path.stem.rsplit("-", 1)[0]
        model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=2, verbose=False, logits_all=True)
        model.eval(IDS)
        expected = np.array(json.loads((folder / f"{name}.json").read_text("utf-8")))
        error = np.abs(model.scores[: len(IDS)] - expected).max() / np.ptp(expected)
        same = (model.scores[: len(IDS)].argmax(1) == expected.argmax(1)).mean()
        text = model("the quick", max_tokens=8, temperature=0)["choices"][0]["text"]
        print(f"{path.name}: error {error:.1e} of the range, same argmax {same:.0%}, generates {text!r}")


if __name__ == "__main__":
    {"make": make, "convert": convert, "load": load}[sys.argv[1]](Path(sys.argv[2]))
