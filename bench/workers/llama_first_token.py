"""Continue a prompt by one token with llama.cpp, in as few lines as it can be done; what `edge-gemma run` is held to.

python llama_first_token.py MODEL PROMPT CONTEXT THREADS

Prints the token's text. Says on stderr how many seconds importing llama-cpp-python took, which a program in C++ would
not spend, and then waits to be ended.
"""

from __future__ import annotations

import sys
import time

START = time.perf_counter()
import ctypes  # noqa: E402

import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402

IMPORTED = time.perf_counter()


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp prints a line per tensor otherwise."""


def first_token(path: str, prompt: bytes, context: int, threads: int) -> bytes:
    """The text of the most probable next token."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    vocab = llama_cpp.llama_model_get_vocab(model)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = context
    params.n_threads = params.n_threads_batch = threads
    handle = llama_cpp.llama_init_from_model(model, params)
    ids = (llama_cpp.llama_token * (len(prompt) + 2))()
    count = llama_cpp.llama_tokenize(vocab, prompt, len(prompt), ids, len(ids), True, False)
    if llama_cpp.llama_decode(handle, llama_cpp.llama_batch_get_one(ids, count)):
        raise SystemExit("llama.cpp cannot decode")
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(handle, -1), (llama_cpp.llama_vocab_n_tokens(vocab),))
    best = int(logits.argmax())
    piece = ctypes.create_string_buffer(64)
    size = llama_cpp.llama_token_to_piece(vocab, best, piece, len(piece), 0, False)
    return piece.raw[: max(size, 0)] or b" "


if __name__ == "__main__":
    print(f"import {IMPORTED - START:.3f}", file=sys.stderr, flush=True)
    text = first_token(sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
    time.sleep(60)  # the model stays open while our memory is looked at
