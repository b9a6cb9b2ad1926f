"""The exact Lipschitz constant of a small ReLU network, region by region (slide 36).

For each on/off pattern of the ReLUs the network is linear, on a polyhedron that may be empty. The
polyhedra are found by splitting: a unit's hyperplane cuts a region in the part where it is on and
the part where it is off, and a linear program says whether a part has an interior.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]


def lipschitz_constant(model: nn.Module) -> float:
    """The exact ℓ2 constant of a small ReLU network R^d -> R^m, by enumeration (slide 36).

    On each region of R^d where the same units are on, the network is linear; the constant is the
    largest spectral norm of its matrices on the regions that have an interior. One layer of k
    units has up to ``Σ_{i <= d} (k choose i)`` regions, and computing the constant is NP-hard
    (Virmaux and Scaman, 2018; prop-max-cut): meant for 20 units or so.
    model: an ``nn.Sequential`` of Linear and ReLU.
    Raises ValueError for other layers and weights that are not finite, and RuntimeError if a
    linear program fails.

    >>> import torch
    >>> from lib.lipschitz import lipschitz_constant
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.constant_(layer.weight, 3.0)
    >>> round(lipschitz_constant(torch.nn.Sequential(layer, torch.nn.ReLU())), 4)  # 3 √2
    4.2426
    """
    layers = list(layers_of(model))
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not linear or not all(isinstance(layer, nn.Linear | nn.ReLU) for layer in layers):
        raise ValueError(f"model must be an nn.Sequential of Linear and ReLU layers, got {model}")
    if not all(x.isfinite().all() for layer in linear for x in layer.parameters()):
        raise ValueError("the model's weights must be finite, got NaN or infinity")
    d, unit = linear[0].in_features, _unit_of_length(linear[0])
    whole = Region(np.zeros((0, d)), np.zeros(0), np.zeros(d))
    map_ = Affine(unit * np.eye(d), np.zeros(d), np.full(d, unit))
    norms = (np.linalg.norm(W, 2) for W in enumerate_linear_regions(layers, map_, whole))
    return float(max(norms)) / unit


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of an nn.Sequential, nested ones too, in order."""
    if isinstance(model, nn.Sequential):
        for layer in model:
            yield from layers_of(layer)
    else:
        yield model


class Region(NamedTuple):
    """The points a with ``normals a + offsets > 0``, and one of them."""

    normals: Array  # [constraints, d], of length 1
    offsets: Array  # [constraints]
    inside: Array  # [d]


class Affine(NamedTuple):
    """``a -> W a + w``, and of each row the length that it would have without cancellation."""

    W: Array  # [k, d]
    w: Array  # [k]
    size: Array  # [k]


def enumerate_linear_regions(
    layers: Sequence[nn.Module], before: Affine, region: Region
) -> Iterator[Array]:
    """The network's matrix on each of its linear regions within one, on which ``before`` enters."""
    if not layers:
        yield before.W
    elif isinstance(layers[0], nn.Linear):
        V, v = _weights(layers[0])
        after = Affine(V @ before.W, V @ before.w + v, np.abs(V) @ before.size)
        yield from enumerate_linear_regions(layers[1:], after, region)
    else:
        yield from _for_each_unit(layers, before, 0, region)


def _for_each_unit(
    layers: Sequence[nn.Module], before: Affine, unit: int, region: Region
) -> Iterator[Array]:
    """The regions behind a ReLU layer whose units before this one are decided."""
    if unit == len(before.W):
        yield from enumerate_linear_regions(layers[1:], before, region)
        return
    on, off = split_region(region, before.W[unit], before.w[unit], before.size[unit])
    if on is not None:
        yield from _for_each_unit(layers, before, unit + 1, on)
    if off is not None:
        left = np.arange(len(before.W)) != unit
        zeroed = Affine(before.W * left[:, None], before.w * left, before.size * left)
        yield from _for_each_unit(layers, zeroed, unit + 1, off)


def split_region(
    region: Region, normal: Array, offset: float, size: float
) -> tuple[Region | None, Region | None]:
    """The parts of the region where ``⟨normal, a⟩ + offset`` is > 0, and < 0; None if empty.

    A part thinner than 1e-9 is empty. A normal shorter than 1e-12 of size is 0 but for rounding:
    then the sign is the same on the whole region.
    """
    length = float(np.linalg.norm(normal))
    if length <= 1e-12 * size:
        return (region, None) if offset >= 0 else (None, region)
    normal, offset = normal / length, offset / length
    return _part(region, normal, offset), _part(region, -normal, -offset)


def _part(region: Region, normal: Array, offset: float) -> Region | None:
    """What is left of the region where ``⟨normal, a⟩ + offset > 0``."""
    from scipy.optimize import linprog

    A, c = np.vstack([region.normals, normal]), np.append(region.offsets, offset)
    if normal @ region.inside + offset > 1e-6:
        return Region(A, c, region.inside)
    # The point with the largest margin t <= 1 to all sides: feasible and bounded, whatever A is.
    objective = np.append(np.zeros(A.shape[1]), -1)
    rows = np.hstack([-A, np.ones((len(A), 1))])
    bounds = [(None, None)] * A.shape[1] + [(None, 1.0)]
    found = linprog(objective, A_ub=rows, b_ub=c, bounds=bounds, method="highs")
    if found.status != 0:
        raise RuntimeError(
            f"the linear program of a region failed, so that no exact constant is known: "
            f"{found.message}"
        )
    return Region(A, c, found.x[:-1]) if -found.fun > 1e-9 else None


def _weights(layer: nn.Linear) -> tuple[Array, Array]:
    """The matrix and the bias in float64."""
    V = layer.weight.detach().double().cpu().numpy()
    v = np.zeros(len(V)) if layer.bias is None else layer.bias.detach().double().cpu().numpy()
    return V, v


def _unit_of_length(layer: nn.Linear) -> float:
    """How far from 0 the first layer's hyperplanes reach: the scale that "thin" is meant on."""
    V, v = _weights(layer)
    lengths = np.linalg.norm(V, axis=1)
    reach = np.divide(np.abs(v), lengths, out=np.zeros_like(v), where=lengths > 0).max()
    return float(reach) if 0 < reach < np.inf else 1.0
