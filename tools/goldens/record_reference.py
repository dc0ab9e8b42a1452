"""Record what the real Gemma 3 270M says in exact float32, by transformers on the decoded weights; needs torch.

    python tools/goldens/record_reference.py TWIN.gguf        (the float32 twin that dequantize.py writes)

Writes data/reference_270m.npz: for each compared position the best ids with their log-probabilities, and the negative
log-likelihood of each compared window.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)
from tests.goldens.cases import gguf_name  # noqa: E402
from tests.goldens.real import COMPARED, DATA, negative_log_likelihood, reference_top, windows  # noqa: E402

sys.path.remove(ROOT)  # transformers would take the folder kernels/ there for the package of that name

SHAPE = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32768,
}


def main(path: str) -> None:
    torch.set_num_threads(2)
    reader = gguf.GGUFReader(path)
    model = _load({t.name: t.data for t in reader.tensors})
    ids = np.load(DATA / "text_ids.npz")["ids"]
    tops, log_p, nll = [], [], []
    for window in windows(ids)[:COMPARED]:
        with torch.no_grad():
            logits = model(torch.tensor(window[None].astype(np.int64)), use_cache=False).logits[0].numpy()
        nll.append(negative_log_likelihood(window, logits))
        best = [reference_top(row) for row in logits[:-1]]
        tops.append([ids for ids, _ in best])
        log_p.append([values for _, values in best])
        print(f"window of {len(window)}: {nll[-1] / (len(window) - 1):.4f} nats per token", flush=True)
    np.savez_compressed(DATA / "reference_270m.npz", top_ids=tops, top_log_p=log_p, nll=nll)


def _load(tensors: dict[str, Any]) -> Any:
    config = transformers.Gemma3TextConfig(**SHAPE)
    assert config.layer_types == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1e6
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 1e4
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForCausalLM(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = tensors[gguf_name("gemma3", name)]
            parameter.copy_(torch.tensor(np.array(values)) - (1 if values.ndim == 1 else 0))
    return model


if __name__ == "__main__":
    main(sys.argv[1])
