"""Figures as SVG text that can stand in an HTML page beside others: one style, unique ids, nothing fetched.

Colours are Okabe and Ito's, distinct to colour-blind eyes.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "as_svg", "figure_style", "new_figure", "tidy"]

COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a0528a", "#b07d00", "#4d4d4d", "#56b4e9", "#7a3e00")


@contextlib.contextmanager
def figure_style(name: str) -> Iterator[None]:
    """Matplotlib's settings for the figures drawn inside; ``name`` makes their ids the same in every run."""
    from matplotlib import rc_context

    settings: Any = {
        "font.family": "sans-serif",
        "font.size": 10,
        "svg.fonttype": "none",  # text stays text: smaller, searchable, read aloud
        "svg.hashsalt": name,  # the same run gives the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(settings):
        yield


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of ``size`` inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def tidy(axes: Axes) -> None:
    """Grid behind the data, and a legend if anything is labelled."""
    axes.grid(True, which="major", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5)


def as_svg(figure: Figure, name: str, label: str) -> str:
    """The bare <svg> element: no prolog, no metadata, and ids that no other figure on the page has.

    Args:
        name: unique on the page; label: what a screen reader says.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    # The page sets the width; the viewBox keeps the proportions.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
