"""Clouds of points and their weights: arrays or tensors of any real type, checked, in float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.checks import check_tensor

Array = NDArray[np.float64]
Cloud = Tensor | np.ndarray
METRICS = ("euclidean", "cityblock", "chebyshev")  # on the line they are the same


def clouds(x: Cloud, y: Cloud, metric: str) -> tuple[Array, Array, float]:
    """Both clouds, [n, d] and [m, d], divided by a power of two, and that power; or ValueError.

    The power is 1 unless the largest entry is so large or small that squares of differences
    over- or underflow; then that entry becomes about 1. The division is exact.
    """
    x, largest_x = _points("x", x)
    y, largest_y = _points("y", y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x is in R^{x.shape[1]} and y in R^{y.shape[1]}: they must be in one")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    _, exponent = math.frexp(max(largest_x, largest_y))
    if abs(exponent) < 200:
        return x, y, 1.0
    exponent -= 1
    return np.ldexp(x, -exponent), np.ldexp(y, -exponent), math.ldexp(1.0, exponent)


def weights(name: str, given: Cloud | None, n: int) -> Array:
    """The weights [n], adding up to 1, or ValueError; None: all equal."""
    if given is None:
        return np.full(n, 1 / n)
    found = _array(f"{name}_weights", given)
    if found.shape != (n,):
        raise ValueError(f"{name}_weights must be [{n}], one a point, got {list(found.shape)}")
    if not (found >= 0).all():
        raise ValueError(f"{name}_weights must be >= 0, got {found.min()}")
    total = found.sum()
    if not abs(total - 1) <= max(1e-6, _rounding(given)):
        raise ValueError(f"{name}_weights must add up to 1, got {total}: divide them by their sum")
    return found / total


def _points(name: str, cloud: Cloud) -> tuple[Array, float]:
    """The cloud as float64 [n, d] and its largest absolute entry, or ValueError."""
    points = _array(name, cloud)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or 0 in points.shape:
        raise ValueError(f"{name} must hold points [n, d] with n, d >= 1, got {list(points.shape)}")
    largest = float(np.abs(points).max())
    if not math.isfinite(largest):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return points, largest


def _array(name: str, given: Cloud) -> Array:
    """As float64; NumPy knows no bfloat16 and would drop an imaginary part."""
    if torch.is_tensor(given):
        check_tensor(name, given)
        given = given.detach().cpu()
        given = given.numpy() if given.is_complex() else given.double().numpy()
    try:
        given = np.asarray(given)
    except ValueError:  # rows of several lengths
        raise ValueError(f"{name} must hold rows of real numbers, got {given!r}"[:120]) from None
    if given.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got {given.dtype}")
    return given.astype(np.float64, copy=False)


def _rounding(given: Cloud) -> float:
    """The machine epsilon of what is given; 0 for integers and lists."""
    dtype = getattr(given, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    return float(np.finfo(dtype).eps) if dtype is not None and dtype.kind == "f" else 0.0
