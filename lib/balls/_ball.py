"""Norm balls and the two questions an attack asks of them (slides 7, 8, 11, 12).

For the ball ``{v : ‖v‖ <= eps}`` of the ℓ∞, ℓ2 or ℓ1 norm and a box that holds 0::

    project(v)   the nearest point:         argmin ‖u − v‖₂   over ‖u‖ <= eps, low <= u <= high
    lmo(g)       the linear maximization:   argmax ⟨g, u⟩     over the same set

Both are exact. Because the box holds 0, a solution has the signs of its input, and only
magnitudes remain to be found: ``0 <= m <= room``, where the room is ``high`` under a positive
entry and ``−low`` under a negative one. What is left is a one-dimensional dual: a scale
shared by all coordinates for ℓ2, a threshold for ℓ1.

Batches lead: a tensor ``[n, ...]`` holds n samples, and each is treated alone. Radii and
bounds are in the units of v (for images: pixels in [0, 1]). Results have v's type; float16 and
bfloat16 are computed in float32.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lib.balls._batch import check_batch, check_finite
from lib.balls._box import Bound, check_box
from lib.checks import check_counts, check_tensor


@dataclass(frozen=True, eq=False)
class Ball(ABC):
    """``{v : ‖v‖ <= eps}``; eps is a number >= 0, or a tensor [n] with one radius a sample.

    Raises ValueError for a radius that is negative, infinite or NaN.

    >>> import torch
    >>> from lib.balls import LInf
    >>> LInf(0.5).project(torch.tensor([[2.0, -0.25]])).tolist()
    [[0.5, -0.25]]
    """

    eps: float | Tensor

    def __post_init__(self) -> None:
        if isinstance(self.eps, float) and 0 <= self.eps < math.inf:
            return
        if isinstance(self.eps, np.generic):
            object.__setattr__(self, "eps", self.eps.item())
        elif isinstance(self.eps, np.ndarray | list | tuple):
            object.__setattr__(self, "eps", torch.as_tensor(self.eps))
        try:
            wide = torch.float64 if isinstance(self.eps, float) else None
            eps = torch.as_tensor(self.eps, dtype=wide)
        except (TypeError, ValueError, RuntimeError):  # a text, or a number beyond all floats
            got = f"{self.eps!r}"[:40]
            raise ValueError(f"eps must be a number or a tensor [n], got {got}") from None
        check_tensor("eps", eps)
        if eps.dim() > 1:
            raise ValueError(f"eps must be a number or a tensor [n], got shape {list(eps.shape)}")
        if eps.is_complex() or not (torch.isfinite(eps) & (eps >= 0)).all():
            raise ValueError(f"eps must be finite and >= 0, got {self.eps}")

    @abstractmethod
    def norm(self, v: Tensor) -> Tensor:
        """``‖v‖`` of each sample: floats [n, ...] -> [n]; ℓ1 and ℓ2 in float32 at least.

        >>> import torch
        >>> from lib.balls import L2
        >>> L2(1.0).norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [5.0, 0.0]
        """

    @abstractmethod
    def dual_norm(self, g: Tensor) -> Tensor:
        """``max ⟨g, v⟩ over ‖v‖ <= 1`` of each sample: [n, ...] -> [n] (slide 8, def-dual-norm).

        >>> import torch
        >>> from lib.balls import LInf
        >>> LInf(1.0).dual_norm(torch.tensor([[3.0, -4.0]])).item()  # that is ℓ1
        7.0
        """

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Points [n, ...] drawn from the ball, uniformly by volume.

        Float32, on the generator's device; None: torch's own generator of the CPU.
        shape: (n, ...), with samples of one entry or more.
        Raises ValueError for another shape, and for another number of radii than n.

        >>> import torch
        >>> from lib.balls import L1
        >>> v = L1(0.3).sample((1000, 2), torch.Generator().manual_seed(0))
        >>> bool((L1(0.3).norm(v) <= 0.3).all()), bool((v.mean(0).abs() < 0.02).all())
        (True, True)
        """
        sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
        if not sizes or not all(isinstance(n, int) for n in sizes) or min(sizes[1:], default=1) < 1:
            raise ValueError(f"shape must be (n, ...), samples of one entry or more, got {shape}")
        check_counts(0, n=sizes[0])
        self._check_radii(sizes[0])
        return self._sample(sizes, generator)

    def project(
        self, v: Tensor, low: Bound = None, high: Bound = None, *, check: bool = True
    ) -> Tensor:
        """The point of the ball, or of the ball and the box, nearest to v in ℓ2.

        This is the prox-operator of the set's indicator function (slide 11, prop-prox-indicator).
        v: floats [n, ...]; it keeps its values. low and high: numbers or tensors that broadcast
        to v, in its units. The result is a tensor of its own.
        check=False is for loops that checked v and their box before they began: they are not
        looked at again, and the result is v itself where nothing has to move.
        Raises ValueError unless ``low <= 0 <= high``, up to the rounding of their type, for a v
        with NaN or infinity, a v of integers, and another number of radii than samples.

        >>> import torch
        >>> from lib.balls import L2
        >>> L2(1.0).project(torch.tensor([[3.0, 4.0]]), high=0.625).tolist()
        [[0.625, 0.625]]
        """
        if not check:
            return self._project(v, low, high)
        low, high = _checked("v", v, low, high)
        nearest = self._project(v, low, high)
        return nearest.clone() if nearest is v else nearest

    def project_within(self, v: Tensor, low: Bound = None, high: Bound = None) -> Tensor:
        """The projection on the box and this ball, or on a ball of at least 99.9 % of its radius.

        Quicker than ``project`` for the ℓ2 ball and a box, the same for the other balls. For
        loops: v and the box are not checked, no graph is built, and the result may be v itself.
        v keeps its values.

        >>> import torch
        >>> from lib.balls import L2
        >>> u = L2(1.0).project_within(torch.tensor([[3.0, 4.0, 5.0]]), high=0.6)
        >>> 0.999 <= u.norm().item() <= 1.000001
        True
        """
        return self._project(v.detach(), low, high)

    def lmo(
        self, g: Tensor, low: Bound = None, high: Bound = None, *, check: bool = True
    ) -> Tensor:
        """A maximizer of ``⟨g, v⟩`` over the ball, or over the ball and the box (slides 8, 9).

        Without a box the maximum is ``eps · dual_norm(g)`` (prop-lmo, prop-lmo-box). Entries with
        g = 0 stay 0. The result is a tensor of its own.
        check=False is for loops that checked their box before they began.
        Raises ValueError as project does.

        >>> import torch
        >>> from lib.balls import L1
        >>> L1(1.0).lmo(torch.tensor([[3.0, -4.0]]), low=-0.75).tolist()  # the largest first
        [[0.25, -0.75]]
        """
        if check:
            low, high = _checked("g", g, low, high)
        return self._lmo(g, low, high)

    @abstractmethod
    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor: ...

    @abstractmethod
    def _project(self, v: Tensor, low: Bound, high: Bound) -> Tensor: ...

    @abstractmethod
    def _lmo(self, g: Tensor, low: Bound, high: Bound) -> Tensor: ...

    def part(self, index: Tensor) -> Self:
        """The ball for some samples only: their radii, if each has its own.

        >>> import torch
        >>> from lib.balls import L2
        >>> L2(torch.tensor([0.25, 0.5, 0.75])).part(torch.tensor([2, 0])).eps.tolist()
        [0.75, 0.25]
        """
        if not torch.is_tensor(self.eps) or self.eps.dim() == 0:
            return self
        return replace(self, eps=self.eps[index.to(self.eps.device)])

    def radius(self, v: Tensor) -> Tensor:
        """eps in v's type and on its device, shaped [1 or n, 1, ..., 1] to meet a batch v [n, ...].

        An eps beyond the type's largest number is that number.
        Raises ValueError for another number of radii than samples and for a v of integers, which
        would cut the radii to whole numbers.

        >>> import torch
        >>> from lib.balls import L1
        >>> L1(torch.tensor([1.0, 2.0])).radius(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 1, 1, 1])
        """
        check_batch(v)
        if isinstance(self.eps, float | int):
            number = min(self.eps, torch.finfo(v.dtype).max) if self.eps > 1 else self.eps
            return torch.full([1] * v.dim(), number, dtype=v.dtype, device=v.device)
        self._check_radii(len(v))
        eps = self.eps.to(v).clamp(max=torch.finfo(v.dtype).max)
        return eps.reshape(-1, *[1] * (v.dim() - 1))

    def _check_radii(self, n: int) -> None:
        """ValueError for radii of another number than n."""
        if torch.is_tensor(self.eps) and self.eps.dim() and len(self.eps) != n:
            raise ValueError(
                f"eps holds {len(self.eps)} radii for a batch of {n} samples: give one number, or "
                "one radius a sample"
            )


def check_ball(ball: object) -> None:
    """ValueError for what is no ball, such as a bare radius.

    >>> from lib.balls import check_ball
    >>> check_ball(0.1)
    Traceback (most recent call last):
    ValueError: ball must be a ball, such as LInf(0.1), got 0.1
    """
    if not isinstance(ball, Ball):
        raise ValueError(f"ball must be a ball, such as LInf(0.1), got {ball!r}")


def _checked(name: str, v: Tensor, low: Bound, high: Bound) -> tuple[Bound, Bound]:
    """The box, or ValueError for what neither project nor lmo can use."""
    check_batch(v, name)
    check_finite(v, name)
    return check_box(low, high, v)
