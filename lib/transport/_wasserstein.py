"""Optimal transport between two clouds of points, exactly (slides 28 to 34).

    wasserstein              W_q, and the plan that attains it               slides 28 to 30
    pushed_density           the density of h(ω), by change of variables     slide 31
    empirical_rate           how fast W_q(μ_n, μ'_n) falls as n grows        slide 33
    kantorovich_potentials   a 1-Lipschitz function that attains W_1         slide 34

A cloud is [n, d], n points in R^d, or [n] for points on the line; numpy arrays and torch tensors
are both taken. Everything is computed in float64 on the CPU, whatever comes in. W_q is the
distance and never its q-th power. The linear program is solved by POT's network simplex (Flamary
et al., 2021; Bonneel et al., 2011), run until it is optimal, or as an assignment by SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

Cloud = Tensor | np.ndarray
METRICS = ("euclidean", "cityblock", "chebyshev")  # on the line they are the same
# Of memory for each pair of points: costs, plan, and the solver's copies and network.
BYTES, ASSIGNMENT_BYTES = 48, 24


def wasserstein(
    x: Cloud,
    y: Cloud,
    q: float = 1,
    x_weights: Cloud | None = None,
    y_weights: Cloud | None = None,
    metric: str = "euclidean",
    plan: bool = False,
) -> float | tuple[float, Cloud]:
    """``W_q = (min_π Σ π_ij d(x_i, y_j)^q)^(1/q)`` over couplings π (slide 29, def-wasserstein).

    x: [n, d]; y: [m, d]; weights: [n] and [m], >= 0, that add up to 1, None: all equal. The
    minimum is over π >= 0 [n, m] with row sums x_weights and column sums y_weights (def-coupling).
    metric: d, the "euclidean", "cityblock" (ℓ1) or "chebyshev" (ℓ∞) distance.
    plan: also return an optimal π, as an array or tensor like x, float64.

    On the line sorting solves it, in ``O(n log n)`` time (prop-sorting). Two samples of one size in
    three or more dimensions are an assignment, solved by Jonker and Volgenant's algorithm; all
    else is left to the network simplex, which is quicker in the plane. The time of both grows
    about like n³, their memory like n·m (4,000 against 4,000 points with the simplex:
    0.8 GB). ``W_q^q`` is right to about 1e-15 times the largest distance to the power q. So is
    W_q to about 1e-12, unless it is small beside that distance: equal laws whose weights differ by
    rounding are ``1e-16^(1/q)`` times it apart, 1e-8 for q = 2 and 1e-2 for q = 8.
    Raises ValueError for q < 1 (the root of such a minimum is no metric), infinite q, bad shapes,
    empty clouds, values that are not finite, and weights that are negative or do not add up to 1;
    MemoryError for clouds whose costs do not fit in memory.
    """
    points_x, points_y = _clouds(x, y, metric)
    a, b = _weights("x", x_weights, len(points_x)), _weights("y", y_weights, len(points_y))
    if not 1 <= q < math.inf:
        raise ValueError(f"q must be in [1, infinity), got {q}")
    line, equal = points_x.shape[1] == 1, x_weights is None and y_weights is None
    if line and equal and len(a) == len(b) and not plan:
        gap = np.abs(np.sort(points_x[:, 0]) - np.sort(points_y[:, 0]))
        return _root_mean(gap, None, q)
    if line:
        i, j, mass = _monotone(points_x[:, 0], points_y[:, 0], a, b)
        value = _root_mean(np.abs(points_x[i, 0] - points_y[j, 0]), mass, q)
        if plan:
            _check_memory(len(a), len(b))
            coupling = np.zeros((len(a), len(b)))
            np.add.at(coupling, (i, j), mass)
    elif equal and len(a) == len(b) and points_x.shape[1] > 2:
        cost, scale = _cost(points_x, points_y, q, metric, ASSIGNMENT_BYTES)
        i, j = linear_sum_assignment(cost)
        value = scale * float(cost[i, j].mean()) ** (1 / q)
        if plan:
            coupling = np.zeros_like(cost)
            coupling[i, j] = 1 / len(a)
    else:
        cost, scale = _cost(points_x, points_y, q, metric)
        coupling, found = _simplex(a, b, cost)
        value = scale * max(found["cost"], 0.0) ** (1 / q)
    if not plan:
        return value
    return value, torch.from_numpy(coupling) if torch.is_tensor(x) else coupling


def kantorovich_potentials(x: Cloud, y: Cloud, metric: str = "euclidean") -> tuple[Cloud, Cloud]:
    """The values on x [n] and on y [m] of a 1-Lipschitz f with ``mean f(x) − mean f(y) = W_1``.

    Of all 1-Lipschitz functions f attains the maximum (slide 34, thm-kantorovich-rubinstein).
    With the dual variables v of the linear program it is the c-transform
    ``f(z) = min_j d(z, y_j) − v_j``, as a minimum of 1-Lipschitz functions 1-Lipschitz on the
    whole space, and so in particular across x and y together. Its mean over y is 0.
    x: [n, d]; y: [m, d]. The values come as arrays or tensors like x, float64.
    Raises ValueError and MemoryError as wasserstein does.
    """
    points_x, points_y = _clouds(x, y, metric)
    cost, scale = _cost(points_x, points_y, 1, metric)
    a, b = _weights("x", None, len(points_x)), _weights("y", None, len(points_y))
    _, found = _simplex(a, b, cost)
    v = scale * found["v"]
    on_x = (scale * cost - v).min(1)
    _check_memory(len(points_y), len(points_y))
    on_y = (cdist(points_y, points_y, metric) - v).min(1)
    on_x, on_y = on_x - on_y.mean(), on_y - on_y.mean()
    if torch.is_tensor(x):
        return torch.from_numpy(on_x), torch.from_numpy(on_y)
    return on_x, on_y


def pushed_density(
    density: Callable[[Tensor], Tensor],
    branches: Sequence[Callable[[Tensor], Tensor]],
    y: Tensor,
) -> Tensor:
    """``Σ_b p(g_b(y)) |det ∂g_b(y)|``, the density of h(ω) (slide 31, prop-change-of-variables).

    density: p of ω, [n, d] -> [n]; branches: the inverses g_b of h on the pieces on which it is
    one to one and smooth, each [d] -> [d] in torch; y: [n, d], values of h. A diffeomorphism has
    one branch, ``ω²`` has two, ``√y`` and ``−√y``. Every branch counts at every y: where y is no
    value of h on the piece of g_b, p(g_b(y)) must be 0.
    Returns [n]. Raises ValueError for a y that is not [n, d] and for no branch.
    """
    if y.dim() != 2 or not y.is_floating_point():
        raise ValueError(f"y must be floats [n, d], got {y.dtype} {list(y.shape)}")
    if not branches:
        raise ValueError("needs at least one branch: an inverse of h on a piece of its domain")
    total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for inverse in branches:
        jacobian = torch.func.vmap(torch.func.jacrev(inverse))(y)
        total = total + density(torch.func.vmap(inverse)(y)) * torch.linalg.det(jacobian).abs()
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

    draw: (n, generator) -> [n, d], independent draws from μ. Each repeat of each size draws anew.
    W_q between a sample and μ itself is between half of this and all of it, in expectation, for
    q = 1 (prop-two-samples): the slope is the same.
    Raises ValueError for fewer than two sizes, sizes below 1, or repeats below 1.
    """
    sizes = [int(n) for n in sizes]
    if len(set(sizes)) < 2 or min(sizes) < 1 or repeats < 1:
        raise ValueError(f"needs two sizes >= 1 and repeats >= 1, got {sizes}, repeats={repeats}")
    generator = torch.Generator().manual_seed(seed)
    rows = [
        [wasserstein(draw(n, generator), draw(n, generator), q) for _ in range(repeats)]
        for n in sizes
    ]
    values = torch.tensor(rows, dtype=torch.float64)
    mean = values.mean(1)
    slope, _ = np.polyfit(np.log(sizes), mean.log().numpy(), 1)
    return Rate(sizes, mean, values.std(1, correction=min(1, repeats - 1)), float(slope))


def _clouds(x: Cloud, y: Cloud, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Both clouds as float64 [n, d] and [m, d], or ValueError."""
    x, y = _points("x", x), _points("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x is in R^{x.shape[1]} and y in R^{y.shape[1]}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    return x, y


def _points(name: str, cloud: Cloud) -> np.ndarray:
    """The cloud as float64 [n, d], or ValueError."""
    if torch.is_tensor(cloud):
        cloud = cloud.detach().cpu().numpy()
    points = np.asarray(cloud, dtype=np.float64)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"{name} must hold points [n, d] with n, d >= 1, got {list(points.shape)}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return points


def _weights(name: str, weights: Cloud | None, n: int) -> np.ndarray:
    if weights is None:
        return np.full(n, 1 / n)
    if torch.is_tensor(weights):
        weights = weights.detach().cpu().numpy()
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (n,):
        raise ValueError(f"{name}_weights must be [{n}], one a point, got {list(weights.shape)}")
    if not (weights >= 0).all():
        raise ValueError(f"{name}_weights must be >= 0, got {weights.min()}")
    total = weights.sum()
    if not abs(total - 1) <= 1e-6:
        raise ValueError(f"{name}_weights must add up to 1, got {total}: divide them by their sum")
    return weights / total


def _root_mean(gap: np.ndarray, mass: np.ndarray | None, q: float) -> float:
    """``(Σ mass gap^q)^(1/q)``, with equal masses for None, and no overflow for a large q."""
    if q == 1:
        return float(gap.mean() if mass is None else gap @ mass)
    largest = gap.max() or 1.0
    power = (gap / largest) ** q
    return float(largest * (power.mean() if mass is None else power @ mass) ** (1 / q))


def _monotone(
    x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The increasing coupling: mass[k] goes from x[i[k]] to y[j[k]] (slide 29, prop-sorting)."""
    order_x, order_y = x.argsort(kind="stable"), y.argsort(kind="stable")
    up_to_x, up_to_y = a[order_x].cumsum(), b[order_y].cumsum()
    up_to_x /= up_to_x[-1]  # exactly 1 at the end, and before it where the last masses are 0
    up_to_y /= up_to_y[-1]
    levels = np.sort(np.concatenate([up_to_x, up_to_y]))  # between two of them nothing changes
    mass = np.diff(levels, prepend=0.0)
    return order_x[up_to_x.searchsorted(levels)], order_y[up_to_y.searchsorted(levels)], mass


def _cost(
    x: np.ndarray, y: np.ndarray, q: float, metric: str, each: int | None = None
) -> tuple[np.ndarray, float]:
    """``(d(x_i, y_j) / scale)^q`` [n, m], and the scale, the largest distance."""
    _check_memory(len(x), len(y), each)
    distance = cdist(x, y, metric)
    scale = float(distance.max()) or 1.0
    distance /= scale
    return (distance if q == 1 else distance**q), scale


def _simplex(a: np.ndarray, b: np.ndarray, cost: np.ndarray) -> tuple[np.ndarray, dict]:
    """An optimal coupling, and POT's log with the cost and the dual variables u, v."""
    from ot.lp import emd

    # POT stops after 100,000 pivots by default; an instance of n points takes some times n·m.
    coupling, found = emd(a, b, cost, numItermax=10**9, log=True)
    if found["result_code"] != 1:
        raise RuntimeError(f"the network simplex did not end at an optimum: {found['warning']}")
    return coupling, found


def _check_memory(n: int, m: int, each: int | None = None) -> None:
    """MemoryError, with sizes, if n against m points cannot fit, with so many bytes a pair."""
    needed, free = n * m * (each or BYTES), psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(
            f"{n} against {m} points need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
            "free: draw subsamples of both clouds"
        )
