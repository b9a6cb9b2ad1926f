"""How sharp a minimum is: the largest eigenvalue of the Hessian of the mean loss (slide 43).

Near a minimum x the loss grows along a unit vector v like ``λ t² / 2``, with ``λ = vᵀ H v`` and
``H = ∇² R_n(x)``; the largest eigenvalue of H is the steepest growth. H has p² entries and is
never formed: power iteration asks for products with vectors alone (Pearlmutter, 1994), each the
gradient of ``⟨∇R_n(x), v⟩``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.attacks import Loss, cross_entropy
from lib.data import Images
from lib.training import mean_loss


class Eigenpair(NamedTuple):
    """``H v ≈ λ v``: λ, the residual ``‖H v − λ v‖``, and v [p] with ``‖v‖ = 1``.

    The vector holds the parameters that require a gradient, in the order of model.parameters().
    """

    value: float
    residual: float
    vector: Tensor


def largest_eigenvalue(
    model: nn.Module,
    data: Images,
    *,
    loss: Loss = cross_entropy,
    tolerance: float = 1e-2,
    iterations: int = 200,
    generator: torch.Generator | None = None,
    batch_size: int = 1000,
) -> Eigenpair:
    """The algebraically largest eigenvalue of ``∇² (1/n) Σ L(h_x(a_i), b_i)`` (slide 43).

    Power iteration ``v ← H v / ‖H v‖`` tends to the eigenvalue of largest modulus. If that is
    negative, or two of opposite sign are too close for v to settle, it goes on with
    ``H + s I, s = ‖H v‖``, whose eigenvalues are in the same order and, up to the error of s,
    not negative.

    It stops when the residual ``‖H v − λ v‖`` is at most tolerance times ``‖H v‖``, or after this
    many iterations, shared by both rounds. λ is ``vᵀ H v``, a lower bound of the largest
    eigenvalue; an eigenvalue of H lies within the residual of it, and near the limit the error
    is only about the residual's square over the gap to the next eigenvalue.

    generator: draws the first vector; None: seed 0. batch_size bounds memory, not the result.
    The model is looked at in evaluation mode, in its own precision (for more digits pass a copy
    ``.double()``), and left as it was. A ReLU network's Hessian is that of its linear piece.
    Raises ValueError for settings out of range and FloatingPointError for a Hessian with NaN.
    """
    for name, setting in (("iterations", iterations), ("batch_size", batch_size)):
        if setting < 1:
            raise ValueError(f"{name} must be >= 1, got {setting}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    if len(data) == 0:
        raise ValueError("the mean loss needs at least one image, got 0")
    x = [p for p in model.parameters() if p.requires_grad]
    if not x:
        raise ValueError("no parameter of the model requires a gradient: call requires_grad_()")

    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        times = hessian_product(model, data, loss=loss, batch_size=batch_size)
        generator = generator or torch.Generator().manual_seed(0)

        def start() -> Tensor:
            size = sum(p.numel() for p in x)
            return torch.randn(size, generator=generator, dtype=torch.float64).to(x[0])

        v = start()
        shift, left = 0.0, iterations
        while True:
            v = v / v.norm()
            hv, left = times(v), left - 1
            value, norm = float(v @ hv), float(hv.norm())
            residual = float((hv - value * v).norm())
            if not residual < float("inf"):
                raise FloatingPointError("the Hessian is not finite: has the training diverged?")
            settled = residual <= tolerance * norm
            if left == 0 or (settled and (shift or value >= 0)):
                return Eigenpair(value, residual, v)
            if not shift and (settled or 2 * left <= iterations):
                shift = norm
                # At the negative end v has lost the other one: begin again from elsewhere.
                v = start() if value < 0 else hv + shift * v
            else:
                v = hv + shift * v
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def hessian_product(
    model: nn.Module, data: Images, *, loss: Loss = cross_entropy, batch_size: int = 1000
) -> Callable[[Tensor], Tensor]:
    """``v [p] -> H v [p]``, H the Hessian of the mean loss at the model's parameters.

    ``H v = ∇⟨∇R_n(x), v⟩``. The graph of the gradient is kept if there is one batch, which makes
    a product about as dear as a gradient, and made anew each time if there are several. The
    model's mode is the caller's affair.
    """
    x = [p for p in model.parameters() if p.requires_grad]
    a, b = data.a.to(x[0].dtype), data.b
    batches = list(zip(a.split(batch_size), b.split(batch_size), strict=True))

    def gradient(a: Tensor, b: Tensor) -> Tensor:
        with torch.enable_grad():
            risk = mean_loss(model, a, b, loss) * (len(b) / len(data))
            parts = torch.autograd.grad(risk, x, create_graph=True, materialize_grads=True)
            return torch.cat([part.flatten() for part in parts])

    kept = gradient(*batches[0]) if len(batches) == 1 else None

    def product(v: Tensor) -> Tensor:
        total = torch.zeros_like(v)
        for batch in batches:
            g = gradient(*batch) if kept is None else kept
            if g.requires_grad:  # else it is constant, as for a loss linear in x: H = 0
                parts = torch.autograd.grad(
                    g, x, v, retain_graph=kept is not None, materialize_grads=True
                )
                total += torch.cat([part.flatten() for part in parts])
        return total

    return product
