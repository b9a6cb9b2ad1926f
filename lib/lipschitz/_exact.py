"""The exact Lipschitz constant of a small ReLU network, by enumeration of its pieces (slide 36).

Where the same units are on, a ReLU network is linear. Its pieces are polyhedra: the units are
switched on and off one after the other, and a linear program says whether anything is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch import nn


def lipschitz_constant(model: nn.Module) -> float:
    """The exact ℓ2 constant of a small ReLU network R^d -> R^m, by enumeration (slide 36).

    On each piece of R^d where the same units are on, the network is linear, with the product of
    the rows that are on as its matrix; the constant is the largest spectral norm of a piece that
    has an interior. The first layer alone has up to ``Σ_{i <= d} (units choose i)`` pieces, and
    computing the constant is NP-hard (Virmaux and Scaman, 2018; prop-max-cut): meant for 20 units
    or so. model: an ``nn.Sequential`` of Linear and ReLU. Raises ValueError for other layers.
    """
    layers = list(layers_of(model))
    if not layers or not all(isinstance(layer, nn.Linear | nn.ReLU) for layer in layers):
        raise ValueError("needs an nn.Sequential of Linear and ReLU layers")
    d = next(layer.in_features for layer in layers if isinstance(layer, nn.Linear))
    whole = Cell(np.zeros((0, d)), np.zeros(0), np.zeros(d))
    return max(np.linalg.norm(W, 2) for W in _pieces(layers, np.eye(d), np.zeros(d), whole))


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of an nn.Sequential, nested ones too, in order."""
    if isinstance(model, nn.Sequential):
        for layer in model:
            yield from layers_of(layer)
    else:
        yield model


class Cell(NamedTuple):
    """The points a with ``normals a + offsets > 0``, and one of them."""

    normals: np.ndarray  # [constraints, d]
    offsets: np.ndarray
    inside: np.ndarray  # [d]


def _pieces(
    layers: Sequence[nn.Module], W: np.ndarray, w: np.ndarray, cell: Cell
) -> Iterator[np.ndarray]:
    """The matrices of the pieces in the cell, on which the layers are fed W a + w."""
    if not layers:
        yield W
    elif isinstance(layers[0], nn.Linear):
        V = layers[0].weight.detach().double().cpu().numpy()
        v = 0.0 if layers[0].bias is None else layers[0].bias.detach().double().cpu().numpy()
        yield from _pieces(layers[1:], V @ W, V @ w + v, cell)
    else:
        yield from _switch(layers, W, w, 0, cell)


def _switch(
    layers: Sequence[nn.Module], W: np.ndarray, w: np.ndarray, unit: int, cell: Cell
) -> Iterator[np.ndarray]:
    """The pieces with this unit of a ReLU layer on, then with it off."""
    if unit == len(W):
        yield from _pieces(layers[1:], W, w, cell)
        return
    for sign in (1, -1):
        part = _part(cell, sign * W[unit], sign * w[unit])
        if part is not None:
            on = np.arange(len(W)) != unit if sign < 0 else np.full(len(W), True)
            yield from _switch(layers, W * on[:, None], w * on, unit + 1, part)


def _part(cell: Cell, normal: np.ndarray, offset: float) -> Cell | None:
    """What is left of the cell where ``⟨normal, a⟩ + offset > 0``; thinner than 1e-9 is nothing."""
    from scipy.optimize import linprog

    size = np.linalg.norm(normal)
    if size < 1e-12:  # the unit is on, or off, on all of the cell
        return cell if offset >= 0 else None
    A, c = np.vstack([cell.normals, normal / size]), np.append(cell.offsets, offset / size)
    if A[-1] @ cell.inside + c[-1] > 1e-6:
        return Cell(A, c, cell.inside)
    # The point with the largest margin t <= 1 to all sides.
    objective = np.append(np.zeros(A.shape[1]), -1)
    rows = np.hstack([-A, np.ones((len(A), 1))])
    bounds = [(None, None)] * A.shape[1] + [(None, 1.0)]
    found = linprog(objective, A_ub=rows, b_ub=c, bounds=bounds, method="highs")
    return Cell(A, c, found.x[:-1]) if found.status == 0 and -found.fun > 1e-9 else None
