"""Bad, odd and extreme inputs of balls and attacks, a row each.

``inputs`` says what a row is and what holds of all of them; the other wings are in the files
``test_inputs_...``, and more about the training of GANs in ``test_gan_inputs``.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from inputs import (
    IN_PLACE,
    NET,
    PARTLY,
    A,
    B,
    Ending,
    Raises,
    call,
    count,
    ending,
    examine,
    like,
    near,
    rows,
)

from lib import models
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


INFINITE = Raises(FloatingPointError, "^f.s gradient is not finite: look for NaN and infinity in f")
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
    assert z.dtype == dtype and far.max() <= ball.eps * (1 + 1e-6) and z.min() >= 0 and z.max() <= 1
    assert far.max() > 0


def test_the_tables_of_all_files_are_large():
    files = [
        importlib.import_module(path.stem) for path in Path(__file__).parent.glob("test_inputs*.py")
    ]
    assert len(files) == 4 and sum(count(vars(file)) for file in files) >= 600
