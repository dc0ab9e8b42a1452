"""A comparison as a picture. Needs matplotlib, which `pip install "edge-gemma[plot]"` brings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from edge_gemma.errors import EdgeGemmaError, OutputError
from edge_gemma.measure.quality import Comparison

FORMATS = (".png", ".svg", ".pdf")
SMALLEST = 1e-8
"""Divergences below this are drawn at this: logarithms have no zero."""


def check(path: Path) -> None:
    """Raise now what would only be seen after a long measurement: no matplotlib, an unknown format, no folder."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise EdgeGemmaError('--plot needs matplotlib: pip install "edge-gemma[plot]"') from None
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: a plot's name ends in one of {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is not a folder; create it first")


def save(comparison: Comparison, title: str, path: Path) -> None:
    """Draw the divergence by percentile and the change of probability, and write `path`. Raises OutputError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_divergence(left, comparison)
    _draw_change(right, comparison)
    figure.suptitle(title)
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], dpi=120)
    try:
        path.write_bytes(image.getvalue())
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error


def _draw_divergence(axes: Any, comparison: Comparison) -> None:
    ordered = np.maximum(np.sort(comparison.divergence), SMALLEST)
    axes.plot(np.linspace(0, 100, len(ordered)), ordered)
    axes.axhline(max(comparison.kl_mean, SMALLEST), linestyle="--", linewidth=1, label=f"mean {comparison.kl_mean:.3g}")
    axes.set(yscale="log", xlabel="percentile of tokens", ylabel="KL divergence, nats", xlim=(0, 100))
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_change(axes: Any, comparison: Comparison) -> None:
    axes.hist(100 * comparison.probability_change, bins=101, log=True)
    axes.set(xlabel="change of the true token's probability, percentage points", ylabel="tokens")
    axes.set_title(f"RMS {100 * comparison.rms_probability_change:.3g}", fontsize="medium")
    axes.grid(alpha=0.3)
