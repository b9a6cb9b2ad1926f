"""Bad, odd and extreme inputs of transport, lipschitz and gan, a row each."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from inputs import Raises, anything, call, examine, like, near, rows
from torch import nn

from lib import gan, models
from lib.gan import gan_objective, js_divergence, train_gan, train_wgan, wgan_objective
from lib.lipschitz import (
    clip_weights_,
    gradient_penalty,
    lipschitz_bound,
    lipschitz_constant,
    lipschitz_lower_bound,
    normalize_spectrally_,
    spectral_norm,
)
from lib.transport import (
    empirical_rate,
    kantorovich_potentials,
    memory_needed,
    pushed_density,
    wasserstein,
)

NAN, INF = math.nan, math.inf
HUGE = 1e30
X, Y = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 3.0]])
HALVES = torch.tensor([0.5, 0.5])
w = partial(call, wasserstein)

TRANSPORT = {
    "two spaces": (w(X, Y[:, :1]), r"x is in R\^2 and y in R\^1: they must be in one"),
    "three dimensions": (w(X[None], Y), r"x must hold points \[n, d\].*got \[1, 2, 2\]"),
    "a number": (w(3.0, Y), r"x must hold points .*got \[\]"),
    "no point": (w(X[:0], Y), r"x must hold points .*n, d >= 1, got \[0, 2\]"),
    "points of no dimension": (w(X[:, :0], Y), r"x must hold points .*got \[2, 0\]"),
    "NaN": (w(X, Y * NAN), r"y must be finite, got NaN or infinity"),
    "infinity": (w(X + INF, Y), r"x must be finite, got NaN or infinity"),
    "complex": (w(X * 1j, Y), r"x must hold real numbers, got complex"),
    "texts": (w(np.array([["a"]]), Y), r"x must hold real numbers, got <U1"),
    "ragged lists": (
        w([[0.0], [1.0, 2.0]], Y),
        r"x must hold rows of real numbers, got \[\[0.0\], \[",
    ),
    "no values": (w(X.to("meta"), Y), r"x must hold values, got .*meta"),
    "q below 1": (w(X, Y, 0.5), r"q must be in \[1, infinity\), got 0.5"),
    "an infinite q": (w(X, Y, INF), r"q must be in \[1, infinity\), got inf"),
    "a q of NaN": (w(X, Y, NAN), r"q must be in \[1, infinity\), got nan"),
    "a q of text": (w(X, Y, "1"), r"q must be in \[1, infinity\), got '1'"),
    "an unknown metric": (w(X, Y, metric="cosine"), r"metric must be one of .*got 'cosine'"),
    "too many weights": (w(X, Y, 1, torch.ones(3) / 3), r"x_weights must be \[2\].*got \[3\]"),
    "negative weights": (w(X, Y, 1, torch.tensor([2.0, -1.0])), r"x_weights must be >= 0, got -1"),
    "weights of NaN": (w(X, Y, y_weights=HALVES * NAN), r"y_weights must be >= 0, got nan"),
    "weights of sum 2": (w(X, Y, 1, 2 * HALVES), r"x_weights must add up to 1, got 2.0: divide"),
    "weights of sum 0": (w(X, Y, 1, 0 * HALVES), r"x_weights must add up to 1, got 0.0: divide"),
    "too many pairs": (
        w(torch.zeros(10**6, 2), torch.zeros(10**6, 2)),
        Raises(MemoryError, r"1000000 against 1000000 points need about .*: draw subsamples"),
    ),
    "integers": (w(X.long(), Y.long()), near(3.0)),
    "booleans": (w(X > 0, X > 0), near(0.0)),
    "lists": (w([[0.0], [1.0]], [[5.0]]), near(4.5)),
    "one point": (w(X[:1], Y[:1]), near(3.0)),
    "bfloat16": (w(X.bfloat16(), Y.bfloat16()), near(3.0)),
    "float16 weights": (w(X, Y, 1, HALVES.half()), near(3.0)),
    "huge points": (w(X.double() * 1e300, Y.double() * 1e300), lambda d: abs(d / 3e300 - 1) < 1e-9),
    "tiny points": (
        w(X.double() * 1e-300, Y.double() * 1e-300),
        lambda d: abs(d * 1e300 - 3) < 1e-9,
    ),
    "a huge q": (w(X, Y, 1e6), r"q=1e\+06 is too large .*: .*take a smaller q"),
    "a large q": (w(X, Y, 50), near(3.0)),
    "a point's potentials": (call(kantorovich_potentials, X[:1], Y[:1]), anything),
    "potentials of NaN": (call(kantorovich_potentials, X * NAN, Y), r"x must be finite, got NaN"),
    "potentials of two spaces": (call(kantorovich_potentials, X, Y[:, :1]), r"must be in one"),
    "potentials of a metric": (call(kantorovich_potentials, X, Y, "l2"), r"metric must .*got 'l2'"),
    "a negative number": (call(memory_needed, -1, 3, 2), r"n must be >= 1, got -1"),
    "no dimension": (call(memory_needed, 3, 3, 0), r"d must be >= 1, got 0"),
}


def uniform(omega):
    return ((omega >= 0) & (omega <= 1)).all(1).float()


def half(y):
    return y / 2


def draw(n, generator):
    return torch.rand(n, generator=generator)


push, rate = partial(call, pushed_density, uniform), partial(call, empirical_rate)
PUSHED = {
    "integers": (push([half], torch.ones(2, 1).long()), r"y must be float32 .*got torch.int64"),
    "a row": (push([half], torch.ones(2)), r"y must be .*\[n, d\], got .*\[2\]"),
    "a list": (push([half], [[1.0]]), r"y must be a tensor, got list"),
    "no branch": (push([], torch.ones(2, 1)), r"at least one branch"),
    "a density that is NaN": (
        call(pushed_density, lambda o: o.log()[:, 0], [half], -torch.ones(2, 1)),
        r"density is NaN at 2 of 2 points of y.* leave",
    ),
    "a density of a column": (
        call(pushed_density, lambda o: o, [half], torch.ones(2, 1)),
        r"density \[n, d\] to \[n\], got .*\[2, 1\]",
    ),
    "a y of NaN": (push([half], torch.ones(2, 1) * NAN), r"y must be finite, got NaN"),
    "no y": (push([half], torch.ones(0, 1)), like([0])),
    "one size": (rate(draw, [10]), r"two whole sizes .*got sizes=\[10\]"),
    "a size of 0": (rate(draw, [0, 10]), r"sizes >= 1 .*got sizes=\[0, 10\]"),
    "half a size": (rate(draw, [2.5, 10]), r"whole sizes .*got sizes=\[2.5, 10\]"),
    "no repeat": (rate(draw, [5, 10], repeats=0), r"repeats must be >= 1, got 0"),
    "half a repeat": (rate(draw, [5, 10], repeats=1.5), r"repeats must be .*whole.*got 1.5"),
    "a q below 1": (rate(draw, [5, 10], q=0.0), r"q must be in \[1, infinity\), got 0.0"),
    "a draw too many": (
        rate(lambda n, g: draw(n + 1, g), [5, 10]),
        r"draw must give n .*got 6 and",
    ),
    "a draw of a number": (rate(lambda n, g: 1.0, [5, 10]), r"draw must give n points, got float"),
    "draws of NaN": (rate(lambda n, g: draw(n, g) * NAN, [5, 10]), r"must be finite, got NaN"),
    "draws of one point": (
        rate(lambda n, g: torch.zeros(n), [5, 10]),
        r"draw must give different points, got one",
    ),
}


@rows(TRANSPORT, PUSHED)
def test_transport(asked, expected):
    examine(asked, expected)


KERNEL = torch.ones(2, 1, 3, 3)
norm, bound = partial(call, spectral_norm), partial(call, lipschitz_bound)


def dense(**kind):
    return models.mlp((2,), (4,), 1, mean=0.0, std=1.0, **kind)


def with_nan(model):
    with torch.no_grad():
        model[-1].weight.fill_(NAN)
    return model


RELU = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
CONVOLUTION = nn.Sequential(nn.Conv2d(1, 2, 3))
BATCH_NORM = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
lower = partial(call, lipschitz_lower_bound)
penalty = partial(call, gradient_penalty)


def steep(a):
    return 3 * a[:, 0]


NORMS = {
    "complex": (norm(torch.ones(2, 2) * 1j), r"weight must be finite real .*got torch.complex64"),
    "NaN": (norm(torch.ones(2, 2) * NAN), r"weight must be finite real numbers, got NaN"),
    "a list": (norm([[1.0, 2.0]]), r"weight must be a tensor, got list"),
    "no values": (norm(torch.ones(2, 2, device="meta")), r"weight must hold values.*meta"),
    "a row": (norm(torch.ones(3)), r"needs a matrix .*got \[3\] and None"),
    "no entries": (norm(torch.ones(2, 0)), r"needs a matrix .*got \[2, 0\]"),
    "a kernel alone": (norm(KERNEL), r"input_shape=\(h, w\), got .* and None"),
    "a kernel on a line": (norm(KERNEL, (8,)), r"input_shape=\(h, w\), got .*\(8,\)"),
    "a kernel on a half pixel": (norm(KERNEL, (8.5, 8)), r"input_shape must .*whole.*8.5"),
    "a kernel too large": (norm(KERNEL, (1, 8), padding=0), r"must fit in the image \(1, 8\)"),
    "no stride": (norm(KERNEL, (8, 8), stride=0), r"stride must be .*>= 1, got 0"),
    "a negative padding": (norm(KERNEL, (8, 8), padding=-1), r"padding must be >= 0, got -1"),
    "a padding's name": (norm(KERNEL, (8, 8), padding="same"), r"padding must .*whole.*got 'same'"),
    "a matrix of 0": (norm(torch.zeros(2, 3)), near(0.0)),
    "a kernel of 0": (norm(torch.zeros(1, 1, 3, 3), (8, 8)), near(0.0)),
    "a huge matrix": (norm(torch.eye(2) * HUGE), lambda n: abs(n / HUGE - 1) < 1e-6),
    "integers": (norm(torch.eye(2).long()), near(1.0)),
}
BOUNDS = {
    "an unknown layer": (bound(BATCH_NORM), r"no bound is known for BatchNorm1d.*: use the layers"),
    "a convolution alone": (bound(CONVOLUTION), r"give input_shape=\(c, h, w\), got None"),
    "a convolution's channels": (bound(CONVOLUTION, (3, 8, 8)), r"input_shape must .*\(3, 8, 8\)"),
    "a small image": (bound(CONVOLUTION, (1, 2, 2)), r"must fit in the image \(2, 2\)"),
    "weights of NaN": (bound(with_nan(dense())), r"finite real numbers, got NaN"),
    "no model": (bound(None), r"model must be .*got None"),
    "training mode": (bound(dense()), lambda constant: constant > 0),
    "no layer": (bound(nn.Sequential()), near(1.0)),
    "the constant of a convolution": (
        call(lipschitz_constant, CONVOLUTION),
        r"model must be .*Linear and ReLU layers, got Sequential",
    ),
    "the constant of no layer": (call(lipschitz_constant, nn.ReLU()), r"model must be .*got ReLU"),
    "the constant of NaN": (
        call(lipschitz_constant, with_nan(nn.Sequential(nn.Linear(2, 1)))),
        r"weights must be finite, got NaN",
    ),
    "the constant of 0": (
        call(lipschitz_constant, nn.Sequential(nn.Linear(2, 1).requires_grad_(False))),
        lambda constant: constant > 0,
    ),
    "from integers": (
        lower(steep, torch.ones(2, 2).long()),
        r"start must hold floats, got torch.i",
    ),
    "from nowhere": (lower(steep, torch.ones(0, 2)), r"start must hold .*one point or more, got"),
    "from a list": (lower(steep, [[1.0]]), r"start must be a tensor, got list"),
    "from NaN": (lower(steep, torch.ones(2, 2) * NAN), r"start must be finite, got NaN"),
    "negative steps": (lower(steep, X, steps=-1), r"steps must be >= 0, got -1"),
    "half a step": (lower(steep, X, steps=1.5), r"steps must be .*whole.*got 1.5"),
    "no step size": (lower(steep, X, step_size=0.0), r"step_size must be finite and > 0, got 0.0"),
    "two numbers a sample": (lower(lambda a: a, X), r"one value a sample, got \[2, 2\]"),
    "a text": (lower(lambda a: "1", X), r"one value a sample, got str"),
    "no gradient": (lower(lambda a: a.detach()[:, 0], X), r"value has no gradient.*: is it"),
    "a gradient of NaN": (
        lower(lambda a: (a[:, 0] * 0).sqrt(), X),
        Raises(FloatingPointError, r"gradient is not finite: has"),
    ),
    "in place": (lower(lambda a: a.mul_(2)[:, 0], X), r"critic changes its input in place: let"),
    "no step at all": (lower(steep, X, steps=0), near(3.0)),
}
PENALTIES = {
    "two shapes": (penalty(steep, X, Y[:1]), r"real and fake must agree.*\[2, 2\].*\[1, 2\]"),
    "two types": (penalty(steep, X, Y.double()), r"real and fake must agree.*float32.*float64"),
    "two devices": (penalty(steep, X, Y.to("meta")), r"real and fake must agree.* on meta"),
    "integers": (penalty(steep, X.long(), Y.long()), r"floats \[n, ...\].*got .*int64"),
    "lists": (penalty(steep, [[1.0]], [[0.0]]), r"real must be a tensor, got list"),
    "no sample": (penalty(steep, X[:0], Y[:0]), r"n >= 1.*got \[0, 2\]"),
    "NaN": (penalty(steep, X * NAN, Y), r"real must be finite, got NaN"),
    "a negative weight": (penalty(steep, X, Y, -1.0), r"weight must be finite and >= 0, got -1.0"),
    "a weight of NaN": (penalty(steep, X, Y, NAN), r"weight must be finite and >= 0, got nan"),
    "two numbers": (
        penalty(lambda a: a, X, Y, generator=torch.Generator()),
        r"one value a sample, got \[2, 2\] for 2",
    ),
    "no gradient": (
        penalty(lambda a: a.detach()[:, 0], X, Y, generator=torch.Generator()),
        r"no gradient.*: is it",
    ),
    "in place": (
        penalty(lambda a: a.mul_(2)[:, 0], X, Y, generator=torch.Generator()),
        r"critic changes its input in place: let",
    ),
    "no ball": (penalty(steep, X, Y, ball=1.0), r"ball must be a ball, .*got 1.0"),
    "a weight of 0": (penalty(steep, X, Y, 0.0, generator=torch.Generator()), near(0.0)),
    "clip to 0": (call(clip_weights_, dense(), 0.0), r"c must be finite and > 0, got 0.0"),
    "clip to NaN": (call(clip_weights_, dense(), NAN), r"c must be finite and > 0, got nan"),
    "clip to a text": (call(clip_weights_, dense(), "0.1"), r"c must be finite and > 0, got '0.1'"),
    "an unknown layer": (call(normalize_spectrally_, BATCH_NORM), r"no bound is known for Batch"),
    "a convolution alone": (
        call(normalize_spectrally_, CONVOLUTION),
        r"give input_shape=\(c, h, w",
    ),
}


@rows(NORMS, BOUNDS, PENALTIES)
def test_lipschitz(asked, expected):
    examine(asked, expected)


REAL, FEW = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), {"steps": 1}
FEW |= {"batch_size": 4, "samples": 4, "progress": False}


def trained(train=train_wgan, real=REAL, noise=None, **settings):
    generator, critic = gan.point_generator(hidden=(4,)), gan.point_critic(hidden=(4,))
    return call(train, generator, critic, real, noise or gan.gaussian(2), **FEW | settings)


OBJECTIVES = {
    "an unknown constraint": (
        call(wgan_objective, dense(), "clamp"),
        r"constraint must .*got 'clam",
    ),
    "no clip": (call(wgan_objective, dense(), "clip", clip=0.0), r"clip must .*> 0, got 0.0"),
    "a clip of text": (call(wgan_objective, dense(), clip="1"), r"clip must be finite .*got '1'"),
    "a negative penalty": (call(wgan_objective, dense(), penalty=-1.0), r"penalty must .*got -1.0"),
    "a penalty of NaN": (call(wgan_objective, dense(), penalty=NAN), r"penalty must .*got nan"),
    "an unknown loss": (call(gan_objective, "hinge"), r"loss must be one of .*got 'hinge'"),
    "two lengths": (
        call(js_divergence, HALVES, torch.ones(1)),
        r"must both be \[k\].*\[2\].*\[1\]",
    ),
    "matrices": (call(js_divergence, X, X), r"must both be \[k\], got \[2, 2\]"),
    "no outcome": (call(js_divergence, HALVES[:0], HALVES[:0]), r"must both be \[k\].*got \[0\]"),
    "a sum of 2": (call(js_divergence, 2 * HALVES, HALVES), r"p must .*add up to 1, got .*2.0"),
    "negative": (call(js_divergence, HALVES, torch.tensor([2.0, -1.0])), r"q must be >= 0 and add"),
    "NaN": (call(js_divergence, HALVES * NAN, HALVES), r"p must be >= 0 and .*got .*nan"),
    "texts": (call(js_divergence, ["a", "b"], HALVES), r"p and q must hold real numbers, got list"),
    "integers": (call(js_divergence, [1, 0], [0, 1]), near(math.log(2))),
    "no noise": (call(gan.gaussian, 0), r"dim must be >= 1, got 0"),
    "half a dimension": (call(gan.gaussian, 1.5), r"dim must be a whole number, got 1.5"),
    "no hidden unit": (
        call(gan.point_generator, hidden=(0,)),
        r"hidden must hold whole .*got \(0,",
    ),
    "no dimension": (call(gan.point_critic, 0), r"dim must be >= 1, got 0"),
    "no channel": (call(gan.image_critic, 0), r"channels must be >= 1, got 0"),
    "half a channel": (call(gan.image_generator, 4, 1.5), r"channels must be a whole .*got 1.5"),
    "no Gaussian": (call(gan.eight_gaussians, 0), r"n must be >= 1, got 0"),
    "no spiral": (call(gan.spiral, -1), r"n must be >= 1, got -1"),
    "modes in space": (call(gan.modes, torch.ones(2, 3)), r"points must be \[n, 2\].*got \[2, 3\]"),
    "modes of none": (call(gan.modes, X[:0]), r"points must be \[n, 2\] with n >= 1, got \[0, 2\]"),
    "modes of NaN": (call(gan.modes, X * NAN), r"points must be finite .*got NaN"),
    "modes of no values": (call(gan.modes, X.to("meta")), r"points must hold values.*meta"),
    "modes far away": (call(gan.modes, X + HUGE), lambda found: found == (0, 0.0)),
}
GANS = {
    "no step": (trained(steps=0), r"steps must be >= 1, got 0"),
    "half a step": (trained(steps=1.5), r"steps must be a whole number, got 1.5"),
    "no critic step": (trained(critic_steps=0), r"critic_steps must be >= 1, got 0"),
    "no batch": (trained(batch_size=0), r"batch_size must be >= 1, got 0"),
    "no sample": (trained(samples=0), r"samples must be >= 1, got 0"),
    "a negative time": (trained(evaluate_every=-1), r"evaluate_every must be >= 0, got -1"),
    "a precision": (trained(precision="half"), r"precision must be .*got 'half'"),
    "a device": (trained(device="gpu"), r"device must be .*got 'gpu'"),
    "the device meta": (trained(device="meta"), r"device must be .*got 'meta'"),
    "real without values": (trained(real=REAL.to("meta")), r"real must hold values.*meta"),
    "real integers": (trained(train_gan, REAL.long()), r"real must be floats, got torch.int64"),
    "real NaN": (trained(train_gan, REAL * NAN), r"real must be finite, got NaN"),
    "no noise": (trained(noise=3), r"noise must be a function .*got 3"),
    "noise of nobody": (trained(noise=lambda n, generator=None: None), r"noise\(4\) must return"),
    "an unknown constraint": (trained(constraint="clamp"), r"constraint must .*got 'clamp'"),
    "an unknown loss": (trained(train_gan, loss="hinge"), r"loss must be one of .*got 'hinge'"),
    "one real sample": (trained(real=REAL[:1]), lambda history: len(history["value"]) == 1),
}


@rows(OBJECTIVES, GANS)
def test_gan(asked, expected):
    fine = not isinstance(expected, str) and asked.function in (train_wgan, train_gan)
    examine(asked, expected, changes=asked.arguments[:2] if fine else ())
