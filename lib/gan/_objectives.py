"""Generative adversarial networks: what the two players of slides 37, 39 and 41 play for.

``train_wgan``      ``min_x max_y E d_y(a) − E d_y(h_x(ω))``, d_y 1-Lipschitz      slides 37, 39, 40
``train_gan``       ``min_x max_y E log d_y(a) + E log(1 − d_y(h_x(ω)))``          slide 41
``js_divergence``   what the second game measures                                  slide 41

Both are played by slide 40's loop, ``_training.play``. The networks are the caller's: ``_networks``
has some. A critic returns one number a sample, in the second game the logit of d_y.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lib.gan._networks import Noise
from lib.gan._training import Game, History, play
from lib.lipschitz import clip_weights_, gradient_penalty, normalize_spectrally_

CONSTRAINTS = ("clip", "penalty", "spectral")


def train_wgan(
    generator: nn.Module,
    critic: nn.Module,
    real: Tensor,
    noise: Noise,
    constraint: str = "penalty",
    *,
    steps: int,
    critic_steps: int = 5,
    clip: float = 0.01,
    penalty: float = 10.0,
    one_sided: bool = False,
    **settings: Any,
) -> History:
    """``min_x max_y E d_y(a) − E d_y(h_x(ω))``, d_y held near 1-Lipschitz (slides 37, 39, 40).

    constraint: how, one of

    * "clip": every weight of the critic into [−clip, clip] after each step on it, which bounds
      its constant by another number than 1 (Arjovsky et al., 2017);
    * "penalty": ``penalty · mean (‖∇d_y‖₂ − 1)²`` is subtracted from what it maximizes
      (Gulrajani et al., 2017), one_sided as in ``lib.lipschitz.gradient_penalty``;
    * "spectral": each of its layers is divided by its norm (Miyato et al., 2018, with the norm
      of the convolution itself), from the start on and after the training.

    critic: an ``nn.Sequential`` that lib.lipschitz knows, if the constraint is "spectral".
    The other arguments, what is returned and what is raised are those of ``_training.play``.
    Raises ValueError for an unknown constraint and for a clip or penalty out of range.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(f"constraint must be one of {', '.join(CONSTRAINTS)}, got {constraint!r}")
    if not 0 < clip < math.inf:
        raise ValueError(f"clip must be finite and > 0, got {clip}")
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty must be finite and >= 0, got {penalty}")
    rule: dict[str, Any] = {"constraint": constraint}
    charge = enforce = None
    if constraint == "clip":
        rule["clip"] = clip
        enforce = partial(clip_weights_, critic, clip)
    elif constraint == "penalty":
        rule |= {"penalty": penalty, "one_sided": one_sided}
        charge = partial(gradient_penalty, critic, weight=penalty, one_sided=one_sided)
    else:
        normalize_spectrally_(critic, real.shape[1:])
    game = Game(
        value=lambda of_real, of_fake: of_real.mean() - of_fake.mean(),
        loss=lambda of_fake: -of_fake.mean(),
        charge=charge,
        enforce=enforce,
        rule=rule,
    )
    return play(
        game, generator, critic, real, noise, steps=steps, critic_steps=critic_steps, **settings
    )


def train_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    noise: Noise,
    loss: str = "non-saturating",
    *,
    steps: int,
    critic_steps: int = 1,
    **settings: Any,
) -> History:
    """The vanilla GAN: ``min_x max_y E log d_y(a) + E log(1 − d_y(h_x(ω)))`` (slide 41).

    d_y is the sigmoid of what the discriminator returns.
    loss: what the generator minimizes, the second term as written ("saturating"), whose gradient
    vanishes where d_y is sure; or ``−E log d_y(h_x(ω))`` ("non-saturating", Goodfellow et al.,
    2014). critic_steps: of the discriminator. The other arguments, what is returned and what is
    raised are those of ``_training.play``. Raises ValueError for an unknown loss.
    """
    losses = {
        "saturating": lambda of_fake: logsigmoid(-of_fake).mean(),
        "non-saturating": lambda of_fake: -logsigmoid(of_fake).mean(),
    }
    if loss not in losses:
        raise ValueError(f"loss must be one of {', '.join(losses)}, got {loss!r}")
    game = Game(
        value=lambda of_real, of_fake: logsigmoid(of_real).mean() + logsigmoid(-of_fake).mean(),
        loss=losses[loss],
        rule={"loss": loss},
    )
    return play(
        game,
        generator,
        discriminator,
        real,
        noise,
        steps=steps,
        critic_steps=critic_steps,
        **settings,
    )


def js_divergence(p: Tensor | np.ndarray, q: Tensor | np.ndarray) -> float:
    """``½ D(p‖m) + ½ D(q‖m)``, m = (p + q)/2, in [0, log 2]: Jensen-Shannon (slide 41).

    p, q: [k], probabilities of the same k outcomes, >= 0, that add up to 1. ``0 log 0`` is 0, so
    that it is finite for all of them. Natural logarithm, float64.
    Raises ValueError for other shapes and for what is no distribution.
    """
    p, q = (torch.as_tensor(v).detach().cpu().double() for v in (p, q))
    if p.dim() != 1 or p.shape != q.shape or not len(p):
        raise ValueError(f"p and q must both be [k], got {list(p.shape)} and {list(q.shape)}")
    for name, v in (("p", p), ("q", q)):
        if not (v >= 0).all() or not abs(float(v.sum()) - 1) <= 1e-6:
            raise ValueError(f"{name} must be >= 0 and add up to 1, got the sum {float(v.sum())}")
    # Not p / ((p + q) / 2): a half of the smallest number is 0.
    terms = [torch.xlogy(v, 2 * v / (p + q)).nan_to_num() for v in (p, q)]
    return min(max(float(sum(terms).sum()) / 2, 0.0), math.log(2))
