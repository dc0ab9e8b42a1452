"""Record float32 embeddings of transformers' Gemma 3 that sees both ways; needs torch and transformers 5.24.

    python tools/goldens/record_embeddings.py

Writes data/embeddings.npz: "<case>/pooled" and "<case>/dense", float32 (texts, D), both of length 1, without and with
the dense layers. It stops if a window of another width, or attention one way, makes no difference.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)
from tests.goldens import gemma4_cases  # noqa: E402
from tests.goldens.cases import Floats  # noqa: E402
from tests.goldens.embedding_cases import (  # noqa: E402
    EMBEDDING2,
    EMBEDDING_CASES,
    EmbeddingCase,
    dense,
    projection2,
    texts,
    texts2,
    write_checkpoint,
)

sys.path.remove(ROOT)  # transformers would take the folder kernels/ there for the package of that name

OUT = Path(__file__).resolve().parents[2] / "tests/goldens/data/embeddings.npz"


def main() -> None:
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    goldens: dict[str, Floats] = {}
    for case in EMBEDDING_CASES.values():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(case, Path(folder))
            goldens |= _record(case, folder)
    goldens["embedding2"] = _second_version()
    np.savez_compressed(OUT, **goldens)
    print(
        f"{OUT.name}: {len(goldens)} arrays, {OUT.stat().st_size / 1e3:.0f} kB, transformers {transformers.__version__}"
    )


def _load(folder: str, **changes: Any) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    for key, value in changes.items():
        setattr(config, key, value)
    model = transformers.Gemma3TextModel.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def _pooled(model: Any, case: EmbeddingCase) -> Floats:
    with torch.no_grad():
        rows = [
            model(torch.tensor([ids]), use_cache=False).last_hidden_state[0].double().mean(0) for ids in texts(case)
        ]
    return np.stack([row.numpy() for row in rows])


def _unit(rows: Floats) -> Floats:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _record(case: EmbeddingCase, folder: str) -> dict[str, Floats]:
    model = _load(folder)
    layers = [layer.self_attn for layer in model.layers]
    assert not any(attention.is_causal for attention in layers)
    pooled = _pooled(model, case)
    halves = model.config.sliding_window
    print(f"{case.name}: window {case.body.window} is {halves} in transformers' configuration", end="")
    for what, changes in {
        "narrower": {"sliding_window": halves - 1},
        "wider": {"sliding_window": halves + 1},
        "one way": {"use_bidirectional_attention": False},
    }.items():
        change = float(np.abs(_unit(_pooled(_load(folder, **changes), case)) - _unit(pooled)).max())
        print(f", {what} {change:.1e}", end="")
        assert change > 1e-3, f"{case.name}: {what} makes no material difference"
    print()
    two, three = (values.astype(np.float64) for values in dense(case).values())
    return {f"{case.name}/pooled": _unit(pooled), f"{case.name}/dense": _unit(pooled @ two.T @ three.T)}


def _second_version() -> Floats:
    """Of Gemma 4 that sees both ways: without a table of inputs, and with what that halves made whole."""
    text = gemma4_cases.text_config(EMBEDDING2) | {"use_bidirectional_attention": "all"}
    with tempfile.TemporaryDirectory() as folder:
        gemma4_cases.write_checkpoint(EMBEDDING2, Path(folder))
        config = transformers.Gemma4TextConfig(**text)
        config.sliding_window = EMBEDDING2.window // 2  # eager masks are inclusive, and the configuration has one more
        model = transformers.Gemma4ForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        ).model.eval()
    with torch.no_grad():
        model.embed_tokens_per_layer.weight.zero_()
        model.per_layer_projection_norm.weight.mul_(2**0.5)
        rows = [model(torch.tensor([ids]), use_cache=False).last_hidden_state[0] for ids in texts2()]
    assert not any(layer.self_attn.is_causal for layer in model.layers)
    pooled = np.stack([text.double().mean(0).numpy() for text in rows])
    return _unit(pooled @ projection2().astype(np.float64).T)


if __name__ == "__main__":
    main()
