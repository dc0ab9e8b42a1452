"""Record the float32 logits of transformers' Gemma 4 for every case; needs torch and transformers 5.24.

    python tools/goldens/record_gemma4.py

Writes data/transformers_gemma4.npz: one array "<case>/<length>" of float32 (length, vocab) per case and sequence
length. It stops if transformers read a checkpoint otherwise than meant, or if a feature of a case makes no difference:
what of a case is taken away, one thing at a time, must change its logits.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, ROOT)
from tests.goldens.cases import Floats, token_ids  # noqa: E402
from tests.goldens.gemma4_cases import GEMMA4_CASES, Gemma4Case, weights, write_checkpoint  # noqa: E402

sys.path.remove(ROOT)  # transformers would take the folder kernels/ there for the package of that name

OUT = Path(__file__).resolve().parents[2] / "tests/goldens/data/transformers_gemma4.npz"
MINIMUM_MARGIN = 5e-5  # of the range, between the best two logits: no golden argmax may hang on float rounding
MINIMUM_CHOICE = 1e-4  # between the probabilities of the last expert that is used and the first that is not
MINIMUM_CHANGE = 2e-3  # of the range, by what is taken away


def main() -> None:
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    goldens: dict[str, Floats] = {}
    for case in GEMMA4_CASES.values():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(case, Path(folder))
            goldens |= _record(case, folder)
            _check_dialects_agree(case, Path(folder), goldens)
    np.savez_compressed(OUT, **goldens)
    print(
        f"{OUT.name}: {len(goldens)} arrays, {OUT.stat().st_size / 1e6:.2f} MB, transformers {transformers.__version__}"
    )


def _load(folder: str | Path, **changes: Any) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    text = config.get_text_config()
    for key, value in changes.items():
        setattr(text, key, value)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=text, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()


def _logits(model: Any, ids: list[int]) -> Floats:
    with torch.no_grad():
        result: Floats = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return result


def _record(case: Gemma4Case, folder: str) -> dict[str, Floats]:
    model = _load(folder)
    _check_config(case, model)
    out = {f"{case.name}/{n}": _logits(model, token_ids(case, n)) for n in case.lengths}
    ids = token_ids(case, case.lengths[0])
    logits = out[f"{case.name}/{len(ids)}"]
    best = np.sort(logits, axis=-1)
    margin = float((best[:, -1] - best[:, -2]).min() / np.ptp(logits))
    print(f"{case.name}: range {np.ptp(logits):.1f}, smallest margin {margin:.1e}", end="")
    assert np.isfinite(logits).all()
    assert margin > MINIMUM_MARGIN, f"{case.name}: change the seed"
    _check_choice_of_experts(case, model, ids)
    for what, changed in _without(case, folder, model):
        change = float(np.abs(_logits(changed, ids) - logits).max() / np.ptp(logits))
        print(f", without {what} {change:.1e}", end="")
        assert change > MINIMUM_CHANGE, f"{case.name}: {what} makes no material difference"
    print()
    return out


def _check_config(case: Gemma4Case, model: Any) -> None:
    config, layers = model.config, model.model.layers
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == case.tied
    assert config.layer_types == case.layer_types and config.final_logit_softcapping == case.final_cap
    own = [i for i in range(case.layers) if not case.shares(i)]
    for i, layer in enumerate(layers):
        attention = layer.self_attn
        assert attention.scaling == 1 and attention.head_dim == case.head(i)
        assert attention.sliding_window == (case.window if case.local[i] == "L" else None)
        assert attention.is_kv_shared_layer == case.shares(i) == (i not in own)
        assert layer.mlp.intermediate_size == case.wide(i)
        if i in own:
            assert attention.k_proj.weight.shape[0] == case.kv(i)
            assert (attention.v_proj is None) == (case.single and case.local[i] == "G")
    rope = model.model.rotary_emb
    expected = case.rope_base ** (-np.arange(0, case.global_head_dim, 2) / case.global_head_dim)
    expected[int(case.turning * case.global_head_dim // 2) :] = 0
    assert np.allclose(rope.full_attention_inv_freq.numpy(), expected, rtol=1e-5), case.name
    local = case.rope_local_base ** (-np.arange(0, case.head_dim, 2) / case.head_dim)
    assert np.allclose(rope.sliding_attention_inv_freq.numpy(), local, rtol=1e-5), case.name
    stored, model_weights = weights(case), model.state_dict()
    for name, values in stored.items():
        if name in model_weights:
            assert np.array_equal(model_weights[name].numpy(), values), name


def _check_choice_of_experts(case: Gemma4Case, model: Any, ids: list[int]) -> None:
    if not case.experts:
        return
    gaps: list[torch.Tensor] = []
    hooks = []
    for layer in model.model.layers:
        hooks.append(layer.router.register_forward_hook(lambda _, __, out: gaps.append(out[0].sort(dim=-1).values)))
    _logits(model, ids)
    for hook in hooks:
        hook.remove()
    gap = min(float((p[:, -case.used] - p[:, -case.used - 1]).min()) for p in gaps)
    print(f", smallest gap of experts {gap:.1e}", end="")
    assert gap > MINIMUM_CHOICE, f"{case.name}: change the seed"


def _without(case: Gemma4Case, folder: str, model: Any) -> Iterator[tuple[str, Any]]:
    """The model with one thing taken away at a time."""
    for window in (case.window - 1, case.window + 1):
        yield f"window {window}", _load(folder, sliding_window=window)
    if case.final_cap is not None:
        yield "soft-cap", _load(folder, final_logit_softcapping=None)
    yield "still pairs", _with_all_pairs_turning(case, model)
    vectors = {
        name.split(".", 3)[-1] for name, values in weights(case).items() if values.ndim == 1 and "layers" in name
    }
    for name in sorted(vectors):
        yield name, _with(model, name, torch.ones_like)
    if case.per_layer:
        yield "table of inputs", _with(model, "embed_tokens_per_layer.weight", torch.zeros_like)
        yield "projection of inputs", _with(model, "per_layer_projection_norm.weight", torch.zeros_like)
    if case.experts:
        yield "experts", _with(model, "experts.down_proj", torch.zeros_like)
        yield "router", _with(model, "router.proj.weight", torch.zeros_like)


def _with(model: Any, name: str, change: Any) -> Any:
    model = copy.deepcopy(model)
    state = model.state_dict()
    found = [key for key in state if key.endswith(f".{name}")]
    assert found, name
    for key in found:
        state[key].copy_(change(state[key]))
    return model


def _with_all_pairs_turning(case: Gemma4Case, model: Any) -> Any:
    model = copy.deepcopy(model)
    exponents = torch.arange(0, case.global_head_dim, 2) / case.global_head_dim
    model.model.rotary_emb.full_attention_inv_freq.copy_(case.rope_base**-exponents)
    return model


def _check_dialects_agree(case: Gemma4Case, folder: Path, goldens: dict[str, Floats]) -> None:
    """The old keys of config.json, and the checkpoint of the model that sees, whose text model is the same."""
    n = case.lengths[0]
    if case.old:
        write_checkpoint(case, folder, old=True)
        assert np.array_equal(_logits(_load(folder), token_ids(case, n)), goldens[f"{case.name}/{n}"]), case.name


if __name__ == "__main__":
    main()
