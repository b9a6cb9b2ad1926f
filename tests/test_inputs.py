"""Bad, odd and extreme inputs, a row each: balls, attacks, danskin, training, fairness, sharpness.

``inputs`` says what a row is and what holds of all of them; ``test_inputs_elsewhere`` has the other
wings, and ``test_gan_inputs`` more about the training of GANs.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from inputs import Call, Raises, anything, call, examine, like, near, rows
from torch import nn

from lib import fairness, models, sharpness
from lib.attacks import (
    attack,
    cross_entropy,
    fgsm,
    loss_of,
    margin,
    mm_step,
    pga,
    right_under_attack,
    robust_accuracy,
    step_sizes,
)
from lib.balls import L1, L2, LInf, check_box, clip, room
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
V = torch.tensor([[3.0, -2.0, 0.0], [0.5, 0.25, -0.125]])
WHOLE = V.long()
NOWHERE = torch.zeros(2, 3, device="meta")
NANS = torch.tensor([[1.0, NAN, 0.0], [0.5, 0.25, -0.125]])
INFS = torch.tensor([[1.0, INF, 0.0], [0.5, 0.25, -0.125]])
NONE = torch.zeros(0, 3)

EPS = {  # of a ball
    "negative": (call(LInf, -0.1), r"eps must be finite and >= 0, got -0.1"),
    "NaN": (call(L2, NAN), r"eps must be finite and >= 0, got nan"),
    "infinity": (call(L1, INF), r"eps must be finite and >= 0, got inf"),
    "complex": (call(LInf, 1 + 1j), r"eps must be .*got \(1\+1j\)"),
    "a text": (call(LInf, "0.1"), r"eps must be a number or a tensor \[n\], got '0.1'"),
    "None": (call(L2, None), r"eps must be a number or a tensor \[n\], got None"),
    "beyond all floats": (call(L2, 10**400), r"eps must be .*got 1000"),
    "a column": (call(L2, torch.ones(3, 1)), r"eps must be .*\[n\], got shape \[3, 1\]"),
    "a negative one among radii": (call(L1, [0.1, -0.2]), r"eps must be finite and >= 0, got"),
    "no values": (call(LInf, torch.ones(3, device="meta")), r"eps .*meta.*: "),
    "a list": (call(L1, [0.5, 1.0]), lambda ball: ball.eps.tolist() == [0.5, 1.0]),
}
BALLS = {
    "integers": (call(LInf(0.5).project, WHOLE), r"v must hold floats, got torch.int64: pass v.fl"),
    "booleans": (call(L2(0.5).project, V > 0), r"v must hold floats, got torch.bool: pass v.float"),
    "complex": (call(L1(0.5).project, V * 1j), r"v must hold floats, got torch.complex64"),
    "a list": (call(LInf(0.5).project, V.tolist()), r"v must be a tensor, got list: "),
    "an array": (call(L2(0.5).project, V.numpy()), r"v must be a tensor, got ndarray: "),
    "a number": (call(L1(0.5).project, torch.tensor(3.0)), r"v must be a batch .*got \[\]: pass"),
    "samples without entries": (call(L2(1.0).project, torch.zeros(2, 0)), r"v must be .*\[2, 0\]"),
    "no values": (call(L2(1.0).project, NOWHERE), r"v .*on the device meta.*: "),
    "NaN": (call(LInf(0.5).project, NANS), r"v must be finite, got NaN or inf.* in 1 of 2 samples"),
    "infinity": (call(L2(0.5).project, INFS), r"v must be finite, got NaN or infinity in 1 of 2"),
    "two radii for three": (call(L2([1.0, 2.0]).project, V[[0, 1, 1]]), r"eps holds 2 radii .*3"),
    "100 radii for two": (call(LInf(torch.ones(100)).project, V), r"eps holds 100 radii .*of 2"),
    "low above 0": (call(L2(1.0).project, V, 0.5, 1.0), r"low <= 0 <= high .*got for low .*0.5"),
    "high below 0": (call(L2(1.0).project, V, -1.0, -0.5), r"low <= 0 <= high .*got .*-0.5"),
    "a reversed box": (call(L1(1.0).project, V, 1.0, -1.0), r"low <= 0 <= high .*got .*: for"),
    "a bound of NaN": (call(LInf(1.0).project, V, NAN, 1.0), r"low <= 0 <= high .*got .*nan"),
    "a bound of text": (call(LInf(1.0).project, V, "0", 1.0), r"low must be a number .*got '0'"),
    "a bound that does not fit": (
        call(L2(1.0).project, V, -torch.ones(2)),
        r"low must be .*broadcasts to the batch, \[2, 3\], got \[2\]",
    ),
    "an empty batch": (call(L2(1.0).project, NONE), like([0, 3])),
    "one sample of one entry": (call(L1(1.0).project, torch.tensor([[3.0]])), near([[1.0]])),
    "samples that are numbers": (call(L2(1.0).project, torch.tensor([3.0, -0.5])), near([1, -0.5])),
    "a radius of 0": (call(L2(0.0).project, V), near(torch.zeros(2, 3))),
    "a radius of 0, l1": (call(L1(0.0).project, V), near(torch.zeros(2, 3))),
    "a huge radius": (call(L1(1e300).project, V), near(V)),
    "a tiny radius": (call(L2(TINY).project, V), lambda u: 0 < L2(1.0).norm(u)[0] <= 1.01 * TINY),
    "huge entries": (call(L2(1.0).project, HUGE * V), lambda u: L2(1.0).norm(u).max() <= 1.001),
    "double": (call(L2(1.0).project, V.double()), like([2, 3], torch.float64)),
    "float16": (call(L1(1.0).project, V.half()), like([2, 3], torch.float16)),
    "lmo of NaN": (call(L2(1.0).lmo, NANS), r"g must be finite, got NaN .* 1 of 2 samples: leave"),
    "lmo of integers": (call(L1(1.7).lmo, WHOLE), r"g must hold floats, got torch.int64: pass"),
    "lmo of 0": (call(L2(1.0).lmo, torch.zeros(2, 3)), near(torch.zeros(2, 3))),
    "lmo of radius 0": (call(LInf(0.0).lmo, V), near(torch.zeros(2, 3))),
    "lmo in a reversed box": (call(LInf(1.0).lmo, V, 1.0, -1.0), r"low <= 0 <= high"),
    "lmo of an empty batch": (call(L1(1.0).lmo, NONE), like([0, 3])),
    "the norm of integers": (call(L2(1.0).norm, WHOLE), r"v must hold floats, got torch.int64"),
    "the norm of a list": (call(LInf(1.0).norm, V.tolist()), r"v must be a tensor, got list"),
    "the norm of none": (call(L1(1.0).norm, NONE), like([0])),
    "the norm of huge entries": (
        call(L2(1.0).norm, torch.tensor([[3 * HUGE, 4 * HUGE]])),
        lambda norm: abs(norm.item() / (5 * HUGE) - 1) < 1e-5,
    ),
    "the dual norm of a number": (
        call(LInf(1.0).dual_norm, torch.tensor(1.0)),
        r"g must be a batch .*got \[\]: pass",
    ),
    "a point of no shape": (call(L2(1.0).sample, ()), r"shape must be \(n, ...\).*got \(\)"),
    "a point of a number": (call(L1(1.0).sample, 3), r"shape must be \(n, ...\).*got 3"),
    "points of negative size": (call(LInf(1.0).sample, (2, -3)), r"shape must .*got \(2, -3\)"),
    "points without entries": (call(L2(1.0).sample, (2, 0)), r"shape must .*got \(2, 0\)"),
    "points of other radii": (call(L2([1.0, 2.0]).sample, (3, 2)), r"eps holds 2 radii .* 3"),
    "no points": (
        call(L1(1.0).sample, (0, 3), torch.Generator().manual_seed(0)),
        like([0, 3]),
    ),
    "points of radius 0": (
        call(L2(0.0).sample, (2, 3), torch.Generator().manual_seed(0)),
        near(torch.zeros(2, 3)),
    ),
    "a radius of integers": (call(L2(0.5).radius, WHOLE), r"v must hold floats, got torch.int64"),
    "clip to a reversed interval": (call(clip, V, 1.0, -1.0), r"low <= high .*got .*1.*-1"),
    "clip to a reversed interval of tensors": (
        call(clip, V, torch.tensor([0.0, 1.0, 0.0]), 0.5),
        r"low <= high",
    ),
    "clip to NaN": (call(clip, V, NAN, None), r"low <= high .*nan"),
    "clip of integers": (call(clip, WHOLE, -0.5, 0.5), r"v must hold floats, got torch.int64"),
    "clip to a point": (call(clip, V, 0.5, 0.5), near(torch.full((2, 3), 0.5))),
    "clip to what does not fit": (call(clip, V, torch.zeros(2), None), r"low must .*got \[2\]"),
    "room without 0": (call(room, V, 0.5, 1.0), r"low <= 0 <= high .*0.5"),
    "room of integers": (call(room, WHOLE, -0.5, 0.5), r"v must hold floats, got torch.int64"),
    "a box without 0": (call(check_box, -2.0, -1.0), r"low <= 0 <= high .*-1"),
    "a box of a point": (call(check_box, 0.0, 0.0), lambda box: box == (0.0, 0.0)),
}


@rows(EPS, BALLS)
def test_balls(asked, expected):
    examine(asked, expected)


def f(eta):
    """A smooth function of perturbations [n, 3]."""
    return (eta * torch.tensor([2.0, -1.0, 0.5])).sum(1)


INFINITE = Raises(FloatingPointError, "gradient is not finite: look")
ZERO, G = torch.zeros(2, 3), torch.tensor([[3.0, -1.0, 0.0], [1.0, 1.0, 1.0]])
DESCEND = {
    "fgsm of a mean": (call(fgsm, lambda e: f(e).mean(), ZERO, LInf(0.1)), r"f must .*\[2\].*\[\]"),
    "fgsm of a column": (call(fgsm, lambda e: f(e)[:, None], ZERO, L2(0.1)), r"f must .*\[2, 1\]"),
    "fgsm of a number": (call(fgsm, lambda e: 3.0, ZERO, L2(0.1)), r"f must .*got float"),
    "fgsm without a gradient": (
        call(fgsm, lambda e: f(e).detach(), ZERO, L2(0.1)),
        r"f must have a gradient",
    ),
    "fgsm of a constant": (
        call(fgsm, lambda e: torch.ones(2), ZERO, LInf(0.1)),
        r"f must have a gradient",
    ),
    "fgsm of NaN": (call(fgsm, lambda e: NAN * f(e), ZERO, LInf(0.1)), INFINITE),
    "fgsm in place": (call(fgsm, lambda e: f(e.add_(1)), ZERO, LInf(0.1)), r"f changes .*in place"),
    "fgsm from integers": (call(fgsm, f, WHOLE, LInf(0.1)), r"eta0 must hold floats, got torch.i"),
    "fgsm from a list": (call(fgsm, f, V.tolist(), LInf(0.1)), r"eta0 must be a tensor, got list"),
    "fgsm without a ball": (call(fgsm, f, ZERO, 0.1), r"ball must be a ball, .*got 0.1"),
    "fgsm in a reversed box": (call(fgsm, f, ZERO, LInf(0.1), 1.0, -1.0), r"low <= 0 <= high"),
    "fgsm, other radii": (call(fgsm, f, ZERO, LInf(torch.ones(3))), r"eps holds 3 radii .*of 2"),
    "fgsm of radius 0": (call(fgsm, f, ZERO, L2(0.0)), near(ZERO)),
    "fgsm of no sample": (call(fgsm, f, NONE, L2(0.1)), like([0, 3])),
    "pga, no step": (call(pga, f, ZERO, L2(0.1), 0.1, 0), r"steps must be .*>= 1, got 0"),
    "pga, half steps": (call(pga, f, ZERO, L2(0.1), 0.1, 2.5), r"steps must be .*whole.*got 2.5"),
    "pga, a negative step": (call(pga, f, ZERO, L2(1.0), -0.1, 2), r"step sizes must .*got -0.1"),
    "pga, a step of NaN": (call(pga, f, ZERO, L2(1.0), NAN, 2), r"step sizes must .*got nan"),
    "pga, too many sizes": (call(pga, f, ZERO, L2(1.0), [0.1] * 3, 2), r"step_size must .*2 .*3"),
    "pga in a reversed box": (call(pga, f, ZERO, L2(1.0), 0.1, 2, 1.0, -1.0), r"low <= 0 <= high"),
    "pga without a ball": (call(pga, f, ZERO, 0.3, 0.1, 2), r"ball must be a ball, .*got 0.3"),
    "pga from NaN": (call(pga, f, NANS, L2(1.0), 0.1, 2), r"eta0 must be finite, got NaN"),
    "pga of NaN": (call(pga, lambda e: NAN * f(e), ZERO, L2(1.0), 0.1, 2), INFINITE),
    "pga of NaN, l_inf": (
        call(pga, lambda e: (e.sum(1) - 1).sqrt(), ZERO, LInf(1.0), 0.1, 2, steepest=True),
        INFINITE,
    ),
    "pga, steps of length 0": (call(pga, f, ZERO, L1(1.0), 0.0, 2, steepest=True), near(ZERO)),
    "pga, huge steps": (
        call(pga, f, ZERO, L2(1.0), HUGE, 2),
        lambda eta: L2(1.0).norm(eta).max() <= 1.001,
    ),
    "mm of integers": (
        call(mm_step, G, WHOLE * 0, 0.5, 1.0),
        r"zeta must hold floats, got torch.i",
    ),
    "mm of L = 0": (call(mm_step, G, ZERO, 0.5, 0.0), r"smoothness must .*> 0, got \[0.0\]"),
    "mm of L = NaN": (call(mm_step, G, ZERO, 0.5, NAN), r"smoothness must be finite .*got \[nan\]"),
    "mm of NaN": (call(mm_step, NAN * G, ZERO, 0.5, 1.0), r"gradient must be finite, got NaN"),
    "mm outside": (call(mm_step, G, ZERO + 1, 0.5, 1.0), r"zeta must lie in the ball.*: project"),
    "mm of a negative radius": (call(mm_step, G, ZERO, -0.5, 1.0), r"eps must .*>= 0, got -0.5"),
    "mm of two shapes": (
        call(mm_step, G[:, :2], ZERO, 0.5, 1.0),
        r"gradient must be \[2, 3\].*got \[2, 2\]",
    ),
    "mm of other radii": (call(mm_step, G, ZERO, torch.ones(3), 1.0), r"eps .*3 .*2"),
    "mm of radius 0": (call(mm_step, G, ZERO, 0.0, 1.0), near(ZERO)),
    "mm of a gradient 0": (call(mm_step, ZERO, ZERO, 0.5, 1.0), near(ZERO)),
    "step sizes of text": (call(step_sizes, "0.1", 2), r"step_size must .*got '0.1'"),
    "step sizes, a number of steps in text": (call(step_sizes, 0.1, "2"), r"steps must .*got '2'"),
}

LOGITS, LABELS = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]]), torch.tensor([1, 2])
LOSSES = {
    "a label too large": (call(cross_entropy, LOGITS, LABELS + 1), r"labels must .*0..2, got 2..3"),
    "a label -1": (call(cross_entropy, LOGITS, LABELS - 2), r"labels must .*0..2, got -1..0"),
    "a label -100": (call(cross_entropy, LOGITS, LABELS - 101), r"labels must .*got -100..-99"),
    "one logit, label 2": (call(cross_entropy, LOGITS[:, :1], LABELS), r"labels must .*0..1.*1..2"),
    "labels in a column": (call(cross_entropy, LOGITS, LABELS[:, None]), r"labels must .*\[2, 1\]"),
    "labels that are floats": (call(cross_entropy, LOGITS, LABELS.float()), r"labels .*float32"),
    "labels of another number": (call(cross_entropy, LOGITS, LABELS[:1]), r"labels must .*\[1\]"),
    "logits of one dimension": (
        call(cross_entropy, LOGITS[0], LABELS),
        r"must return logits.*got .*\[3\]",
    ),
    "logits that are integers": (
        call(cross_entropy, LOGITS.long(), LABELS),
        r"logits, floats.*int64",
    ),
    "huge logits": (call(cross_entropy, HUGE * LOGITS, LABELS), near([0.0, 0.0])),
    "no logits": (call(cross_entropy, LOGITS[:0], LABELS[:0]), like([0])),
    "a margin's label": (call(margin, LOGITS, LABELS + 1), r"labels must .*0..2, got 2..3"),
    "a margin's negative label": (call(margin, LOGITS, LABELS - 2), r"labels must .*got -1..0"),
    "a margin of one logit": (call(margin, LOGITS[:, :1], LABELS - 1), near([1.0, 0.0])),
    "a loss's label": (
        call(loss_of(lambda a: LOGITS + a.sum(), torch.zeros(2, 3), LABELS + 1), ZERO),
        r"labels must .*0..2, got 2..3",
    ),
}


@rows(DESCEND, LOSSES)
def test_ascent_and_losses(asked, expected):
    examine(asked, expected)


A = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
B = torch.tensor([0, 1, 2, 1])
NET = models.mlp((1, 2, 2), (5,), 3, mean=0.0, std=1.0).eval()


class Ending(nn.Module):
    """A network whose logits go through a function, or whose input does."""

    def __init__(self, end=lambda z: z, begin=lambda a: a):
        super().__init__()
        self.net, self.begin, self.end = models.mlp((1, 2, 2), (5,), 3), begin, end

    def forward(self, a):
        return self.end(self.net(self.begin(a)))


def ending(end):
    return Ending(end).eval()


IN_PLACE = Ending(begin=lambda a: a.sub_(0.1)).eval()
PARTLY = models.mlp((1, 2, 2), (5,), 3).eval()
PARTLY[2].train()


def within(eps, low=0.0, high=1.0):
    """Finite points in the ball around A and in bounds."""

    def holds(z):
        return bool(
            z.shape == A.shape
            and LInf(1.0).norm((z - A).double()).max() <= eps + 1e-6
            and low <= z.min()
            and z.max() <= high
        )

    return holds


def share(result):
    return 0.0 <= result <= 1.0


LINF = LInf(0.1)
ATTACKS = {
    "training mode": (call(attack, Ending(), A, B, LINF), r"training mode: call model.eval\(\)"),
    "a layer in training mode": (call(attack, PARTLY, A, B, LINF), r"training mode: call"),
    "integers": (call(attack, NET, A.long(), B, LINF), r"inputs must be floats .*got torch.int64"),
    "bytes": (call(attack, NET, (A * 255).byte(), B, LINF), r"inputs must be floats .*torch.uint8"),
    "numbers": (call(attack, NET, A[:, 0, 0, 0], B, LINF), r"inputs must be floats .*got .*\[4\]"),
    "an array": (call(attack, NET, A.numpy(), B, LINF), r"inputs must be a tensor.*got ndarray"),
    "a list of labels": (call(attack, NET, A, B.tolist(), LINF), r"labels must .*got list"),
    "pixels of 255": (call(attack, NET, A * 255, B, LINF), r"inputs must lie in bounds \[0.0, 1.0"),
    "NaN": (call(attack, NET, A * NAN, B, LINF), r"inputs must lie in bounds .*nan.*: scale"),
    "no values": (
        call(attack, NET, torch.zeros(4, 1, 2, 2, device="meta"), B.to("meta"), LINF),
        r"inputs .*on the device meta",
    ),
    "two devices": (call(attack, NET, A, B.to("meta"), LINF), r"labels must .*on the device meta"),
    "other labels": (call(attack, NET, A, B.int(), LINF), r"labels must be int64 .*torch.int32"),
    "labels in a column": (call(attack, NET, A, B[:, None], LINF), r"labels must .*got .*\[4, 1\]"),
    "too few labels": (call(attack, NET, A, B[:3], LINF), r"labels must be int64 \[4\] .*\[3\]"),
    "a label too large": (call(attack, NET, A, B + 1, LINF), r"labels must lie in 0..2, got 1..3"),
    "a label -1": (call(attack, NET, A, B - 1, LINF), r"labels must lie in 0..2, got -1..1"),
    "no ball": (call(attack, NET, A, B, 0.1), r"ball must be a ball, such as LInf.*got 0.1"),
    "other radii": (call(attack, NET, A, B, LInf(torch.ones(100))), r"eps holds 100 radii .*of 4"),
    "reversed bounds": (
        call(attack, NET, A, B, LINF, bounds=(1.0, 0.0)),
        r"bounds must .*low < high, got \(1.0, 0.0\)",
    ),
    "bounds of NaN": (call(attack, NET, A, B, LINF, bounds=(0.0, NAN)), r"bounds must .*nan"),
    "one bound": (
        call(attack, NET, A, B, LINF, bounds=1.0),
        r"bounds must be \(low, high\).*got 1",
    ),
    "bounds of tensors": (
        call(attack, NET, A, B, LINF, bounds=(torch.zeros(4), torch.ones(4))),
        r"bounds must be \(low, high\)",
    ),
    "no restart": (call(attack, NET, A, B, LINF, restarts=0), r"restarts must be .*>= 1, got 0"),
    "half a restart": (call(attack, NET, A, B, LINF, restarts=1.5), r"restarts must .*whole.*1.5"),
    "no step": (call(attack, NET, A, B, LINF, steps=0), r"steps must be .*>= 1, got 0"),
    "negative steps": (call(attack, NET, A, B, L2(0.1), steps=-3), r"steps must be .*got -3"),
    "half a step": (call(attack, NET, A, B, LINF, steps=12.5), r"steps must .*whole.*got 12.5"),
    "a negative step size": (call(attack, NET, A, B, LINF, step_size=-0.1), r"step sizes .*-0.1"),
    "sizes of other steps": (
        call(attack, NET, A, B, LINF, 3, [0.1, 0.1]),
        r"step_size must hold one number for each of 3 steps, got \[2\]",
    ),
    "logits [n]": (call(attack, ending(lambda z: z[:, 0]), A, B, LINF), r"\[4, classes\].*z\[:, N"),
    "logits [n, c, 1]": (call(attack, ending(lambda z: z[..., None]), A, B, LINF), r"got .*3, 1\]"),
    "a tuple of logits": (
        call(attack, ending(lambda z: (z, z)), A, B, LINF),
        r"must return logits",
    ),
    "classes": (call(attack, ending(lambda z: z.argmax(1, True)), A, B, LINF), r"logits, floats"),
    "logits of half the batch": (
        call(attack, ending(lambda z: z[:2]), A, B, LINF),
        r"got .*\[2, 3",
    ),
    "no classes": (call(attack, ending(lambda z: z[:, :0]), A, B, LINF), r"got .*\[4, 0\]"),
    "detached logits": (call(attack, ending(torch.Tensor.detach), A, B, LINF), r"no gradient"),
    "in place": (call(attack, IN_PLACE, A, B, LINF), r"changes its input in place: let it begin"),
    "a mean loss": (call(attack, NET, A, B, LINF, loss=F.cross_entropy), r"loss must .*reduction="),
    "a loss of NaN": (
        call(attack, NET, A, B, LINF, loss=lambda z, b: NAN * z.sum(1)),
        within(0.1),
    ),
    "logits of NaN": (call(attack, ending(lambda z: NAN * z), A, B, LINF), within(0.1)),
    "probabilities": (call(attack, ending(lambda z: z.softmax(1)), A, B, LINF), within(0.1)),
    "huge logits": (call(attack, ending(lambda z: HUGE * z), A, B, LINF), within(0.1)),
    "a generator of numbers": (
        call(attack, NET, A, B, LINF, generator=3),
        r"generator must .*got 3",
    ),
    "an empty batch": (call(attack, NET, A[:0], B[:0], LINF), like([0, 1, 2, 2])),
    "one sample": (call(attack, NET, A[:1], B[:1], L2(0.1)), like([1, 1, 2, 2])),
    "a radius of 0": (call(attack, NET, A, B, LInf(0.0)), lambda z: torch.equal(z, A)),
    "a radius of 0, l1": (
        call(attack, NET, A, B, L1(0.0), restarts=2),
        lambda z: torch.equal(z, A),
    ),
    "a huge radius": (call(attack, NET, A, B, L2(HUGE)), within(1.0)),
    "no bounds": (call(attack, NET, A, B, LINF, bounds=(-INF, INF)), within(0.1, -INF, INF)),
    "a rounding outside bounds": (
        call(attack, NET, A.clamp(max=1) * 0 + 1 + 1e-7, B, LINF),
        lambda z: z.max() <= 1,
    ),
    "double": (
        call(attack, ending(lambda z: z).double(), A.double(), B, LINF),
        like([4, 1, 2, 2], torch.float64),
    ),
}
ROBUST = {
    "an empty batch": (call(robust_accuracy, NET, A[:0], B[:0], LINF), r"a needs samples.*empty"),
    "a batch size of 0": (call(robust_accuracy, NET, A, B, LINF, batch_size=0), r"batch_size .*0"),
    "a batch size of 1.5": (
        call(right_under_attack, NET, A, B, LINF, batch_size=1.5),
        r"whole.*1.5",
    ),
    "training mode": (call(robust_accuracy, Ending(), A, B, LINF), r"training mode: call"),
    "a list of inputs": (
        call(robust_accuracy, NET, A.tolist(), B, LINF),
        r"inputs must .*got list",
    ),
    "other radii": (call(robust_accuracy, NET, A, B, L2(torch.ones(3))), r"eps holds 3 radii .*4"),
    "logits of NaN": (
        call(robust_accuracy, ending(lambda z: NAN * z), A, B * 0, LINF),
        lambda share: share == 0,
    ),
    "some logits of NaN": (
        call(right_under_attack, ending(lambda z: z * torch.tensor([NAN, 1, 1])), A, B, LINF),
        lambda right: not right.any(),
    ),
    "no sample is right": (
        call(right_under_attack, NET, A[:0], B[:0], LINF),
        like([0], torch.bool),
    ),
    "one logit, label 2": (
        call(right_under_attack, ending(lambda z: z[:, :1]), A, B, LINF),
        r"labels must lie in 0..1, got 0..2",
    ),
    "in place": (call(robust_accuracy, IN_PLACE, A, B, LINF), r"in place: let it begin"),
    "batches of one": (call(robust_accuracy, NET, A, B, L2(0.1), batch_size=1), share),
}


@rows(ATTACKS, ROBUST)
@pytest.mark.filterwarnings("ignore::lib.attacks.NoGradientWarning")
def test_attacks(asked, expected):
    examine(asked, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ball", [LInf(0.1), LInf(0.01), L2(0.5), L2(0.01), L1(0.5)], ids=repr)
def test_an_attack_in_half_precision_stays_in_the_ball(ball, dtype):
    """Measured in float64, of the sum a + η as it is rounded."""
    a = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    net = models.mlp((1, 8, 8), (5,), 3, activation="celu", mean=0.0, std=1.0).eval().to(dtype)
    z = attack(net, a, torch.tensor([0, 1, 2, 1, 0, 2]), ball, restarts=2)
    far = ball.norm(z.double() - a.double())
    assert z.dtype == dtype and far.max() <= ball.eps * (1 + 1e-6) and 0 <= z.min() and z.max() <= 1
    assert far.max() > 0


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
        Raises(FloatingPointError, r"Hessian is not finite: look"),
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


def test_the_table_is_as_large_as_it_should_be():
    tables = [t for t in globals().values() if isinstance(t, dict)]
    count = sum(
        isinstance(row, tuple) and isinstance(row[0], Call) for t in tables for row in t.values()
    )
    assert count >= 200, count
