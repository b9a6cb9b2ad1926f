"""Push-forward measures: their density, and how fast samples approach them (slides 31 to 33)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.checks import check_counts, check_floats, check_tensor, checked_by
from lib.transport._wasserstein import wasserstein


def _check_points(y: Tensor) -> None:
    check_tensor("y", y)
    if y.is_floating_point():
        check_floats("y", y)


@checked_by(_check_points)
def pushed_density(
    density: Callable[[Tensor], Tensor],
    branches: Sequence[Callable[[Tensor], Tensor]],
    y: Tensor,
) -> Tensor:
    """``Σ_b p(g_b(y)) |det ∂g_b(y)|``, the density of h(ω) (slide 31, prop-change-of-variables).

    density: p of ω, [n, d] -> [n]; branches: the inverses g_b of h on the pieces on which it is
    one to one and smooth, each [d] -> [d] in torch; y: float32 or float64 [n, d], values of h. A
    diffeomorphism has one branch, ``ω²`` has two, ``√y`` and ``−√y``. Every branch counts at every
    y: where y is no value of h on the piece of g_b, p(g_b(y)) must be 0.
    Returns [n]. Raises ValueError for a y that is not [n, d], for no branch, for a density or
    branch of another shape, and where the density is NaN.

    >>> import torch
    >>> from lib.transport import pushed_density
    >>> uniform = lambda w: ((w >= 0) & (w <= 1)).all(1).float()  # on [0, 1]; h doubles
    >>> pushed_density(uniform, [lambda y: y / 2], torch.tensor([[0.5], [3.0]])).tolist()
    [0.5, 0.0]
    """
    if y.dim() != 2 or y.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"y must be float32 or float64 [n, d], got {y.dtype} {list(y.shape)}")
    if not branches:
        raise ValueError("needs at least one branch: an inverse of h on a piece of its domain")
    total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for inverse in branches:
        points = torch.func.vmap(inverse)(y)
        jacobian = torch.func.vmap(torch.func.jacrev(inverse))(y)
        p = density(points)
        if points.shape != y.shape or p.shape != total.shape:
            raise ValueError(
                "a branch must map [d] to [d] and density [n, d] to [n], got "
                f"{list(y.shape[1:])} to {list(points.shape[1:])} and {list(p.shape)} for "
                f"{list(y.shape)}"
            )
        total = total + p * torch.linalg.det(jacobian).abs()
    if total.isnan().any():
        raise ValueError(
            f"the density is NaN at {int(total.isnan().sum())} of {len(y)} points of y: a branch "
            "is not defined there, leave them out"
        )
    return total


class Rate(NamedTuple):
    """Mean and standard deviation of ``W_q(μ_n, μ'_n)`` at each size n, and the fitted slope."""

    sizes: list[int]
    mean: Tensor  # [sizes]
    deviation: Tensor  # [sizes], of one repeat
    slope: float  # of log(mean) over log(n), by least squares


def empirical_rate(
    draw: Callable[[int, torch.Generator], Tensor],
    sizes: Sequence[int],
    *,
    q: float = 1,
    repeats: int = 10,
    seed: int = 0,
) -> Rate:
    """How fast ``W_q`` between two independent samples of μ falls with their size (slide 33).

    draw: (n, generator of the CPU) -> [n, d], independent draws from μ. Each repeat of each size
    draws anew. W_q between a sample and μ itself is between half of this and all of it, in
    expectation, for q = 1 (prop-two-samples): the slope is the same.
    Raises ValueError for fewer than two sizes, sizes that are no whole numbers >= 1, repeats below
    1, a draw of another number of points than n, and a μ that is a single point.

    >>> import torch
    >>> from lib.transport import empirical_rate
    >>> uniform = lambda n, generator: torch.rand(n, generator=generator)
    >>> -0.6 < empirical_rate(uniform, [100, 400, 1600], repeats=20).slope < -0.4  # on the line
    True
    """
    whole = [int(n) for n in sizes]
    check_counts(repeats=repeats)
    if len(set(whole)) < 2 or min(whole) < 1 or whole != list(sizes):
        raise ValueError(f"needs two whole sizes >= 1 or more, got sizes={list(sizes)}")
    generator = torch.Generator("cpu").manual_seed(seed)

    def distance(n: int) -> float:
        x, y = draw(n, generator), draw(n, generator)
        for points in (x, y):
            if not isinstance(points, Tensor | np.ndarray | list):
                raise ValueError(f"draw must give n points, got {type(points).__name__}")
        if len(x) != n or len(y) != n:
            raise ValueError(f"draw must give n points, got {len(x)} and {len(y)} for n = {n}")
        return wasserstein(x, y, q)

    rows = [[distance(n) for _ in range(repeats)] for n in whole]
    values = torch.tensor(rows, dtype=torch.float64)
    mean = values.mean(1)
    if not (mean > 0).all():
        raise ValueError("draw must give different points, got one: a distance of 0 has no rate")
    slope, _ = np.polyfit(np.log(whole), mean.log().numpy(), 1)
    return Rate(whole, mean, values.std(1, correction=min(1, repeats - 1)), float(slope))
