"""Bad, odd and extreme inputs of danskin, training, fairness and sharpness, a row each."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from inputs import (
    IN_PLACE,
    NET,
    A,
    B,
    Ending,
    Raises,
    anything,
    call,
    ending,
    examine,
    like,
    near,
    rows,
)
from torch import nn

from lib import fairness, models, sharpness
from lib.balls import LInf
from lib.danskin import descent_direction, directional_derivative, gradients, min_norm_point
from lib.data import Images
from lib.training import (
    accuracy,
    adversarial,
    ball_stability,
    danskin,
    erm,
    fit,
    mean_loss,
    risk_gradient,
    sharpness_aware,
)

NAN, INF = math.nan, math.inf
HUGE, TINY = 1e30, 1e-30
LINF = LInf(0.1)


def share(result):
    return 0.0 <= result <= 1.0


g2 = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
LINEAR = nn.Linear(4, 3)
FLAT = A.flatten(1)
DANSKIN = {
    "integers": (call(min_norm_point, g2.long()), r"gradients must be floats .*torch.int64"),
    "one dimension": (call(min_norm_point, g2[0]), r"gradients must be .*\[k, p\].*got .*\[2\]"),
    "no row": (call(descent_direction, g2[:0]), r"gradients must .*k and p >= 1, got .*\[0, 2\]"),
    "a list": (call(min_norm_point, g2.tolist()), r"gradients must be a tensor, got list"),
    "NaN": (call(descent_direction, g2 * NAN), r"gradients must be finite, got NaN"),
    "no values": (call(min_norm_point, g2.to("meta")), r"gradients .*on the device meta"),
    "a row of 0": (call(descent_direction, g2 * torch.tensor([[1.0], [0]])), near([0.0, 0.0])),
    "one row": (call(min_norm_point, g2[:1]), near([1.0])),
    "equal rows": (call(min_norm_point, g2[[0, 0]]), lambda w: abs(w.sum() - 1) < 1e-6),
    "huge rows": (call(descent_direction, g2 * HUGE), near([-0.8, -0.6])),
    "tiny rows": (call(descent_direction, g2 * TINY), near([-0.8, -0.6])),
    "another d": (call(directional_derivative, g2, g2[0, :1]), r"d must be torch.float32 \[2\]"),
    "a d of doubles": (call(directional_derivative, g2, g2[0].double()), r"d must .*torch.float64"),
    "a d of NaN": (call(directional_derivative, g2, g2[0] * NAN), r"d must be finite, got NaN"),
    "a d of 0": (call(directional_derivative, g2, g2[0] * 0), near(0.0)),
    "a list d": (call(directional_derivative, g2, [1.0, 2.0]), r"d must be .*got list"),
    "no batch": (call(gradients, LINEAR, [], B), r"at least one batch .*got 0 and 2"),
    "frozen": (
        call(gradients, nn.Linear(4, 3).requires_grad_(False), [FLAT], B),
        r"one parameter that requires a gradient, got 1 and 0",
    ),
    "a mean loss": (call(gradients, LINEAR, [FLAT], B, F.cross_entropy), r'reduction="none"'),
    "labels out of range": (
        call(gradients, LINEAR, [FLAT], B + 9),
        r"labels must .*0..2, got 9..11",
    ),
    "too few labels": (call(gradients, LINEAR, [FLAT], B[:3]), r"labels must .*\[4\].*got .*\[3\]"),
    "in place": (
        call(gradients, nn.Sequential(nn.ReLU(inplace=True), LINEAR), [FLAT - 0.5], B),
        like([1, 15]),
    ),
}


@rows(DANSKIN)
def test_danskin(asked, expected):
    examine(asked, expected)


def net(**kind):
    return models.mlp((1, 2, 2), (5,), 3, **kind)


D = Images(A, B, ("0", "1", "2"))
MANY = Images(A, B * 4, tuple("0123456789"))
FIT = {"epochs": 1, "progress": False}
still = adversarial(lambda model, a, b: a)


def updated(update, model=None, a=A, b=B):
    """One step of an update on a network that may change its gradients."""
    return call(update, model or net(), a, b)


def fitted(update, model=None, data=D, **settings):
    return call(fit, model or net(), data, update, **FIT | settings)


SETTINGS = {
    "erm without a loss": (call(erm, None), r"loss must be a function .*got None"),
    "adversarial without an attack": (call(adversarial, None), r"attack must be .*got None"),
    "a ball in an attack's place": (call(adversarial, LInf(0.1)), r"attack must be .*got LInf"),
    "k = 0": (call(danskin, LINF, k=0), r"k must be .*>= 1, got 0"),
    "k = 2.5": (call(danskin, LINF, k=2.5), r"k must be .*whole.*got 2.5"),
    "no step": (call(danskin, LINF, steps=0), r"steps must be .*>= 1, got 0"),
    "no ball": (call(danskin, 0.1), r"ball must be a ball, .*got 0.1"),
    "a radius a sample": (call(danskin, LInf([0.1, 0.2])), r"eps must be one number .*got \[2\]"),
    "a negative decay": (call(danskin, LINF, weight_decay=-1.0), r"weight_decay must .*got -1.0"),
    "a decay of NaN": (call(danskin, LINF, weight_decay=NAN), r"weight_decay must .*got nan"),
    "reversed bounds": (call(danskin, LINF, bounds=(1.0, 0.0)), r"bounds must .*got \(1.0, 0.0\)"),
    "a negative rho": (call(sharpness_aware, -0.1), r"rho must be finite and >= 0, got -0.1"),
    "a rho of NaN": (call(sharpness_aware, NAN), r"rho must be finite and >= 0, got nan"),
    "a rho of text": (call(sharpness_aware, "0.1"), r"rho must be .*got '0.1'"),
    "a negative eps": (call(ball_stability, -1.0, steps=2), r"eps must be finite and >= 0, got -1"),
    "stability, no step": (call(ball_stability, 1.0, steps=0), r"steps must be .*>= 1, got 0"),
    "stability, other sizes": (
        call(ball_stability, 1.0, steps=2, step_size=[0.1]),
        r"step_size must .*2 steps, got \[1\]",
    ),
}
STEPS = {
    "a mean loss": (
        updated(erm(F.cross_entropy)),
        r'loss must .*\[4\], got \[\].*reduction="none"',
    ),
    "a loss of 1": (updated(erm(lambda z, b: 1.0)), r"loss must .*got float"),
    "labels out of range": (updated(erm(), b=B + 9), r"labels must .*0..2, got 9..11"),
    "labels of -100": (updated(erm(), b=B * 0 - 100), r"labels must .*0..2, got -100"),
    "frozen": (updated(erm(), net().requires_grad_(False)), r"no gradient .*frozen"),
    "detached": (updated(erm(), Ending(torch.Tensor.detach)), r"no gradient .*detaches"),
    "in place": (updated(erm(), Ending(begin=lambda a: a.sub_(0.1))), like([])),
    "another shape": (updated(adversarial(lambda m, a, b: a[:2])), r"attack must .*\[4, 1, 2, 2\]"),
    "no tensor": (updated(adversarial(lambda m, a, b: None)), r"attack must return .*got NoneType"),
    "an attack of NaN": (
        updated(adversarial(lambda m, a, b: a * NAN)),
        r"attack must .*finite|NaN",
    ),
    "a radius of 0": (updated(danskin(LInf(0.0), k=2, steps=1)), like([])),
    "one sample": (updated(sharpness_aware(0.1), a=A[:1], b=B[:1]), like([])),
    "per sample": (updated(sharpness_aware(0.1, per_sample=True)), like([])),
    "per sample, batch norm": (
        updated(sharpness_aware(0.1, per_sample=True), nn.Sequential(nn.BatchNorm2d(1), net())),
        r"per_sample=True needs .*batch norm .*use per_sample=False",
    ),
    "per sample, labels out of range": (
        updated(sharpness_aware(0.1, per_sample=True), b=B + 9),
        r"labels must lie in 0..2, got others",
    ),
    "stability of radius 0": (updated(ball_stability(0.0, steps=2)), like([])),
    "the mean loss of none": (
        call(mean_loss, net(), A[:0], B[:0]),
        r"a minibatch .*got 0|at least",
    ),
    "a gradient of lists": (call(risk_gradient, net(), A.tolist(), B), r"a must be a tensor.*list"),
}
RUNS = {
    "no epoch": (fitted(erm(), epochs=0), r"epochs must be .*>= 1, got 0"),
    "half an epoch": (fitted(erm(), epochs=1.5), r"epochs must be .*whole.*got 1.5"),
    "a batch size of 0": (fitted(erm(), batch_size=0), r"batch_size must be .*>= 1, got 0"),
    "a batch size of 2.5": (fitted(erm(), batch_size=2.5), r"batch_size must be .*whole.*got 2.5"),
    "no learning rate": (fitted(erm(), lr=0.0), r"lr must be finite and > 0, got 0.0"),
    "a learning rate of NaN": (fitted(erm(), lr=NAN), r"lr must be finite and > 0, got nan"),
    "a schedule each step": (
        fitted(erm(), schedule_each="step"),
        r"schedule_each must .*got 'step'",
    ),
    "no image": (fitted(erm(), data=D[[]]), r"images must be .*>= 1, got 0"),
    "a tuple of data": (fitted(erm(), data=(A, B)), r"data must be Images.*got tuple"),
    "no update": (fitted(None), r"update must be .*got None"),
    "an update's name": (fitted("erm"), r"update must be .*got 'erm'"),
    "a maker of updates": (fitted(erm), r"update must be .*got erm itself: call it"),
    "an optimizer": (
        fitted(erm(), optimizer=torch.optim.SGD(LINEAR.parameters(), lr=0.1)),
        r"optimizer must be a function of the parameters.*got a SGD",
    ),
    "an optimizer of others": (
        fitted(erm(), optimizer=lambda p: torch.optim.SGD(LINEAR.parameters(), lr=0.1)),
        r"optimizer holds 2 parameters that are not the model's: make",
    ),
    "an optimizer's name": (fitted(erm(), optimizer="adam"), r"optimizer must .*got 'adam'"),
    "a precision": (fitted(erm(), precision="half"), r"precision must be .*got 'half'"),
    "a device": (fitted(erm(), device="gpu"), r"device must be .*got 'gpu'"),
    "the device meta": (fitted(erm(), device="meta"), r"device must be .*got 'meta'"),
    "a negative time": (fitted(erm(), every=-1.0), r"every must be >= 0 seconds, got -1.0"),
    "a seed of text": (fitted(erm(), seed="0"), r"seed must be .*whole.*got '0'"),
    "frozen": (fitted(erm(), net().requires_grad_(False)), r"no parameters to train: give .*unfr"),
    "more classes than logits": (fitted(erm(), data=MANY), r"labels must .*0..2, got 0..8"),
    "an evaluation that is no dictionary": (
        fitted(erm(), evaluate=lambda m: 0.5),
        Raises(ValueError, r"evaluate must return a dictionary .*got 0.5"),
    ),
    "an update that sets nothing": (
        fitted(lambda m, a, b: torch.tensor(1.0)),
        r"update must set .grad .*set none",
    ),
    "a diverging rate": (
        fitted(erm(), lr=1e38, epochs=9, optimizer=partial(torch.optim.SGD, lr=1e38)),
        Raises(FloatingPointError, r"in epoch \d.*try a smaller lr"),
    ),
    "one image": (fitted(erm(), data=D[:1]), lambda history: len(history["loss"]) == 1),
    "a huge batch size": (fitted(still, batch_size=10**9), lambda h: len(h["loss"]) == 1),
}
ACCURACY = {
    "no image": (call(accuracy, NET, D[[]]), r"at least one image .*got 0 images"),
    "a batch size of 0": (call(accuracy, NET, D, batch_size=0), r"batch_size .*0"),
    "a tuple of data": (call(accuracy, NET, (A, B)), r"data must be Images.*got tuple"),
    "logits [n]": (
        call(accuracy, ending(lambda z: z[:, 0]), D),
        r"must return logits.*got .*\[4\]",
    ),
    "a tuple of logits": (
        call(accuracy, ending(lambda z: (z, z)), D),
        r"must return logits.*got tuple",
    ),
    "logits of NaN": (call(accuracy, ending(lambda z: z * NAN), D), lambda share: share == 0),
    "probabilities": (call(accuracy, ending(lambda z: z.softmax(1)), D), share),
    "training mode": (call(accuracy, Ending(), D), share),
    "in place": (call(accuracy, IN_PLACE, D), share),
    "logits of half the batch": (
        call(accuracy, ending(lambda z: z[:2]), D),
        r"must return logits.*\[4, .*got .*\[2, 3\]",
    ),
}


@rows(SETTINGS, STEPS, RUNS, ACCURACY)
def test_training(asked, expected):
    trains = asked.function is fit or getattr(asked.function, "gradient", None) is not None
    model = asked.arguments[:1] if trains else ()
    refused = isinstance(expected, str)
    before = [p.detach().clone() for p in model[0].parameters()] if refused and model else []
    examine(asked, expected, changes=model)
    if before:
        after = list(model[0].parameters())
        assert all(map(torch.equal, before, after)), "the weights changed before it was refused"


W = torch.zeros(3)
step = partial(call, fairness.class_focused_step)
SAMPLER = fairness.ClassFocusedSampler(B)
FAIRNESS = {
    "a gamma of 1.5": (step(W, B, torch.ones(4), 1.5, 0.1), r"gamma must be in \[0, 1\], got 1.5"),
    "no step": (step(W, B, torch.ones(4), 0.5, 0.0), r"step_size must .*> 0, got 0.0"),
    "a class too many": (
        step(W, B + 1, torch.ones(4), 0.5, 0.1),
        r"classes must be 0 to 2, got .*3",
    ),
    "a negative class": (step(W, B - 1, torch.ones(4), 0.5, 0.1), r"classes must .*got .*-1"),
    "losses of NaN": (step(W, B, torch.ones(4) * NAN, 0.5, 0.1), r"loss is not finite.*NaN"),
    "losses of another number": (
        step(W, B, torch.ones(3), 0.5, 0.1),
        r"one loss for each, got .*3",
    ),
    "no weights": (step(W[:0], B[:0], torch.ones(0), 0.5, 0.1), r"w must be .*got .*\[0\]"),
    "weights of NaN": (step(W * NAN, B, torch.ones(4), 0.5, 0.1), r"w must be finite"),
    "an empty batch": (step(W, B[:0], torch.ones(0), 0.5, 0.1), near(W)),
    "float labels": (
        call(fairness.ClassFocusedSampler, B.float()),
        r"labels must be int64 .*float32",
    ),
    "no label": (call(fairness.ClassFocusedSampler, B[:0]), r"labels must .*n >= 1, got .*\[0\]"),
    "a negative label": (call(fairness.ClassFocusedSampler, B - 1), r"labels must be >= 0, got -1"),
    "a hole": (call(fairness.ClassFocusedSampler, B * 2), r"class 1 of 5 has no sample: number"),
    "a sampler's gamma": (call(fairness.ClassFocusedSampler, B, -0.1), r"gamma must .*got -0.1"),
    "a sampler's step": (
        call(fairness.ClassFocusedSampler, B, 0.5, INF),
        r"step_size must .*got inf",
    ),
    "no draw": (call(SAMPLER.draw, 0), r"n must be .*>= 1, got 0"),
    "half a draw": (call(SAMPLER.draw, 1.5), r"n must be .*whole.*got 1.5"),
    "an update of NaN": (call(SAMPLER.update, [0], [NAN]), r"loss is not finite.*: look for NaN"),
    "an update of a class too many": (
        call(SAMPLER.update, [3], [1.0]),
        r"classes must .*got \[3\]",
    ),
    "an update of two lengths": (call(SAMPLER.update, [0, 1], [1.0]), r"one loss for each, got"),
    "another state": (call(SAMPLER.load_state_dict, {}), r"state must hold .*got \[\]"),
    "a state of another size": (
        call(SAMPLER.load_state_dict, {"w": torch.zeros(9).double(), "generator": None}),
        r"w must be finite, float64 \[3\], got .*\[9\]",
    ),
}
classwise = partial(call, fairness.classwise_accuracy)
CLASSWISE = {
    "a confidence of 1": (classwise(NET, D, confidence=1.0), r"confidence must .*got 1.0"),
    "a batch size of 0": (classwise(NET, D, batch_size=0), r"batch_size must be .*>= 1, got 0"),
    "steps without a ball": (classwise(NET, D, steps=3), r"steps are an attack's: give its ball"),
    "training mode": (classwise(Ending(), D), r"training mode: call model.eval"),
    "a class without a sample": (classwise(NET, D[:2]), r"class '2' has no sample: choose"),
    "no image": (classwise(NET, D[[]]), r"class '0' has no sample: choose"),
    "a tuple of data": (classwise(NET, (A, B)), r"data must be Images.*got tuple"),
    "logits of NaN": (classwise(ending(lambda z: z * NAN), D), lambda found: found.average == 0),
    "logits [n]": (classwise(ending(lambda z: z[:, 0]), D), r"must return logits.*got .*\[4\]"),
    "in place": (classwise(IN_PLACE, D), anything),
    "a ball that is a number": (classwise(NET, D, 0.1), r"ball must be a ball, .*got 0.1"),
}
eigen = partial(call, sharpness.largest_eigenvalue)
PRODUCT = sharpness.hessian_product(
    LINEAR, Images(A.view(4, 1, 1, 4), B, D.classes), loss=lambda z, b: z.flatten(1).square().sum(1)
)
SHARPNESS = {
    "no iteration": (eigen(net(), D, iterations=0), r"iterations must be .*>= 1, got 0"),
    "half an iteration": (eigen(net(), D, iterations=2.5), r"iterations must .*whole.*got 2.5"),
    "a batch size of 0": (eigen(net(), D, batch_size=0), r"batch_size must be .*>= 1, got 0"),
    "a tolerance of 0": (eigen(net(), D, tolerance=0.0), r"tolerance must .*got 0.0"),
    "a tolerance of NaN": (eigen(net(), D, tolerance=NAN), r"tolerance must .*got nan"),
    "no image": (eigen(net(), D[[]]), r"at least one image, got 0"),
    "a tuple of data": (eigen(net(), (A, B)), r"data must be Images.*got tuple"),
    "frozen": (eigen(net().requires_grad_(False), D), r"requires a gradient: call requires_grad_"),
    "a mean loss": (eigen(net(), D, loss=F.cross_entropy), r'reduction="none"'),
    "labels out of range": (eigen(net(), MANY), r"labels must .*0..2, got 0..8"),
    "NaN": (
        eigen(Ending(lambda z: z * NAN), D),
        Raises(FloatingPointError, r"Hessian is not finite: has"),
    ),
    "training mode": (eigen(net(), D), lambda pair: pair.residual >= 0),
    "in place": (eigen(IN_PLACE, D), lambda pair: pair.residual >= 0),
    "a product of another length": (
        call(PRODUCT, torch.ones(3)),
        r"v must be .*\[15\], got .*\[3\]",
    ),
    "a product of doubles": (call(PRODUCT, torch.ones(15).double()), r"v must be .*float64"),
    "a product with NaN": (call(PRODUCT, torch.ones(15) * NAN), r"v must be finite, got NaN"),
    "a product with 0": (call(PRODUCT, torch.zeros(15)), near(torch.zeros(15))),
}


@rows(FAIRNESS, CLASSWISE, SHARPNESS)
def test_fairness_and_sharpness(asked, expected):
    examine(asked, expected)
