"""transformers on torch as a worker, in bfloat16. Run by an interpreter that has it. `model` is a folder."""

from __future__ import annotations

import serve
import torch
import transformers


class Transformers(serve.Engine):
    """One model and the cache of one sequence."""

    def describe(self) -> str:
        return f"transformers {transformers.__version__}, torch {torch.__version__}, bfloat16"

    def open(self, model: str, context: int, threads: int) -> None:
        """`context` bounds nothing here: the cache grows."""
        torch.set_num_threads(threads)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
        self.vocabulary = self._model.config.vocab_size
        self.clear()

    def clear(self) -> None:
        self._cache = transformers.DynamicCache(config=self._model.config)

    def work(self, ids: list[int], *, every: bool = False) -> serve.Work:
        rows, kept = torch.tensor([ids]), len(ids) if every else 1
        return lambda: self._step(rows, kept)

    @torch.inference_mode()
    def _step(self, rows: torch.Tensor, kept: int) -> None:
        self._model(rows, past_key_values=self._cache, use_cache=True, logits_to_keep=kept)


if __name__ == "__main__":
    serve.serve(Transformers())
