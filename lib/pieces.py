"""The exact Lipschitz constant of a small ReLU network, by enumeration of its pieces (slide 36).

Where the same units are on, a ReLU network is linear. Its pieces are polyhedra: the units are
switched on and off one after the other, and a linear program says whether anything is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import nn


def lipschitz_constant(model: nn.Module) -> float:
    """The exact ℓ2 constant of a small ReLU network R^d -> R^m, by enumeration (slide 36).

    On each piece of R^d where the same units are on, the network is linear, with the product of
    the rows that are on as its matrix; the constant is the largest spectral norm of a piece that
    has an interior. Units are switched on and off one after the other, and a linear program says
    whether a piece is left: at most ``Σ_{i <= d} (units choose i)`` of them in the first layer.
    Computing it is NP-hard (Virmaux and Scaman, 2018): meant for 20 units or so.
    model: an ``nn.Sequential`` of Linear and ReLU. Raises ValueError for other layers.
    """
    layers = list(layers_of(model))
    if not layers or not all(isinstance(layer, nn.Linear | nn.ReLU) for layer in layers):
        raise ValueError("needs an nn.Sequential of Linear and ReLU layers")
    first = next(layer for layer in layers if isinstance(layer, nn.Linear))
    identity = np.eye(first.in_features), np.zeros(first.in_features)
    return max(np.linalg.norm(W, 2) for W in _pieces(layers, *identity, [], []))


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of an nn.Sequential, nested ones too, in order."""
    if isinstance(model, nn.Sequential):
        for layer in model:
            yield from layers_of(layer)
    else:
        yield model


def _pieces(
    layers: Sequence[nn.Module],
    W: np.ndarray,
    w: np.ndarray,
    normals: list[np.ndarray],
    offsets: list[float],
) -> Iterator[np.ndarray]:
    """The matrices of the pieces in {normals a + offsets >= 0}, on which layers see W a + w."""
    if not layers:
        yield W
    elif isinstance(layers[0], nn.Linear):
        V = layers[0].weight.detach().double().cpu().numpy()
        v = 0.0 if layers[0].bias is None else layers[0].bias.detach().double().cpu().numpy()
        yield from _pieces(layers[1:], V @ W, V @ w + v, normals, offsets)
    else:
        yield from _switch(layers, W, w, 0, normals, offsets)


def _switch(layers, W, w, unit, normals, offsets) -> Iterator[np.ndarray]:
    """The pieces with this unit of a ReLU layer on, then with it off."""
    if unit == len(W):
        yield from _pieces(layers[1:], W, w, normals, offsets)
        return
    for sign in (1, -1):
        more = [*normals, sign * W[unit]], [*offsets, sign * w[unit]]
        if _has_interior(*more):
            on = np.arange(len(W)) != unit if sign < 0 else np.full(len(W), True)
            yield from _switch(layers, W * on[:, None], w * on, unit + 1, *more)


def _has_interior(normals: list[np.ndarray], offsets: list[float]) -> bool:
    """Whether some a in the cube [−R, R]^d has every ``⟨normal, a⟩ + offset > 0``, by an LP."""
    from scipy.optimize import linprog

    A, c = np.array(normals), np.array(offsets)
    size = np.linalg.norm(A, axis=1)
    flat = size < 1e-12
    if (c[flat] < 0).any():  # a unit that is off on all of the piece
        return False
    A, c = A[~flat] / size[~flat, None], c[~flat] / size[~flat]
    if not len(A):
        return True
    # The largest margin t <= 1; pieces thinner than 1e-9 count as empty.
    rows = np.hstack([-A, np.ones((len(A), 1))])
    objective = np.zeros(A.shape[1] + 1)
    objective[-1] = -1
    bounds = [(None, None)] * A.shape[1] + [(None, 1.0)]
    found = linprog(objective, A_ub=rows, b_ub=c, bounds=bounds, method="highs")
    return found.status == 0 and -found.fun > 1e-9
