"""lib.danskin: KKT in exact arithmetic, cvxpy, finite differences, and the slides' toy run."""

import math
from fractions import Fraction
from itertools import pairwise

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import danskin, models
from lib.danskin import (
    descent_direction,
    directional_derivative,
    gradients,
    min_norm_point,
)

SEEDS = 0, 1, 2


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(g, factor=1000.0, seed=0):
    """The rows with norms spread evenly on a logarithmic scale over the factor."""
    order = torch.randperm(len(g), generator=torch.Generator().manual_seed(seed))
    norms = factor ** torch.linspace(0, 1, len(g), dtype=g.dtype)[order]
    return g / g.norm(dim=1, keepdim=True) * norms[:, None]


def exact_residual(g, weights):
    """The KKT residual of these very numbers, in rational arithmetic: no rounding of its own."""
    g = [[Fraction(x) for x in row] for row in g.tolist()]
    weights = [Fraction(w) for w in weights.tolist()]
    assert min(weights) >= 0 and abs(sum(weights) - 1) < Fraction(1, 10**14)
    weights = [w / sum(weights) for w in weights]
    point = [sum(w * x for w, x in zip(weights, c, strict=True)) for c in zip(*g, strict=True)]

    def inner(x, y):
        return sum(s * t for s, t in zip(x, y, strict=True))

    gap = inner(point, point) - min(inner(point, row) for row in g)
    assert gap >= 0
    scale = min(inner(row, row) for row in g)
    return float(gap / scale) if scale else float(gap)


def hard(kind, k, p, seed):
    g = normal(k, p, seed=seed)
    if kind == "duplicates":
        g = spread(g, seed=seed)[torch.arange(k) // 2]
    elif kind == "collinear":  # one line, both ways from 0, so that 0 is in the hull
        g = spread(normal(1, p, seed=seed).expand(k, p) * (-1.0) ** torch.arange(k)[:, None])
    elif kind == "collinear, one side":
        g = spread(normal(1, p, seed=seed).expand(k, p), seed=seed)
    elif kind == "0 in the hull":
        g = spread(g, seed=seed)
        g[-1] = -g[:-1].sum(0) / 7
    elif kind == "0 almost in the hull":  # at a millionth of the least norm
        g[1::2] = -g[: k - k % 2 : 2]
        g[:, 0] = 1e-6 * g.norm(dim=1).min()
    elif kind == "a zero row":
        g[k // 2] = 0
    elif kind == "spread":
        g = spread(g, seed=seed)
    elif kind == "spread in a cone":
        g = g / 10
        g[:, 0] += 1
        g = spread(g, seed=seed)
    return g


KINDS = (
    *("equal norms", "spread", "spread in a cone", "duplicates", "collinear"),
    *("collinear, one side", "0 in the hull", "0 almost in the hull", "a zero row"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [2, 10])
def test_min_norm_point_is_within_1e_9_of_the_optimum_for_k_from_2_to_20(kind, p):
    for k in range(2, 21):
        for seed in SEEDS:
            g = hard(kind, k, p, seed)
            weights, residual = min_norm_point(g, return_residual=True)
            exact = exact_residual(g, weights)
            assert exact < 1e-9
            assert residual == pytest.approx(exact, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 6), st.floats(0, 3))
def test_min_norm_point_is_optimal_on_random_hulls(seed, k, p, decades):
    g = spread(normal(k, p, seed=seed), 10.0**decades, seed)
    assert exact_residual(g, min_norm_point(g)) < 1e-9


@pytest.mark.parametrize("kind", ["equal norms", "spread in a cone", "duplicates", "a zero row"])
@pytest.mark.parametrize("seed", SEEDS)
def test_min_norm_point_is_the_one_that_cvxpy_finds(kind, seed):
    g = hard(kind, 8, 20, seed)
    g = g / g.norm(dim=1).max()
    weights = cvxpy.Variable(8, nonneg=True)
    problem = cvxpy.Problem(
        cvxpy.Minimize(cvxpy.sum_squares(g.numpy().T @ weights)), [cvxpy.sum(weights) == 1]
    )
    problem.solve(
        solver=cvxpy.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13, max_iter=200
    )
    expected = weights.value @ g.numpy()
    np.testing.assert_allclose(min_norm_point(g) @ g, expected, atol=2e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_near_a_stationary_point_the_direction_keeps_its_digits(seed):
    """Rows ±c u_j + e_0 ε: the min-norm point is ε e_0 whatever ε, by symmetry."""
    for epsilon in (1e-6, 1e-9, 1e-12):
        u = spread(torch.linalg.qr(normal(9, 9, seed=seed)).Q[:5] @ torch.eye(9, 12).double()[:9])
        u = torch.cat([torch.zeros(10, 1), torch.cat([u, -u])], 1).double()
        u[:, 0] = epsilon
        e0 = torch.zeros(13, dtype=torch.float64)
        e0[0] = 1
        direction = descent_direction(u)
        assert float(direction @ e0) == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("columns", [3, danskin.COLUMNS])
def test_near_dependent_rows_need_more_than_their_inner_products(columns, monkeypatch):
    """At an angle of 1e-9 the products of unit rows are all 1 in float64; the rows are not."""
    monkeypatch.setattr(danskin, "COLUMNS", columns)
    delta = 1e-9
    g = torch.tensor([[1, 3 * delta], [1, -delta], [-1, 2 * delta]], dtype=torch.float64)
    assert bool((g[:2] @ g[:2].T == 1).all())
    # In the plane, the hull's nearest edge joins rows 2 and 3; the nearest point by hand.
    e = g[2] - g[1]
    t = float(-(g[1] @ e) / (e @ e))
    np.testing.assert_allclose(min_norm_point(g), [0, 1 - t, t], atol=1e-9)
    np.testing.assert_allclose(min_norm_point(g) @ g, [0, delta / 2], rtol=1e-6, atol=1e-15)
    plane = torch.linalg.qr(normal(10, 2)).Q.T  # the same in ten dimensions, in blocks of 3
    np.testing.assert_allclose(min_norm_point(g @ plane), [0, 1 - t, t], atol=1e-6)
    expected = np.array([0, delta / 2]) @ plane.numpy()
    np.testing.assert_allclose(min_norm_point(g @ plane) @ g @ plane, expected, atol=1e-15)


@pytest.mark.parametrize("kind", ["equal norms", "spread", "spread in a cone", "duplicates"])
def test_far_from_a_stationary_point_the_inner_products_are_enough(kind, monkeypatch):
    """QR of [p, k] takes many times as long as the k² products."""
    monkeypatch.setattr(danskin, "_triangle", None)
    g = hard(kind, 10, 200, 0)
    g[:, 0] += g.norm(dim=1)  # no two rows point apart
    assert exact_residual(g, min_norm_point(g)) < 1e-12


def test_min_norm_point_of_one_gradient_is_itself_and_of_two_is_by_hand():
    assert min_norm_point(normal(1, 5)).tolist() == [1.0]
    g = torch.tensor([[2.0, 2.0], [2.0, -2.0]])  # the toy's two maximizers at (1, 0)
    torch.testing.assert_close(min_norm_point(g), torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(descent_direction(g), torch.tensor([-1.0, 0.0]))
    g = torch.tensor([[1.0, 0.0], [3.0, 4.0]])  # an obtuse angle at the first: a corner
    torch.testing.assert_close(min_norm_point(g), torch.tensor([1.0, 0.0]))


def test_min_norm_point_does_not_depend_on_order_or_scale():
    g = hard("spread", 9, 30, 0)
    point = min_norm_point(g) @ g
    torch.testing.assert_close(min_norm_point(g.flip(0)) @ g.flip(0), point)
    for scale in (1e-150, 1e-30, 1e30, 1e150):
        torch.testing.assert_close(min_norm_point(scale * g), min_norm_point(g), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_solved_in_float64_and_returned_in_its_type(dtype):
    g = normal(10, 50, dtype=torch.float32).to(dtype)
    weights, residual = min_norm_point(g, return_residual=True)
    assert weights.dtype == dtype and residual < 1e-12
    torch.testing.assert_close(weights, min_norm_point(g.double()).to(dtype))
    direction = descent_direction(g)
    assert direction.dtype == dtype
    torch.testing.assert_close(direction, descent_direction(g.double()).to(dtype))


@pytest.mark.parametrize("scale", [1e-305, 1e-200, 1e-30, 1e30, 1e200, 1e305])
def test_no_magnitude_of_float64_is_taken_for_a_stationary_point(scale):
    g = hard("spread in a cone", 6, 10, 0)
    g = g / g.abs().max()
    weights, residual = min_norm_point(g, return_residual=True)
    found, found_residual = min_norm_point(scale * g, return_residual=True)
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-9)
    assert found_residual == pytest.approx(residual, abs=1e-9)
    direction = descent_direction(g)
    assert float(direction.norm()) == pytest.approx(1)
    torch.testing.assert_close(descent_direction(scale * g), direction, rtol=0, atol=1e-9)


def test_subnormal_gradients_have_a_direction_too():
    g = torch.tensor([[3e-310, 0.0], [0.0, 3e-310]], dtype=torch.float64)
    half = torch.full((2,), math.sqrt(0.5), dtype=torch.float64)
    torch.testing.assert_close(descent_direction(g), -half)
    assert min_norm_point(g, return_residual=True)[1] < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_directional_derivatives_of_narrow_types_are_summed_in_float32(dtype):
    g = torch.full((1, 4000), 1.0, dtype=dtype)
    d = torch.cat([torch.full((2000,), 40.0), torch.full((2000,), -39.75)]).to(dtype)
    found = directional_derivative(g, d)  # parts beyond float16's range, and a difference of them
    assert found.dtype == dtype and found.item() == 500


def test_many_columns_are_taken_in_blocks(monkeypatch):
    for kind in ("spread", "0 almost in the hull"):  # by the products, and by QR
        g = hard(kind, 10, 1000, 0)
        whole = min_norm_point(g), descent_direction(g)
        monkeypatch.setattr(danskin, "COLUMNS", 64)
        torch.testing.assert_close(min_norm_point(g), whole[0], rtol=0, atol=1e-9)
        torch.testing.assert_close(descent_direction(g), whole[1], rtol=0, atol=1e-9)
        monkeypatch.undo()


def test_the_residual_shows_a_wrong_answer(monkeypatch):
    g = 7 * hard("spread", 6, 10, 0)
    monkeypatch.setattr(danskin, "_nnls", lambda R, norms: np.full(6, 1 / 6))
    weights, residual = min_norm_point(g, return_residual=True)
    assert residual == pytest.approx(exact_residual(g, weights), rel=1e-9)
    assert residual > 1


@pytest.mark.parametrize("seed", SEEDS)
def test_minus_the_min_norm_point_is_the_steepest_direction_with_slope_minus_its_norm(seed):
    """Df(x, −g/‖g‖) = −‖g‖, and no other unit direction is steeper (prop-ddi)."""
    for k in (1, 2, 5, 12):
        g = normal(k, 15, seed=seed) / 3
        g[:, 0] += 1
        point = min_norm_point(g) @ g
        d = descent_direction(g)
        slope = directional_derivative(g, d)
        assert float(slope) == pytest.approx(-float(point.norm()), rel=1e-12)
        others = normal(2000, 15, seed=seed + 100)
        others = torch.cat([others, d + 0.05 * others])
        others = others / others.norm(dim=1, keepdim=True)
        assert float((others @ g.T).amax(1).min()) >= float(slope)


@pytest.mark.parametrize("seed", SEEDS)
def test_directional_derivative_is_the_one_sided_difference_quotient(seed):
    """f = max over 6 smooth functions, 4 of them equal at x: general Danskin (thm-danskin)."""
    A, x = normal(6, 5, 5, seed=seed), normal(5, seed=seed + 10)
    A = A @ A.mT
    offset = -torch.einsum("i,kij,j->k", x, A, x)
    offset[4:] -= 1

    def phi(z):
        return torch.einsum("i,kij,j->k", z, A, z) + offset

    maximizers = (phi(x) > phi(x).max() - 1e-9).nonzero()[:, 0]
    assert len(maximizers) == 4
    g = 2 * A[maximizers] @ x
    for d in normal(20, 5, seed=seed + 20):
        t = 1e-7
        quotient = (phi(x + t * d).max() - phi(x).max()) / t
        assert float(directional_derivative(g, d)) == pytest.approx(float(quotient), abs=1e-4)


def test_directional_derivative_is_positively_homogeneous_and_not_linear():
    g, d = normal(4, 3), normal(3, seed=1)
    derivative = directional_derivative(g, d)
    torch.testing.assert_close(directional_derivative(g, 3 * d), 3 * derivative)
    assert float(directional_derivative(g, -d)) > -float(derivative)  # a kink
    assert float(directional_derivative(g, 0 * d)) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", SEEDS)
def test_descent_direction_is_zero_at_stationary_points_and_never_nan(dtype, seed):
    for kind in ("0 in the hull", "a zero row", "collinear"):
        for scale in (1e-12, 1.0, 1e12):
            g = (scale * hard(kind, 8, 3, seed)).to(dtype)
            assert descent_direction(g).tolist() == [0.0] * 3
    zeros = torch.zeros(3, 4, dtype=dtype)
    assert descent_direction(zeros).tolist() == [0.0] * 4
    assert directional_derivative(zeros, zeros[0]) == 0


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("seed", SEEDS)
def test_descent_direction_has_unit_length_where_x_is_not_stationary(scale, seed):
    g = hard("spread in a cone", 10, 30, seed) * scale
    assert float(descent_direction(g).norm()) == pytest.approx(1, abs=1e-12)
    tiny = torch.tensor([[1.0, 1e-5], [-1.0, 1e-5]], dtype=torch.float32) * scale
    torch.testing.assert_close(descent_direction(tiny), torch.tensor([0.0, -1.0]))


# The slides' synthetic example (slide 22): f(x) = max over y in [0, 1] = ‖x‖² + 2 |x_1| + 1.


def toy(x):
    return float(x @ x + 2 * x[1].abs() + 1)


def toy_gradient(x, y):
    """∇ₓ of y (x_0² + (x_1 + 1)²) + (1 − y)(x_0² + (x_1 − 1)²) − y (1 − y)."""
    return torch.stack([2 * x[0], 2 * (x[1] + 2 * y - 1)])


def toy_run(step, steps):
    x, values = torch.tensor([1.0, 0.0], dtype=torch.float64), []
    for _ in range(steps):
        values.append(toy(x))
        x = x + 0.1 * step(x)
    return [*values, toy(x)], x


@pytest.mark.parametrize("tie", [0.0, 1.0])
def test_the_slides_run_with_a_single_exact_maximizer_is_reproduced(tie):
    def step(x):
        y = tie if x[1] == 0 else float(x[1] > 0)
        return descent_direction(toy_gradient(x, y)[None])

    values, x = toy_run(step, 50)
    expected = [2, 2.01, 1.755697, 1.784779, 1.564176, 1.610208, 1.418029, 1.478497]
    expected += [1.309383, 1.381617, 1.230510]
    assert values[:11] == pytest.approx(expected, abs=6e-7)
    assert values[49:] == pytest.approx([1.155652, 1.050744], abs=6e-7)
    assert x.abs().tolist() == pytest.approx([0.0083908, 0.0250235], abs=6e-8)
    assert sum(b > a for a, b in pairwise(values)) == 25


def test_the_slides_run_with_both_maximizers_descends_and_stops_at_the_minimizer():
    def step(x):  # both ends are maximizers on the axis x_1 = 0, and the run does not leave it
        assert abs(x[1]) < 1e-15
        return descent_direction(torch.stack([toy_gradient(x, 0.0), toy_gradient(x, 1.0)]))

    values, x = toy_run(step, 13)
    assert values[:11] == pytest.approx([1 + (1 - 0.1 * k) ** 2 for k in range(11)], abs=1e-12)
    assert values[10:] == [pytest.approx(1, abs=1e-12)] * 4  # stationary: no step, no NaN
    assert float(x.norm()) < 1e-12


def test_the_corollary_fails_at_1_0_for_every_maximizer_and_every_step():
    """f((1, 0) − t (1, ±1)/√2) = 2 + t² (slide 21): Df = 0, and f rises."""
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    both = torch.stack([toy_gradient(x, 0.0), toy_gradient(x, 1.0)])
    for g in both:
        d = descent_direction(g[None])
        assert float(directional_derivative(both, d)) == pytest.approx(0, abs=1e-15)
        for t in (0.5, 0.1, 0.01, 0.001):
            assert toy(x + t * d) == pytest.approx(2 + t**2, abs=1e-14)


# Gradients of networks


def batch(k=3, m=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(k, m, 1, 4, 4, generator=generator, dtype=dtype)
    return inputs, torch.randint(3, (m,), generator=generator)


def network(seed=0):
    return models.mlp((1, 4, 4), (6,), 3, activation="celu", mean=0.5, std=0.3, seed=seed).double()


class Normed(torch.nn.Sequential):
    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten())
            self.append(torch.nn.Linear(12, 3))
        self.double()


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_are_the_derivatives_of_each_batch_loss_by_finite_differences(seed):
    (inputs, b), model = batch(seed=seed), network(seed)
    rows, losses = gradients(model, inputs, b, return_losses=True)
    step = 1e-6

    @torch.no_grad()
    def loss_at(x, a):
        torch.nn.utils.vector_to_parameters(x, model.parameters())
        log_p = torch.log_softmax(model(a), 1)
        return -sum(float(log_p[j, b[j]]) for j in range(4)) / 4

    x = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    for i, a in enumerate(inputs):
        assert float(losses[i]) == pytest.approx(loss_at(x, a), abs=1e-12)
        for d in normal(5, len(x), seed=seed):
            slope = (loss_at(x + step * d, a) - loss_at(x - step * d, a)) / (2 * step)
            assert float(rows[i] @ d) == pytest.approx(slope, abs=1e-7)


def test_gradients_take_any_loss_and_skip_frozen_parameters():
    (inputs, b), model = batch(), network()
    model[2].weight.requires_grad_(False)
    rows = gradients(model, list(inputs), b, loss=lambda h, b: h[:, 0] ** 2)
    assert rows.shape == (3, sum(x.numel() for x in model.parameters()) - model[2].weight.numel())
    (model(inputs[1])[:, 0] ** 2).mean().backward()
    expected = [x.grad.flatten() for x in model.parameters() if x.requires_grad]
    torch.testing.assert_close(rows[1], torch.cat(expected))


def test_a_parameter_that_the_loss_does_not_use_has_gradient_zero():
    (inputs, b), model = batch(), network()
    model.unused = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    model.forward = lambda a: model[-1](model[3](model[2](model[1](model[0](a)))))
    rows = gradients(model, inputs, b)
    names = [name for name, x in model.named_parameters() for _ in range(x.numel())]
    unused = [name == "unused" for name in names]
    assert sum(unused) == 2 and (rows[:, unused] == 0).all()


@pytest.mark.parametrize("training", [True, False])
def test_gradients_leave_grad_and_mode_as_they_were(training):
    (inputs, b), model = batch(), network().train(training)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    kept = first.grad
    before = [x.detach().clone() for x in model.parameters()]
    gradients(model, inputs, b)
    assert first.grad is kept and (kept == 1).all()
    assert all(x.grad is None for x in list(model.parameters())[1:])
    assert all(map(torch.equal, before, model.parameters()))
    assert all(module.training == training for module in model.modules())


def test_gradients_normalize_each_batch_by_its_own_statistics_which_move_once_by_the_first():
    (inputs, b), model, twin = batch(), Normed().train(), Normed().train()
    rows = gradients(model, inputs, b)
    torch.nn.functional.cross_entropy(twin(inputs[0]), b).backward()
    torch.testing.assert_close(rows[0], torch.cat([x.grad.flatten() for x in twin.parameters()]))
    assert int(model[1].num_batches_tracked) == 1
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
    # The last row is that of a network that sees the last batch alone.
    other = Normed().train()
    torch.nn.functional.cross_entropy(other(inputs[2]), b).backward()
    torch.testing.assert_close(rows[2], torch.cat([x.grad.flatten() for x in other.parameters()]))


def test_gradients_in_evaluation_mode_use_the_running_statistics_and_move_none():
    (inputs, b), model = batch(), Normed().eval()
    before = {name: x.clone() for name, x in model.named_buffers()}
    gradients(model, inputs, b)
    torch.testing.assert_close(dict(model.named_buffers()), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: min_norm_point(g[0]), r"floats \[k, p\].*got torch.float64 \[3\]"),
        (lambda g: min_norm_point(g[:0]), r"k and p >= 1, got torch.float64 \[0, 3\]"),
        (lambda g: min_norm_point(g[:, :0]), r"got torch.float64 \[2, 0\]"),
        (lambda g: min_norm_point(g.long()), r"got torch.int64 \[2, 3\]"),
        (lambda g: min_norm_point(g * torch.nan), "finite, got NaN or infinity"),
        (lambda g: descent_direction(g / 0), "finite, got NaN or infinity"),
        (lambda g: min_norm_point(torch.tensor([[1, -torch.inf]])), "finite, got NaN or infinity"),
        (lambda g: directional_derivative(g[:0], g[0]), "k and p >= 1"),
        (lambda g: directional_derivative(g, g[0, :2]), r"float64 \[3\].*got torch.float64 \[2\]"),
        (lambda g: directional_derivative(g, g[0].float()), r"float64 \[3\].*got torch.float32"),
        (lambda g: directional_derivative(g, g[0] * torch.inf), "d must be finite"),
        (lambda g: gradients(network(), [], batch()[1]), "at least one batch.*got 0 and 4"),
        (
            lambda g: gradients(torch.nn.Flatten(), batch()[0], batch()[1]),
            "one parameter that requires a gradient, got 3 and 0",
        ),
        (
            lambda g: gradients(network(), *batch(), torch.nn.CrossEntropyLoss()),
            r"one value a sample, \[4\], got \[\]: use reduction",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3, dtype=torch.float64))


def test_gradients_refuses_a_loss_that_is_detached():
    model, inputs = torch.nn.Linear(2, 2), torch.ones(1, 3, 2)
    with pytest.raises(ValueError, match="no gradient in the parameters"):
        danskin.gradients(model, inputs, torch.tensor([0, 1, 0]), lambda h, b: h.detach()[:, 0])
