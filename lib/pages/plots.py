"""The house style of the book's figures, and the one way to show them.

Figures stand on a white card in both themes; their colors are Okabe and Ito's, which the
color-blind can tell apart. `show` refuses a figure that says nothing to those who cannot see it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, AMBER, BLACK, GRAY = "#56b4e9", "#e69f00", "#222222", "#8a8a8a"


def use_style() -> None:
    """Set matplotlib to the house style, for the rest of the session."""
    import matplotlib

    matplotlib.use("agg")
    from cycler import cycler

    colors = [BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER, BLACK]
    matplotlib.rcParams.update(
        {
            "axes.grid": True,
            "axes.labelcolor": BLACK,
            "axes.prop_cycle": cycler(color=colors),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.figsize": (7.2, 3.2),
            "font.size": 10.5,
            "grid.alpha": 0.25,
            "image.cmap": "gray",
            "image.interpolation": "nearest",
            "legend.frameon": False,
            "lines.linewidth": 2,
            "savefig.dpi": 180,
        }
    )


def show(figure: Figure, alt: str) -> None:
    """Display the figure in a notebook, with alt text, and close it.

    alt is at least a sentence that says what the figure shows, for those who cannot see it.
    It is also the output's plain text, so that a changed number in it shows in the checks.
    Raises ValueError for an alt text that is no sentence.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    alt = checked_alt(alt)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    display(
        {"image/png": buffer.getvalue(), "text/plain": alt},
        metadata={"image/png": {"alt": alt}},
        raw=True,
    )


def checked_alt(alt: str) -> str:
    """The alt text on one line; ValueError unless it is at least a sentence.

    >>> checked_alt("A line\\n  that climbs to the right.")
    'A line that climbs to the right.'
    """
    alt = " ".join(alt.split())
    if len(alt) < 20 or not alt.endswith("."):
        raise ValueError(f"alt must be a sentence that says what the figure shows, got {alt!r}")
    return alt


def digit(axes: Axes, a: Tensor, title: str = "", *, color: str = BLACK, limit: float = 0) -> None:
    """Draw one image [1, h, w]: pixels in [0, 1], or a perturbation in [−limit, limit].

    A perturbation is drawn from blue (darker) over white to red (brighter).
    """
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    colors = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if limit else {"vmin": 0, "vmax": 1}
    axes.imshow(a.detach().cpu().squeeze(0), **colors)
    axes.set_title(title, color=color, loc="center", fontsize="medium")


def spread(axes: Axes, x: Sequence[float], runs: Tensor, label: str, **line: object) -> None:
    """Draw the mean of runs [seeds, points] over x, and a band from the least to the greatest."""
    [drawn] = axes.plot(x, runs.mean(0), label=label, **line)
    axes.fill_between(
        x, runs.amin(0), runs.amax(0), color=drawn.get_color(), alpha=0.2, linewidth=0
    )
