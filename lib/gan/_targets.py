"""Distributions in the plane for generators to learn (slides 37 to 41).

``eight_gaussians(n)`` and ``spiral(n)`` draw points [n, 2]; ``modes`` tells which of the eight a
generator has found. What is drawn depends on the torch.Generator that is passed alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lib.checks import check_counts, check_tensor

RADIUS = math.sqrt(2)  # of the circle of means: each coordinate then has variance 1
DEVIATION = 0.07  # of each Gaussian


def means() -> Tensor:
    """The means of the eight Gaussians, [8, 2], counterclockwise from (√2, 0).

    >>> from lib.gan import means
    >>> [round(v, 4) for v in means()[1].tolist()]
    [1.0, 1.0]
    """
    angle = torch.arange(8) * (math.pi / 4)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], 1)


def eight_gaussians(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n points of the equal mixture of ``N(c_k, 0.07² I)``, ``‖c_k‖ = √2``: [n, 2].

    generator: draws them, on its device; None: torch's own, on the CPU.
    Raises ValueError for n < 1.

    >>> import torch
    >>> from lib.gan import eight_gaussians, modes
    >>> modes(eight_gaussians(1000, torch.Generator().manual_seed(0))).found
    8
    """
    check_counts(n=n)
    device = generator.device if generator else torch.device("cpu")
    k = torch.randint(8, (n,), generator=generator, device=device)
    noise = torch.randn(n, 2, generator=generator, device=device)
    return means().to(device)[k] + DEVIATION * noise


def spiral(n: int, generator: torch.Generator | None = None) -> Tensor:
    """n points near two turns of the spiral ``r = t / 2π``, t uniform in [0, 4π]: [n, 2].

    Gaussian noise of deviation 0.05 is added. generator: draws them, on its device; None: torch's
    own, on the CPU. Raises ValueError for n < 1.

    >>> import torch
    >>> from lib.gan import spiral
    >>> a = spiral(1000, torch.Generator().manual_seed(0))
    >>> a.shape, bool(a.norm(dim=1).max() < 2.3)
    (torch.Size([1000, 2]), True)
    """
    check_counts(n=n)
    device = generator.device if generator else torch.device("cpu")
    t = 4 * math.pi * torch.rand(n, generator=generator, device=device)
    curve = torch.stack([t.cos(), t.sin()], 1) * (t / (2 * math.pi))[:, None]
    return curve + 0.05 * torch.randn(n, 2, generator=generator, device=device)


class Modes(NamedTuple):
    """How a sample covers the eight Gaussians."""

    found: int  # the Gaussians with at least 1 % of the points near their mean
    near: float  # the share of points near some mean, in [0, 1]


def modes(points: Tensor) -> Modes:
    """Which Gaussians points [n, 2] have found; near is within 0.28, four deviations, of a mean.

    Of true samples ``1 − exp(−8)``, all but one in 3,000, are near. Raises ValueError for other
    shapes and for points that are not finite.

    >>> from lib.gan import means, modes
    >>> modes(means()[:3])
    Modes(found=3, near=1.0)
    """
    points = torch.as_tensor(points)
    check_tensor("points", points)
    points = points.detach().cpu()
    if points.dim() != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"points must be [n, 2] with n >= 1, got {list(points.shape)}")
    if points.is_complex() or not torch.isfinite(points).all():
        raise ValueError("points must be finite and real, got NaN, infinity or complex numbers")
    distance, nearest = torch.cdist(points.float(), means()).min(1)
    near = nearest[distance <= 4 * DEVIATION]
    share = near.bincount(minlength=8) / len(points)
    return Modes(int((share >= 0.01).sum()), len(near) / len(points))
