"""Bad, odd and extreme inputs, a row each: transport, lipschitz, gan, games, models, data, runs,
pages. ``inputs`` says what a row is and what holds of all of them.
"""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inputs import Call, Raises, anything, call, examine, like, near, rows
from torch import nn

from lib import data, gan, games, models
from lib.data import Images, fundus_phantoms
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
from lib.models import Normalize, predict
from lib.pages import exercises, interactive, plots, say, setup, source
from lib.runs import Checkpoint, Session, checkpoints, fingerprints, processes, records
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
        r"density is NaN at 2 of 2 points of y.*: leave",
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
    "no gradient": (lower(lambda a: a.detach()[:, 0], X), r"value has no gradient.*: look"),
    "a gradient of NaN": (
        lower(lambda a: (a[:, 0] * 0).sqrt(), X),
        Raises(FloatingPointError, r"gradient is not finite: look"),
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
        r"no gradient.*: look",
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


ONE = torch.tensor(1.0)
descend = partial(call, games.gradient_descent_ascent, lambda x, y: x * y)
ahead = partial(call, games.extragradient)
GAMES = {
    "no step size": (descend(ONE, ONE, 0.0, 2), r"step_size must be finite and > 0.*got 0.0"),
    "a step of NaN": (descend(ONE, ONE, NAN, 2), r"step_size must be finite and > 0.*got nan"),
    "a step of text": (descend(ONE, ONE, "0.1", 2), r"step_size must be finite .*got '0.1'"),
    "three step sizes": (descend(ONE, ONE, (0.1, 0.1, 0.1), 2), r"step_size must .*a pair, got"),
    "no step": (descend(ONE, ONE, 0.1, 0), r"steps must be >= 1, got 0"),
    "half a step": (descend(ONE, ONE, 0.1, 2.5), r"steps must be a whole number, got 2.5"),
    "integers": (descend(torch.tensor(1), ONE, 0.1, 2), r"x0 must .*float.*got torch.int64"),
    "a number": (descend(1.0, ONE, 0.1, 2), r"x0 must .*got float"),
    "NaN": (descend(ONE, ONE * NAN, 0.1, 2), r"y0 must .*got NaN"),
    "no values": (descend(ONE.to("meta"), ONE, 0.1, 2), r"x0 must .*meta"),
    "a vector": (
        ahead(lambda x, y: x * torch.ones(2), ONE, ONE, 0.1, 2),
        r"phi must return a scalar tensor, got",
    ),
    "no tensor": (ahead(lambda x, y: 1.0, ONE, ONE, 0.1, 2), r"phi must return a scalar .*got 1.0"),
    "in place": (ahead(lambda x, y: x.mul_(y), ONE, ONE, 0.1, 2), r"phi changes .* in place: let"),
    "a projection of one": (
        ahead(lambda x, y: x * y, ONE, ONE, 0.1, 2, project=lambda x, y: x),
        r"project must return \(x, y\).*got Tensor",
    ),
    "no phi": (ahead(None, ONE, ONE, 0.1, 2), r"phi must be a function .*got None"),
    "a constant": (
        ahead(lambda x, y: ONE, ONE, ONE, 0.1, 2),
        lambda path: near([1, 1, 1])(path[0]),
    ),
    "one of two": (
        call(games.optimistic_gradient, lambda x, y: x * x, ONE, ONE, 0.1, 1),
        lambda path: near([1, 1])(path[1]),
    ),
    "a start of no entries": (
        ahead(lambda x, y: (x * y).sum(), ONE.new_ones(0), ONE.new_ones(0), 0.1, 2),
        lambda path: list(path[0].shape) == [3, 0],
    ),
}
NORMALIZE = Normalize((3, 4, 4), 0.5, 0.25)
MODELS = {
    "no shape": (call(models.mlp, ()), r"shape must hold at least one number, got \(\)"),
    "no channel": (call(models.mlp, (0, 2, 2)), r"shape must hold whole numbers >= 1, got \(0"),
    "half a pixel": (call(models.linear, (1, 2.5)), r"shape must hold whole numbers .*2.5"),
    "a shape that is a number": (call(models.mlp, 784), r"shape must hold whole .*got 784"),
    "no unit": (call(models.mlp, hidden=(0,)), r"hidden must hold whole numbers >= 1, got \(0,\)"),
    "a width": (call(models.mlp, hidden=200), r"hidden must hold whole numbers >= 1, got 200"),
    "no class": (call(models.linear, classes=0), r"classes must hold whole numbers >= 1, got"),
    "an activation": (call(models.mlp, activation="gelu"), r"activation must be one of .*'gelu'"),
    "no deviation": (call(models.mlp, std=0.0), r"std must be > 0, got \[0.0\]"),
    "a mean of NaN": (call(models.mlp, mean=NAN), r"mean must be finite, got \[nan\]"),
    "two means": (
        call(models.mlp, mean=(0.1, 0.2)),
        r"mean must be a number or .* 1 channels, got 2",
    ),
    "a mean of text": (call(models.mlp, mean="0.1"), r"mean must be a number or .*got '0.1'"),
    "a small image": (call(models.cnn, (1, 3, 3)), r"shape must be .*4x4 or more, got \(1, 3, 3\)"),
    "a flat image": (call(models.cnn, (784,)), r"shape must be .*4x4 or more, got \(784,\)"),
    "a norm": (
        call(models.resnet8, norm="layer"),
        r"norm must be one of batch, group, got 'layer'",
    ),
    "no class of a resnet": (call(models.resnet8, 0), r"classes must hold whole numbers >= 1"),
    "a seed of text": (call(models.mlp, seed="0"), r"seed must be a whole number, got '0'"),
    "one channel of three": (
        call(NORMALIZE, torch.ones(2, 1, 4, 4)),
        r"\[n, 3, ...\].*\[2, 1, 4, 4",
    ),
    "no batch": (call(NORMALIZE, torch.ones(3, 4, 4)), r"batch \[n, 3, ...\].*got \[3, 4, 4\]"),
    "a list of pixels": (call(NORMALIZE, [[1.0]]), r"a must be a tensor, got list"),
    "bytes": (
        call(NORMALIZE, torch.ones(2, 3, 4, 4).byte()),
        r"a must hold floats, got torch.uint8",
    ),
    "an empty batch": (call(NORMALIZE, torch.ones(0, 3, 4, 4)), like([0, 3, 4, 4])),
    "logits of one dimension": (
        call(predict, torch.ones(3)),
        r"logits must be \[n, classes\].*\[3\]",
    ),
    "logits without classes": (call(predict, torch.ones(3, 0)), r"logits must be .*got \[3, 0\]"),
    "a list of logits": (call(predict, [[1.0]]), r"logits must be a tensor, got list"),
    "no logits": (call(predict, torch.ones(0, 3)), like([0], torch.int64)),
    "logits of NaN": (call(predict, torch.ones(1, 3) * NAN), near([-1])),
    "infinite logits": (call(predict, torch.tensor([[0.0, INF, -INF]])), near([1])),
    "equal logits": (call(predict, torch.ones(1, 3)), near([0])),
    "one logit of 0": (call(predict, torch.zeros(1, 1)), near([0])),
}


@rows(GAMES, MODELS)
def test_games_and_models(asked, expected):
    examine(asked, expected)


A, B = torch.linspace(0, 1, 16).reshape(4, 1, 2, 2), torch.tensor([0, 1, 1, 0])
IMAGES, TWO = Images(A, B, ("no", "yes")), ("no", "yes")
EYES = fundus_phantoms("test", n=2, size=16)
DATA = {
    "bytes": (call(Images, A.byte(), B, TWO), r"a must be float .*got torch.uint8"),
    "flat images": (call(Images, A.flatten(1), B, TWO), r"a must be float .*got .*\[4, 4\]"),
    "an array": (call(Images, A.numpy(), B, TWO), r"a must be a tensor, got ndarray"),
    "a list of labels": (call(Images, A, B.tolist(), TWO), r"b must be a tensor, got list"),
    "no values": (call(Images, A.to("meta"), B, TWO), r"a must hold values.*meta"),
    "pixels of 255": (call(Images, A * 255, B, TWO), r"pixels must be in .*255.*: divide"),
    "pixels below 0": (call(Images, A - 0.5, B, TWO), r"pixels must be in \[0, 1\], got \[-0.5"),
    "NaN": (call(Images, A * NAN, B, TWO), r"pixels must be in \[0, 1\], got \[nan"),
    "short labels": (call(Images, A, B.int(), TWO), r"b must be int64 \[4\], got torch.int32"),
    "labels in a column": (
        call(Images, A, B[:, None], TWO),
        r"b must be int64 \[4\], got .*\[4, 1",
    ),
    "too few labels": (call(Images, A, B[:3], TWO), r"b must be int64 \[4\], got .*\[3\]"),
    "a label too large": (call(Images, A, B + 1, TWO), r"labels must be 0 to 1, got 1 to 2"),
    "a label below 0": (call(Images, A, B - 1, TWO), r"labels must be 0 to 1, got -1 to 0"),
    "no class": (call(Images, A, B, ()), r"labels must be .*got 0 to 1: \(\) names the classes"),
    "no image": (call(Images, A[:0], B[:0], TWO), lambda images: len(images) == 0),
    "no entry chosen": (call(IMAGES.__getitem__, []), lambda images: len(images) == 0),
    "one chosen": (call(IMAGES.__getitem__, -1), lambda images: images.a.shape == (1, 1, 2, 2)),
    "a name chosen": (call(IMAGES.__getitem__, "0"), r"index must .*got '0'"),
    "one too many": (
        call(IMAGES.__getitem__, 4),
        Raises(IndexError, r"index must .*4 images.*got 4"),
    ),
    "a mask of floats": (
        call(data.Phantoms, EYES.a, EYES.b, EYES.classes, EYES.mask.float()),
        r"mask must be bool \[2, 16, 16\], got torch.float32",
    ),
    "a mask of another size": (
        call(data.Phantoms, EYES.a, EYES.b, EYES.classes, EYES.mask[:1]),
        r"mask must be bool \[2, 16, 16\], got torch.bool \[1, 16, 16\]",
    ),
    "an unknown split": (call(data.digits, "valid"), r"split must be .*train, test, got 'valid'"),
    "a negative seed": (call(data.digits, seed=-1), r"seed must be >= 0, got -1"),
    "a seed of text": (call(data.digits, seed="0"), r"seed must be a whole number, got '0'"),
    "a split of mnist": (call(data.mnist, "val"), r"split must be one of train, test, got 'val'"),
    "a split of cifar10": (call(data.cifar10, ""), r"split must be one of train, test, got ''"),
    "a split of retina": (call(data.retina, None), r"split must be one of train, val.* got None"),
    "an unknown set": (call(data.checksums, "digits"), r"dataset must be one of .*got 'digits'"),
    "one eye": (call(fundus_phantoms, n=1), r"n must be >= 2, got 1"),
    "half an eye": (call(fundus_phantoms, n=2.5), r"n must be a whole number, got 2.5"),
    "small eyes": (call(fundus_phantoms, size=8), r"size must be >= 16, got 8"),
    "eyes of a seed": (call(fundus_phantoms, seed=-1), r"seed must be >= 0, got -1"),
    "eyes of a split": (call(fundus_phantoms, "val"), r"split must be .*got 'val'"),
}


@rows(DATA)
def test_data(asked, expected):
    examine(asked, expected)


def session(**settings):
    return call(Session, {"model": nn.Linear(2, 1)}, **settings)


def in_folder(function, *arguments, text=None):
    """The function of a path in a new folder, with a file there if there is a text."""

    def ask(folder):
        path = folder / "run.json"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        return function(path, *arguments)

    return call(ask)


ROWS = {"ours": [{"seed": 0, "error": 0.1}, {"seed": 1, "error": 0.3}]}


def kept(results, name="demo"):
    return in_folder(lambda path: records.save(name, {}, results, {}, {}, path.parent))


RUNS = {
    "a precision": (session(precision="float16"), r"precision must be .*got 'float16'"),
    "a negative time": (session(every=-1.0), r"every must be >= 0 seconds, got -1.0"),
    "a time of NaN": (session(every=NAN), r"every must be >= 0 seconds, got nan"),
    "a device": (session(device="gpu"), r"device must be .*got 'gpu'"),
    "the device meta": (session(device="meta"), r"device must be .*got 'meta'"),
    "a seed of text": (session(seed="0"), r"seed must be a whole number, got '0'"),
    "nothing to train": (call(Session, {"model": nn.ReLU()}), r"no parameters to train: give"),
    "no network": (call(Session, {}), r"networks must .*got \{\}"),
    "a damaged checkpoint": (in_folder(checkpoints.load, text="{"), r"cut short.*: delete it"),
    "no checkpoint": (
        in_folder(checkpoints.load),
        Raises(FileNotFoundError, r"run.json"),
    ),
    "a state that is a list": (in_folder(checkpoints.save, [1, 2]), r"state must be .*got list"),
    "an object without a state": (
        call(Checkpoint, "run.pt", {"model": 3}, {}, {}),
        r"model must have state_dict and load_state_dict, got int",
    ),
    "a NumPy generator": (
        call(fingerprints.fingerprint, g=np.random.default_rng(0)),
        r"g is a Generator, whose state .*: draw from a torch.Generator",
    ),
    "the checksum of a list": (call(fingerprints.checksum, [1.0]), r"tensors must .*got list"),
    "uneven rows": (call(processes.local_rows, torch.ones(3)), like([3])),
    "no result": (kept({}), r"needs at least one variant"),
    "a variant without a row": (kept({"ours": []}), r"a row for each of them"),
    "a result of NaN": (
        kept({"ours": [{"seed": 0, "error": NAN}]}),
        r"error must be finite, got nan",
    ),
    "rows of two kinds": (
        kept({"ours": [{"seed": 0, "error": 0.1}, {"seed": 1}]}),
        r"the rows of 'ours' must hold the same names, got .*error",
    ),
    "a result": (kept(ROWS), lambda path: path.exists()),
    "a damaged record": (
        in_folder(lambda path: records.load("run", path.parent), text="{"),
        r"run.json is damaged .*: measure it again",
    ),
    "no record": (in_folder(lambda path: records.load("run", path.parent)), lambda r: r is None),
    "a picture of floats": (call(records.picture, X), r"pixels must be uint8 .*got torch.float32"),
    "a picture of colors": (
        call(records.picture, torch.zeros(2, 2, 3, dtype=torch.uint8)),
        r"pixels must be uint8 \[h, w\], got .*\[2, 2, 3\]",
    ),
    "no picture": (call(records.pixels, "hello"), r"text must be a PNG in base 64, got 'hello'"),
}


@rows(RUNS)
def test_runs(asked, expected, tmp_path):
    if asked.function.__name__ == "ask":
        asked = asked._replace(arguments=(tmp_path,))
    examine(asked, expected)


def right(x):
    return 2 * x


SENTENCE = "A line that climbs from the left to the right."
check = partial(call, exercises.check)
PAGES = {
    "no case": (check(right, right, []), r"cases must be one tuple .*write \(x,\)"),
    "a case that is no tuple": (check(right, right, [1.0]), r"cases must be one tuple .*\(x,\)"),
    "a slip like right": (
        check(right, right, [(1.0,)], slips={"twice": right}),
        r"no case tells the slip 'twice' from right: add",
    ),
    "right is NaN": (check(right, lambda x: NAN, [(1.0,)]), r"'right' must return .*without NaN"),
    "a negative tolerance": (
        check(right, right, [(1.0,)], tolerance=-1.0),
        r"tolerance .*got -1.0",
    ),
    "no answer": (check(None, right, [(1.0,)]), anything),
    "an answer that is a number": (check(3.0, right, [(1.0,)]), anything),
    "an answer of NaN": (check(lambda x: NAN, right, [(1.0,)]), anything),
    "an answer of another shape": (check(lambda x: [x, x], right, [(1.0,)]), anything),
    "an answer that fails": (check(lambda x: 1 / 0, right, [(1.0,)]), anything),
    "an answer in place": (check(lambda v: v.mul_(2), right, [(torch.ones(2),)]), anything),
    "a sealed number": (call(exercises.sealed, 3), r"check must be a function .*got 3"),
    "no alt text": (call(plots.checked_alt, ""), r"alt must be a sentence .*got ''"),
    "a word": (call(plots.checked_alt, "A line"), r"alt must be a sentence .*got 'A line'"),
    "an alt that is no text": (call(plots.checked_alt, None), r"alt must be a sentence .*got None"),
    "a figure without alt": (
        call(plots.show, None, "plot"),
        r"alt must be a sentence .*got 'plot'",
    ),
    "no control": (
        call(interactive.frames, lambda figure: SENTENCE, {}, still=[]),
        r"every control needs choices, got \{\}",
    ),
    "a control without choices": (
        call(interactive.frames, lambda figure: SENTENCE, {"eps": []}, still=[0]),
        r"every control needs choices, got \{'eps': \[\]\}",
    ),
    "another still": (
        call(interactive.frames, lambda figure, i: SENTENCE, {"eps": ["0"]}, still=[1]),
        r"still must be one choice of each of \[1\], got \[1\]",
    ),
    "a sentence that is a number": (call(say, 5), r"text must be .*got 5"),
    "the code of a number": (call(source, 5), r"function.* must be .*got 5"),
    "the code of torch": (call(source, torch.ones), r"function.* must be .*got <built-in"),
    "a digit in a row": (
        call(plots.digit, SimpleNamespace(), torch.zeros(784)),
        r"a must be .*\[1, h, w\], got \[784\]",
    ),
    "one run": (call(plots.spread, None, [0, 1], torch.zeros(2), "x"), r"runs must be .*got \[2\]"),
}


@rows(PAGES)
def test_pages(asked, expected, capsys):
    examine(asked, expected)
    fine = asked.function is exercises.check and expected is anything
    assert bool(capsys.readouterr().out) == fine


def test_a_page_on_an_unknown_device(monkeypatch):
    for name in ("gpu", "meta"):
        monkeypatch.setenv("COURSE_DEVICE", name)
        with pytest.raises(
            RuntimeError, match=rf"COURSE_DEVICE={name} is not at hand .*; unset it"
        ):
            setup()


def test_the_table_is_as_large_as_it_should_be():
    tables = [t for t in globals().values() if isinstance(t, dict)]
    count = sum(
        isinstance(row, tuple) and isinstance(row[0], Call) for t in tables for row in t.values()
    )
    assert count >= 200, count
