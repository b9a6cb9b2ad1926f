"""Dynamics for ``min_x max_y Φ(x, y)``, every iterate kept (slides 3 and 42: their difficulty).

With the field ``F(x, y) = (∇ₓΦ, −∇ᵧΦ)``, z = (x, y) and step size h, one step is

=============================  =====================================================
``gradient_descent_ascent``    ``z − h F(z)``; alternating: y's step sees the new x
``extragradient``              ``z − h F(z − h F(z))``
``optimistic_gradient``        ``z − 2h F(z) + h F(z of the step before)``
=============================  =====================================================

Each function is ``name(phi, x0, y0, step_size, steps) -> (xs, ys)``. phi maps two tensors of x0's
and y0's shapes to a scalar tensor; x descends on it and y ascends. xs and ys are
``[steps + 1, *shape]`` and hold the start first. step_size is a number h > 0, or a pair of them
for x and y. project, if given, maps (x, y) to the feasible point that every gradient after the
start's is taken at, such as a clip to a box; it is the caller's, and must not change its arguments.
They raise ValueError for settings out of range, for a phi that is not scalar, and for a start that
is no finite float tensor. Iterates that diverge are returned as they are, infinities included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.checks import (
    check_counts,
    check_floats,
    check_function,
    check_number,
    in_place_refused,
)

Phi = Callable[[Tensor, Tensor], Tensor]
Point = tuple[Tensor, Tensor]
Project = Callable[[Tensor, Tensor], Point]
StepSize = float | Sequence[float]


def gradient_descent_ascent(
    phi: Phi,
    x0: Tensor,
    y0: Tensor,
    step_size: StepSize,
    steps: int,
    *,
    alternating: bool = False,
    project: Project | None = None,
) -> Point:
    """``x ← x − h ∇ₓΦ(x, y), y ← y + h ∇ᵧΦ(x, y)``, at once (slide 42).

    alternating: y's gradient is taken at the new x. On ``Φ = xy`` simultaneous steps multiply
    ``‖(x, y)‖`` by ``√(1 + h²)``, alternating ones keep ``x² + y² − h x y``, an ellipse for h < 2
    (prop-bilinear). If F is μ-strongly monotone and L-Lipschitz, a simultaneous step multiplies
    the distance to F's zero by at most ``√(1 − 2hμ + h²L²)`` (prop-strongly-monotone).

    >>> import torch
    >>> from lib.games import gradient_descent_ascent
    >>> one = torch.tensor(1.0)
    >>> xs, ys = gradient_descent_ascent(lambda x, y: x * y, one, one, step_size=0.5, steps=2)
    >>> xs.tolist(), ys.tolist()
    ([1.0, 0.5, -0.25], [1.0, 1.5, 1.75])
    """

    def step(x: Tensor, y: Tensor, h: Point) -> Point:
        new_x = x - h[0] * _field(phi, x, y)[0]
        if alternating and project:
            new_x, _ = project(new_x, y)
        _, fy = _field(phi, new_x if alternating else x, y)
        return new_x, y - h[1] * fy

    return _iterate(step, x0, y0, step_size, steps, project)


def extragradient(
    phi: Phi,
    x0: Tensor,
    y0: Tensor,
    step_size: StepSize,
    steps: int,
    *,
    project: Project | None = None,
) -> Point:
    """``z ← z − h F(z − h F(z))``: the field at a point looked ahead to (Korpelevich, 1976).

    On ``Φ = xy`` each step multiplies ``‖(x, y)‖`` by ``√(1 − h² + h⁴)``, less than 1 for h < 1
    (prop-bilinear). If F is monotone and L-Lipschitz with a zero, it converges for ``h < 1/L``
    (prop-extragradient).

    >>> import torch
    >>> from lib.games import extragradient
    >>> one = torch.tensor(1.0)
    >>> xs, ys = extragradient(lambda x, y: x * y, one, one, step_size=0.5, steps=50)
    >>> max(abs(xs[-1].item()), abs(ys[-1].item())) < 0.01
    True
    """

    def step(x: Tensor, y: Tensor, h: Point) -> Point:
        fx, fy = _field(phi, x, y)
        ahead = x - h[0] * fx, y - h[1] * fy
        fx, fy = _field(phi, *(project(*ahead) if project else ahead))
        return x - h[0] * fx, y - h[1] * fy

    return _iterate(step, x0, y0, step_size, steps, project)


def optimistic_gradient(
    phi: Phi,
    x0: Tensor,
    y0: Tensor,
    step_size: StepSize,
    steps: int,
    *,
    project: Project | None = None,
) -> Point:
    """``z ← z − 2h F(z) + h F(z⁻)``, z⁻ the point of the step before (Popov, 1980).

    At the first step z⁻ = z. One gradient a step where extragradient takes two. On ``Φ = xy`` it
    converges exactly for ``h < 1/√3`` (prop-bilinear).

    >>> import torch
    >>> from lib.games import optimistic_gradient
    >>> one = torch.tensor(1.0)
    >>> xs, ys = optimistic_gradient(lambda x, y: x * y, one, one, step_size=0.5, steps=50)
    >>> max(abs(xs[-1].item()), abs(ys[-1].item())) < 0.01
    True
    """
    before: list[Tensor] = []

    def step(x: Tensor, y: Tensor, h: Point) -> Point:
        fx, fy = now = _field(phi, x, y)
        px, py = before or now
        before[:] = now
        return x - h[0] * (2 * fx - px), y - h[1] * (2 * fy - py)

    return _iterate(step, x0, y0, step_size, steps, project)


def _field(phi: Phi, x: Tensor, y: Tensor) -> Point:
    """``F = (∇ₓΦ, −∇ᵧΦ)``; zero in what phi does not depend on."""
    check_function("phi", phi, "lambda x, y: x * y")
    with torch.enable_grad():
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        with in_place_refused("phi", x), in_place_refused("phi", y):
            value = phi(x, y)
        if not torch.is_tensor(value) or value.dim():
            raise ValueError(f"phi must return a scalar tensor, got {value!r}")
        if not value.requires_grad:
            return torch.zeros_like(x), torch.zeros_like(y)
        gx, gy = torch.autograd.grad(value, (x, y), materialize_grads=True)
    return gx, -gy


def _check_projection(project: Project, x: Tensor, y: Tensor) -> None:
    """ValueError unless project returns a point like the start."""
    point = project(x.detach().clone(), y.detach().clone())
    pair = isinstance(point, tuple | list) and len(point) == 2 and all(map(torch.is_tensor, point))
    if not pair or [c.shape for c in point] != [x.shape, y.shape]:
        raise ValueError(
            f"project must return (x, y) of shapes {list(x.shape)} and {list(y.shape)}, got "
            f"{[list(c.shape) for c in point] if pair else type(point).__name__}"
        )


def _iterate(
    step: Callable[[Tensor, Tensor, Point], Point],
    x0: Tensor,
    y0: Tensor,
    step_size: StepSize,
    steps: int,
    project: Project | None,
) -> Point:
    """All iterates of step, each projected, or ValueError for a bad start or setting."""
    h = tuple(step_size) if isinstance(step_size, tuple | list) else (step_size, step_size)
    if len(h) != 2:
        raise ValueError(f"step_size must be a number or a pair, got {step_size}")
    for size in h:
        check_number("step_size", size, positive=True)
    check_counts(steps=steps)
    check_floats("x0", x0)
    check_floats("y0", y0)
    if project:
        _check_projection(project, x0, y0)
    with torch.inference_mode(False):
        xs, ys = [x0.detach().clone()], [y0.detach().clone()]
        for _ in range(steps):
            x, y = step(xs[-1], ys[-1], h)
            x, y = project(x, y) if project else (x, y)
            xs.append(x)
            ys.append(y)
        return torch.stack(xs), torch.stack(ys)
