"""Keeping a critic flat: a penalty, clipping, division by norms (slide 39)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input
from torch.nn.utils import parametrize

from lib.balls import L2, Ball, check_ball
from lib.checks import check_floats, check_number, check_tensor, checked_by
from lib.lipschitz._bounds import (
    Critic,
    evaluated,
    input_gradient,
    layers_with_shapes,
    lipschitz_bound,
)
from lib.runs import processes

EUCLIDEAN = L2(1.0)


@checked_by(check_ball)
def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    weight: float = 10.0,
    *,
    one_sided: bool = False,
    ball: Ball = EUCLIDEAN,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``weight · mean (‖∇d(z)‖_* − 1)²``, z uniform on the segments from fake to real (slide 39).

    def-gradient-penalty (Gulrajani et al., 2017). The critic maximizes, so subtract it: the slide
    adds it, which rewards steep critics. one_sided: ``max(‖∇d‖_* − 1, 0)²``, which leaves critics
    alone that are flatter than 1.
    critic: [n, ...] -> [n] or [n, 1], each sample for itself; real, fake: floats [n, ...].
    ball: of the ground metric, whose dual norm is taken; its radius does not count. generator: on
    any device, draws one point of each segment; None: torch's own. Differentiable in the critic's
    parameters.
    Raises ValueError for two shapes, types or devices, for no sample, for a weight that is not
    >= 0, and for a critic that does not return one value a sample or has no gradient.

    >>> import torch
    >>> from lib.lipschitz import gradient_penalty
    >>> real, fake = torch.ones(4, 2), torch.zeros(4, 2)
    >>> gradient_penalty(lambda a: 3 * a[:, 0], real, fake).item()  # 10 (3 − 1)²
    40.0
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be finite and >= 0, got {weight}")
    z = _on_the_segments(real, fake, generator).requires_grad_()
    excess = ball.dual_norm(input_gradient(critic, z)) - 1
    return weight * (excess.clamp(min=0) if one_sided else excess).square().mean()


def _on_the_segments(real: Tensor, fake: Tensor, generator: torch.Generator | None) -> Tensor:
    """``fake + t (real − fake)``, t uniform in [0, 1], one for each pair."""
    if not isinstance(real, Tensor) or not isinstance(fake, Tensor):
        check_tensor("real", real)
        check_tensor("fake", fake)
    alike = real.shape == fake.shape and real.dtype == fake.dtype and real.device == fake.device
    if not alike or not real.is_floating_point() or len(real) == 0:
        got = " and ".join(f"{list(c.shape)} {c.dtype} on {c.device}" for c in (real, fake))
        raise ValueError(
            "real and fake must agree: floats [n, ...], n >= 1, of one shape, type and device, "
            f"got {got}"
        )
    check_floats("real", real)
    check_floats("fake", fake)
    where = generator.device if generator else real.device
    rand = partial(torch.rand, device=where, dtype=torch.float32)
    t = processes.draw_local_rows(rand, (len(real),), generator).to(real)
    return torch.lerp(fake.detach(), real.detach(), t.reshape(-1, *[1] * (real.dim() - 1)))


@torch.no_grad()
def clip_weights_(critic: nn.Module, c: float) -> None:
    """Every parameter to the nearest in [−c, c], in place: a projection in ℓ∞ (slide 39).

    It bounds each weight and so the constant, but by a number other than 1 that depends on the
    widths: an [m, n] layer's norm is at most ``c √(m n)``. Raises ValueError unless c > 0.

    >>> import torch
    >>> from lib.lipschitz import clip_weights_
    >>> critic = torch.nn.Linear(2, 1)
    >>> clip_weights_(critic, 0.01)
    >>> max(x.abs().max().item() for x in critic.parameters()) <= 0.01
    True
    """
    check_number("c", c, positive=True)
    for p in critic.parameters():
        p.clamp_(-c, c)


def normalize_spectrally_(model: nn.Module, input_shape: Sequence[int] | None = None) -> nn.Module:
    """Divide each layer's weight by its spectral norm, in place, from now on (slide 39).

    A layer of which this was asked before stays as it is.

    With 1-Lipschitz activations the model is then 1-Lipschitz. Miyato et al. (2018) divide a
    convolution by the norm of its reshaped kernel, which leaves a norm of up to the root of the
    kernel's area (prop-convolution-norm); here it is that of the map on its images. In training
    mode each forward pass does one step of power iteration, whose estimate lags behind a moving
    weight; in evaluation mode it is as it was. ``lipschitz_bound(model)`` says what holds.
    input_shape: [c, h, w], if there are convolutions.
    Returns the model. Raises ValueError as lipschitz_bound does.

    >>> import torch
    >>> from lib.lipschitz import lipschitz_bound, normalize_spectrally_
    >>> critic = normalize_spectrally_(torch.nn.Sequential(torch.nn.Linear(2, 1)))
    >>> round(lipschitz_bound(critic), 4)
    1.0
    """
    lipschitz_bound(model, input_shape)  # refuses what it does not know
    with evaluated(model):
        layers = list(layers_with_shapes(model, input_shape))
    for layer, shape in layers:
        done = any(isinstance(module, _Normalized) for module in layer.modules())
        if isinstance(layer, nn.Linear | nn.Conv2d) and not done:
            parametrize.register_parametrization(layer, "weight", _Normalized(layer, shape))
    return model


class _Normalized(nn.Module):
    """``W / σ``, σ = ⟨u, W v⟩ by power iteration on ``v -> W v`` and its adjoint."""

    v: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, shape: Sequence[int] | None) -> None:
        super().__init__()
        self.convolution = isinstance(layer, nn.Conv2d)
        if isinstance(layer, nn.Conv2d):
            self.shape: tuple[int, ...] = (1, *(shape or ()))
            self.settings: tuple[Any, Any] = layer.stride, layer.padding
        else:
            self.shape = (1, layer.in_features)
        generator = torch.Generator("cpu").manual_seed(0)
        v = torch.randn(self.shape, generator=generator, dtype=torch.float32, device="cpu")
        v = v.to(layer.weight)
        self.register_buffer("v", v / v.norm())
        for _ in range(50):
            self._iterate(layer.weight)

    def _map(self, weight: Tensor, v: Tensor) -> Tensor:
        return F.conv2d(v, weight, None, *self.settings) if self.convolution else v @ weight.T

    def _back(self, weight: Tensor, u: Tensor) -> Tensor:
        if self.convolution:
            return conv2d_input(self.shape, weight, u, *self.settings)
        return u @ weight

    @torch.no_grad()
    def _iterate(self, weight: Tensor) -> None:
        u = self._map(weight, self.v)
        v = self._back(weight, u)
        self.v = torch.where(v.norm() > 0, v / v.norm(), self.v)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self._iterate(weight)
        sigma = self._map(weight, self.v.clone()).norm()
        return weight / torch.where(sigma > 0, sigma, 1.0)  # a zero map is 1-Lipschitz as it is
