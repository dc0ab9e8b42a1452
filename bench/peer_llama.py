"""Time llama.cpp as llama-bench does, through llama-cpp-python's low-level interface: no tokenizing, no sampling.

    python bench/peer_llama.py MODEL.gguf -p 512 -n 64 -d 0 -t 2 -r 3 --json

Prompt speed is one decode of `p` tokens after `d` tokens of context, generation speed `n` decodes of one token after
`d` tokens; every repetition starts from an empty cache, after one untimed warm-up. Run by any interpreter that has
llama-cpp-python; the project itself never imports it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import resource
import statistics
import time
from collections.abc import Callable

import llama_cpp

BATCH = 512  # llama-bench's size of a physical batch


@llama_cpp.llama_log_callback
def _silent(_level: int, _text: bytes, _data: object) -> None:
    """llama.cpp prints a line per tensor otherwise."""


class Peer:
    """One model and one context. Times are seconds."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        start = time.perf_counter()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = max(context, BATCH)
        params.n_batch = 2048
        params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self.load_s = time.perf_counter() - start

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)

    def prompt(self, tokens: int) -> float:
        """Seconds to decode `tokens` random ids at once, logits of the last one only."""
        start = time.perf_counter()
        for done in range(0, tokens, 2048):
            self._decode(min(2048, tokens - done))
        return time.perf_counter() - start

    def generate(self, tokens: int) -> float:
        """Seconds to decode `tokens` random ids one after the other."""
        start = time.perf_counter()
        for _ in range(tokens):
            self._decode(1)
        return time.perf_counter() - start

    def _decode(self, n: int) -> None:
        ids = (llama_cpp.llama_token * n)(*(random.randrange(self._vocab) for _ in range(n)))
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(ids, n)):
            raise SystemExit("llama.cpp cannot decode")
        llama_cpp.llama_synchronize(self._context)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Speeds in tokens per second: mean, deviation and every repetition; memory in bytes, load time in seconds."""
    peer = Peer(args.model, args.depth + max(args.prompt, args.generate), args.threads)
    peer.prompt(min(args.prompt, 32) or 1)
    peer.generate(1)
    prompt, generate = [], []
    for _ in range(args.repeats):
        if args.prompt:
            prompt.append(args.prompt / _after(peer, args.depth, lambda: peer.prompt(args.prompt)))
        if args.generate:
            generate.append(args.generate / _after(peer, args.depth, lambda: peer.generate(args.generate)))
    return {
        "engine": f"llama.cpp (llama-cpp-python {llama_cpp.__version__})",
        "model": args.model,
        "n_prompt": args.prompt,
        "n_gen": args.generate,
        "n_depth": args.depth,
        "n_threads": args.threads,
        "prompt": _summary(prompt),
        "generate": _summary(generate),
        "load_s": peer.load_s,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _after(peer: Peer, depth: int, timed: Callable[[], float]) -> float:
    peer.clear()
    if depth:
        peer.prompt(depth)
    return timed()


def _summary(values: list[float]) -> dict[str, object] | None:
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "stdev": deviation, "best": max(values), "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time llama.cpp on a GGUF file.")
    parser.add_argument("model")
    parser.add_argument("-p", dest="prompt", type=int, default=512, help="prompt tokens; 0 leaves the test out")
    parser.add_argument("-n", dest="generate", type=int, default=64, help="generated tokens; 0 leaves the test out")
    parser.add_argument("-d", dest="depth", type=int, default=0, help="tokens in the cache before either test")
    parser.add_argument("-t", dest="threads", type=int, default=2)
    parser.add_argument("-r", dest="repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    for name in ("prompt", "generate"):
        speed = result[name]
        if isinstance(speed, dict):
            print(f"{name} {speed['mean']:.2f} +- {speed['stdev']:.2f} tokens/s")


if __name__ == "__main__":
    main()
