"""transformers on torch as a worker, in bfloat16. Run by an interpreter that has it. `model` is a folder."""

from __future__ import annotations

import random
import time
from typing import Any

import torch
import transformers
from serve import serve


class Transformers:
    """One model and the cache of one sequence. Times are seconds."""

    def describe(self) -> dict[str, Any]:
        return {"engine": f"transformers {transformers.__version__}, torch {torch.__version__}, bfloat16"}

    def open(self, model: str, context: int, threads: int) -> None:
        """`context` bounds nothing here: the cache grows."""
        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        self._random = random.Random(0)
        self.clear()

    def clear(self) -> None:
        self._cache = transformers.DynamicCache(config=self._model.config)

    def prompt(self, tokens: int) -> float:
        """Append so many tokens at once, logits of the last one only."""
        return self._timed([self._ids(tokens)])

    def generate(self, tokens: int) -> float:
        """Append so many tokens one by one, logits of each."""
        return self._timed([self._ids(1) for _ in range(tokens)])

    def close(self) -> None:
        """The process's end frees everything."""

    @torch.inference_mode()
    def _timed(self, parts: list[torch.Tensor]) -> float:
        start = time.perf_counter()
        for part in parts:
            self._model(part, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    def _ids(self, count: int) -> torch.Tensor:
        vocabulary = self._model.config.vocab_size
        return torch.tensor([[self._random.randrange(vocabulary) for _ in range(count)]])


if __name__ == "__main__":
    peer = Transformers()
    serve({name: getattr(peer, name) for name in ("describe", "open", "clear", "prompt", "generate", "close")})
