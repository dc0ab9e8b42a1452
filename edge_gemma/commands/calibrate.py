"""What an importance matrix is made of, with progress: a text, or one that the model writes. Knows no file of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_gemma.commands import terminal

if TYPE_CHECKING:
    from edge_gemma.measure.activation_stats import ActivationStats, Sums
    from edge_gemma.quantize.convert import Calibrate
    from edge_gemma.quantize.imatrix import ImportanceMatrix


@dataclass(frozen=True)
class Statistics:
    """Sums of squares of `rows` rows, which were so many windows of at most `context` tokens of the text `dataset`."""

    sums: Sums
    rows: int
    windows: int
    context: int
    dataset: str


def of_text(
    model: str, text: str, name: str, context: int, limit: int | None = None, threads: int | None = None
) -> Statistics:
    """Of the first `limit` windows of `text`."""
    from edge_gemma.measure.activation_stats import ActivationStats
    from edge_gemma.measure.quality import windows

    with ActivationStats(model, context, threads, terminal.kernel_progress()) as stats:
        tokenizer = stats.tokenizer
        cut = windows(tokenizer.encode(text, add_bos=False), tokenizer.bos_id, context, limit)
        return _read(stats, cut, context, name, quiet=False)


def of_self_generated_text(
    model: str | Path, tokens: int | None = None, seed: int = 0, threads: int | None = None, *, quiet: bool = False
) -> Statistics:
    """Of so many tokens that the model writes."""
    from edge_gemma.measure.activation_stats import ActivationStats
    from edge_gemma.measure.self_generated_text import LENGTH, TOKENS, described, self_generated_texts

    kernel_progress = None if quiet else terminal.kernel_progress()
    progress = None if quiet else terminal.token_progress("writing a text")
    texts = self_generated_texts(
        model, tokens or TOKENS, seed=seed, threads=threads, progress=progress, kernel_progress=kernel_progress
    )
    with ActivationStats(model, LENGTH, threads, kernel_progress) as stats:
        return _read(stats, texts, LENGTH, described(seed), quiet=quiet)


def calibrator(*, quiet: bool) -> Calibrate:
    """A `calibrate` for `quantize`."""

    def calibrate(model: Path) -> ImportanceMatrix:
        from edge_gemma.quantize.imatrix import of_sums

        found = of_self_generated_text(model, quiet=quiet)
        return of_sums(found.sums, found.rows, datasets=[found.dataset], chunks=found.windows)

    return calibrate


def _read(stats: ActivationStats, cut: Sequence[Sequence[int]], context: int, name: str, *, quiet: bool) -> Statistics:
    progress, total = terminal.token_progress("reading the text"), sum(map(len, cut))
    for window in cut:
        stats.add(window)
        if not quiet:
            progress(stats.rows, total)
    return Statistics(stats.sums, stats.rows, len(cut), context, name)
