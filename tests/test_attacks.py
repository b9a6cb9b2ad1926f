"""Attacks against closed forms, linear and quadratic programs, enumeration and foolbox."""

import itertools
import math
import warnings

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import kstest
from torch import nn

from lib import data, models, training
from lib.attacks import (
    NoGradientWarning,
    attack,
    cross_entropy,
    fgsm,
    loss_of,
    margin,
    mm_step,
    pga,
    right_under_attack,
    robust_accuracy,
)
from lib.attacks._attack import planned
from lib.attacks._climbers import Climbers
from lib.attacks._logits import scale_of
from lib.attacks._search import in_doubt
from lib.balls import L1, L2, LInf

BALLS = [LInf, L2, L1]
seeds = st.integers(0, 2**31)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear_function(g):
    return lambda eta: (g * eta).flatten(1).sum(1)


def network(seed=0, dtype=torch.float64, inputs=6):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=dtype)
    return net.eval()


def problem(n=5, seed=0, dtype=torch.float64, inputs=6):
    """A small network with inputs in [0, 1], some on the boundary, and its own labels."""
    net, a = network(seed, dtype, inputs), uniform(n, inputs, seed=seed + 1, dtype=dtype)
    a[:, 0], a[:, 1] = 0, 1
    return net, a, net(a).argmax(1)


def cvxpy_maximum(objective, eta, eps, norm, low, high):
    goal = cvxpy.Maximize(objective)
    limits = [cvxpy.norm(eta, norm) <= eps, eta >= low, eta <= high]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cvxpy.Problem(goal, limits).solve(solver="CLARABEL")


NORM = {LInf: "inf", L2: 2, L1: 1}


# --- FGSM and PGA against what they should find


@pytest.mark.parametrize("Ball", BALLS)
@pytest.mark.parametrize("steepest", [True, False])
def test_pga_reaches_eps_times_the_dual_norm_on_linear_models(Ball, steepest):
    for seed in range(3):
        g = normal(4, 2, 3, seed=seed)
        eta = pga(linear_function(g), torch.zeros_like(g), Ball(0.3), 1.0, 50, steepest=steepest)
        torch.testing.assert_close(
            linear_function(g)(eta), 0.3 * Ball(0.3).dual_norm(g), rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("Ball", BALLS)
@pytest.mark.parametrize("steepest", [True, False])
def test_pga_reaches_the_linear_program_s_value_in_ball_and_box(Ball, steepest):
    # A radial step, or one that clips after projecting on the ball, stops short of it.
    for seed in range(3):
        g, low, high = normal(1, 6, seed=seed), -uniform(1, 6, seed=7), uniform(1, 6, seed=8)
        alphas = [0.5 * 0.96**k for k in range(500)] if steepest else [1.0] * 100
        f, start = linear_function(g), torch.zeros_like(g)
        eta = pga(f, start, Ball(1.2), alphas, len(alphas), low, high, steepest=steepest)
        v = cvxpy.Variable(6)
        best = cvxpy_maximum(g[0].numpy() @ v, v, 1.2, NORM[Ball], low[0].numpy(), high[0].numpy())
        assert f(eta).item() == pytest.approx(best, rel=1e-6)
        assert Ball(1.2).norm(eta) <= 1.2 * (1 + 1e-9)


def test_fgsm_is_the_best_corner_of_a_linear_model_by_brute_force():
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6))).double()
    for seed in range(50):
        x, a, b = normal(6, seed=seed), normal(1, 6, seed=seed + 100), (-1) ** seed

        def f(eta, x=x, a=a, b=b):  # the logistic loss of a linear model
            return nn.functional.softplus(-b * (a + eta) @ x)

        eta = fgsm(f, torch.zeros(1, 6).double(), LInf(0.4))
        torch.testing.assert_close(f(eta), f(0.4 * corners).max()[None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("Ball", BALLS)
def test_fgsm_solves_the_linearized_problem_in_ball_and_box(Ball):
    for seed in range(5):
        net, a, b = problem(n=1, seed=seed)
        low, high = (-a[0]).numpy(), (1 - a[0]).numpy()
        f = loss_of(net, a, b)
        eta = fgsm(f, torch.zeros_like(a), Ball(0.7), -a, 1 - a)
        g = torch.func.grad(lambda e, f=f: f(e).sum())(torch.zeros_like(a)).detach()
        if Ball is L2:
            v = cvxpy.Variable(6)
            best = cvxpy_maximum(g[0].numpy() @ v, v, 0.7, 2, low, high)
        else:  # eta = s - t with s, t >= 0
            limit = 0.7 if Ball is LInf else np.inf
            bounds = [(0, min(h, limit)) for h in high] + [(0, min(-lo, limit)) for lo in low]
            sums = {} if Ball is LInf else {"A_ub": np.ones((1, 12)), "b_ub": [0.7]}
            cost = np.concatenate([-g[0].numpy(), g[0].numpy()])
            best = -linprog(cost, bounds=bounds, **sums).fun
        assert (g * eta).sum().item() == pytest.approx(best, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("Ball", BALLS)
def test_pga_climbs_a_concave_quadratic_to_the_qp_s_optimum(Ball):
    for seed in range(3):
        root, c = normal(5, 5, seed=seed), 2 * normal(5, seed=seed + 10)
        Q, low, high = root @ root.T, -0.3, 0.8

        def f(eta, Q=Q, c=c):
            return eta @ c - 0.5 * ((eta @ Q) * eta).sum(1)

        alpha = 1 / torch.linalg.eigvalsh(Q).max().item()
        eta, values = torch.zeros(1, 5).double(), []
        for _ in range(100):
            values.append(f(eta).item())
            eta = pga(f, eta, Ball(1.0), alpha, 1, low, high)
        assert (np.diff(values) >= -1e-12).all()
        v = cvxpy.Variable(5)
        concave = c.numpy() @ v - 0.5 * cvxpy.sum_squares(root.T.numpy() @ v)
        best = cvxpy_maximum(concave, v, 1.0, NORM[Ball], low, high)
        end = pga(f, eta, Ball(1.0), alpha, 1000, low, high)
        assert f(end).item() == pytest.approx(best, abs=1e-6)


@settings(deadline=None, max_examples=200)
@given(
    g=st.lists(st.sampled_from([0.0, 0.25, -0.5, 1.0, -2.0, 3.0]), min_size=1, max_size=5),
    alpha=st.sampled_from([0.125, 0.25, 0.5, 1.0, 4.0]),
    eps=st.sampled_from([0.125, 0.5, 1.0, 2.0]),
)
def test_one_pga_step_is_fgsm_exactly_when_the_condition_holds(g, alpha, eps):
    g = torch.tensor([g], dtype=torch.float64)  # powers of two: alpha |g| is exact
    f, zero = linear_function(g), torch.zeros_like(g)
    same = torch.equal(pga(f, zero, LInf(eps), alpha, 1), fgsm(f, zero, LInf(eps)))
    assert same == bool(((g == 0) | (alpha * g.abs() >= eps)).all())


def test_one_step_is_the_projection_of_the_gradient_step():
    net, a, b = problem()
    start, low, high = 0.1 * normal(5, 6), (-a).numpy(), (1 - a).numpy()
    f = loss_of(net, a, b)
    g = torch.func.grad(lambda eta: f(eta).sum())(start).detach().numpy()
    for alpha in (0.01, 0.1, 1.0):
        step = pga(f, start, LInf(0.2), alpha, 1, -a, 1 - a)
        nearest = np.clip(np.clip(start.numpy() + alpha * g, -0.2, 0.2), low, high)
        np.testing.assert_allclose(step.numpy(), nearest, rtol=0, atol=1e-12)


def test_a_schedule_is_followed_and_each_step_costs_one_pass():
    net, a, b = problem()
    calls = []

    def f(eta):
        calls.append(len(eta))
        return loss_of(net, a, b)(eta)

    schedule = [0.3, 0.1, 0.02]
    for steepest in (False, True):
        calls.clear()
        at_once = pga(f, 0 * a, L2(0.5), schedule, 3, -a, 1 - a, steepest=steepest)
        assert calls == [5, 5, 5]
        eta = 0 * a
        for alpha in schedule:
            eta = pga(f, eta, L2(0.5), alpha, 1, -a, 1 - a, steepest=steepest)
        assert torch.equal(at_once, eta)


@pytest.mark.parametrize("Ball", BALLS)
def test_a_sample_without_gradient_stays(Ball):
    g = normal(2, 4) * torch.tensor([[0.0], [1.0]])
    start = 0.01 * normal(2, 4, seed=1)
    for steepest in (False, True):
        eta = pga(linear_function(g), start, Ball(1.0), 0.1, 3, -1.0, 1.0, steepest=steepest)
        assert torch.equal(eta[0], start[0])
        assert torch.isfinite(eta).all()
        assert (eta[1] != start[1]).any()


def test_a_steepest_step_has_length_alpha_and_gains_alpha_times_the_dual_norm():
    g = normal(3, 5)
    for Ball in BALLS:
        step = pga(linear_function(g), 0 * g, Ball(9.0), 0.25, 1, steepest=True)
        torch.testing.assert_close(Ball(9.0).norm(step), torch.full((3,), 0.25).double())
        torch.testing.assert_close((g * step).sum(1), 0.25 * Ball(9.0).dual_norm(g))


# --- slide 15


def model_gain(g, zeta, eta, smoothness):
    step = eta - zeta
    return (g * step).sum(1) - smoothness / 2 * step.abs().amax(1) ** 2


def test_mm_step_maximizes_the_minorant_as_a_solver_does():
    for seed in range(30):
        g, eps = normal(1, 5, seed=seed), 0.4
        g[:, seed % 5] = 0
        zeta = eps * (2 * uniform(1, 5, seed=seed + 50) - 1)
        zeta[:, 0] = eps * (-1) ** seed
        smoothness = 10 ** (seed % 5 - 1.5)
        v = cvxpy.Variable(5)
        step = v - zeta[0].numpy()
        goal = g[0].numpy() @ step - smoothness / 2 * cvxpy.square(cvxpy.norm(step, "inf"))
        best = cvxpy_maximum(goal, v, eps, "inf", -eps, eps)
        eta = mm_step(g, zeta, eps, smoothness)
        assert (eta.abs() <= eps).all()
        assert model_gain(g, zeta, eta, smoothness).item() == pytest.approx(best, abs=1e-7)


def test_mm_step_in_the_interior_moves_by_the_l1_norm_over_the_smoothness():
    g = torch.tensor([[1.0, -2.0, 0.5]]).double()
    eta = mm_step(g, 0 * g, 0.3, 50.0)
    torch.testing.assert_close(eta, 3.5 / 50 * g.sign(), rtol=1e-12, atol=0)
    assert model_gain(g, 0 * g, eta, 50.0).item() == pytest.approx(0.1225)


def test_the_minorant_holds_and_mm_steps_ascend_on_concave_quadratics():
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4))).double()
    for seed in range(50):
        root, c = normal(4, 4, seed=seed), normal(4, seed=seed + 200)
        Q = root @ root.T
        smoothness = (signs @ Q).abs().sum(1).max().item()  # the norm of Q from ℓ∞ to ℓ1

        def f(eta, Q=Q, c=c):
            return eta @ c - 0.5 * ((eta @ Q) * eta).sum(1)

        zeta = 0.5 * (2 * uniform(20, 4, seed=seed) - 1)
        other = 0.5 * (2 * uniform(20, 4, seed=seed + 1) - 1)
        g = c - zeta @ Q
        assert (f(other) >= f(zeta) + model_gain(g, zeta, other, smoothness) - 1e-12).all()
        for _ in range(20):
            eta = mm_step(c - zeta @ Q, zeta, 0.5, smoothness)
            assert (f(eta) >= f(zeta) - 1e-12).all()
            zeta = eta


def test_mm_step_treats_each_sample_alone():
    g, eps = normal(3, 2, 2), torch.tensor([0.1, 0.2, 0.3]).double()
    zeta, smoothness = 0.05 * g.sign(), torch.tensor([1.0, 5.0, 50.0]).double()
    together = mm_step(g, zeta, eps, smoothness)
    for i in range(3):
        alone = mm_step(g[i : i + 1], zeta[i : i + 1], eps[i].item(), smoothness[i].item())
        assert torch.equal(together[i : i + 1], alone)


def test_mm_step_refuses_what_makes_no_sense():
    g = normal(2, 3)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="smoothness"):
            mm_step(g, 0 * g, 0.1, bad)
    with pytest.raises(ValueError, match="zeta"):
        mm_step(g, 0 * g + 0.2, 0.1, 1.0)


# --- attack


def counted(net):
    """The network with a list of how many samples each call was given."""
    calls = []
    return calls, lambda a: calls.append(len(a)) or net(a)


@settings(deadline=None, max_examples=60)
@given(
    Ball=st.sampled_from(BALLS),
    eps=st.one_of(st.just(0.0), st.floats(1e-6, 3.0)),
    n=st.integers(1, 4),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    steps=st.none() | st.integers(1, 3),
    restarts=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=seeds,
)
def test_attack_stays_in_the_set_and_no_sample_ends_lower(
    Ball, eps, n, shape, steps, restarts, dtype, seed
):
    inputs = math.prod(shape)
    net = nn.Sequential(nn.Flatten(), network(seed, dtype, inputs)).eval()
    a = (1.5 * uniform(n, *shape, seed=seed, dtype=dtype) - 0.25).clamp(0, 1)
    b = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    z = attack(net, a, b, Ball(eps), steps, restarts=restarts)
    assert z.dtype == dtype and z.shape == a.shape
    assert ((z >= 0) & (z <= 1)).all()
    slack = 4 * inputs * torch.finfo(dtype).eps * (1 + eps)
    assert (Ball(eps).norm(z - a) <= eps + slack).all()
    with torch.no_grad():
        assert (cross_entropy(net(z), b) >= cross_entropy(net(a), b)).all()


def factors(net, a):
    """What an attack of a multiplies each sample's logits with: their spread becomes 12."""
    z = net(a).detach()
    others = (z.sum(1) - z.amax(1)) / (z.shape[1] - 1)
    return (12 / (z.amax(1) - others))[:, None]


def climbed(net, factor, z, b, sharpness=1):
    """The loss that an attack climbs: of scaled logits until b is no longer the likeliest class."""
    logits = net(z)
    right = logits.argmax(1, keepdim=True) == b[:, None]
    return cross_entropy(torch.where(right, sharpness * factor, 1.0) * logits, b)


def ranked(net, z, b):
    """What an attack keeps the highest of: the margin, and the loss from where that is > 0."""
    with torch.no_grad():
        gap = margin(net(z), b)
        return torch.where(gap <= 0, gap, cross_entropy(net(z), b))


RADIUS = {LInf: 0.1, L2: 0.35, L1: 0.35}  # that leave some samples in doubt


def by_hand(net, factor, a, b, ball, alphas, sharpness, worst, best):
    """The points kept and their losses after steps of alphas · eps from the points worst."""
    eta, c = worst - a, 5 if isinstance(ball, L2) else 1
    for alpha in [*alphas, None]:
        value = ranked(net, a + eta, b)
        worst = torch.where((value > best)[:, None], a + eta, worst)
        best = torch.maximum(best, value)
        if alpha is not None:
            e = eta.clone().requires_grad_()
            climbed(net, factor, a + e, b, sharpness).sum().backward()
            room = (-a - eta, 1 - a - eta) if isinstance(ball, L1) else ()
            move = type(ball)(c * alpha * ball.eps).lmo(e.grad, *room)
            eta = ball.project_within(eta + move, -a, 1 - a)
    return worst, best


def unless_lower(net, a, b, z):
    """z, but a where the loss of the logits as they are is lower at z."""
    lower = cross_entropy(net(z), b) < cross_entropy(net(a), b)
    return torch.where(lower[:, None], a, z)


def doubt(logits, b):
    """Where b is the likeliest class, but less than e times as likely as another."""
    p = logits.softmax(1)
    ratio = p.gather(1, b[:, None])[:, 0] / p.scatter(1, b[:, None], 0).amax(1)
    return (ratio >= 1) & (ratio < math.e)


@pytest.mark.parametrize("Ball, first, then", [(LInf, 4, 7), (L2, 2, 9), (L1, 4, 7)])
def test_attack_with_its_defaults_follows_the_documented_schedule(Ball, first, then):
    net, a, b = problem(n=200, inputs=20)
    ball, lowest = Ball(RADIUS[Ball]), torch.full((200,), -math.inf).double()
    factor = factors(net, a)
    alphas = [[1 + math.cos(math.pi * i / n) for i in range(n)] for n in (first, then, 5)]
    few, best = by_hand(net, factor, a, b, ball, alphas[0], 1, a, lowest)
    assert (best > ranked(net, a, b)).any()
    some = doubt(factor * net(few), b)
    assert 2 < some.sum() < 100
    same = {"rtol": 0, "atol": 1e-8}
    torch.testing.assert_close(attack(net, a, b, ball, first), unless_lower(net, a, b, few), **same)
    half, last = ([alpha / 2 for alpha in of] for of in alphas[1:])
    more, better = by_hand(net, factor, a, b, ball, half, 2, few, best)
    assert (more != few)[some].any()
    expected = torch.where(some[:, None], more, few)
    torch.testing.assert_close(attack(net, a, b, ball), unless_lower(net, a, b, expected), **same)
    torch.testing.assert_close(  # all go on, and take what steps remain from there
        attack(net, a, b, ball, first + then), unless_lower(net, a, b, more), **same
    )
    end, _ = by_hand(net, factor, a, b, ball, last, 2, more, better)
    assert (end != more).any()
    torch.testing.assert_close(
        attack(net, a, b, ball, first + then + 5), unless_lower(net, a, b, end), **same
    )


@pytest.mark.parametrize("Ball", BALLS)
def test_more_steps_are_taken_by_default_only_and_where_there_is_doubt(Ball):
    net, a, b = problem(n=200, inputs=20)
    few, more = (2, 9) if Ball is L2 else (4, 7)
    ball, (calls, model) = Ball(RADIUS[Ball]), counted(net)
    for chosen, passes in (({"steps": 7}, 7), ({"step_size": 0.1}, 10), ({"steps": 10}, 10)):
        calls.clear()
        attack(model, a, b, ball, **chosen)
        assert calls == [200] * (passes + 1)
    calls.clear()
    attack(model, a, b, ball, steps=15)
    assert calls == [200] * (15 + 3)
    calls.clear()
    attack(model, a, b, ball)
    assert calls[: few + 1] == [200] * (few + 1)
    rest = calls[few + 1 :]
    assert len(rest) == more + 1 and len(set(rest)) == 1
    kept = attack(net, a, b, ball, few)
    assert 0 < rest[0] == doubt(factors(net, a) * net(kept), b).sum() < 100
    calls.clear()
    attack(model, a, b, ball, restarts=3)  # all of it from every start
    assert len(calls) == 3 * (few + 1 + more + 1)
    assert calls[: few + 1 + more + 1] == [200] * (few + 1) + rest


# The sweeps that the docstring tells of, and what decides on them.


def lengths(sweep):
    return list(sweep.step_lengths)


@pytest.mark.parametrize(
    ("Ball", "main", "refining", "length"), [(LInf, 4, 7, 1.0), (L1, 4, 7, 1.0), (L2, 2, 9, 5.0)]
)
def test_the_sweeps_are_those_of_the_docstring(Ball, main, refining, length):
    ball = Ball(0.3)
    first, second = planned(ball, None, None)
    assert (len(lengths(first)), len(lengths(second))) == (main, refining)
    assert (first.in_doubt_only, second.in_doubt_only) == (False, True)
    assert (first.logit_scale, second.logit_scale) == (1.0, 2.0)
    for sweep, mean in ((first, length), (second, length / 2)):  # from twice as much, to near 0
        n = len(lengths(sweep))
        cosine = mean * (1 + np.cos(np.pi * np.arange(n) / n))
        np.testing.assert_allclose(lengths(sweep), cosine)
        assert sweep.in_radii and lengths(sweep)[0] == 2 * mean
        eps = [step.eps for step in sweep.steps(ball)]
        np.testing.assert_allclose(eps, 0.3 * cosine)
    for steps in (1, 5, 10):  # one sweep, of every sample
        [only] = planned(ball, steps, None)
        assert len(lengths(only)) == steps and lengths(only)[0] == 2 * length
        assert not only.in_doubt_only and only.logit_scale == 1.0
    for steps in (11, 12, 40):
        sweeps = planned(ball, steps, None)
        assert sweeps[:2] == [first, second._replace(in_doubt_only=False)]
        counts = [len(lengths(sweep)) for sweep in sweeps]
        assert counts == [main, refining] + [steps - 11] * (steps > 11)
        for sweep in sweeps[2:]:
            assert lengths(sweep)[0] == length and sweep.logit_scale == 2.0
            assert not sweep.in_doubt_only


def test_steps_of_a_given_size_are_one_sweep_of_them_in_the_units_of_the_inputs():
    [sweep] = planned(LInf(0.3), None, 0.1)
    assert lengths(sweep) == [0.1] * 10 and not sweep.in_radii and not sweep.in_doubt_only
    assert [step.eps for step in sweep.steps(LInf(0.3))] == [0.1] * 10
    [sweep] = planned(L2(torch.tensor([1.0, 2.0])), 2, [0.5, 0.25])
    assert [step.eps for step in sweep.steps(L2(1.0))] == [0.5, 0.25]


def test_logits_are_scaled_to_one_spread_of_the_greatest_over_the_mean_of_the_others():
    logits = torch.tensor([[5.0, 1.0, 3.0], [0.0, 0.0, 0.0], [-1e-3, -3e-3, -3e-3]])
    expected = torch.tensor([[12 / 3], [1.0], [12 / 2e-3]])
    torch.testing.assert_close(scale_of(logits), expected)
    single = torch.tensor([[4.0], [-0.5], [0.0]])  # of the two logits (0, z)
    torch.testing.assert_close(scale_of(single), torch.tensor([[3.0], [24.0], [1.0]]))
    assert scale_of(torch.tensor([[torch.inf, 0.0], [torch.nan, 1.0]])).tolist() == [[1.0], [1.0]]


def test_in_doubt_is_who_is_right_by_less_than_one_in_the_scaled_logits():
    leads = torch.tensor([-0.1, 0.0, 0.3, 0.999, 1.0, 4.0])  # of the own class
    logits = torch.stack([leads, torch.zeros(6)], 1) / 2
    index, one = torch.arange(6), torch.ones(6, 1)
    climbers = Climbers(index, one, 0 * index, 2 * one, one, leads, logits)
    assert in_doubt(climbers).tolist() == [1, 2, 3]
    assert in_doubt(climbers._replace(factor=one)).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 50.0), (0.0, math.inf)])
def test_inputs_a_rounding_outside_bounds_are_moved_back_and_others_refused(dtype, bounds):
    low, high = bounds
    unit = torch.finfo(dtype).eps * (50 if high == 50 else 2 if low == -2 else 1)
    f, b = linear_model(dtype), torch.tensor([0])
    for off, fine in ((30 * unit, True), (36 * unit, False)):
        a = torch.tensor([[low - off, low + 0.5]], dtype=torch.float64)
        if fine:
            z = attack(f, a.to(dtype), b, LInf(0.0), bounds=bounds)
            assert z.tolist() == [[low, low + 0.5]]
        else:
            with pytest.raises(ValueError, match="inputs must lie in bounds"):
                attack(f, a.to(dtype), b, LInf(0.0), bounds=bounds)


def linear_model(dtype):
    w = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=dtype)
    return lambda a: a @ w


@pytest.mark.parametrize("Ball", BALLS)
def test_steps_in_doubt_make_the_defaults_stronger(Ball):
    few = 2 if Ball is L2 else 4
    fooled = torch.zeros(3)
    for seed in range(5):
        net, a, b = problem(n=300, seed=seed, inputs=20)
        ball = Ball(RADIUS[Ball])
        attacked = [attack(net, a, b, ball), attack(net, a, b, ball, few)]
        fooled[:2] += torch.stack([(net(z).argmax(1) != b).sum() for z in attacked])
        fooled[2] += 300 - round(300 * robust_accuracy(net, a, b, ball))
        assert robust_accuracy(net, a, b, ball) <= robust_accuracy(net, a, b, ball, steps=few)
    assert fooled[0] > fooled[1] and fooled[2] >= fooled[0]


@pytest.mark.parametrize("Ball", BALLS)
def test_robust_accuracy_counts_the_samples_right_at_every_point_of_the_attack(Ball):
    """On waves, where a step may end lower, or in the own class again."""
    back = lower = 0
    for seed in range(5):
        draws = torch.Generator().manual_seed(seed)
        waves = 6 * torch.randn(20, 3, generator=draws, dtype=torch.float64)
        a = torch.rand(200, 20, generator=draws, dtype=torch.float64)
        ball, visited = Ball(RADIUS[Ball]), []

        def model(z, waves=waves, visited=visited):
            visited.append(z.detach().clone())
            return (z @ waves).sin()

        b = model(a).argmax(1)
        for steps in (2, 5):
            visited.clear()
            attack(model, a, b, ball, steps)
            # Others are looks at a few samples whose loss is flat.
            logits = torch.stack([model(z) for z in visited.copy() if len(z) == len(a)])
            right = logits.argmax(2) == b
            loss = torch.stack([cross_entropy(z, b) for z in logits])
            back += (right[1:] > right[:-1]).sum()
            lower += (loss[1:] < loss[:-1]).sum()
            assert robust_accuracy(model, a, b, ball, steps=steps) == right.all(0).double().mean()
        kept = attack(model, a, b, ball)
        assert robust_accuracy(model, a, b, ball) <= (model(kept).argmax(1) == b).double().mean()
    assert back > 50 and lower > 50


def test_doubt_of_a_model_with_one_logit():
    """Scaled to 12 at the clean input: in doubt below a twelfth of the logit there."""
    w = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    a = torch.tensor([[0.5 + d, 0.5] for d in (0.8, 1.2, 0.5, -0.8, -0.52, -0.1)]).double()
    calls, model = counted(lambda z: (z - 0.5) @ w)
    b = torch.tensor([1, 1, 1, 0, 0, 1])
    attack(model, a, b, LInf(0.49), bounds=(-9.0, 9.0))
    assert calls == [6] * 5 + [2] * 8  # 0.5 and −0.52: 0.01 and 0.03 are left of them


class Square(nn.Module):
    """Two logits, (‖a − c‖², 0): with label 1 the loss grows with the distance to c."""

    def __init__(self, center):
        super().__init__()
        self.register_buffer("center", center)

    def forward(self, a):
        square = (a - self.center).flatten(1).square().sum(1)
        return torch.stack([square, 0 * square], 1)


def test_one_step_ends_at_the_step_and_not_at_the_clean_input():
    # An attack that never evaluates its last iterate would return a.
    net, a, b = problem()
    z = attack(net, a, b, LInf(0.01), steps=1, step_size=0.01)
    expected = a + fgsm(loss_of(net, a, b), 0 * a, LInf(0.01), -a, 1 - a)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-12)
    assert (cross_entropy(net(z), b) > cross_entropy(net(a), b)).all()


class Bowl(nn.Module):
    """Class 1 away from the middle of the box, class 0 near it."""

    def forward(self, a):
        score = (a - 0.5).flatten(1).square().sum(1) - 0.01
        return torch.stack([0 * score, score], 1)


def test_an_input_stays_where_its_loss_is_lower_though_the_class_changes():
    """Ten classes nearly even, at the input, and one against one at the other end."""

    def model(a):
        x = a.sum(1, keepdim=True)
        return torch.cat([0 * x, 0.5 * x - 1e-3, *[-0.1 - 9 * x] * 8], 1)

    a, b = torch.zeros(1, 1), torch.tensor([0])
    assert cross_entropy(model(a + 1), b) < cross_entropy(model(a), b)
    assert robust_accuracy(model, a, b, LInf(1.0)) == 0
    assert torch.equal(attack(model, a, b, LInf(1.0)), a)


def test_inputs_that_a_rounding_put_outside_are_moved_back():
    net, a, b = problem(dtype=torch.float32)
    for outside in (a * (1 + 1e-6), a - 5e-7):
        assert outside.max() > 1 or outside.min() < 0
        before = outside.clone()
        z = attack(net, outside, b, LInf(0.1))
        assert ((z >= 0) & (z <= 1)).all() and torch.equal(outside, before)
        assert 0 <= robust_accuracy(net, outside, b, LInf(0.1)) <= 1
    with pytest.raises(ValueError, match=r"got \[0, 1.00001"):
        attack(net, a * (1 + 1e-5), b, LInf(0.1))


def test_restarts_keep_the_worst_and_not_the_last():
    for seed in range(3):
        net, a, b = problem(n=40, seed=seed)
        points = [attack(net, a, b, L2(0.5), 1, 0.0, restarts=k) for k in range(1, 9)]
        losses = [ranked(net, z, b) for z in points]
        for before, after in itertools.pairwise(losses):
            assert (after >= before).all()  # the first k starts are among the first k + 1
        assert (losses[-1] > losses[0]).any()


@pytest.mark.parametrize("Ball", BALLS)
def test_random_starts_are_uniform_in_the_ball(Ball):
    # Steps of length 0 stay at the start, and the loss makes a farther start the one that is kept.
    n, p, eps = 400, 3, 0.1
    a = torch.full((n, p), 0.5, dtype=torch.float64)
    b = torch.ones(n, dtype=torch.int64)
    z = attack(Square(a).eval(), a, b, Ball(eps), 1, 0.0, restarts=2)
    share = (Ball(eps).norm(z - a) / eps) ** p  # the share of the volume that is nearer
    assert kstest(share.numpy(), "uniform").pvalue > 0.01


def test_the_generator_alone_decides_the_random_starts():
    net, a, b = problem(n=20)

    def run(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return attack(net, a, b, L2(0.5), 1, 0.0, restarts=3, generator=generator)

    state = torch.get_rng_state()
    assert torch.equal(run(1), run(1)) and torch.equal(run(None), run(0))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(state, torch.get_rng_state())


def test_each_sample_has_its_own_radius():
    net, a, b = problem(n=4)
    radii = torch.tensor([0.02, 0.1, 0.3, 0.5]).double()
    for Ball in BALLS:
        together = attack(net, a, b, Ball(radii))
        for i in range(4):
            alone = attack(net, a[i : i + 1], b[i : i + 1], Ball(radii[i].item()))
            torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)

    net, a, b = problem(n=40)
    radii = 0.4 * uniform(40, seed=3)
    for Ball in BALLS:  # samples leave the search, each with its radius
        each = [robust_accuracy(net, a[i, None], b[i, None], Ball(radii[i])) for i in range(40)]
        assert 0 < np.mean(each) < 1
        assert robust_accuracy(net, a, b, Ball(radii), batch_size=25) == pytest.approx(
            np.mean(each)
        )


def test_other_bounds_and_a_custom_loss():
    net, a, b = problem(n=6)
    z = attack(net, 2 * a - 1, b, LInf(0.5), bounds=(-1, 1))
    assert ((z >= -1) & (z <= 1)).all()

    def margin(logits, b):
        return -logits.gather(1, b[:, None])[:, 0]

    free = attack(net, a, b, LInf(0.5), bounds=(-math.inf, math.inf), loss=margin)
    assert (margin(net(free), b) >= margin(net(a), b)).all() and (free < 0).any()


@pytest.mark.parametrize("Ball", BALLS)
def test_of_all_points_met_the_one_of_highest_loss_is_kept_whatever_the_loss(Ball):
    net, a, b = problem(n=12)
    met = []

    def watched(z):
        met.append(z.detach().clone())
        return net(z)

    def loss(logits, b):  # to the attack a loss that it does not know
        return cross_entropy(logits, b)

    z = attack(watched, a, b, Ball(0.4), steps=20, loss=loss)
    best = torch.stack([loss(net(points), b) for points in met if len(points) == 12]).amax(0)
    torch.testing.assert_close(loss(net(z), b), best, rtol=1e-12, atol=0)


@pytest.mark.parametrize("Ball", BALLS)
def test_an_infinite_gradient_is_climbed(Ball):
    """The root's slope at 0; a step of infinite length would be NaN."""

    def roots(a):
        root = a.sqrt().sum(1)
        return torch.stack([1 - root, root], 1)

    a, b = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    z = attack(roots, a, b, Ball(0.3))
    assert (roots(z)[:, 1] > 0.5).all()  # misclassified


def test_rounding_never_leaves_the_bounds():
    for seed, bounds in enumerate([(-0.3, 0.7), (-0.7, 0.3), (-0.1, 0.9), (-0.9, 0.1), (0.0, 1.0)]):
        rng = torch.Generator().manual_seed(seed)
        low, high = torch.tensor(bounds)
        a = (low + (high - low) * torch.rand(200, 50, generator=rng)).clamp(low, high)
        W = torch.randn(50, 2, generator=rng)
        b = torch.zeros(200, dtype=torch.int64)
        for Ball in BALLS:  # a radius beyond the box: a + η ends at the bounds, or rounds past
            z = attack(lambda a, W=W: a @ W, a, b, Ball(60.0), bounds=bounds)
            assert (z >= low).all() and (z <= high).all()


def test_attack_works_under_no_grad_and_inference_mode():
    net, a, b = problem()
    plain = attack(net, a, b, L2(0.3))
    with torch.no_grad():
        assert torch.equal(attack(net, a, b, L2(0.3)), plain)
        f, zero = loss_of(net, a, b), torch.zeros_like(a)
        assert (fgsm(f, zero, LInf(0.1)) != 0).any()
    with torch.inference_mode():
        torch.testing.assert_close(attack(net, a, b, L2(0.3)), plain)
        assert 0 < robust_accuracy(net, a, b, L2(0.3)) < 1
        f, zero = loss_of(net, a, b), torch.zeros_like(a)
        assert (fgsm(f, zero, LInf(0.1)) != 0).any()
        moved = pga(f, zero, LInf(0.1), 0.05, 3)
        made = a.clone(), b.clone()  # tensors of inference mode, which autograd refuses
    torch.testing.assert_close(attack(net, *made, L2(0.3)), plain)
    assert not plain.requires_grad
    torch.testing.assert_close(moved, pga(loss_of(net, a, b), 0 * a, LInf(0.1), 0.05, 3))


@pytest.mark.parametrize("Ball", BALLS)
def test_inputs_that_require_a_gradient_are_attacked_like_others(Ball):
    net, a, b = problem()
    plain = attack(net, a, b, Ball(0.3))
    followed = (a.clone().requires_grad_() * 1, a.clone().requires_grad_())
    for again in followed:
        found = attack(net, again, b, Ball(0.3))
        assert torch.equal(found, plain) and not found.requires_grad
        assert robust_accuracy(net, again, b, Ball(0.3)) == robust_accuracy(net, a, b, Ball(0.3))


def test_the_model_is_left_as_it_was_found():
    with models.weights_from(0):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        )
    net[1].running_mean.uniform_(0, 1, generator=torch.Generator().manual_seed(0))
    net.eval()
    net[0].weight.requires_grad_(False)
    a, b = uniform(6, 1, 4, 4, dtype=torch.float32), torch.arange(6) % 3
    net(a).sum().backward()
    parameters = dict(net.named_parameters())
    grads = {k: None if p.grad is None else p.grad.clone() for k, p in parameters.items()}
    state = {k: v.clone() for k, v in net.state_dict().items()}
    needs = {k: p.requires_grad for k, p in parameters.items()}
    inputs = a.clone()
    attack(net, a, b, L2(0.5), restarts=2)
    robust_accuracy(net, a, b, LInf(0.1), restarts=2)
    pga(loss_of(net, a, b), torch.zeros_like(a), L1(1.0), 0.1, 2)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    for k, p in net.named_parameters():
        assert p.requires_grad == needs[k]
        assert (p.grad is None) == (grads[k] is None)
        assert p.grad is None or torch.equal(p.grad, grads[k])
    assert not any(module.training for module in net.modules())
    assert torch.equal(a, inputs) and not a.requires_grad and a.grad is None


def test_an_empty_batch():
    net, a, b = problem()
    assert attack(net, a[:0], b[:0], L2(0.1)).shape == (0, 6)
    with pytest.raises(ValueError, match="needs samples"):
        robust_accuracy(net, a[:0], b[:0], L2(0.1))


REFUSALS = {
    "training mode": lambda n, a, b: attack(n.train(), a, b, LInf(0.1)),
    "training mode: call model.eval": lambda n, a, b: attack(
        nn.Sequential(n).eval().append(nn.Dropout()), a, b, LInf(0.1)
    ),
    "bounds": lambda n, a, b: attack(n, a * 255, b, LInf(0.1)),
    "NaN": lambda n, a, b: attack(n, a * math.nan, b, LInf(0.1)),
    "low < high": lambda n, a, b: attack(n, a, b, LInf(0.1), bounds=(1, 0)),
    "floats": lambda n, a, b: attack(n, a.long(), b, LInf(0.1)),
    r"labels must lie in 0\.\.2, got .*\.\.3": lambda n, a, b: attack(n, a, b * 0 + 3, LInf(0.1)),
    r"labels must lie in 0\.\.2, got -1": lambda n, a, b: attack(n, a, b * 0 - 1, LInf(0.1)),
    "labels must be int64": lambda n, a, b: attack(n, a, b.double(), LInf(0.1)),
    r"labels must be int64 \[5\]": lambda n, a, b: attack(n, a, b[:3], LInf(0.1)),
    "eps must be": lambda n, a, b: attack(n, a, b, LInf(-0.1)),
    "steps must be >= 1": lambda n, a, b: attack(n, a, b, LInf(0.1), steps=0),
    "steps must be >= 1, got -2": lambda n, a, b: attack(n, a, b, L2(0.1), steps=-2, step_size=1),
    "restarts must be >= 1": lambda n, a, b: attack(n, a, b, LInf(0.1), restarts=0),
    "step sizes must be finite": lambda n, a, b: attack(n, a, b, LInf(0.1), step_size=-1.0),
    "step sizes must be finite and": lambda n, a, b: attack(n, a, b, LInf(0.1), 2, [1, math.nan]),
    "one number for each of 3": lambda n, a, b: attack(n, a, b, LInf(0.1), 3, [0.1, 0.1]),
    "box": lambda n, a, b: pga(loss_of(n, a, b), 0 * a, LInf(0.1), 0.1, 1, 0.5, 1.0),
    "the box must hold 0": lambda n, a, b: fgsm(loss_of(n, a, b), 0 * a, LInf(0.1), -1, -0.5),
    "one value a sample": lambda n, a, b: fgsm(lambda e: e.sum(), 0 * a, LInf(0.1)),
    "loss must return one value a sample": lambda n, a, b: attack(
        n, a, b, LInf(0.1), loss=nn.functional.cross_entropy
    ),
    r"one value a sample, \[5\], got \[5, 1\]": lambda n, a, b: attack(
        n, a, b, LInf(0.1), loss=lambda z, b: cross_entropy(z, b)[:, None]
    ),
    r"must return logits, floats \[5, classes\], got torch.float64 \[5\]": lambda n, a, b: attack(
        lambda z: n(z)[:, 0], a, b, LInf(0.1)
    ),
    r"must return logits.*int64 \[5, 1\]": lambda n, a, b: robust_accuracy(
        lambda z: n(z).argmax(1, keepdim=True), a, b, LInf(0.1)
    ),
    r"must return logits.*\[2, 3\]": lambda n, a, b: attack(lambda z: n(z)[:2], a, b, LInf(0.1)),
    "must return logits.*tuple": lambda n, a, b: attack(lambda z: (n(z),), a, b, LInf(0.1)),
    "changes its input in place": lambda n, a, b: attack(lambda z: n(z.sub_(0.1)), a, b, LInf(0.1)),
    "radii for a batch of 5 samples": lambda n, a, b: attack(n, a, b, LInf(torch.full((9,), 0.1))),
    "1 radii for a batch": lambda n, a, b: robust_accuracy(n, a, b, LInf(torch.tensor([0.1]))),
    "steps must be >= 1, got 0": lambda n, a, b: attack(n, a, b, L1(0.1), 0, 0.1),
    "batch_size": lambda n, a, b: robust_accuracy(n, a, b, LInf(0.1), batch_size=0),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals_say_what_is_wrong(message):
    with pytest.raises(ValueError, match=message):
        REFUSALS[message](*problem())


# --- robust accuracy


@pytest.mark.parametrize("Ball", BALLS)
def test_robust_accuracy_is_the_share_that_no_iterate_fools(Ball):
    for seed in range(3):
        net, a, b = problem(n=40, seed=seed)
        b[::4] = (b[::4] + 1) % 3  # some are wrong from the start
        alphas, fooled, eta = [0.3, 0.2, 0.1], torch.zeros(40, dtype=torch.bool), 0 * a
        factor = factors(net, a)
        f = loss_of(lambda z, net=net, factor=factor: factor * net(z), a, b)
        for k in range(4):
            fooled |= net(a + eta).argmax(1) != b
            if k < 3:
                eta = pga(f, eta, Ball(0.4), alphas[k], 1, -a, 1 - a, steepest=True)
        accuracy = robust_accuracy(net, a, b, Ball(0.4), steps=3, step_size=alphas)
        assert accuracy == pytest.approx(1 - fooled.double().mean().item())
        attacked = net(attack(net, a, b, Ball(0.4), steps=3, step_size=alphas)).argmax(1) == b
        assert accuracy <= attacked.double().mean().item() + 1e-12
        batched = robust_accuracy(net, a, b, Ball(0.4), steps=3, step_size=alphas, batch_size=7)
        assert batched == pytest.approx(accuracy)


def test_robust_accuracy_stops_working_on_a_sample_once_it_is_fooled():
    net, a, b = problem(n=30)
    wrong = (b + 1) % 3
    calls, model = counted(net)
    assert robust_accuracy(model, a, wrong, LInf(0.1), restarts=5) == 0
    assert calls == [30]  # one look at the clean inputs
    calls.clear()
    robust_accuracy(model, a, b, LInf(0.3), steps=4, restarts=2)
    assert calls[0] == 30 and sorted(calls, reverse=True) == calls
    assert calls[-1] < 30


def test_robust_accuracy_takes_no_gradient_of_samples_that_are_gone():
    """Where a step loses more than half, the rest are looked at again, for a smaller graph."""
    net, a, b = problem(n=30)
    graph = []

    def model(z):
        graph.append((len(z), torch.is_grad_enabled()))
        return net(z)

    right = [right_under_attack(net, a, b, LInf(eps), steps=2).sum() for eps in (0.02, 0.3)]
    assert 15 < right[0] < 30 > 15 > right[1] > 0
    robust_accuracy(model, a, b, LInf(0.02), steps=2)
    assert graph[:2] == [(30, True), (30, True)] and len(graph) == 3
    assert graph[2][0] < 30 and not graph[2][1]
    graph.clear()
    robust_accuracy(model, a, b, LInf(0.3), steps=2)
    sizes, grad = zip(*graph, strict=True)
    assert grad == (True, True, True, False)
    assert sizes[:2] == (30, 30) and sizes[2] == sizes[3] < 15


def test_one_image_expanded_to_a_batch_is_attacked_as_its_copies_are():
    net, a, _ = problem(n=1)
    b = torch.arange(3)
    z = attack(net, a.expand(3, *a.shape[1:]), b, L2(0.5))
    assert torch.equal(z, attack(net, a.repeat(3, *[1] * (a.dim() - 1)), b, L2(0.5)))


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_logits_that_are_nan_are_no_class(classes):
    _, a, b = problem(n=30)
    b = b.clamp(max=1)

    def nan(z):
        return torch.full((len(z), classes), torch.nan) + 0 * z.sum()

    assert torch.equal(attack(nan, a, b, LInf(0.1)), a)
    assert robust_accuracy(nan, a, 0 * b, LInf(0.1)) == 0

    def hides(z):  # right on clean inputs, and no answer on others
        clean = torch.isin(z, a).all(1, keepdim=True)
        return torch.where(clean, 2 * b[:, None] - 1 + 0 * z[:, :1], torch.nan)

    with pytest.warns(NoGradientWarning, match="30 of 30"):
        assert robust_accuracy(hides, a, b, LInf(0.0)) == 1
    assert robust_accuracy(hides, a, b, LInf(0.1)) == 0


@pytest.mark.parametrize("Ball", [LInf, L2, L1])
def test_a_sample_without_gradient_is_moved_at_random(Ball):
    """A bowl has no gradient at its bottom, but everywhere else."""
    bowl = Bowl().eval()
    a, b = torch.full((6, 1, 2, 2), 0.5), torch.zeros(6, dtype=torch.int64)
    assert robust_accuracy(bowl, a, b, Ball(0.2), steps=3) == 0
    assert (bowl(attack(bowl, a, b, Ball(0.2), steps=3)).argmax(1) == 1).all()


class Staircase(nn.Module):
    """Two logits that a floor makes flat: no gradient anywhere."""

    def forward(self, a):
        step = (4 * a.sum(1)).floor()
        return torch.stack([2 - step, step], 1)


def test_a_model_without_any_gradient_is_told_by_how_many_samples():
    stairs = Staircase().eval()
    a = torch.tensor([[0.1, 0.1], [0.2, 0.1], [0.9, 0.9]])
    b = torch.zeros(3, dtype=torch.int64)
    with pytest.warns(NoGradientWarning, match="2 of 3 samples"):
        right = right_under_attack(stairs, a, b, LInf(0.01))
    assert right.tolist() == [True, True, False]
    with pytest.warns(NoGradientWarning, match="2 of 3 samples"):
        z = attack(stairs, a, b, LInf(0.01))
    assert torch.equal(z[2], a[2])
    with pytest.warns(NoGradientWarning, match="2 of 3 samples"):
        assert robust_accuracy(stairs, a, b, LInf(0.01), batch_size=1) == pytest.approx(2 / 3)
    # At random it is lost, where most moves lead to the next stair: then nothing is told.
    assert robust_accuracy(stairs, a[:1], b[:1], LInf(0.5), restarts=20) == 0
    with pytest.raises(ValueError, match="no gradient in its input"):
        attack(lambda z: stairs(z).detach(), a, b, LInf(0.1))


def test_a_step_at_random_begins_at_the_worst_point_so_far():
    met = []

    class Watched(Staircase):
        def forward(self, a):
            if not met or not torch.equal(met[-1], a):  # the margin's gradient asks once more
                met.append(a.detach().clone())
            return super().forward(a)

    a, b = torch.full((1, 6), 0.3), torch.ones(1, dtype=torch.int64)
    with pytest.warns(NoGradientWarning):
        z = attack(Watched().eval(), a, b, LInf(0.05), step_size=0.02, steps=40)
    stairs, back = [int((4 * point.sum()).floor()) for point in met], 0
    for k in range(1, len(met)):
        least = min(stairs[:k])  # of several as low the first is kept, unless one was just met
        begun = k - 1 if stairs[k - 1] == least else stairs.index(least)
        assert (met[k] - met[begun]).abs().max() <= 0.02 + 1e-6
        back += bool((met[k] - met[k - 1]).abs().max() > 0.02 + 1e-6)
    assert len(met) == 41 and back > 5 and torch.equal(z, met[stairs.index(min(stairs))])


# --- masks


def small_digits(seed=0, classes=10):
    """A small trained network, its float32 digits, and their labels."""
    torch.set_num_threads(1)
    train, test = data.digits("train")[:1500], data.digits("test")[:200]
    net = models.mlp(hidden=(40,), seed=seed)
    training.fit(net, train, training.erm(), epochs=4, progress=False)
    return net.eval(), test.a, test.b


@pytest.fixture(scope="module")
def masked():
    return small_digits()


def binary(net, one_logit):
    """Odd digits against even ones, by the same network."""

    def model(a):
        z = net(a)
        odd = z[:, 1::2].logsumexp(1) - z[:, ::2].logsumexp(1)
        return odd[:, None] if one_logit else torch.stack([0 * odd, odd], 1)

    return model


@pytest.mark.parametrize("logits", ["ten", "two", "one"])
@pytest.mark.parametrize("ball", [LInf(0.08), L2(1.2), L1(6.0)])
def test_a_factor_or_an_offset_of_the_logits_changes_nothing(masked, ball, logits):
    net, a, b = masked
    if logits != "ten":
        net, b = binary(net, logits == "one"), b % 2
    clean = (models.predict(net(a)) == b).sum()
    right = right_under_attack(net, a, b, ball)
    assert 0.2 * clean < right.sum() < 0.9 * clean
    kept = models.predict(net(attack(net, a, b, ball))) == b
    assert abs(int(kept.sum() - right.sum())) <= 1
    for factor, offset in ((1e-3, 0), (100, 0), (1e5, 0), (1, 100), (1, -1000)):
        if offset and logits == "one":
            continue

        def seen(z, factor=factor, offset=offset):
            return factor * net(z) + offset

        assert (right_under_attack(seen, a, b, ball) != right).sum() <= 1
        again = models.predict(net(attack(seen, a, b, ball))) == b
        assert (again != kept).sum() <= 1


def test_one_logit_is_attacked_as_two_are(masked):
    net, a, b = masked
    for label in (b % 2, 0 * b, 0 * b + 1):
        one, two = (
            right_under_attack(binary(net, single), a, label, LInf(0.05))
            for single in (True, False)
        )
        assert (one != two).sum() <= 1 and one.any()


def test_probabilities_are_attacked_like_logits(masked):
    net, a, b = masked
    right = right_under_attack(net, a, b, LInf(0.08))
    found = right_under_attack(lambda z: net(z).softmax(1), a, b, LInf(0.08))
    assert abs(int(found.sum() - right.sum())) <= 4


@pytest.mark.parametrize("Ball, eps", [(LInf, 0.08), (L2, 1.2)])
def test_where_a_loss_is_flat_the_margin_is_climbed(masked, Ball, eps):
    net, a, b = masked
    right = right_under_attack(net, a, b, Ball(eps)).sum()

    def hinge(logits, b):  # flat as soon as the margin is 1: at nearly every digit
        return (1 + margin(logits, b)).clamp(min=0)

    def plain(logits, b):  # in float32 flat where the logits are large
        return nn.functional.cross_entropy(logits, b, reduction="none")

    sure = margin(net(a), b) < -3
    near = attack(net, a[sure], b[sure], Ball(eps / 20), loss=hinge)  # between equal losses of 0
    assert (margin(net(near), b[sure]) > margin(net(a[sure]), b[sure])).all() and sure.sum() > 50
    for loss, factor in ((hinge, 1), (hinge, 100), (plain, 1000)):

        def seen(z, factor=factor):
            return factor * net(z)

        found = right_under_attack(seen, a, b, Ball(eps), loss=loss).sum()
        kept = (seen(attack(seen, a, b, Ball(eps), loss=loss)).argmax(1) == b).sum()
        assert max(found, kept) <= right + 6


def test_more_effort_never_finds_less(masked):
    efforts = {}, {"steps": 11}, {"steps": 40}, {"steps": 40, "restarts": 3}
    problems = [(masked, (LInf(0.05), L2(0.8), L1(4.0)))]
    for seed in range(3):  # waves, where more is to be found
        waves = 6 * normal(20, 3, seed=seed)
        a = uniform(200, 20, seed=seed)
        b = (a @ waves).sin().argmax(1)
        balls = LInf(0.03), L2(0.1), L1(0.3)
        problems.append(((lambda z, w=waves: (z @ w).sin(), a, b), balls))
    gained = 0
    for (net, a, b), balls in problems:
        for ball in balls:
            fooled = [~right_under_attack(net, a, b, ball, **effort) for effort in efforts]
            points = [attack(net, a, b, ball, **effort) for effort in efforts]
            wrong = [models.predict(net(z)) != b for z in points]
            for found in (fooled, wrong):
                for less, more in itertools.pairwise(found):
                    assert (less & ~more).sum() <= 1  # but for the rounding of other batches
                gained += int(found[-1].sum() - found[0].sum())
    assert gained > 50


def test_right_under_attack_says_which(masked):
    net, a, b = masked
    ball = L2(torch.linspace(0, 2, 200))
    right = right_under_attack(net, a, b, ball, batch_size=64)
    assert right.dtype == torch.bool and right.shape == (200,)
    assert robust_accuracy(net, a, b, ball, batch_size=64) == right.double().mean()
    alone = [right_under_attack(net, a[i, None], b[i, None], L2(ball.eps[i])) for i in range(60)]
    assert (torch.cat(alone) != right[:60]).sum() <= 1
    assert right_under_attack(net, a[:0], b[:0], L2(0.1)).shape == (0,)
    assert (right[:5] == (net(a[:5]).argmax(1) == b[:5])).all()  # radii near 0


class OnDevice(torch.Tensor):
    """Tensors that say they are on a GPU, so that its branches are taken."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("ball", [LInf(0.08), L2(1.2)])
def test_the_branch_of_a_gpu_finds_the_same(masked, ball):
    net, a, b = masked
    z = attack(net, a.as_subclass(OnDevice), b, ball)
    assert type(z) is OnDevice and torch.equal(z.as_subclass(torch.Tensor), attack(net, a, b, ball))


# --- foolbox


@pytest.fixture(scope="module")
def digit_models():
    torch.set_num_threads(1)
    train = data.digits("train")[:2000]
    nets = [models.linear(seed=1), models.mlp(hidden=(100,), seed=2), models.cnn(seed=3)]
    for net, epochs in zip(nets, (4, 4, 2), strict=True):
        training.fit(net, train, training.erm(), epochs=epochs, progress=False)
    return nets, data.digits("test")[:200]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("Ball, eps", [(LInf, 0.1), (L2, 1.5)])
def test_attack_is_at_least_as_strong_as_foolbox_at_equal_steps(digit_models, which, Ball, eps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import foolbox
    nets, digits = digit_models
    net, a, b = nets[which], digits.a, digits.b
    for steps in (5, 10):
        peer = {LInf: foolbox.attacks.LinfPGD, L2: foolbox.attacks.L2PGD}[Ball]
        peer = peer(rel_stepsize=0.25, steps=steps, random_start=False)
        theirs = peer(foolbox.PyTorchModel(net, (0, 1), device="cpu"), a, b, epsilons=eps)[1]
        ours = attack(net, a, b, Ball(eps), steps=steps)
        with torch.no_grad():
            loss = [cross_entropy(net(z), b).mean().item() for z in (theirs, ours)]
            right = [(net(z).argmax(1) == b).double().mean().item() for z in (theirs, ours)]
        assert loss[1] >= loss[0]
        assert right[1] <= right[0]
