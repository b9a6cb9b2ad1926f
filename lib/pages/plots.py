"""The house style of the book's figures, and the one way to show them.

Figures stand on a white card in both themes; their colors are Okabe and Ito's, which the
color-blind can tell apart. `show` refuses a figure that says nothing to those who cannot see it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lib.checks import check_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, AMBER, BLACK, GRAY = "#56b4e9", "#e69f00", "#222222", "#8a8a8a"


def use_style() -> None:
    """Set matplotlib to the house style, for the rest of the session.

    >>> import matplotlib
    >>> from lib.pages import plots
    >>> plots.use_style()
    >>> matplotlib.rcParams["figure.figsize"]
    [7.2, 3.2]
    """
    import matplotlib
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

    >>> import matplotlib.pyplot as plt
    >>> from lib.pages import plots
    >>> figure, axes = plt.subplots()
    >>> plots.show(figure, "An empty frame, from 0 to 1 on both axes.")  # doctest: +SKIP
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

    >>> from lib.pages.plots import checked_alt
    >>> checked_alt("A line\\n  that climbs to the right.")
    'A line that climbs to the right.'
    """
    alt = " ".join(alt.split()) if isinstance(alt, str) else alt
    if not isinstance(alt, str) or len(alt) < 20 or not alt.endswith("."):
        raise ValueError(f"alt must be a sentence that says what the figure shows, got {alt!r}")
    return alt


def digit(axes: Axes, a: Tensor, title: str = "", *, color: str = BLACK, limit: float = 0) -> None:
    """Draw one image [1, h, w] or, in color, [3, h, w]: pixels in [0, 1], or a perturbation.

    A perturbation, gray and in [−limit, limit], is drawn from blue (darker) over white to red
    (brighter). limit: 0 for pixels.

    >>> import matplotlib.pyplot as plt
    >>> from lib import data
    >>> from lib.pages import plots
    >>> plots.digit(plt.figure().subplots(), data.digits("test").a[0], "a digit")
    >>> plt.close()
    """
    check_tensor("a", a)
    if a.dim() != 3 or len(a) not in ((1,) if limit else (1, 3)):
        raise ValueError(
            f"a must be one image, [3, h, w] in color or [1, h, w], got {list(a.shape)}"
        )
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    low, cmap = (-limit, "RdBu_r") if limit else (0.0, None)
    pixels = a.detach().cpu().permute(1, 2, 0)  # imshow takes gray without a last dimension
    axes.imshow(pixels.squeeze(2).numpy(), cmap=cmap, vmin=low, vmax=limit or 1.0)
    axes.set_title(title, color=color, loc="center", fontsize="medium")


def spread(axes: Axes, x: Sequence[float], runs: Tensor, label: str, **line: Any) -> None:
    """Draw the mean of runs [seeds, points] over x, and a band from the least to the greatest.

    >>> import matplotlib.pyplot as plt, torch
    >>> from lib.pages import plots
    >>> plots.spread(plt.figure().subplots(), [0, 1], torch.tensor([[2.0, 1], [4, 1]]), "loss")
    >>> plt.gca().lines[0].get_ydata().tolist()
    [3.0, 1.0]
    >>> plt.close()
    """
    check_tensor("runs", runs)
    if runs.dim() != 2 or runs.shape[1] != len(x):
        raise ValueError(f"runs must be [seeds, {len(x)}], got {list(runs.shape)}")
    [drawn] = axes.plot(x, runs.mean(0), label=label, **line)
    axes.fill_between(
        x, runs.amin(0), runs.amax(0), color=drawn.get_color(), alpha=0.2, linewidth=0
    )
