"""Record what llama.cpp says with the real Gemma 3 270M; needs llama-cpp-python.

    python tools/goldens/record_llama_cpp.py ids MODEL.gguf       data/text_ids.npz, then run record_reference.py
    python tools/goldens/record_llama_cpp.py answers MODEL.gguf   data/llama_cpp_270m.npz

The answers: greedy continuations, perplexity per window, top-1 ids with their lead over the second, and the divergence
from the float32 reference. Two threads, f16 cache, flash attention as llama.cpp chooses. With 8-bit activations it
does not agree with itself when it takes other kernels: the keys "plain_..." hold what it says without repacked weights
and without flash attention, which tells how much agreement can be asked of anybody.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.goldens.real import (
    BOS,
    COMPARED,
    DATA,
    GREEDY_TOKENS,
    PROMPTS,
    WINDOW,
    WINDOWS,
    Floats,
    Ids,
    divergence,
    negative_log_likelihood,
    text,
    windows,
)


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp prints a line per tensor otherwise."""


class Peer:
    """A llama.cpp context that gives the logits of every position, from an empty cache."""

    def __init__(self, path: str, *, plain: bool = False) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        loading = llama_cpp.llama_model_default_params()
        loading.use_extra_bufts = not plain
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), loading)
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = WINDOW
        params.n_threads = params.n_threads_batch = 2
        if plain:
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, params)

    def tokenize(self, content: str) -> list[int]:
        data = content.encode()
        out = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self._vocabulary, data, len(data), out, len(out), False, False)
        assert n >= 0
        return list(out[:n])

    def ends(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocabulary, token))

    def logits(self, ids: list[int]) -> Floats:
        """float32 (len(ids), vocab); valid until the next call."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        return self._decode(ids, 0)

    def step(self, token: int, position: int) -> Floats:
        """The logits after one more token; float32 (vocab,)."""
        return self._decode([token], position)[0]

    def _decode(self, ids: list[int], start: int) -> Floats:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, 1
            batch.seq_id[i][0] = 0
        assert llama_cpp.llama_decode(self._context, batch) == 0
        llama_cpp.llama_batch_free(batch)
        pointer = llama_cpp.llama_get_logits(self._context)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float * (len(ids) * self.vocab)))
        return np.frombuffer(address.contents, np.float32).reshape(len(ids), self.vocab)


def record_ids(path: str) -> None:
    ids = Peer(path).tokenize(text())
    needed = WINDOWS * (WINDOW - 1)
    assert len(ids) >= needed, f"{len(ids)} tokens, {needed} needed"
    np.savez_compressed(DATA / "text_ids.npz", ids=np.array(ids, np.int32))
    print(f"{len(ids)} tokens")


def record_answers(path: str) -> None:
    peer = Peer(path)
    prompts = [[BOS, *peer.tokenize(prompt)] for prompt in PROMPTS]
    greedy = [_greedy(peer, prompt) for prompt in prompts]
    out = {
        "greedy": np.array([ids for ids, _ in greedy], np.int32),
        "greedy_lead": np.array([lead for _, lead in greedy], np.float32),
    }
    ids = windows(np.load(DATA / "text_ids.npz")["ids"])
    out |= _measure(peer, ids)
    plain = Peer(path, plain=True)
    out |= {f"plain_{key}": value for key, value in _measure(plain, ids[:COMPARED]).items() if key != "lead"}
    forced = [
        plain.logits([*prompt, *tokens[:-1]])[len(prompt) - 1 :].argmax(axis=1)
        for prompt, tokens in zip(prompts, out["greedy"].tolist(), strict=True)
    ]
    out["plain_greedy_forced"] = np.array(forced, np.int32)
    _report(out)
    np.savez_compressed(DATA / "llama_cpp_270m.npz", **out)


def _measure(peer: Peer, ids: Ids) -> dict[str, Any]:
    """Perplexity over all windows of `ids`, the rest over the first COMPARED."""
    reference = np.load(DATA / "reference_270m.npz")
    nll, top_1, lead, kl = [], [], [], []
    for i, window in enumerate(ids):
        logits = peer.logits(window.tolist())
        nll.append(negative_log_likelihood(window, logits))
        if i < COMPARED:
            top_1.append(logits[:-1].argmax(axis=1))
            lead.append([_lead(row) for row in logits[:-1]])
            top = zip(reference["top_ids"][i], reference["top_log_p"][i], logits[:-1], strict=True)
            kl.append([divergence(best, log_p, row) for best, log_p, row in top])
    return {
        "nll": np.array(nll),
        "top_1": np.array(top_1, np.int32),
        "lead": np.array(lead, np.float32),
        "divergence": np.array(kl, np.float32),
    }


def _lead(row: Floats) -> float:
    second, best = np.partition(row, -2)[-2:]
    return float(best - second)


def _report(out: dict[str, Any]) -> None:
    exact = np.load(DATA / "reference_270m.npz")["top_ids"][:, :, 0]
    other = out["top_1"] != out["plain_top_1"]
    forced = out["greedy"] != out["plain_greedy_forced"]
    print(f"perplexity {np.exp(out['nll'].sum() / (WINDOWS * (WINDOW - 1))):.4f}")
    drift = (out["plain_nll"].sum() - out["nll"][:COMPARED].sum()) / exact.size
    print(f"perplexity of plain over default in the compared windows {np.exp(drift):.5f}")
    for prefix in ("", "plain_"):
        agreement, kl = np.mean(out[prefix + "top_1"] == exact), out[prefix + "divergence"].mean()
        print(f"{prefix}best token as in float32 {agreement:.4f}, mean divergence from float32 {kl:.3e}")
    print(f"best token as in plain {1 - other.mean():.4f}, greatest lead where not {out['lead'][other].max():.3f}")
    worst = out["greedy_lead"][forced].max()
    print(f"greedy token as in plain {1 - forced.mean():.4f}, greatest lead where not {worst:.3f}")


def _greedy(peer: Peer, prompt: list[int]) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    leads: list[float] = []
    row = peer.logits(prompt)[-1]
    while len(ids) < GREEDY_TOKENS:
        ids.append(int(row.argmax()))
        leads.append(_lead(row))
        assert not peer.ends(ids[-1]), "the model ends here: choose another prompt"
        row = peer.step(ids[-1], len(prompt) + len(ids) - 1)
    return ids, leads


if __name__ == "__main__":
    {"ids": record_ids, "answers": record_answers}[sys.argv[1]](sys.argv[2])
