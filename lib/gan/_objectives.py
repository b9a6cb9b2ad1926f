"""What generator and critic optimize: the Wasserstein GAN of slides 37 and 39, the first of 41.

wgan_objective    ``min_x max_y E d_y(a) − E d_y(h_x(ω))``, d_y near 1-Lipschitz
gan_objective     ``min_x max_y E log σ(d_y(a)) + E log(1 − σ(d_y(h_x(ω))))``
js_divergence     what the second one measures
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lib.checks import check_number, check_tensor
from lib.gan._steps import Objective
from lib.lipschitz import clip_weights_, gradient_penalty

CONSTRAINTS = ("clip", "penalty", "spectral")
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {  # ℓ, of the numbers on fakes
    "saturating": lambda of_fake: logsigmoid(-of_fake).mean(),
    "non-saturating": lambda of_fake: -logsigmoid(of_fake).mean(),
}


def wgan_objective(
    critic: nn.Module,
    constraint: str = "penalty",
    *,
    clip: float = 0.01,
    penalty: float = 10.0,
    one_sided: bool = False,
) -> Objective:
    """``V = mean d_y(r) − mean d_y(h_x(ω))``, ``ℓ = −mean d_y(h_x(ω))``, d_y constrained.

    constraint: how d_y is held near 1-Lipschitz (slide 39), one of

    * "clip": every parameter of the critic into [−clip, clip] after each step on it, which bounds
      its constant by another number than 1 (Arjovsky et al., 2017);
    * "penalty": ``penalty · mean (‖∇d_y‖₂ − 1)²`` is subtracted from what it maximizes
      (Gulrajani et al., 2017), one_sided as in ``lib.lipschitz.gradient_penalty``;
    * "spectral": nothing here, as ``lib.lipschitz.normalize_spectrally_(critic)`` makes it a part
      of the critic (Miyato et al., 2018).

    Raises ValueError for an unknown constraint and for a clip or penalty out of range.

    >>> import torch
    >>> from lib.gan import point_critic, wgan_objective
    >>> wgan_objective(point_critic()).generator_loss(torch.tensor([1.0, 2.0])).item()
    -1.5
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got {constraint!r}")
    check_number("clip", clip, positive=True)
    check_number("penalty", penalty)
    subtracted = partial(gradient_penalty, critic, weight=penalty, one_sided=one_sided)
    return Objective(
        critic_value=lambda of_real, of_fake: of_real.mean() - of_fake.mean(),
        generator_loss=lambda of_fake: -of_fake.mean(),
        penalty=subtracted if constraint == "penalty" else None,
        constrain=partial(clip_weights_, critic, clip) if constraint == "clip" else None,
    )


def gan_objective(loss: str = "non-saturating") -> Objective:
    """``V = mean log σ(d_y(r)) + mean log(1 − σ(d_y(h_x(ω))))``, d_y a logit (slide 41).

    loss: ℓ, the second term as written ("saturating"), whose gradient vanishes where d_y is sure;
    or ``−mean log σ(d_y(h_x(ω)))`` ("non-saturating", Goodfellow et al., 2014).
    Raises ValueError for an unknown loss.

    >>> import torch
    >>> from lib.gan import gan_objective
    >>> undecided = torch.zeros(4)
    >>> round(gan_objective().critic_value(undecided, undecided).item(), 4)  # −log 4
    -1.3863
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    return Objective(
        critic_value=lambda of_real, of_fake: (
            logsigmoid(of_real).mean() + logsigmoid(-of_fake).mean()
        ),
        generator_loss=LOSSES[loss],
    )


def js_divergence(p: Tensor | np.ndarray, q: Tensor | np.ndarray) -> float:
    """``½ D(p‖m) + ½ D(q‖m)``, m = (p + q)/2, in [0, log 2]: Jensen-Shannon (slide 41).

    p, q: [k], probabilities of the same k outcomes, >= 0, that add up to 1. ``0 log 0`` is 0, so
    that it is finite for all of them. Natural logarithm, float64.
    Raises ValueError for other shapes and for what is no distribution.

    >>> import numpy as np
    >>> from lib.gan import js_divergence
    >>> round(js_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 4)  # log 2
    0.6931
    """
    try:
        p, q = torch.as_tensor(p), torch.as_tensor(q)
    except (TypeError, ValueError, RuntimeError):
        got = f"{type(p).__name__} and {type(q).__name__}"
        raise ValueError(f"p and q must hold real numbers, got {got}") from None
    check_tensor("p", p)
    check_tensor("q", q)
    p, q = p.detach().cpu(), q.detach().cpu()
    if p.dim() != 1 or p.shape != q.shape or not len(p):
        raise ValueError(f"p and q must both be [k], got {list(p.shape)} and {list(q.shape)}")
    for name, v in (("p", p), ("q", q)):
        if v.is_complex() or not (v >= 0).all() or not abs(float(v.double().sum()) - 1) <= 1e-6:
            raise ValueError(f"{name} must be >= 0 and add up to 1, got the sum {v.sum().item()}")
    p, q = p.double(), q.double()
    # Not p / ((p + q) / 2): a half of the smallest number is 0.
    terms = [torch.xlogy(v, 2 * v / (p + q)).nan_to_num() for v in (p, q)]
    return min(max(float((terms[0] + terms[1]).sum()) / 2, 0.0), math.log(2))
