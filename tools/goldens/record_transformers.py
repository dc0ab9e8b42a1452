"""Record the float32 logits of transformers' Gemma 1, 2, 3 and VaultGemma for every case; needs torch and transformers.

    python tools/goldens/record_transformers.py

Writes data/transformers.npz: one array "<case>/<length>" of float32 (length, vocab) per case and sequence length. It
stops if transformers read a checkpoint otherwise than meant, or if a soft-cap of a case makes no difference. Gemma 4
has a script of its own, `record_gemma4.py`.
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
from tests.goldens.cases import CASES, Case, Floats, token_ids, write_checkpoint  # noqa: E402

sys.path.remove(ROOT)  # transformers would take the folder kernels/ there for the package of that name

OUT = Path(__file__).resolve().parents[2] / "tests/goldens/data/transformers.npz"
MINIMUM_MARGIN = 5e-5  # of the range, between the best two logits: no golden argmax may hang on float rounding


def main() -> None:
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    goldens: dict[str, Floats] = {}
    for case in CASES.values():
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(case, Path(folder))
            goldens |= _record(case, folder)
            write_checkpoint(case, Path(folder), transformers=4)
            _check_dialects_agree(case, folder, goldens)
    np.savez_compressed(OUT, **goldens)
    print(
        f"{OUT.name}: {len(goldens)} arrays, {OUT.stat().st_size / 1e6:.2f} MB, transformers {transformers.__version__}"
    )


def load(folder: str, **changes: Any) -> Any:
    """The model in `folder`, with other values in its configuration."""
    config = transformers.AutoConfig.from_pretrained(folder)
    for key, value in changes.items():
        setattr(config, key, value)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits_of(model: Any, ids: list[int]) -> Floats:
    """Float32 (ids, vocab)."""
    with torch.no_grad():
        result: Floats = model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    return result


def _record(case: Case, folder: str) -> dict[str, Floats]:
    model = load(folder)
    _check_config(case, model)
    out = {f"{case.name}/{n}": logits_of(model, token_ids(case, n)) for n in case.lengths}
    ids = token_ids(case, case.lengths[0])
    logits = out[f"{case.name}/{len(ids)}"]
    check_margin(case.name, logits)
    _check_caps_bite(case, folder, ids, logits)
    _check_window_bites(case, folder, ids, logits)
    print()
    return out


def check_margin(name: str, logits: Floats) -> None:
    """Stop where an argmax would hang on float rounding."""
    best = np.sort(logits, axis=-1)
    margin = float((best[:, -1] - best[:, -2]).min() / np.ptp(logits))
    print(f"{name}: range {np.ptp(logits):.1f}, smallest margin {margin:.1e}", end="")
    assert np.isfinite(logits).all()
    assert margin > MINIMUM_MARGIN, f"{name}: change the seed"


def _check_config(case: Case, model: Any) -> None:
    config = model.config
    attention = model.model.layers[0].self_attn
    assert abs(attention.scaling - case.query_scalar**-0.5) < 1e-9
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == case.tied
    if case.architecture != "gemma":
        assert config.layer_types == case.layer_types
        windows = [layer.self_attn.sliding_window for layer in model.model.layers]
        assert windows == [case.window if kind == "L" else None for kind in case.local]
        assert attention.attn_logit_softcapping == case.attention_cap
    rope = model.model.rotary_emb
    if case.architecture == "gemma3":
        _check_frequency(rope.full_attention_inv_freq, case, case.rope_base, case.rope_factor)
        _check_frequency(rope.sliding_attention_inv_freq, case, case.rope_local_base, 1.0)
    else:
        _check_frequency(rope.inv_freq, case, case.rope_base, 1.0)


def _check_frequency(found: torch.Tensor, case: Case, base: float, factor: float) -> None:
    expected = base ** (-np.arange(0, case.head_dim, 2) / case.head_dim) / factor
    assert np.allclose(found.numpy(), expected, rtol=1e-5), case.name


def _check_caps_bite(case: Case, folder: str, ids: list[int], logits: Floats) -> None:
    for key, cap in (("attn_logit_softcapping", case.attention_cap), ("final_logit_softcapping", case.final_cap)):
        if cap is None:
            continue
        change = np.abs(logits_of(load(folder, **{key: None}), ids) - logits).max() / np.ptp(logits)
        print(f", without {key} {change:.1e}", end="")
        if case.name in ("gemma2-caps-bite", "gemma3-final-cap"):
            assert change > 0.05, f"{case.name}: {key} makes no material difference"


def _check_window_bites(case: Case, folder: str, ids: list[int], logits: Floats) -> None:
    if "L" not in case.local or len(ids) <= case.window:
        return
    for window in (case.window - 1, case.window + 1):
        change = np.abs(logits_of(load(folder, sliding_window=window), ids) - logits).max() / np.ptp(logits)
        print(f", window {window} {change:.1e}", end="")
        assert change > 0.005, f"{case.name}: a window of {window} makes no material difference"


def _check_dialects_agree(case: Case, folder: str, goldens: dict[str, Floats]) -> None:
    n = case.lengths[0]
    assert np.array_equal(logits_of(load(folder), token_ids(case, n)), goldens[f"{case.name}/{n}"]), case.name


if __name__ == "__main__":
    main()
