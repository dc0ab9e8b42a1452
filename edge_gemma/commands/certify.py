"""`quantize --certify TEXT`: measures a file that was just written beside its source. Knows no conversion."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edge_gemma.commands import options, terminal

if TYPE_CHECKING:
    from edge_gemma.quantize.output.provenance import Certify, Quality


def certifier(text_file: str, windows: int | None, *, quiet: bool) -> Certify:
    """A `certify` for `quantize`: the first `windows` windows of a text, read with both files. Reads the text now."""
    text = options.read_text(text_file)

    def certify(written: Path, source: Path) -> Quality:
        from edge_gemma.gemma import Gemma
        from edge_gemma.measure.quality import DEFAULT_CONTEXT, compare, text_windows
        from edge_gemma.quantize.output.provenance import Quality

        kernel_progress = None if quiet else terminal.kernel_progress()
        with Gemma(written, progress=kernel_progress) as model, Gemma(source, progress=kernel_progress) as reference:
            context = min(DEFAULT_CONTEXT, model.context)
            cut = text_windows(model, text, context, windows)
            progress = None if quiet else terminal.token_progress("reading the text with the file and its source")
            found = compare(model, reference, cut, progress)
        return Quality(
            text_sha256=hashlib.sha256(text.encode()).hexdigest(),
            context=context,
            tokens=len(found.divergence),
            kl_mean=found.kl_mean,
            kl_p99=found.kl_p99,
            top_1=found.top_1,
            perplexity_ratio=found.perplexity_ratio,
        )

    return certify
