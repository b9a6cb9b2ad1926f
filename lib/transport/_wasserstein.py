"""Optimal transport between two clouds of points, exactly (slides 28 to 30, 34).

    wasserstein              W_q, and the plan that attains it               slides 28 to 30
    kantorovich_potentials   a 1-Lipschitz function that attains W_1         slide 34

A cloud is [n, d], n points in R^d, or [n] for points on the line; numpy arrays and torch tensors
of any real type are both taken. Everything is computed in float64 on the CPU, without a gradient.
W_q is the distance and never its q-th power. The linear program is solved by POT's network
simplex (Flamary et al., 2021; Bonneel et al., 2011), run until it is optimal, or as an assignment
by SciPy.
"""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from lib.transport._clouds import Array, Cloud, clouds, weights
from lib.transport._memory import ASSIGNMENT, SIMPLEX, check_memory

Indices = NDArray[np.signedinteger[Any]]


@overload
def wasserstein(
    x: Cloud,
    y: Cloud,
    q: float = 1,
    x_weights: Cloud | None = None,
    y_weights: Cloud | None = None,
    metric: str = "euclidean",
    plan: Literal[False] = False,
) -> float: ...


@overload
def wasserstein(
    x: Cloud,
    y: Cloud,
    q: float = 1,
    x_weights: Cloud | None = None,
    y_weights: Cloud | None = None,
    metric: str = "euclidean",
    *,
    plan: Literal[True],
) -> tuple[float, Cloud]: ...


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
    plan: also return an optimal π, an array or tensor like x, float64 on the CPU.

    On the line sorting solves it, in ``O(n log n)`` time (prop-sorting). Two samples of one size in
    three or more dimensions are an assignment, solved by Jonker and Volgenant's algorithm; all
    else is left to the network simplex, which is quicker in the plane. The time of both grows
    about like n³, their memory like n·m (4,000 against 4,000 points with the simplex:
    0.8 GB). ``W_q^q`` is right to about 1e-15 times the largest distance to the power q. So is
    W_q to about 1e-12, unless it is small beside that distance: equal laws whose weights differ by
    rounding are ``1e-16^(1/q)`` times it apart, 1e-8 for q = 2 and 1e-2 for q = 8.
    Raises ValueError for q < 1 (the root of such a minimum is no metric), infinite q, bad shapes,
    empty clouds, values that are not finite, and weights that are negative or do not add up to 1,
    up to the rounding of their type, and for a q so large that the costs are rounded to 0;
    MemoryError for clouds whose costs do not fit in memory.

    >>> from lib.transport import wasserstein
    >>> wasserstein([[0.0, 0.0]], [[3.0, 4.0]])
    5.0
    """
    points_x, points_y, unit = clouds(x, y, metric)
    a, b = weights("x", x_weights, len(points_x)), weights("y", y_weights, len(points_y))
    if isinstance(q, str) or not 1 <= q < math.inf:
        raise ValueError(f"q must be in [1, infinity), got {q!r}")
    equal = x_weights is None and y_weights is None and len(a) == len(b)
    if points_x.shape[1] == 1:
        value, coupling = _on_the_line(points_x[:, 0], points_y[:, 0], a, b, q, equal, plan)
    elif equal and points_x.shape[1] > 2:
        value, coupling = _assigned(points_x, points_y, q, metric, plan)
    else:
        cost, scale = _cost(points_x, points_y, q, metric, SIMPLEX)
        coupling, found = _simplex(a, b, cost)
        value = scale * max(found["cost"], 0.0) ** (1 / q)
    if value == 0 and coupling is not None:
        _check_power(coupling, points_x, points_y, q, metric)
    if not plan or coupling is None:
        return unit * value
    return unit * value, torch.from_numpy(coupling) if torch.is_tensor(x) else coupling


def kantorovich_potentials(x: Cloud, y: Cloud, metric: str = "euclidean") -> tuple[Cloud, Cloud]:
    """The values on x [n] and on y [m] of a 1-Lipschitz f with ``mean f(x) − mean f(y) = W_1``.

    Of all 1-Lipschitz functions f attains the maximum (slide 34, thm-kantorovich-rubinstein).
    With the dual variables v of the linear program it is the c-transform
    ``f(z) = min_j d(z, y_j) − v_j``, as a minimum of 1-Lipschitz functions 1-Lipschitz on the
    whole space, and so in particular across x and y together. Its mean over y is 0.
    x: [n, d]; y: [m, d]. The values are arrays or tensors like x, float64 on the CPU.
    Raises ValueError and MemoryError as wasserstein does.

    >>> from lib.transport import kantorovich_potentials
    >>> on_x, on_y = kantorovich_potentials([[0.0], [1.0]], [[5.0]])
    >>> float(on_x.mean() - on_y.mean())  # W_1
    4.5
    """
    points_x, points_y, unit = clouds(x, y, metric)
    n, m = len(points_x), len(points_y)
    cost, scale = _cost(points_x, points_y, 1, metric, SIMPLEX)
    _, found = _simplex(weights("x", None, n), weights("y", None, m), cost)
    v = scale * found["v"]
    on_x = (scale * cost - v).min(1)
    check_memory(SIMPLEX * m * m, m, m)
    on_y = (cdist(points_y, points_y, metric) - v).min(1)
    on_x, on_y = unit * (on_x - on_y.mean()), unit * (on_y - on_y.mean())
    if torch.is_tensor(x):
        return torch.from_numpy(on_x), torch.from_numpy(on_y)
    return on_x, on_y


def _on_the_line(
    x: Array, y: Array, a: Array, b: Array, q: float, equal: bool, plan: bool
) -> tuple[float, Array | None]:
    """W_q and, if asked, the increasing coupling."""
    if equal and not plan:
        return _root_mean(np.abs(np.sort(x) - np.sort(y)), None, q), None
    i, j, mass = _monotone(x, y, a, b)
    value = _root_mean(np.abs(x[i] - y[j]), mass, q)
    if not plan:
        return value, None
    check_memory(SIMPLEX * len(a) * len(b), len(a), len(b))
    coupling = np.zeros((len(a), len(b)))
    np.add.at(coupling, (i, j), mass)
    return value, coupling


def _assigned(x: Array, y: Array, q: float, metric: str, plan: bool) -> tuple[float, Array | None]:
    """W_q of two samples of one size and, if asked, the plan, one to one."""
    cost, scale = _cost(x, y, q, metric, ASSIGNMENT)
    i, j = linear_sum_assignment(cost)
    value = scale * float(cost[i, j].mean()) ** (1 / q)
    if not plan and value > 0:
        return value, None
    coupling = np.zeros_like(cost)
    coupling[i, j] = 1 / len(x)
    return value, coupling


def _root_mean(gap: Array, mass: Array | None, q: float) -> float:
    """``(Σ mass gap^q)^(1/q)``, with equal masses for None, and no overflow for a large q."""
    if q == 1:
        return float(gap.mean() if mass is None else gap @ mass)
    largest = gap.max() or 1.0
    power = (gap / largest) ** q
    return float(largest * (power.mean() if mass is None else power @ mass) ** (1 / q))


def _monotone(x: Array, y: Array, a: Array, b: Array) -> tuple[Indices, Indices, Array]:
    """The increasing coupling: mass[k] goes from x[i[k]] to y[j[k]] (slide 29, prop-sorting)."""
    order_x, order_y = x.argsort(kind="stable"), y.argsort(kind="stable")
    up_to_x, up_to_y = a[order_x].cumsum(), b[order_y].cumsum()
    up_to_x /= up_to_x[-1]  # exactly 1 at the end, and before it where the last masses are 0
    up_to_y /= up_to_y[-1]
    levels = np.sort(np.concatenate([up_to_x, up_to_y]))  # between two of them nothing changes
    mass = np.diff(levels, prepend=0.0)
    return order_x[up_to_x.searchsorted(levels)], order_y[up_to_y.searchsorted(levels)], mass


def _cost(x: Array, y: Array, q: float, metric: str, each: int) -> tuple[Array, float]:
    """``(d(x_i, y_j) / scale)^q`` [n, m], and the scale, the largest distance.

    MemoryError unless each pair can have so many bytes.
    """
    check_memory(each * len(x) * len(y), len(x), len(y))
    distance = cdist(x, y, metric)
    scale = float(distance.max()) or 1.0
    distance /= scale
    return (distance if q == 1 else distance**q), scale


def _check_power(coupling: Array, x: Array, y: Array, q: float, metric: str) -> None:
    """ValueError where a plan of cost 0 moves points: their distances' powers were rounded to 0."""
    farthest = cdist(x, y, metric)[coupling > 0].max()
    if farthest > 0:
        raise ValueError(
            f"q={q:g} is too large for these clouds: powers of distances are rounded to 0; take a "
            "smaller q"
        )


def _simplex(a: Array, b: Array, cost: Array) -> tuple[Array, dict[str, Any]]:
    """An optimal coupling, and POT's log with the cost and the dual variables u, v."""
    from ot.lp import emd

    # POT stops after 100,000 pivots by default; an instance of n points takes some times n·m.
    coupling, found = emd(a, b, cost, numItermax=10**9, log=True)
    if found["result_code"] != 1:
        raise RuntimeError(f"the network simplex did not end at an optimum: {found['warning']}")
    return coupling, found
