"""Record what llama.cpp says with the real Gemma 3 270M; needs llama-cpp-python.

    python tests/goldens/record_llama_cpp.py ids MODEL.gguf       data/text_ids.npz, then run record_reference.py
    python tests/goldens/record_llama_cpp.py answers MODEL.gguf   data/llama_cpp_270m.npz

The answers: greedy continuations with the lead of the best logit, perplexity per window, top-1 ids and the divergence
from the float32 reference. Two threads, f16 cache, flash attention as llama.cpp chooses.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.goldens.real import (
    COMPARED,
    DATA,
    GREEDY_TOKENS,
    PROMPTS,
    WINDOW,
    WINDOWS,
    Floats,
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

    def __init__(self, path: str) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = WINDOW
        params.n_threads = params.n_threads_batch = 2
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


def record_ids(peer: Peer) -> None:
    ids = peer.tokenize(text())
    needed = WINDOWS * (WINDOW - 1)
    assert len(ids) >= needed, f"{len(ids)} tokens, {needed} needed"
    np.savez_compressed(DATA / "text_ids.npz", ids=np.array(ids, np.int32))
    print(f"{len(ids)} tokens")


def record_answers(peer: Peer) -> None:
    greedy = [_greedy(peer, [2, *peer.tokenize(prompt)]) for prompt in PROMPTS]
    reference = np.load(DATA / "reference_270m.npz")
    nll, top_1, kl = [], [], []
    for i, window in enumerate(windows(np.load(DATA / "text_ids.npz")["ids"])):
        logits = peer.logits(window.tolist())
        nll.append(negative_log_likelihood(window, logits))
        if i < COMPARED:
            top_1.append(logits[:-1].argmax(axis=1).astype(np.int32))
            top = zip(reference["top_ids"][i], reference["top_log_p"][i], logits[:-1], strict=True)
            kl.append([divergence(ids, log_p, row) for ids, log_p, row in top])
    agreement = np.mean(np.array(top_1) == reference["top_ids"][:, :, 0])
    print(f"perplexity {np.exp(np.sum(nll) / (WINDOWS * (WINDOW - 1))):.4f}")
    print(f"divergence from float32: mean {np.mean(kl):.3e}; same best token as float32 {agreement:.4f}")
    np.savez_compressed(
        DATA / "llama_cpp_270m.npz",
        greedy=np.array([ids for ids, _ in greedy], np.int32),
        greedy_lead=np.array([lead for _, lead in greedy], np.float32),
        nll=nll,
        top_1=top_1,
        divergence=np.array(kl, np.float32),
    )


def _greedy(peer: Peer, prompt: list[int]) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    leads: list[float] = []
    row = peer.logits(prompt)[-1]
    while len(ids) < GREEDY_TOKENS:
        second, best = np.partition(row, -2)[-2:]
        ids.append(int(row.argmax()))
        leads.append(float(best - second))
        assert not peer.ends(ids[-1]), "the model ends here: choose another prompt"
        row = peer.step(ids[-1], len(prompt) + len(ids) - 1)
    return ids, leads


if __name__ == "__main__":
    {"ids": record_ids, "answers": record_answers}[sys.argv[1]](Peer(sys.argv[2]))
