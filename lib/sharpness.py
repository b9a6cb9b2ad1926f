"""How sharp a minimum is: the largest eigenvalue of the Hessian of the mean loss (slide 43).

Near a minimum x the loss grows along a unit vector v like ``λ t² / 2``, with ``λ = vᵀ H v`` and
``H = ∇² R_n(x)``; the largest eigenvalue of H is the steepest growth. H has p² entries and is
never formed: the Lanczos method asks for products with vectors alone (Pearlmutter, 1994), each the
gradient of ``⟨∇R_n(x), v⟩``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lib.attacks import Loss, cross_entropy
from lib.checks import check_counts, check_floats, check_losses
from lib.data import Images, check_images

Array = NDArray[np.float64]
BASIS = 3  # Lanczos vectors between two restarts: few, as each is as large as the model
LAST_BASIS = 20  # if that did not settle


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

    By the restarted Lanczos method (ARPACK), in float64, on products in the model's precision. It
    stops when the residual ``‖H v − λ v‖`` is at most about tolerance times ``|λ|``, or after about
    this many iterations, each a product; then with the best that 20 more find. λ is ``vᵀ H v``,
    up to rounding a lower bound of the largest eigenvalue; an eigenvalue of H lies within the
    residual of it, and near the limit the error is only about the residual's square over the gap
    to the next eigenvalue.

    generator: on any device, draws the first vector; None: seed 0. batch_size bounds memory, not
    the result. The model is looked at in evaluation mode, in its own precision (for more digits
    pass a copy ``.double()``), and left as it was. A ReLU network's Hessian is that of its linear
    piece.
    Raises ValueError for settings out of range, no image and no parameter, and
    FloatingPointError for a Hessian with NaN.

    >>> import torch
    >>> from lib.data import Images
    >>> images = Images(torch.ones(1, 1, 1, 1), torch.tensor([0]), ("0",))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 1, bias=False))
    >>> from lib.sharpness import largest_eigenvalue
    >>> largest_eigenvalue(model, images, loss=lambda h, b: 3 * h[:, 0] ** 2).value
    6.0
    """
    _check(data, iterations, batch_size, tolerance)
    x = _trained_parameters(model)
    generator = generator or torch.Generator("cpu").manual_seed(0)
    size, device = sum(p.numel() for p in x), generator.device
    start = torch.randn(size, generator=generator, dtype=torch.float64, device=device)
    with _evaluated(model):
        times = hessian_product(model, data, loss=loss, batch_size=batch_size)

        def product(v: Array) -> Array:
            hv = times(torch.from_numpy(v).to(x[0])).double().cpu().numpy()
            if not np.isfinite(hv).all():
                raise FloatingPointError("the Hessian is not finite: has the training diverged?")
            return hv

        v = _top_vector(product, start.cpu().numpy(), tolerance, iterations)
        hv = product(v)
    value = float(v @ hv)
    residual = float(np.linalg.norm(hv - value * v))
    return Eigenpair(value, residual, torch.from_numpy(v).to(x[0]))


def _check(data: Images, iterations: int, batch_size: int, tolerance: float) -> None:
    """ValueError for settings out of range."""
    check_images(data)
    check_counts(iterations=iterations, batch_size=batch_size)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    if len(data) == 0:
        raise ValueError("the mean loss needs at least one image, got 0")


def _trained_parameters(model: nn.Module) -> Sequence[Tensor]:
    """Those that require a gradient, in the model's order, or ValueError if there is none."""
    x = [p for p in model.parameters() if p.requires_grad]
    if not x:
        raise ValueError("no parameter of the model requires a gradient: call requires_grad_()")
    return x


def _top_vector(
    product: Callable[[Array], Array], start: Array, tolerance: float, iterations: int
) -> Array:
    """A unit vector close to the eigenvector of the algebraically largest eigenvalue."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    p, start = len(start), start / np.linalg.norm(start)
    first = product(start)
    size = np.abs(first).max()
    if size == 0:
        return start
    if p <= LAST_BASIS:
        H = np.stack([product(e) for e in np.eye(p)]) / size
        return np.linalg.eigh((H + H.T) / 2)[1][:, -1]

    def scaled(v: Array) -> Array:  # ARPACK compares with |λ| only if it is above 4e-11
        return (first if np.array_equal(v, start) else product(v)) / size

    operator = LinearOperator((p, p), matvec=scaled, dtype=np.float64)
    restarts = max(1, iterations // (BASIS - 1))
    settings = {"k": 1, "which": "LA", "v0": start}
    try:
        _, vectors = eigsh(operator, ncv=BASIS, tol=tolerance, maxiter=restarts, **settings)
    except ArpackNoConvergence:  # any tolerance will do: what the first basis holds
        _, vectors = eigsh(operator, ncv=LAST_BASIS, tol=1e30, **settings)
    return vectors[:, 0]


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and afterwards each layer in its own."""
    modes = {layer: layer.training for layer in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def hessian_product(
    model: nn.Module, data: Images, *, loss: Loss = cross_entropy, batch_size: int = 1000
) -> Callable[[Tensor], Tensor]:
    """``v [p] -> H v [p]``, H the Hessian of the mean loss at the model's parameters.

    ``H v = ∇⟨∇R_n(x), v⟩``. The graph of the gradient is kept if there is one batch: a product
    then takes about the time of a gradient; with several it is made anew each time. The
    model is taken in the mode that it is in.
    Raises ValueError for a loss that does not return one value a sample, and the product for a v
    of another length or type, or with NaN.

    >>> import torch
    >>> from lib.data import Images
    >>> images = Images(torch.ones(1, 1, 1, 1), torch.tensor([0]), ("0",))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 1, bias=False))
    >>> from lib.sharpness import hessian_product
    >>> hessian_product(model, images, loss=lambda h, b: h[:, 0] ** 2)(torch.ones(1)).item()
    2.0
    """
    x = _trained_parameters(model)
    a, b = data.a.to(x[0].dtype), data.b
    batches = list(zip(a.split(batch_size), b.split(batch_size), strict=True))
    size = sum(p.numel() for p in x)

    def gradient(a: Tensor, b: Tensor) -> Tensor:
        with torch.enable_grad():
            losses = loss(model(a.clone()), b)  # which may change its input
            check_losses(losses, b)
            risk = losses.mean() * (len(b) / len(data))
            parts = torch.autograd.grad(risk, x, create_graph=True, materialize_grads=True)
            return torch.cat([part.flatten() for part in parts])

    kept = gradient(*batches[0]) if len(batches) == 1 else None

    def product(v: Tensor) -> Tensor:
        check_floats("v", v)
        if v.shape != (size,) or v.dtype != x[0].dtype:
            raise ValueError(
                f"v must be {x[0].dtype} [{size}], got {v.dtype} {list(v.shape)}: give one number "
                "for each trained parameter"
            )
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
