"""The last value of a setting that is allowed, and the first one that is not.

The tables of inputs try what is plainly wrong; here a bound that is off by one, or that counts
itself where it should not, shows.
"""

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch

from lib import (
    attacks,
    balls,
    danskin,
    data,
    fairness,
    games,
    gan,
    lipschitz,
    models,
    sharpness,
    transport,
)
from lib import training as t
from lib.pages import exercises, plots
from lib.runs import Session

TINY = math.ulp(0.0)  # the smallest number above 0
BELOW_1, ABOVE_1 = math.nextafter(1, 0), math.nextafter(1, 2)
A = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
B = torch.tensor([0, 1, 1, 0])
IMAGES, LABELS = data.Images(A, B, ("no", "yes")), torch.tensor([0, 1])
NET = models.mlp((1, 4, 4), (3,), 2).eval()
BALL, ONE, POINTS = balls.LInf(0.1), torch.ones(1), torch.ones(3, 2)
SMOOTH = models.mlp((1, 4, 4), (), 2).eval()


class Bound(NamedTuple):
    """A call of one value, the values at its ends that are fine, and those that are not."""

    call: object
    fine: list
    refused: list


def counted(call):
    """A whole number, at least 1."""
    return Bound(call, [1], [0])


def positive(call):
    return Bound(call, [TINY], [0.0, math.inf])


def not_negative(call):
    return Bound(call, [0.0], [-TINY, math.inf])


def fitted(**settings):
    net = models.mlp((1, 4, 4), (3,), 2)
    return t.fit(net, IMAGES, t.erm(), **{"epochs": 1, "progress": False} | settings)


def trained(update):
    return update(models.mlp((1, 4, 4), (3,), 2), A, B)


def pixels(value):
    return data.Images(torch.full((1, 1, 2, 2), value, dtype=torch.float64), B[:1], ("no",))


def convolved(**settings):
    return lipschitz.spectral_norm(torch.ones(1, 1, 3, 3), **{"input_shape": (4, 4)} | settings)


def phantoms(**settings):
    return data.fundus_phantoms(**{"n": 2, "size": 16} | settings)


def class_wise(**settings):
    return fairness.classwise_accuracy(NET, IMAGES, **settings)


def descended(**settings):
    settings = {"step_size": 0.1, "steps": 1} | settings
    return games.gradient_descent_ascent(lambda x, y: (x * y).sum(), ONE, ONE, **settings)


def curved(**settings):
    return sharpness.largest_eigenvalue(SMOOTH, IMAGES, **{"batch_size": 4} | settings)


def lower(**settings):
    return lipschitz.lipschitz_lower_bound(lambda a: a.square().sum(1), POINTS, **settings)


BOUNDS = {
    "ball: eps": Bound(balls.L2, [0.0, TINY, 1e308], [-TINY, math.inf, math.nan]),
    "check_box: low": Bound(lambda v: balls.check_box(v, None), [0.0], [TINY]),
    "check_box: high": Bound(lambda v: balls.check_box(None, v), [0.0], [-TINY]),
    "attack: steps": counted(lambda n: attacks.attack(NET, A, B, BALL, steps=n)),
    "attack: restarts": counted(lambda n: attacks.attack(NET, A, B, BALL, restarts=n)),
    "attack: step_size": not_negative(
        lambda v: attacks.attack(NET, A, B, BALL, steps=1, step_size=v)
    ),
    "robust_accuracy: batch_size": counted(
        lambda n: attacks.robust_accuracy(NET, A, B, BALL, batch_size=n)
    ),
    "step_sizes: steps": counted(lambda n: attacks.step_sizes(0.1, n)),
    "gradients: k": counted(lambda k: danskin.min_norm_point(torch.ones(k, 2))),
    "gradients: p": counted(lambda p: danskin.descent_direction(torch.ones(2, p))),
    "phantoms: n": Bound(lambda n: phantoms(n=n), [2], [1]),
    "phantoms: size": Bound(lambda n: phantoms(size=n), [16], [15]),
    "phantoms: seed": Bound(lambda n: phantoms(seed=n), [0], [-1]),
    "digits: seed": Bound(lambda n: data.digits("test", n), [0], [-1]),
    "Images: pixels": Bound(pixels, [0.0, 1.0], [-TINY, ABOVE_1]),
    "Images: labels": Bound(
        lambda n: data.Images(A[:1], torch.tensor([n]), ("no", "yes")), [0, 1], [-1, 2]
    ),
    "sampler: labels": Bound(
        lambda n: fairness.ClassFocusedSampler(torch.tensor([n, 0])), [0, 1], [-1, 2]
    ),
    "sampler: gamma": Bound(
        lambda v: fairness.ClassFocusedSampler(LABELS, v), [0.0, 1.0], [-TINY, ABOVE_1]
    ),
    "sampler: step_size": positive(lambda v: fairness.ClassFocusedSampler(LABELS, 0.5, v)),
    "sampler: n": counted(lambda n: fairness.ClassFocusedSampler(LABELS).draw(n)),
    "class-wise: confidence": Bound(
        lambda v: class_wise(confidence=v), [TINY, BELOW_1], [0.0, 1.0]
    ),
    "class-wise: batch_size": counted(lambda n: class_wise(batch_size=n)),
    "games: steps": counted(lambda n: descended(steps=n)),
    "games: step_size": positive(lambda v: descended(step_size=v)),
    "gaussian: dim": counted(gan.gaussian),
    "eight Gaussians: n": counted(gan.eight_gaussians),
    "spiral: n": counted(gan.spiral),
    "modes: points": counted(lambda n: gan.modes(torch.ones(n, 2))),
    "wgan_objective: clip": positive(lambda v: gan.wgan_objective(NET, clip=v)),
    "wgan_objective: penalty": not_negative(lambda v: gan.wgan_objective(NET, penalty=v)),
    "gradient_penalty: weight": not_negative(
        lambda v: lipschitz.gradient_penalty(lambda a: a.sum(1), POINTS, POINTS, v)
    ),
    "gradient_penalty: n": counted(
        lambda n: lipschitz.gradient_penalty(lambda a: a.sum(1), torch.ones(n, 2), torch.ones(n, 2))
    ),
    "clip_weights_: c": positive(lambda v: lipschitz.clip_weights_(models.mlp((2,), (), 1), v)),
    "lower bound: steps": Bound(lambda n: lower(steps=n), [0], [-1]),
    "lower bound: step_size": positive(lambda v: lower(steps=1, step_size=v)),
    "spectral_norm: stride": counted(lambda n: convolved(stride=n)),
    "spectral_norm: padding": Bound(lambda n: convolved(padding=n), [0], [-1]),
    "spectral_norm: image": Bound(
        lambda n: convolved(input_shape=(n, 4), padding=0), [3], [2, 0, -1]
    ),
    "spectral_norm: padded image": Bound(
        lambda n: convolved(input_shape=(4, n), padding=1), [1], [0]
    ),
    "model: classes": counted(lambda n: models.linear((2,), n)),
    "model: hidden": counted(lambda n: models.mlp((2,), (n,))),
    "cnn: shape": Bound(lambda n: models.cnn((1, n, 4)), [4], [3]),
    "Normalize: std": Bound(
        lambda v: models.Normalize((1,), 0.0, v),
        [1e-45],
        [0.0, 1e-46, math.inf],  # in float32
    ),
    "predict: classes": counted(lambda n: models.predict(torch.ones(2, n))),
    "largest_eigenvalue: tolerance": Bound(
        lambda v: curved(tolerance=v), [1e-12, BELOW_1], [0.0, 1.0]
    ),
    "largest_eigenvalue: iterations": counted(lambda n: curved(iterations=n)),
    "largest_eigenvalue: batch_size": counted(lambda n: curved(batch_size=n)),
    "fit: epochs": counted(lambda n: fitted(epochs=n)),
    "fit: batch_size": counted(lambda n: fitted(batch_size=n)),
    "fit: lr": positive(lambda v: fitted(lr=v)),
    "fit: every": Bound(lambda v: fitted(every=v), [0.0, math.inf], [-TINY, math.nan]),
    "accuracy: batch_size": counted(lambda n: t.accuracy(NET, IMAGES, batch_size=n)),
    "sharpness_aware: rho": not_negative(lambda v: trained(t.sharpness_aware(v))),
    "ball_stability: eps": not_negative(lambda v: trained(t.ball_stability(v, steps=1))),
    "ball_stability: steps": counted(lambda n: trained(t.ball_stability(0.1, steps=n))),
    "danskin: k": counted(lambda n: trained(t.danskin(BALL, k=n, steps=1))),
    "danskin: steps": counted(lambda n: trained(t.danskin(BALL, k=1, steps=n))),
    "danskin: weight_decay": not_negative(
        lambda v: trained(t.danskin(BALL, k=1, steps=1, weight_decay=v))
    ),
    "Session: seed": Bound(
        lambda n: Session({"net": NET}, seed=n), [-(2**63), 0, 2**63], [-(2**63) - 1]
    ),
    "wasserstein: q": Bound(
        partial(transport.wasserstein, ONE, ONE), [1, 1.0], [BELOW_1, math.inf]
    ),
    "rate: repeats": counted(
        lambda n: transport.empirical_rate(
            lambda m, generator: torch.rand(m, generator=generator), [1, 2], repeats=n
        )
    ),
    "rate: sizes": counted(
        lambda n: transport.empirical_rate(
            lambda m, generator: torch.rand(m, generator=generator), [n, 2]
        )
    ),
    "memory_needed: d": counted(lambda n: transport.memory_needed(1, 1, n)),
    "alt text: length": Bound(lambda n: plots.checked_alt("x" * (n - 1) + "."), [20], [19]),
    "exercise: tolerance": not_negative(
        lambda v: exercises.check(None, abs, [(1.0,)], tolerance=v)
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_last_value_is_taken_and_the_next_is_refused(name):
    call, fine, refused = BOUNDS[name]
    for value in fine:
        call(value)
    for value in refused:
        with pytest.raises(ValueError):
            call(value)
