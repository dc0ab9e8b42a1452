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
from llama import Llama  # noqa: E402

IMPORTED = time.perf_counter()


def first_token(path: str, prompt: bytes, context: int, threads: int) -> bytes:
    """The text of the most probable next token."""
    engine = Llama()
    engine.open(path, context, threads)
    vocab = llama_cpp.llama_model_get_vocab(engine.model)
    ids = (llama_cpp.llama_token * (len(prompt) + 2))()
    count = llama_cpp.llama_tokenize(vocab, prompt, len(prompt), ids, len(ids), True, False)
    engine.work(ids[:count])()
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(engine.context, -1), (engine.vocabulary,))
    text = ctypes.create_string_buffer(64)
    size = llama_cpp.llama_token_to_piece(vocab, int(logits.argmax()), text, len(text), 0, False)
    return text.raw[: max(size, 0)] or b" "


if __name__ == "__main__":
    print(f"import {IMPORTED - START:.3f}", file=sys.stderr, flush=True)
    text = first_token(sys.argv[1], sys.argv[2].encode(), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
    time.sleep(60)  # the model stays open while our memory is looked at
