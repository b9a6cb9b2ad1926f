"""Danskin's theorem as code: gradients at several maximizers, and descent (slides 19 to 22).

``f(x) = max Φ(x, y)`` over y has one gradient ``g_i = ∇ₓΦ(x, y_i)`` for each maximizer y_i. They
enter through two formulas of their matrix [k, p]:

    directional_derivative    Df(x, d) = max_i ⟨d, g_i⟩                           slide 21
    min_norm_point            the shortest g in their hull: Df(x, −g/‖g‖) = −‖g‖  slide 22

``descent_direction`` is that −g/‖g‖, the steepest of all directions (DDi: Latorre et al., ICLR
2023). ``gradients`` computes the matrix for a network, with one backward pass a batch of attacked
inputs. What is said of f holds when the y_i are all its maximizers; with some of them only, it
holds for the maximum over these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor, nn

from lib.attacks import Loss, cross_entropy
from lib.checks import check_losses, check_tensor, checked_by

Array = NDArray[np.float64]
COLUMNS = 2**14  # of the matrix [k, p] that are held in float64 at a time


def _check_direction(gradients: Tensor, d: Tensor) -> None:
    _check(gradients)
    check_tensor("d", d)
    if d.shape != gradients.shape[1:] or d.dtype != gradients.dtype:
        raise ValueError(
            f"d must be {gradients.dtype} [{gradients.shape[1]}] like the gradients' rows, "
            f"got {d.dtype} {list(d.shape)}"
        )
    if not torch.isfinite(d).all():
        raise ValueError("d must be finite, got NaN or infinity")


@checked_by(_check_direction)
@torch.no_grad()
def directional_derivative(gradients: Tensor, d: Tensor) -> Tensor:
    """``Df(x, d) = max_i ⟨d, g_i⟩``, one-sided, of ``f = max Φ`` (slide 21, thm-danskin).

    gradients: g_i = ∇ₓΦ(x, y_i) of all maximizers y_i, [k, p]; d: a direction of any length, [p].
    Returns a scalar tensor: the slope of ``t -> f(x + t d)`` at t = 0 from the right.
    Raises ValueError for other shapes or types, k = 0, and values that are not finite.

    >>> import torch
    >>> from lib.danskin import directional_derivative
    >>> g = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> directional_derivative(g, torch.tensor([-3.0, -2.0])).item()
    -2.0
    """
    wide = torch.promote_types(gradients.dtype, torch.float32)  # for long sums
    return (gradients.to(wide) @ d.to(wide)).max().to(gradients.dtype)


@torch.no_grad()
def min_norm_point(
    gradients: Tensor, *, return_residual: bool = False
) -> Tensor | tuple[Tensor, float]:
    """The weights w >= 0, ``Σ w_i = 1``, for which ``‖Σ w_i g_i‖₂`` is least (slide 22, prop-ddi).

    gradients: [k, p] of any float type, for p in the millions and k in the tens; norms may differ
    by a factor of 1000 and more, rows may be equal, collinear or 0. Returns w [k] in their type.

    Exact up to rounding, in float64 throughout: for every s > 0 the minimizer v >= 0 of
    ``‖Σ v_i g_i‖² + s² (Σ v_i − 1)²`` is a multiple of w, a non-negative least squares problem of
    size k once the g_i are replaced by k vectors of the same inner products (prop-nnls).

    return_residual: also return ``max_i (⟨g, g⟩ − ⟨g, g_i⟩) / min_i ‖g_i‖²`` for g = Σ w_i g_i,
    before w is rounded to the gradients' type. It is 0 at the optimum and nowhere else, and
    bounds ``‖g − g*‖² / min_i ‖g_i‖²``; it is 0 if some g_i is 0.
    Raises ValueError for other shapes or types, k = 0, and values that are not finite.

    >>> import torch
    >>> from lib.danskin import min_norm_point
    >>> min_norm_point(torch.tensor([[3.0, 0.0], [0.0, 3.0]])).tolist()
    [0.5, 0.5]
    """
    weights, norms, scale = _solve(gradients)
    result = torch.from_numpy(weights).to(gradients)
    if not return_residual:
        return result
    return result, _residual(gradients, weights, norms.min(), scale)


@torch.no_grad()
def descent_direction(gradients: Tensor) -> Tensor:
    """``d = −g/‖g‖₂``, g the min-norm point of the hull of the g_i: [k, p] -> [p] (slide 22, DDi).

    ``Df(x, d) = −‖g‖``, and no unit direction has a smaller Df (prop-ddi). d is 0 where x is
    stationary, 0 ∈ conv{g_i}, as far as the gradients' type can tell:
    ``‖g‖ <= 8 · (its machine epsilon) · Σ w_i ‖g_i‖``, the size of the rounding in the g_i.
    Raises ValueError as min_norm_point does.

    >>> import torch
    >>> from lib.danskin import descent_direction
    >>> d = descent_direction(torch.tensor([[3.0, 4.0], [6.0, 8.0]]))  # the first is shorter
    >>> [round(entry, 4) for entry in d.tolist()]
    [-0.6, -0.8]
    """
    weights, norms, scale = _solve(gradients)
    w = torch.from_numpy(weights).to(gradients.device)
    g = torch.cat([w @ block for block in _blocks(gradients, scale)])
    rounding = torch.finfo(gradients.dtype).eps * float(weights @ norms)
    d = torch.zeros_like(g) if g.norm() <= 8 * rounding else -g / g.norm()
    return d.to(gradients)


def gradients(
    model: nn.Module,
    inputs: Sequence[Tensor] | Tensor,
    b: Tensor,
    loss: Loss = cross_entropy,
    *,
    return_losses: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``g_i = ∇ₓ (1/m) Σ_j L(h_x(inputs[i][j]), b_j)`` for k attacked batches: [k, p] (slide 22).

    inputs: k batches [m, ...], or a tensor [k, m, ...]; b: labels [m]; loss: (logits, b) -> [m].
    The p parameters are those of ``model.parameters()`` that require a gradient, in that order.
    return_losses: also return the k batches' mean losses [k].

    Batch after batch, forward and backward, so that the memory is that of one batch and [k, p].
    The model's ``.grad`` stay as they were, and so does its mode. In training mode batch norm
    normalizes each batch by its own statistics, and running statistics (all buffers) move once,
    by the first batch, not k times.
    Raises ValueError for k = 0, a model without parameters, or a loss of another shape than [m] or
    without a gradient.

    >>> import torch
    >>> from lib.danskin import gradients
    >>> model, inputs = torch.nn.Linear(1, 1, bias=False), torch.tensor([[[2.0]], [[5.0]]])
    >>> gradients(model, inputs, torch.tensor([0]), loss=lambda h, b: 3 * h[:, 0]).tolist()
    [[6.0], [15.0]]
    """
    parameters = [x for x in model.parameters() if x.requires_grad]
    if len(inputs) == 0 or not parameters:
        raise ValueError(
            "needs at least one batch of inputs and one parameter that requires a gradient, "
            f"got {len(inputs)} and {len(parameters)}"
        )
    rows = parameters[0].new_empty(len(inputs), sum(x.numel() for x in parameters))
    losses, buffers = rows.new_empty(len(inputs)), []
    for i, a in enumerate(inputs):
        with torch.enable_grad():
            values = loss(model(a.clone()), b)  # which may change its input
            check_losses(values, b)
            value = values.mean()
            if not value.requires_grad:
                raise ValueError(
                    "the loss has no gradient in the parameters: look for detach and no_grad"
                )
            found = torch.autograd.grad(value, parameters, materialize_grads=True)
        torch.cat([g.reshape(-1) for g in found], out=rows[i])
        losses[i] = value.detach()
        if i == 0:
            buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for buffer, after_first in buffers:
        buffer.copy_(after_first)
    return (rows, losses) if return_losses else rows


def _solve(gradients: Tensor) -> tuple[Array, Array, float]:
    """The weights of the min-norm point, the norms ‖g_i‖ times a scale, and the scale.

    The scale is a power of two that brings the largest entry to about 1: no product of two
    entries that matters under- or overflows. All is float64.
    """
    scale = _scale(_check(gradients))
    products: Any = sum((block @ block.T).cpu().numpy() for block in _blocks(gradients, scale))
    norms = np.sqrt(products.diagonal())
    if norms.min() == 0:  # a stationary point
        return np.eye(len(norms))[norms.argmin()], norms, scale
    # Vectors with these products, the columns of R, from their eigenvalues.
    values, vectors = np.linalg.eigh(products / norms / norms[:, None])
    weights = _nnls(np.sqrt(values.clip(0))[:, None] * vectors.T, norms)
    # The products know ‖g‖² up to the machine epsilon times (Σ w_i ‖g_i‖)². Where g is much
    # shorter than its terms, as near a stationary point, that is too little: R by QR.
    if weights @ products @ weights < 1e-4 * (weights @ norms) ** 2:
        weights = _nnls(_triangle(gradients, scale) / norms, norms)
    return weights, norms, scale


def _nnls(R: Array, norms: Array) -> Array:
    """Weights on the simplex for which ``‖Σ w_i norms_i R[:, i]‖`` is least (prop-nnls).

    The unknowns are ``w_i norms_i``, so that the columns have unit length, and s = min norms_i.
    """
    target = np.zeros(len(R) + 1)
    target[-1] = 1
    matrix = np.vstack([R, norms.min() / norms])
    weights = nnls(matrix, target, maxiter=100 * len(norms))[0] / norms
    return weights / weights.sum()


def _residual(gradients: Tensor, weights: Array, least: float, scale: float) -> float:
    """``max_i (⟨g, g⟩ − ⟨g, g_i⟩) / least²`` for g = Σ w_i g_i, all gradients times scale."""
    if least == 0:
        return 0.0
    w = torch.from_numpy(weights).to(gradients.device)
    blocks = _blocks(gradients, scale)
    products: Any = sum((block @ (w @ block)).cpu().numpy() for block in blocks)
    return max(float(weights @ products - products.min()) / float(least) ** 2, 0.0)


def _triangle(gradients: Tensor, scale: float) -> Array:
    """R of the QR factorization of the p x k matrix, times scale."""
    R: Any = np.zeros((0, len(gradients)))
    for block in _blocks(gradients, scale):
        R = np.linalg.qr(np.vstack([R, block.cpu().numpy().T]), mode="r")
    return R


def _blocks(gradients: Tensor, scale: float) -> Iterator[Tensor]:
    """The matrix's columns in float64, some at a time, times scale."""
    for block in gradients.split(COLUMNS, dim=1):
        yield block.to(torch.float64, copy=True).mul_(scale)


def _scale(peak: float) -> float:
    """The power of two that brings peak to [1/2, 1), or as near as float64 goes."""
    return math.ldexp(1.0, min(-math.frexp(peak)[1], 1023))


def _check(gradients: Tensor) -> float:
    """The largest absolute entry, or ValueError."""
    check_tensor("gradients", gradients)
    if gradients.dim() != 2 or 0 in gradients.shape or not gradients.is_floating_point():
        raise ValueError(
            "gradients must be floats [k, p], one row for each maximizer, k and p >= 1, "
            f"got {gradients.dtype} {list(gradients.shape)}"
        )
    low, high = gradients.aminmax()
    peak = max(-float(low), float(high))
    if not np.isfinite(peak):
        raise ValueError("gradients must be finite, got NaN or infinity: look for a diverged loss")
    return peak
