"""What an importance matrix is made of, with progress: a text, or one that the model writes. Knows no file of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_gemma.commands import terminal

if TYPE_CHECKING:
    from edge_gemma.measure.activation_stats import Observer, Sums
    from edge_gemma.quantize.convert import Calibrate
    from edge_gemma.quantize.imatrix import ImportanceMatrix


@dataclass(frozen=True)
class Statistics:
    """Sums of squares of `rows` tokens, which were so many windows of at most `context` tokens of the text `dataset`.

    `counts`: tensor name -> how many rows its sums, or those of each of its experts, are of.
    """

    sums: Sums
    counts: Sums
    rows: int
    windows: int
    context: int
    dataset: str


def of_text(
    model: str, text: str, name: str, context: int, limit: int | None = None, threads: int | None = None
) -> Statistics:
    """Of the first `limit` windows of `text`."""
    from edge_gemma.measure.activation_stats import Observer
    from edge_gemma.measure.quality import windows

    with Observer(model, context, threads, terminal.kernel_progress()) as observer:
        tokenizer = observer.tokenizer
        cut = windows(tokenizer.encode(text, add_bos=False), tokenizer.bos_id, context, limit)
        return _read(observer, cut, context, name, quiet=False)


def of_own_text(
    model: str | Path, tokens: int | None = None, seed: int = 0, threads: int | None = None, *, quiet: bool = False
) -> Statistics:
    """Of so many tokens that the model writes."""
    from edge_gemma.measure.activation_stats import Observer
    from edge_gemma.measure.self_generated_text import LENGTH, TOKENS, described, own_texts

    kernel_progress = None if quiet else terminal.kernel_progress()
    progress = None if quiet else terminal.token_progress("writing a text")
    texts = own_texts(
        model, tokens or TOKENS, seed=seed, threads=threads, progress=progress, kernel_progress=kernel_progress
    )
    with Observer(model, LENGTH, threads, kernel_progress) as observer:
        return _read(observer, texts, LENGTH, described(seed), quiet=quiet)


def calibrator(*, quiet: bool) -> Calibrate:
    """A `calibrate` for `quantize`."""

    def calibrate(model: Path) -> ImportanceMatrix:
        from edge_gemma.quantize.imatrix import of_sums

        found = of_own_text(model, quiet=quiet)
        return of_sums(found.sums, found.counts, datasets=[found.dataset], chunks=found.windows)

    return calibrate


def _read(observer: Observer, cut: Sequence[Sequence[int]], context: int, name: str, *, quiet: bool) -> Statistics:
    import numpy as np

    progress, total = terminal.token_progress("reading the text"), sum(map(len, cut))
    for window in cut:
        observer.add(window)
        if not quiet:
            progress(observer.rows, total)
    counts = {tensor: np.array([float(observer.rows)]) for tensor in observer.sums} | observer.expert_rows
    return Statistics(observer.sums | observer.expert_sums, counts, observer.rows, len(cut), context, name)
