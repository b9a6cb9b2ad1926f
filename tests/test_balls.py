"""lib.balls against optimality conditions, solvers, enumeration and exact distributions."""

import itertools
import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, stats

from lib.balls import L1, L2, LInf, _l2_box, check_box, clip, room

BALLS = [LInf, L2, L1]
EXACT = 1e-9
each_ball = pytest.mark.parametrize("Ball", BALLS)
each_seed = pytest.mark.parametrize("seed", [0, 1, 2])
examples = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# Problems: values with ties, zeros, huge and tiny entries; every kind of box and radius.

SHAPES = [(), (1,), (2,), (5,), (2, 1, 3)]
numbers = st.one_of(
    st.floats(-3, 3).map(lambda x: round(x, 6)),
    st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.5, 1.0]),
)
wild_numbers = st.one_of(numbers, st.sampled_from([-1e12, -1e-30, 1e-30, 1e12]))
bounds = st.one_of(st.floats(0.01, 2), st.sampled_from([0.0, 0.5, 1.0]))
radii = st.one_of(st.floats(0.1, 3), st.sampled_from([0.5, 1.0]))
wild_radii = st.sampled_from([0.0, 1.0, 1e-30, 1e-3, 1e12])
seldom = st.sampled_from([False, False, True])


def tensors(draw, entries, shape):
    return torch.from_numpy(draw(arrays(np.float64, shape, elements=entries, fill=st.nothing())))


@st.composite
def vectors(draw, count=1):
    shape = (draw(st.integers(1, 3)), *draw(st.sampled_from(SHAPES)))
    if not draw(seldom):
        return [tensors(draw, numbers, shape) for _ in range(count)]
    scale = draw(st.sampled_from([1.0, 1e12, 1e-30]))
    return [tensors(draw, wild_numbers, shape) * scale for _ in range(count)]


@st.composite
def bound(draw, shape):
    """None, a number, or a tensor that broadcasts to shape; entries >= 0, some of them 0."""
    kind = draw(st.sampled_from(["none", "number", "entry", "sample", "all"]))
    if kind == "none":
        return None
    if kind == "number":
        return draw(bounds)
    shapes = {"entry": (1, *shape[1:]), "sample": (shape[0], *[1] * (len(shape) - 1)), "all": shape}
    return tensors(draw, bounds, shapes[kind])


@st.composite
def problems(draw, count=1):
    """count tensors v of one shape, then eps, low and high."""
    vs = draw(vectors(count))
    some = wild_radii if draw(seldom) else radii
    eps = draw(some) if draw(st.booleans()) else tensors(draw, some, (len(vs[0]),))
    low, high = draw(bound(vs[0].shape)), draw(bound(vs[0].shape))
    return *vs, eps, None if low is None else -low, high


# What the tests measure with, written apart from lib.


def flat(v):
    return v.reshape(len(v), -1)


def dot(a, b):
    return (flat(a) * flat(b)).sum(1)


def size(v):
    return flat(v).square().sum(1).sqrt()


def largest(v):
    return flat(v).abs().max(1).values


def norm(Ball, v):
    return {LInf: largest, L2: size, L1: lambda v: flat(v).abs().sum(1)}[Ball](v)


def radius(eps, v):
    return torch.as_tensor(eps, dtype=v.dtype).expand(len(v))


def filled(bound, empty, v):
    return flat(torch.as_tensor(empty if bound is None else bound, dtype=v.dtype).expand(v.shape))


def assert_feasible(Ball, u, eps, low, high, tolerance=EXACT):
    assert torch.isfinite(u).all()
    assert (norm(Ball, u) <= radius(eps, u) * (1 + tolerance)).all()
    assert (flat(u) >= filled(low, -torch.inf, u)).all()
    assert (flat(u) <= filled(high, torch.inf, u)).all()


def kkt_residual(Ball, c, u, eps, low, high):
    """How far c[n, ...] is from the normal cone of the ball and the box at u, for each sample.

    u is the projection of v if and only if v − u is in that cone, and u is a linear maximizer
    for g if and only if g is. The cone: ν s + r with ν >= 0 (0 inside the ball), s a subgradient
    of the norm (of its square's half for ℓ2), r >= 0 at high, r <= 0 at low, 0 between.
    """
    rows = (flat(c), flat(u), filled(low, -torch.inf, u), filled(high, torch.inf, u))
    rule = {LInf: kkt_linf, L2: kkt_l2, L1: kkt_l1}[Ball]
    return torch.stack([rule(*row) for row in zip(*rows, radius(eps, u), strict=True)])


def wrong_push(c, u, low, high):
    """The largest part of c that pushes an entry where it is still free to go."""
    up, down = torch.where(u < high, c, 0), torch.where(u > low, -c, 0)
    return torch.maximum(up, down).clamp(min=0).max()


def kkt_linf(c, u, low, high, eps):
    return wrong_push(c, u, low.clamp(min=-eps), high.clamp(max=eps))


def kkt_l2(c, u, low, high, eps):
    if eps == 0:  # a single point: every direction is normal
        return u.abs().max()
    free = (u > low) & (u < high) & (u != 0)
    nu = c.new_zeros(())
    if free.any() and u.norm() >= eps * (1 - EXACT):
        nu = ((c * u)[free].sum() / u[free].square().sum()).clamp(min=0)
    return wrong_push(c - nu * u, u, low, high)


def kkt_l1(c, u, low, high, eps):
    push = c * u.sign()  # ν where an entry is free, at least ν where it is at its bound
    nonzero, free = u != 0, (u > low) & (u < high)
    zero = c.new_zeros(1)
    least = torch.cat([zero, push[nonzero & free], c[~nonzero & (high > 0)]])
    least = torch.cat([least, -c[~nonzero & (low < 0)]]).max()
    most = torch.cat([push[nonzero], zero + torch.inf]).min()
    if u.abs().sum() < eps * (1 - EXACT):
        most = most.clamp(max=0)
    return (least - most).clamp(min=0)


# Projection (slide 11).


@each_ball
@examples
@given(problem=problems())
def test_projection_is_feasible_and_satisfies_the_kkt_conditions(Ball, problem):
    v, eps, low, high = problem
    u = Ball(eps).project(v, low, high)
    assert_feasible(Ball, u, eps, low, high)
    residual = kkt_residual(Ball, v - u, u, eps, low, high)
    assert (residual <= EXACT * largest(v)).all()


@each_ball
@examples
@given(problem=problems())
def test_projection_satisfies_the_variational_inequality(Ball, problem):
    v, eps, low, high = problem
    ball = Ball(eps)
    u = ball.project(v, low, high)
    w = ball.lmo(v - u, low, high)  # where <v − u, w> is largest over the set
    assert (dot(v - u, w - u) <= EXACT * size(v) * (size(u) + size(w))).all()


@each_ball
@examples
@given(problem=problems())
def test_projection_is_idempotent(Ball, problem):
    v, eps, low, high = problem
    ball = Ball(eps)
    u = ball.project(v, low, high)
    assert (largest(ball.project(u, low, high) - u) <= EXACT * largest(u)).all()


@each_ball
@examples
@given(problem=problems(count=2))
def test_projection_is_nonexpansive(Ball, problem):
    v, w, eps, low, high = problem
    ball = Ball(eps)
    distance = size(ball.project(v, low, high) - ball.project(w, low, high))
    assert (distance <= size(v - w) * (1 + EXACT) + EXACT * radius(eps, v)).all()


@each_ball
@examples
@given(problem=problems())
def test_points_of_the_set_do_not_move(Ball, problem):
    v, eps, low, high = problem
    v = clip(v, low, high)
    inside = norm(Ball, v) <= radius(eps, v)
    assert torch.equal(Ball(eps).project(v, low, high)[inside], v[inside])


def random_problem(seed, p=6):
    """v, eps, low, high with p entries, some bounds 0, now and then no box."""
    generator = np.random.default_rng(seed)
    v, eps = generator.normal(size=p) * generator.choice([0.3, 1, 5]), generator.uniform(0.1, 2)
    low, high = -generator.uniform(0, 1, p), generator.uniform(0, 1, p)
    low[generator.integers(p)] = high[generator.integers(p)] = 0
    kind = generator.integers(4)
    return v, eps, None if kind == 0 else low, None if kind <= 1 else high


def as_batch(*arrays):
    return [None if a is None else torch.tensor(a)[None] for a in arrays]


def solve(objective, u, Ball, eps, low, high):
    limits = [cp.norm(u, {LInf: "inf", L2: 2, L1: 1}[Ball]) <= eps]
    limits += [] if low is None else [u >= low]
    limits += [] if high is None else [u <= high]
    tight = dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], 1e-9)
    problem = cp.Problem(objective, limits)
    problem.solve(solver=cp.CLARABEL, **tight)
    assert problem.status == cp.OPTIMAL
    return problem.value


@each_ball
@pytest.mark.parametrize("seed", range(12))
def test_projection_is_the_prox_of_the_indicator_for_every_lambda_by_a_solver(Ball, seed):
    v, eps, low, high = random_problem(seed)
    [ours] = Ball(eps).project(*as_batch(v, low, high)).numpy()
    for lam in (0.1, 1, 10):
        u = cp.Variable(len(v))
        best = solve(cp.Minimize(cp.sum_squares(u - v) / (2 * lam)), u, Ball, eps, low, high)
        assert ((ours - v) ** 2).sum() / (2 * lam) == pytest.approx(best, rel=1e-7, abs=1e-7)
        np.testing.assert_allclose(ours, u.value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(10))
def test_the_secant_method_alone_projects_moved_images_onto_ball_and_box(seed, dtype, monkeypatch):
    """Without the exact method behind it, which would hide that it fails or is never used."""
    generator = torch.Generator().manual_seed(seed)
    a = (torch.randn(40, 784, generator=generator, dtype=dtype) / 2).clamp(0, 1)
    v = torch.randn(40, 784, generator=generator, dtype=dtype) * 0.1 * 3 ** (seed % 5 - 1)
    exact = _l2_box.scale_to_norm(v, torch.tensor([[1.5]], dtype=dtype), -a, 1 - a)
    monkeypatch.setattr(_l2_box, "project_exactly", None)
    found = L2(1.5).project(v, -a, 1 - a)
    inside = clip(v, -a, 1 - a).norm(dim=1) <= 1.5
    assert seed % 5 == 0 or not inside.all()
    near = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[~inside], exact[~inside], rtol=0, atol=1.5 * near)
    assert torch.equal(found[inside], clip(v, -a, 1 - a)[inside])


@examples
@given(problem=problems())
def test_near_projections_are_those_of_a_ball_of_at_least_999_thousandths_of_the_radius(problem):
    v, eps, low, high = problem
    u, exact = L2(eps).project_within(v, low, high), L2(eps).project(v, low, high)
    assert_feasible(L2, u, eps, low, high)
    assert (size(u) >= 0.999 * size(exact)).all()
    own = L2(size(u)).project(v, low, high)
    assert (size(u - own) <= 1e-9 * size(own)).all()


@pytest.mark.parametrize("method", ["project", "project_within"])
@pytest.mark.parametrize("eps", [1e-18, 1e-25, 1e-38])
def test_projections_on_tiny_balls_do_not_leave_them(eps, method):
    v = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    u = getattr(L2(eps), method)(v, -1.0, 1.0)  # in float32 the squares underflow
    assert (size(u.double()) <= eps * (1 + 1e-5)).all()
    assert (size(u.double()) >= 0.99 * eps).all()


@pytest.mark.parametrize("method", ["project", "project_within"])
def test_projections_in_float32_stay_in_balls_and_boxes_of_every_size(method):
    """Some squares underflow, and the norm seems smaller than it is."""
    generator = torch.Generator().manual_seed(0)

    def sizes(*shape, least, most):
        return 10 ** (least + (most - least) * torch.rand(*shape, generator=generator))

    for p in range(1, 40):
        eps = sizes(400, least=-19, most=4)
        v = torch.randn(400, p, generator=generator) * sizes(400, 1, least=-6, most=6)
        low, high = -sizes(400, p, least=-12, most=4), sizes(400, p, least=-12, most=4)
        u = getattr(L2(eps), method)(v, low, high)
        assert (size(u.double()) <= eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("seed", range(5))
def test_moved_images_are_projected_nearly_and_not_exactly(seed, monkeypatch):
    """Else nothing is gained: the exact method is for boxes that hold nearly all of the norm."""
    generator = torch.Generator().manual_seed(seed)
    a = (torch.randn(40, 784, generator=generator) / 2).clamp(0, 1)
    v = torch.randn(40, 784, generator=generator) * 0.1 * 3 ** (seed % 3)
    monkeypatch.setattr(_l2_box, "project_exactly", None)
    share = L2(1.5).project_within(v, -a, 1 - a).norm(dim=1) / 1.5
    assert ((share >= 0.999) & (share <= 1 + 1e-6)).all() and (share < 1 - 1e-6).any()


def test_clipping_after_the_l2_projection_is_not_the_projection_onto_ball_and_box():
    v, low, high = as_batch([1.0, 1.0], [-0.9, -0.2], [0.1, 0.8])
    ball = L2(0.5)
    both = ball.project(v, low, high)
    ball_then_box, box_then_ball = (
        clip(ball.project(v), low, high),
        ball.project(clip(v, low, high)),
    )

    def near(u, expected):
        return torch.allclose(u, torch.tensor([expected], dtype=u.dtype), rtol=0, atol=1e-6)

    assert near(both, [0.1, 0.489898])
    assert near(ball_then_box, [0.1, 0.353553])
    assert near(box_then_ball, [0.062017, 0.496139])
    assert size(v - both) < min(size(v - ball_then_box), size(v - box_then_ball))


@examples
@given(problem=problems())
def test_for_linf_clipping_to_ball_and_then_box_is_the_projection(problem):
    v, eps, low, high = problem
    eps = radius(eps, v).reshape(-1, *[1] * (v.dim() - 1)).expand(v.shape)
    top = eps if high is None else torch.minimum(eps, torch.as_tensor(high, dtype=v.dtype))
    bottom = -eps if low is None else torch.maximum(-eps, torch.as_tensor(low, dtype=v.dtype))
    expected = torch.minimum(torch.maximum(v, bottom), top)
    assert torch.equal(LInf(problem[1]).project(v, low, high), expected)


# Linear maximization (slides 8, 9).


@each_ball
@examples
@given(problem=problems())
# Rounding once left 1e-16 of eps over for the second entry.
@example(problem=(torch.tensor([[1e12, -1.0]]).double(), 1.0, -0.8782001278748216, None))
def test_lmo_is_feasible_and_satisfies_the_kkt_conditions(Ball, problem):
    g, eps, low, high = problem
    u = Ball(eps).lmo(g, low, high)
    assert_feasible(Ball, u, eps, low, high)
    assert (kkt_residual(Ball, g, u, eps, low, high) <= EXACT * largest(g)).all()
    assert (u[g == 0] == 0).all()


@each_ball
@examples
@given(problem=problems())
def test_lmo_without_a_box_attains_eps_times_the_dual_norm(Ball, problem):
    g, eps, *_ = problem
    ball = Ball(eps)
    u = ball.lmo(g)
    expected = radius(eps, g) * ball.dual_norm(g)
    torch.testing.assert_close(dot(g, u), expected, rtol=EXACT, atol=0)
    if Ball is L1:
        assert ((flat(u) != 0).sum(1) <= 1).all()


@pytest.mark.parametrize("Ball", [LInf, L1])
@pytest.mark.parametrize("seed", range(12))
def test_lmo_attains_the_maximum_of_a_linear_program(Ball, seed):
    g, eps, low, high = random_problem(seed)
    p = len(g)
    ours = Ball(eps).lmo(*as_batch(g, low, high)).numpy()[0]
    up, down = (np.full(p, np.inf) if b is None else abs(b) for b in (high, low))
    room = np.concatenate([up, down])  # u = a − b with a, b >= 0
    if Ball is LInf:
        best = optimize.linprog(np.concatenate([-g, g]), bounds=[(0, min(r, eps)) for r in room])
    else:
        total = {"A_ub": np.ones((1, 2 * p)), "b_ub": [eps]}
        best = optimize.linprog(np.concatenate([-g, g]), bounds=[(0, r) for r in room], **total)
    assert best.success
    assert g @ ours == pytest.approx(-best.fun, abs=EXACT)


@each_ball
@pytest.mark.parametrize("seed", range(12))
def test_lmo_attains_the_maximum_of_a_conic_solver(Ball, seed):
    g, eps, low, high = random_problem(seed)
    [ours] = Ball(eps).lmo(*as_batch(g, low, high)).numpy()
    u = cp.Variable(len(g))
    best = solve(cp.Maximize(g @ u), u, Ball, eps, low, high)
    assert g @ ours == pytest.approx(best, rel=1e-7, abs=1e-7)


# Norms (slides 7, 8).


@pytest.mark.parametrize(("Ball", "Dual"), [(LInf, L1), (L2, L2), (L1, LInf)])
@examples
@given(pair=vectors(count=2))
def test_norms_are_dual_in_pairs_and_satisfy_hoelder(Ball, Dual, pair):
    g, v = pair
    ball, dual = Ball(1.0), Dual(1.0)
    torch.testing.assert_close(ball.norm(v), norm(Ball, v), rtol=EXACT, atol=0)
    torch.testing.assert_close(ball.dual_norm(g), dual.norm(g), rtol=EXACT, atol=0)
    assert (dot(g, v) <= ball.norm(v) * ball.dual_norm(g) * (1 + EXACT)).all()


@each_seed
def test_dual_norms_by_enumeration_of_the_extreme_points(seed):
    p = 7
    g = torch.randn(4, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=p)), dtype=torch.float64)
    axes = torch.cat([torch.eye(p), -torch.eye(p)]).double()
    for Ball, points in ((LInf, corners), (L1, axes)):
        values = g @ points.T
        torch.testing.assert_close(Ball(1.0).dual_norm(g), values.amax(1), rtol=0, atol=EXACT)
        torch.testing.assert_close(Ball(1.0).lmo(g), points[values.argmax(1)], rtol=0, atol=EXACT)
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    values = (g[:, :2] @ circle).amax(1)
    torch.testing.assert_close(L2(1.0).dual_norm(g[:, :2]), values, rtol=EXACT, atol=0)


# Batches and types.


@each_ball
@examples
@given(problem=problems())
def test_each_sample_is_treated_alone(Ball, problem):
    v, eps, low, high = problem
    for method in ("project", "lmo", "project_within"):
        together = getattr(Ball(eps), method)(v, low, high)
        for i in range(len(v)):
            box = [
                b[i : i + 1] if isinstance(b, torch.Tensor) and len(b) == len(v) else b
                for b in (low, high)
            ]
            alone = getattr(Ball(float(radius(eps, v)[i])), method)(v[i : i + 1], *box)
            torch.testing.assert_close(together[i : i + 1], alone, rtol=EXACT, atol=0)


@each_ball
@each_seed
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e6])
def test_float32_images_stay_feasible_optimal_and_float32(Ball, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(3, 3, 16, 16, generator=generator)
    v = torch.randn(a.shape, generator=generator) * scale
    v[:, 0] = 0
    v[:, 1, 0] = v[:, 1, 1]
    given_v, low, high = v.clone(), -a, 1 - a
    for eps in (0.0, 0.03, 3.0, torch.tensor([0.1, 1.0, 100.0])):
        exact = Ball(eps.double() if isinstance(eps, torch.Tensor) else eps)
        for box in ((None, None), (low, None), (low, high)):
            u, w = Ball(eps).project(v, *box), Ball(eps).lmo(v, *box)
            assert u.dtype == w.dtype == torch.float32
            for point in (u, w):
                assert_feasible(Ball, point, eps, *box, tolerance=1e-5)
            assert (w[v == 0] == 0).all()
            wide = [None if b is None else b.double() for b in box]
            best = dot(v.double(), exact.lmo(v.double(), *wide))
            assert (dot(v.double(), w.double()) >= best * (1 - 1e-5)).all()
            nearest = exact.project(v.double(), *wide)
            # 1e-20: below that a square is no float32.
            assert (largest(u - nearest) <= 1e-5 * radius(eps, v) + 1e-6 * scale + 1e-20).all()
    assert torch.equal(v, given_v)


@each_ball
def test_an_empty_batch_gives_an_empty_batch(Ball):
    ball, empty = Ball(0.5), torch.zeros(0, 2, 3)
    assert ball.norm(empty).shape == ball.dual_norm(empty).shape == (0,)
    for box in ((), (-1.0, 1.0), (-empty, empty)):
        for method in (ball.project, ball.project_within, ball.lmo):
            assert method(empty, *box).shape == (0, 2, 3)
    assert ball.sample((0, 2, 3)).shape == (0, 2, 3)
    assert Ball(torch.zeros(0)).project(empty).shape == (0, 2, 3)


def test_room_and_clip_follow_the_sign_and_the_bounds():
    v = torch.tensor([[-2.0, 0.0, 2.0]])
    assert room(v, None, None).tolist() == [[torch.inf] * 3]
    assert room(v, -0.25, 0.75).tolist() == [[0.25, 0.25, 0.75]]
    assert clip(v, None, 0.5).tolist() == [[-2.0, 0.0, 0.5]]
    assert clip(v, torch.tensor([-1.0, 0.0, 0.0]), None).tolist() == [[-1.0, 0.0, 2.0]]


# Samples.


@each_ball
@each_seed
@pytest.mark.parametrize("shape", [(4000,), (4000, 2), (4000, 5), (4000, 2, 3, 4)])
def test_samples_fill_the_ball_uniformly_by_volume(Ball, seed, shape):
    # Uniform in volume means that the share of the ball inside ‖v‖ is uniform in [0, 1].
    eps = torch.linspace(0.1, 3, shape[0]) if seed == 0 else 0.3
    v = Ball(eps).sample(shape, torch.Generator().manual_seed(seed))
    assert v.shape == shape
    assert_feasible(Ball, v, eps, None, None, tolerance=1e-6)
    share = (norm(Ball, v) / radius(eps, v)) ** math.prod(shape[1:])
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3


@each_ball
@each_seed
def test_samples_have_the_exact_marginal_law_of_each_coordinate_in_the_plane(Ball, seed):
    # The marginal density is the length of the ball's chord: 1, √(1 − x²) or 1 − |x|, normalized.
    def disk(x):
        return 0.5 + (x * np.sqrt(1 - x**2) + np.arcsin(x)) / np.pi

    law = {LInf: stats.uniform(-1, 2).cdf, L2: disk, L1: stats.triang(0.5, -1, 2).cdf}[Ball]
    v = Ball(0.3).sample((4000, 2), torch.Generator().manual_seed(seed)).numpy() / 0.3
    for coordinate in v.T:
        assert stats.kstest(coordinate, law).pvalue > 1e-3
        assert stats.ks_2samp(coordinate, -coordinate).pvalue > 1e-3
    quadrant = (v[:, 0] > 0).astype(int) + 2 * (v[:, 1] > 0)
    assert stats.chisquare(np.bincount(quadrant)).pvalue > 1e-3


@each_ball
@each_seed
def test_samples_repeat_with_the_generator_and_leave_the_global_one_alone(Ball, seed):
    before = torch.get_rng_state()
    first, again, other = (
        Ball(0.3).sample((5, 3, 2), torch.Generator().manual_seed(s))
        for s in (seed, seed, seed + 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@each_ball
def test_samples_do_not_depend_on_torch_s_defaults(Ball):
    expected = Ball(0.3).sample((5, 3), torch.Generator().manual_seed(0))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        found = Ball(0.3).sample((5, 3), torch.Generator("cpu").manual_seed(0))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


# Narrow types and the ends of the wide ones.


@each_ball
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [5.0, 0.05, 0.005])
def test_half_precision_is_right_to_its_own_rounding(Ball, dtype, eps):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(4, 3, 32, 32, generator=generator)
    v = (torch.rand(a.shape, generator=generator) - 0.5).to(dtype)
    low, high = (-a).to(dtype), (1 - a).to(dtype)
    wide = [t.double() for t in (v, low, high)]
    unit = torch.finfo(dtype).eps
    for box in ((), (1, 2)):
        for method in ("project", "project_within", "lmo"):
            found = getattr(Ball(eps), method)(v, *((low, high) if box else ()))
            exact = getattr(Ball(eps), method)(wide[0], *(wide[i] for i in box))
            assert found.dtype == dtype
            slack = unit * exact.abs() + 1e-3 * eps / (1 if Ball is LInf else 10)
            assert ((found.double() - exact).abs() <= slack).all()
            assert (norm(Ball, found.double()) <= eps * (1 + 2 * unit)).all()
    exact = Ball(1.0).norm(wide[0])
    torch.testing.assert_close(Ball(1.0).norm(v).double(), exact, rtol=unit, atol=0)


@pytest.mark.parametrize("Ball", [L1, L2])
def test_norms_of_half_precision_go_beyond_its_range(Ball):
    v = torch.full((1, 200_000), 60_000.0, dtype=torch.float16)
    exact = norm(Ball, v.double()).float()
    torch.testing.assert_close(Ball(1.0).norm(v), exact, rtol=1e-4, atol=0)


@each_ball
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", ["tiny", "huge"])
def test_everything_scales_to_the_ends_of_the_type(Ball, dtype, end):
    """All is homogeneous: with v, eps and the box times 2^k, so is the result."""
    generator = torch.Generator().manual_seed(0)
    exponent = {torch.float32: 115, torch.float64: 990}[dtype] * (1 if end == "huge" else -1)
    k = 2.0**exponent
    v = torch.randn(6, 5, generator=generator, dtype=torch.float64).to(dtype)
    v[0] = 0
    low, high = -torch.rand(6, 5, generator=generator).to(dtype), 0.3
    eps = torch.tensor([1.0, 0.5, 0.1, 2.0, 10.0, 0.0], dtype=torch.float64)
    tolerance = {"rtol": 64 * torch.finfo(dtype).eps, "atol": 0}
    for box in ((None, None), (low, high)):
        for method in ("project", "lmo"):
            expected = getattr(Ball(eps), method)(v, *box)
            scaled = [None if c is None else c * k for c in box]
            found = getattr(Ball(eps * k), method)(v * k, *scaled) / k
            torch.testing.assert_close(found, expected, **tolerance)
            u = Ball(eps * k).project_within(v * k, *scaled) / k
            within = Ball(0.999 * eps).project(v, *box)
            assert (norm(Ball, u) >= norm(Ball, within) * (1 - 1e-5)).all()
            assert (norm(Ball, u) <= radius(eps, u) * (1 + 1e-5)).all()
    for measure in ("norm", "dual_norm"):
        expected = getattr(Ball(1.0), measure)(v)
        torch.testing.assert_close(getattr(Ball(1.0), measure)(v * k) / k, expected, **tolerance)
    unit_move = Ball(1.0).lmo(v)  # the size of g alone changes nothing
    torch.testing.assert_close(Ball(1.0).lmo(v * k), unit_move, **tolerance)


@each_ball
def test_a_radius_beyond_the_type_s_range_is_its_largest_number(Ball):
    v = torch.tensor([[3.0, 0.0, -4.0]])
    assert torch.equal(Ball(1e39).project(v), v)
    assert torch.equal(Ball(1e39).lmo(v, -1.0, 2.0), torch.tensor([[2.0, 0.0, -1.0]]))
    u = Ball(1e39).lmo(v)
    assert torch.isfinite(u).all() and u[0, 1] == 0 and u[0, 2] < -1e38


def test_the_norm_s_gradient_is_right_for_samples_of_every_size():
    v = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-30, 4e-30], [3e25, 4e25]], requires_grad=True)
    [g] = torch.autograd.grad(L2(1.0).norm(v).sum(), v)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    torch.testing.assert_close(g, expected, rtol=1e-6, atol=0)


# Bounds and their rounding.


@each_ball
def test_inputs_that_rounding_puts_outside_their_bounds_are_none_outside(Ball):
    a = torch.tensor([[1 + 2**-23, 0.5, -(2.0**-24)]])  # meant: [1, 0.5, 0]
    v = torch.tensor([[1.0, 2.0, -1.0]])
    u = Ball(10.0).project(v, -a, 1 - a)
    torch.testing.assert_close(u, torch.tensor([[0.0, 0.5, 0.0]]), rtol=0, atol=0)
    low, high = check_box(-a.double() + 1e-9, 1 - a)  # the coarser type of the two counts
    assert (low <= 0).all() and (high >= 0).all() and high.dtype == torch.float32


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (torch.tensor([1e-5]), 1.0),
        (-1.0, torch.tensor([-1e-5])),
        (torch.tensor([5.0]), math.inf),
        (torch.tensor([1e-9]), None),  # no width to compare with
        (1e-12, 1.0),  # numbers have all digits of float64
        (torch.tensor([1]), torch.tensor([2])),
        (0.5, -0.5),
    ],
)
def test_what_rounding_does_not_explain_is_refused(low, high):
    with pytest.raises(ValueError, match="low <= 0 <= high"):
        check_box(low, high)


def test_the_message_says_what_the_bounds_hold():
    with pytest.raises(ValueError, match=r"for low entries from -1 to 0\.25, for high no bound"):
        check_box(torch.tensor([-1.0, 0.25]), None)


@pytest.mark.parametrize("shape", [(5, 2), (3, 1, 2), (3,), (1, 3, 2)])
def test_bounds_that_do_not_broadcast_to_the_batch_are_refused(shape):
    for name in ("low", "high"):
        with pytest.raises(ValueError, match=rf"{name} must be .* broadcasts .* \[3, 2\]"):
            L2(1.0).project(torch.ones(3, 2), **{name: torch.zeros(shape)})
    one = torch.ones(1, 2)  # would grow to five samples
    with pytest.raises(ValueError, match="low must be"):
        LInf(1.0).lmo(one, low=-torch.ones(5, 2))


@each_ball
def test_radii_may_come_as_arrays_and_lists(Ball):
    v = torch.full((3, 4), 9.0)
    radii = [0.5, 0.25, 1.0]
    expected = Ball(torch.tensor(radii)).project(v)
    for eps in (radii, tuple(radii), np.array(radii), np.array(radii, np.float32)):
        ball = Ball(eps)
        torch.testing.assert_close(ball.project(v), expected, rtol=1e-6, atol=0)
        part = ball.part(torch.tensor([2, 0]))
        torch.testing.assert_close(part.project(v[:2]), expected[[2, 0]], rtol=1e-6, atol=0)
    for eps in (1, np.float32(1), np.int64(1), torch.tensor(1)):
        assert torch.equal(Ball(eps).project(v), Ball(1.0).project(v))
        assert torch.equal(Ball(eps).part(torch.tensor([2])).project(v), Ball(1.0).project(v))


# Refusals.


@each_ball
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_a_batch_of_integers_is_refused_and_not_cut_to_whole_numbers(Ball, dtype):
    v, ball = torch.tensor([[3, 2, 0]]).to(dtype), Ball(0.5)
    calls = [ball.project, ball.project_within, ball.lmo, ball.norm, ball.dual_norm, ball.radius]
    calls += [lambda v: clip(v, None, 0.5), lambda v: room(v, -0.5, 0.5)]
    calls += [lambda v: ball.project(v, check=False), lambda v: ball.lmo(v, check=False)]
    for call in calls:
        with pytest.raises(ValueError, match=r"[vg] must hold floats, got .*: pass [vg].float"):
            call(v)


@each_ball
@pytest.mark.parametrize("shape", [(), (3, 0), (0, 2, 0)])
def test_a_tensor_that_is_no_batch_is_refused(Ball, shape):
    ball, v = Ball(0.5), torch.zeros(shape)
    for call in (ball.project, ball.lmo, ball.norm, ball.dual_norm, ball.radius):
        with pytest.raises(ValueError, match=r"must be a batch \[n, ...\]"):
            call(v)


@each_ball
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(Ball, bad):
    v = torch.ones(3, 2, 2)
    v[1, 0, 1] = bad
    with pytest.raises(ValueError, match="v must be finite, got NaN or infinity in 1 of 3"):
        Ball(0.5).project(v)
    with pytest.raises(ValueError, match="g must be finite"):
        Ball(0.5).lmo(v)
    huge = torch.full((2, 4), torch.finfo(torch.float32).max)  # its sum is not finite
    assert torch.isfinite(Ball(0.5).project(huge)).all()


@each_ball
@pytest.mark.parametrize("eps", [-0.1, math.nan, math.inf, torch.tensor([0.1, -1e-9]), -1, 1j])
def test_a_radius_that_is_negative_nan_or_infinite_is_refused(Ball, eps):
    with pytest.raises(ValueError, match="eps must be finite and >= 0"):
        Ball(eps)


@each_ball
@pytest.mark.parametrize("count", [1, 2, 100])
def test_radii_of_the_wrong_shape_or_number_are_refused(Ball, count):
    with pytest.raises(ValueError, match=r"a number or a tensor \[n\], got shape \[2, 1\]"):
        Ball(torch.ones(2, 1))
    ball = Ball(torch.ones(count))
    calls = [ball.project, ball.project_within, ball.lmo, ball.radius]
    calls += [lambda v: ball.project(v, check=False), lambda v: ball.lmo(v, check=False)]
    calls += [lambda v: ball.project(v, -1.0, 1.0), lambda v: ball.sample(tuple(v.shape))]
    for call in calls:
        for n in (3, 0):
            with pytest.raises(ValueError, match=f"{count} radii for a batch of {n}"):
                call(torch.full((n, 4), 9.0))


@each_ball
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.1, 1.0), (-1.0, -0.1), (math.nan, 1.0), (None, torch.tensor([1.0, math.nan]))],
)
def test_a_box_that_does_not_hold_zero_is_refused(Ball, low, high):
    for call in (Ball(0.5).project, Ball(0.5).lmo):
        with pytest.raises(ValueError, match="low <= 0 <= high"):
            call(torch.ones(3, 2), low, high)
    with pytest.raises(ValueError, match="low <= 0 <= high"):
        check_box(low, high)


@each_ball
def test_without_checks_the_numbers_are_the_same(Ball):
    v, a = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.full((5, 7), 0.25)
    for method in ("project", "lmo"):
        for box in ((), (-a, 1 - a)):
            call = getattr(Ball(1.0), method)
            assert torch.equal(call(v, *box, check=False), call(v, *box))
    inside = v / 1e3
    assert torch.equal(Ball(1.0).project(inside, check=False), inside)


@pytest.mark.parametrize("Ball", [L1, L2, LInf])
def test_a_projection_is_a_tensor_of_its_own_even_of_points_inside(Ball):
    v = torch.tensor([[0.1, 0.1], [0.2, 0.0]])
    for box in ({}, {"low": -1.0, "high": 1.0}):
        Ball(1.0).project(v, **box).add_(9)
        assert torch.equal(v, torch.tensor([[0.1, 0.1], [0.2, 0.0]]))


@pytest.mark.parametrize("tiny", [0.0, 1e-30])
def test_a_sample_s_projection_does_not_depend_on_its_neighbor_s_radius(tiny):
    v = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    ball, alone = L2(torch.tensor([tiny, 0.7, 2.0])), L2(torch.tensor([0.7, 2.0]))
    for low, high in ((None, None), (-0.1, 0.2)):
        for name in ("project", "project_within"):
            u = getattr(ball, name)(v, low, high)
            torch.testing.assert_close(
                u[1:], getattr(alone, name)(v[1:], low, high), rtol=0, atol=0
            )
            assert float(u[0].norm()) <= tiny * (1 + 1e-6)
