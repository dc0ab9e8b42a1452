"""`quantize --compare TEXT`: measures a file that was just written beside its source. Knows no conversion."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edge_gemma.commands import options, terminal

if TYPE_CHECKING:
    from edge_gemma.quantize.output.provenance import Compare, Quality


def comparer(text_file: str, windows: int | None, *, quiet: bool) -> Compare:
    """A `compare` for `quantize`: the first `windows` windows of a text, read with both files. Reads the text now."""
    text = options.read_text(text_file)

    def compare(written: Path, source: Path) -> Quality:
        from edge_gemma.gemma import Gemma
        from edge_gemma.measure import quality
        from edge_gemma.quantize.output.provenance import Quality

        kernel_progress = None if quiet else terminal.kernel_progress()
        with Gemma(written, progress=kernel_progress) as model, Gemma(source, progress=kernel_progress) as reference:
            context = min(quality.DEFAULT_CONTEXT, model.context)
            cut = quality.text_windows(model, text, context, windows)
            progress = None if quiet else terminal.token_progress("reading the text with the file and its source")
            found = quality.compare(model, reference, cut, progress)
        return Quality(
            text_sha256=hashlib.sha256(text.encode()).hexdigest(),
            context=context,
            tokens=len(found.divergence),
            kl_mean=found.kl_mean,
            kl_p99=found.kl_p99,
            top_1=found.top_1,
            perplexity_ratio=found.perplexity_ratio,
        )

    return compare
