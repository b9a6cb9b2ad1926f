"""lib.games against closed forms: exact factors on bilinear games, matrices on quadratic ones."""

import math

import pytest
import torch

from lib.games import extragradient, gradient_descent_ascent, optimistic_gradient

DYNAMICS = [gradient_descent_ascent, extragradient, optimistic_gradient]
ONE = torch.tensor(1.0, dtype=torch.float64)


def bilinear(x, y):
    return (x * y).sum()


def norms(xs, ys):
    return torch.hypot(xs, ys)


@pytest.mark.parametrize("h", [0.01, 0.1, 0.7])
def test_simultaneous_descent_ascent_leaves_a_bilinear_game_by_its_exact_factor(h):
    r = norms(*gradient_descent_ascent(bilinear, ONE, ONE, h, 100))
    exact = math.sqrt(2) * math.sqrt(1 + h**2) ** torch.arange(101, dtype=torch.float64)
    torch.testing.assert_close(r, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("h", [0.1, 0.5, 1.0, 1.9])
def test_alternating_descent_ascent_keeps_its_energy_on_a_bilinear_game(h):
    xs, ys = gradient_descent_ascent(bilinear, ONE, ONE, h, 500, alternating=True)
    energy = xs**2 + ys**2 - h * xs * ys
    torch.testing.assert_close(energy, torch.full_like(energy, 2 - h), rtol=1e-9, atol=0)


@pytest.mark.parametrize("h", [0.1, math.sqrt(0.5), 0.99, 1.01])
def test_extragradient_contracts_a_bilinear_game_by_its_exact_factor(h):
    r = norms(*extragradient(bilinear, ONE, ONE, h, 100))
    factor = math.sqrt(1 - h**2 + h**4)
    exact = math.sqrt(2) * factor ** torch.arange(101, dtype=torch.float64)
    torch.testing.assert_close(r, exact, rtol=1e-10, atol=0)
    assert (r[-1] < r[0]) == (h < 1)


@pytest.mark.parametrize("h", [0.1, 0.3, 0.5, 0.57, 0.6])
def test_optimistic_gradient_follows_its_linear_recursion_and_converges_below_its_limit(h):
    xs, ys = optimistic_gradient(bilinear, ONE, ONE, h, 400)
    field = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # of xy
    z = before = torch.ones(2, dtype=torch.float64)
    for k in range(400):
        z, before = z - 2 * h * field @ z + h * field @ before, z
        assert torch.allclose(torch.stack([xs[k + 1], ys[k + 1]]), z, rtol=1e-9, atol=1e-12)
    companion = torch.cat(
        [
            torch.cat([torch.eye(2).double() - 2 * h * field, h * field], 1),
            torch.cat([torch.eye(2).double(), torch.zeros(2, 2).double()], 1),
        ]
    )
    radius = torch.linalg.eigvals(companion).abs().max()
    assert (radius < 1) == (h < 1 / math.sqrt(3))
    r = norms(xs, ys)
    assert (r[-1] < r[0]) == (h < 1 / math.sqrt(3))


def test_values_after_100_steps_of_a_tenth_on_the_bilinear_game():
    expected = [2.3258606276, 0.8599397482, 0.8599852788]
    for dynamics, value in zip(DYNAMICS, expected, strict=True):
        assert float(norms(*dynamics(bilinear, ONE, ONE, 0.1, 100))[-1]) == pytest.approx(
            value, abs=1e-10
        )


def quadratic(generator):
    A, B, C = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    P, Q = A @ A.T + torch.eye(3), C @ C.T + torch.eye(3)

    def phi(x, y):
        return x @ P @ x / 2 + x @ B @ y - y @ Q @ y / 2

    return phi, torch.cat([torch.cat([P, B], 1), torch.cat([-B.T, Q], 1)])  # F(z) = M z


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hs", [0.02, (0.01, 0.03)])
def test_one_step_of_each_is_its_matrix_on_a_random_quadratic_game(seed, hs):
    generator = torch.Generator().manual_seed(seed)
    phi, M = quadratic(generator)
    z = torch.randn(6, generator=generator, dtype=torch.float64)
    hx, hy = hs if isinstance(hs, tuple) else (hs, hs)
    H = torch.diag(torch.tensor([hx] * 3 + [hy] * 3, dtype=torch.float64))
    eye = torch.eye(6, dtype=torch.float64)
    new_x = torch.diag(torch.tensor([1.0] * 3 + [0.0] * 3, dtype=torch.float64))
    half = eye - new_x @ H @ M  # x has moved, y has not
    expected = {
        "simultaneous": (eye - H @ M) @ z,
        "alternating": (half - (eye - new_x) @ H @ M @ half) @ z,
        "extragradient": (eye - H @ M @ (eye - H @ M)) @ z,
        "optimistic": (eye - H @ M) @ z,  # the first past gradient is the current one
    }
    found = {
        "simultaneous": gradient_descent_ascent(phi, z[:3], z[3:], hs, 1),
        "alternating": gradient_descent_ascent(phi, z[:3], z[3:], hs, 1, alternating=True),
        "extragradient": extragradient(phi, z[:3], z[3:], hs, 1),
        "optimistic": optimistic_gradient(phi, z[:3], z[3:], hs, 1),
    }
    for name, (xs, ys) in found.items():
        assert xs.shape == ys.shape == (2, 3)
        torch.testing.assert_close(torch.cat([xs[0], ys[0]]), z, rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([xs[1], ys[1]]), expected[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_projection_keeps_every_point_where_a_gradient_is_taken_in_the_box(dynamics):
    seen = []

    def phi(x, y):
        seen.append((float(x.detach()), float(y.detach())))
        return x * y

    def project(x, y):
        return x.clamp(-1, 1), y.clamp(-1, 1)

    xs, ys = dynamics(phi, ONE, ONE, 0.9, 50, project=project)
    assert max(abs(value) for point in seen for value in point) <= 1
    assert xs.abs().max() <= 1 and ys.abs().max() <= 1
    assert xs.abs().max() == 1  # the box is met


def test_alternating_steps_too_take_gradients_in_the_box_only():
    seen = []

    def phi(x, y):
        seen.append(float(x.detach()))
        return x * y

    def project(x, y):
        return x.clamp(-1, 1), y.clamp(-1, 1)

    gradient_descent_ascent(phi, ONE, ONE, 3.0, 20, alternating=True, project=project)
    assert max(map(abs, seen)) <= 1


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_starts_stay_untouched_and_runs_are_independent(dynamics):
    x0, y0 = torch.ones(2, requires_grad=True), torch.ones(2)
    first = dynamics(bilinear, x0, y0, 0.1, 5)
    again = dynamics(bilinear, x0, y0, 0.1, 5)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert x0.grad is None and torch.equal(x0.detach(), torch.ones(2))
    assert not first[0].requires_grad


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_what_phi_does_not_depend_on_stays(dynamics):
    xs, ys = dynamics(lambda x, y: (x**2).sum(), ONE, ONE, 0.1, 3)
    assert torch.equal(ys, torch.ones(4).double()) and xs[-1] < xs[0]


@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_size": 0.0}, "step_size must be finite and > 0"),
        ({"step_size": (0.1, -1.0)}, "step_size must be finite and > 0"),
        ({"step_size": math.nan}, "step_size must be finite and > 0"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"x0": torch.tensor(math.nan)}, "x0 must be finite, got NaN"),
        ({"y0": torch.tensor(1)}, "y0 must hold floats, got torch.int64"),
        ({"phi": lambda x, y: x.expand(2) * y}, "phi must return a scalar"),
        ({"phi": lambda x, y: 1.0}, "phi must return a scalar tensor, got 1.0"),
        ({"phi": 3}, "phi must be a function such as lambda x, y: x"),
        ({"phi": lambda x, y: x.mul_(2) * y}, "phi changes its input in place"),
        ({"phi": lambda x, y: x * y.mul_(2)}, "phi changes its input in place"),
        (
            {"project": lambda x, y: (x.expand(2), y)},
            r"project must return \(x, y\) of shapes \[\] and \[\], got \[\[2\], \[\]\]",
        ),
        ({"project": lambda x, y: (x, y, y)}, "project must return .*, got tuple"),
        ({"project": lambda x, y: (x, 1.0)}, "project must return .*, got tuple"),
    ],
)
def test_bad_settings_get_clear_errors(dynamics, change, message):
    settings = {"phi": bilinear, "x0": ONE, "y0": ONE, "step_size": 0.1, "steps": 3} | change
    with pytest.raises(ValueError, match=message):
        dynamics(**settings)


@pytest.mark.parametrize("dynamics", [gradient_descent_ascent, extragradient, optimistic_gradient])
def test_in_inference_mode_and_with_a_list_of_steps_the_iterates_are_the_same(dynamics):
    x0, y0 = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    expected = dynamics(lambda x, y: x @ y, x0, y0, (0.1, 0.2), 3)
    with torch.inference_mode():
        found = dynamics(lambda x, y: x @ y, x0.clone(), y0.clone(), [0.1, 0.2], 3)
    for path, right in zip(found, expected, strict=True):
        assert torch.equal(path, right) and not path.is_inference()
    assert x0.tolist() == [1, -2] and not x0.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, torch.ones(1), 0.1, 1), "x0 must be a tensor, got float"),
        ((torch.ones(1), torch.ones(1, dtype=torch.int64), 0.1, 1), "y0 must hold floats"),
        ((torch.tensor(math.nan), torch.ones(()), 0.1, 1), "x0 must be finite, got NaN"),
        ((torch.ones(()), torch.ones(()), 0.0, 1), "step_size must be finite and > 0"),
        ((torch.ones(()), torch.ones(()), (0.1, -0.1), 1), "step_size must be finite and > 0"),
        ((torch.ones(()), torch.ones(()), (0.1, 0.1, 0.1), 1), "a number or a pair"),
        ((torch.ones(()), torch.ones(()), 0.1, 0), "steps must be >= 1, got 0"),
    ],
)
def test_each_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        extragradient(lambda x, y: (x * y).sum(), *arguments)
