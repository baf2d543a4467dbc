"""A figure of the report: drawn once, kept as PNG and as SVG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

COLOURS = ("#4c6a92", "#d1495b", "#edae49", "#00798c", "#7b5ea7", "#5c946e", "#8d6a4f", "#30638e")
DPI = 120


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: of its files, e.g. `figure4`.
        vector: whether the page shows the SVG (curves) or the PNG (pictures).
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: bytes
    vector: bool


def pyplot() -> Any:
    """Matplotlib without a screen, in the report's style."""
    import matplotlib  # slow

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "legend.frameon": False,
            "svg.hashsalt": "mvl",  # the same figure gives the same file
        }
    )
    return plt


def finished(drawing: Drawing, name: str, title: str, caption: str, vector: bool = True) -> Figure:
    """Save a drawing in both formats and close it."""
    import matplotlib.pyplot as plt

    png, svg = io.BytesIO(), io.BytesIO()
    drawing.savefig(png, format="png", dpi=DPI)
    drawing.savefig(svg, format="svg", dpi=DPI, metadata={"Date": None})
    plt.close(drawing)
    return Figure(name, title, caption, png.getvalue(), svg.getvalue(), vector)
