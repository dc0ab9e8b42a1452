"""Record the float32 logits of transformers' Llama and Mistral for every case; needs torch and transformers.

    python tools/goldens/record_llama.py

Writes data/transformers_llama.npz, as `record_transformers.py` does for Gemma. It stops if transformers read a
checkpoint otherwise than meant, or if a window, a bias or a factor of the rotation of a case makes no difference.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from record_transformers import ROOT, check_margin, load, logits_of

sys.path.insert(0, ROOT)
from tests.goldens.cases import Floats, token_ids
from tests.goldens.llama_cases import (
    CASES,
    LlamaCase,
    config,
    factors_of_llama_3,
    write_checkpoint,
)

sys.path.remove(ROOT)  # transformers would take the folder kernels/ there for the package of that name

OUT = Path(ROOT) / "tests/goldens/data/transformers_llama.npz"


def main() -> None:
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    goldens: dict[str, Floats] = {}
    for case in CASES.values():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(case, Path(folder))
            goldens |= _record(case, folder)
            write_checkpoint(case, Path(folder), transformers=4)
            ids = token_ids(case, case.lengths[0])
            assert np.array_equal(logits_of(load(folder), ids), goldens[f"{case.name}/{len(ids)}"]), case.name
    np.savez_compressed(OUT, **goldens)
    print(f"{OUT.name}: {len(goldens)} arrays, {OUT.stat().st_size / 1e6:.2f} MB")


def _record(case: LlamaCase, folder: str) -> dict[str, Floats]:
    model = load(folder)
    _check_config(case, model)
    out = {f"{case.name}/{n}": logits_of(model, token_ids(case, n)) for n in case.lengths}
    ids = token_ids(case, case.lengths[0])
    logits = out[f"{case.name}/{len(ids)}"]
    check_margin(case.name, logits)
    for what, changes in _others(case).items():
        change = _change(folder, ids, logits, **changes)
        print(f", {what} {change:.1e}", end="")
        assert change > 0.005, f"{case.name}: {what} makes no material difference"
    if case.biased:
        _check_biases_bite(model, ids, logits)
    print()
    return out


def _check_config(case: LlamaCase, model: Any) -> None:
    attention = model.model.layers[0].self_attn
    assert abs(attention.scaling - case.head_dim**-0.5) < 1e-9
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == case.tied
    assert getattr(model.config, "sliding_window", None) == case.window
    assert all(
        (module.bias is not None) == case.biased
        for module in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    factors = factors_of_llama_3(case)
    divisors = dict(case.scaling)["factor"] if case.scaling and factors is None else 1.0 if factors is None else factors
    expected = case.rope_base ** (-np.arange(0, case.head_dim, 2) / case.head_dim) / divisors
    assert np.allclose(model.model.rotary_emb.inv_freq.numpy(), expected, rtol=1e-5), case.name


def _others(case: LlamaCase) -> dict[str, dict[str, Any]]:
    """What would be another model."""
    out: dict[str, dict[str, Any]] = {}
    if case.window and case.window < case.lengths[0]:
        out |= {f"window {w}": {"sliding_window": w} for w in (case.window - 1, case.window + 1)}
    if case.scaling:
        plain = {**config(case)["rope_parameters"], "rope_type": "default"}
        out["plain rotation"] = {"rope_parameters": plain}
        if plain.get("low_freq_factor"):
            linear = {"rope_theta": case.rope_base, "rope_type": "linear", "factor": plain["factor"]}
            out["linear rotation"] = {"rope_parameters": linear}
    return out


def _change(folder: str, ids: list[int], logits: Floats, **changes: Any) -> float:
    """The largest difference, as a share of the range, that other values in config.json make."""
    path = Path(folder) / "config.json"
    kept = path.read_text("utf-8")
    path.write_text(json.dumps(json.loads(kept) | changes), "utf-8")
    found = logits_of(load(folder), ids)
    path.write_text(kept, "utf-8")
    return float(np.abs(found - logits).max() / np.ptp(logits))


def _check_biases_bite(model: Any, ids: list[int], logits: Floats) -> None:
    """Each of them; a bias of the keys alone shifts all scores of a query, so it shows through the rotation only."""
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        bias = getattr(model.model.layers[0].self_attn, name).bias
        kept = bias.detach().clone()
        with torch.no_grad():
            bias.zero_()
            change = np.abs(logits_of(model, ids) - logits).max() / np.ptp(logits)
            bias.copy_(kept)
        print(f", without {name}.bias {change:.1e}", end="")
        assert change > 0.005, f"the bias of {name} makes no material difference"


if __name__ == "__main__":
    main()
