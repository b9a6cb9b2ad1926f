"""lib.transport against linear programs of another solver, sorting, closed forms and axioms."""

import math

import numpy as np
import psutil
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.spatial.distance import cdist

from lib.transport import (
    METRICS,
    _memory,
    empirical_rate,
    kantorovich_potentials,
    memory_free,
    memory_needed,
    pushed_density,
    wasserstein,
)


def clouds(seed, n, m, d):
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    return rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.5, a, b


def by_linprog(x, y, a, b, q, metric):
    n, m = len(x), len(y)
    rows = np.kron(np.eye(n), np.ones(m))
    columns = np.kron(np.ones(n), np.eye(m))
    cost = cdist(x, y, metric) ** q
    found = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a, b]))
    assert found.status == 0
    return found.fun ** (1 / q)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("q", [1, 2, 3.5])
@pytest.mark.parametrize("seed, d", [(0, 2), (1, 3), (2, 1)])
def test_wasserstein_is_the_linear_programs_value_by_another_solver(seed, d, q, metric):
    x, y, a, b = clouds(seed, 7, 9, d)
    expected = by_linprog(x, y, a, b, q, metric)
    assert wasserstein(x, y, q, a, b, metric) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("q", [1, 2, 3.5])
@pytest.mark.parametrize("seed, d", [(0, 3), (1, 5), (2, 2)])
def test_two_samples_of_one_size_agree_with_the_linear_program_too(seed, d, q, metric):
    x, y, *_ = clouds(seed, 8, 8, d)
    equal = np.full(8, 1 / 8)
    value, plan = wasserstein(x, y, q, metric=metric, plan=True)
    assert value == pytest.approx(by_linprog(x, y, equal, equal, q, metric), rel=1e-8)
    assert value == wasserstein(x, y, q, metric=metric)
    assert value == pytest.approx(wasserstein(x, y, q, equal, equal, metric), rel=1e-12)
    np.testing.assert_allclose(plan.sum(0), equal, atol=1e-15)
    np.testing.assert_allclose(plan.sum(1), equal, atol=1e-15)
    assert (plan * cdist(x, y, metric) ** q).sum() ** (1 / q) == pytest.approx(value, rel=1e-12)
    assert wasserstein(x, x[::-1], q, metric=metric) == 0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("q", [1, 2])
def test_on_the_line_sorting_gives_the_network_simplexs_value(seed, q):
    x, y, a, b = clouds(seed, 40, 30, 1)

    def in_the_plane(z):
        return np.hstack([z, 0 * z])

    for weights in ((None, None), (a, b)):
        sorted_value = wasserstein(x, y, q, *weights)
        assert sorted_value == pytest.approx(
            wasserstein(in_the_plane(x), in_the_plane(y), q, *weights), rel=1e-10
        )
    equal = wasserstein(x[:30], y, q)
    assert equal == pytest.approx(wasserstein(in_the_plane(x[:30]), in_the_plane(y), q), rel=1e-10)
    assert equal == pytest.approx(wasserstein(x[:30], y, q, plan=True)[0], rel=1e-12)
    for weights in ((a[:30] / a[:30].sum(), b), (None, b), (b, None)):  # as many, not alike
        assert wasserstein(x[:30], y, q, *weights) == pytest.approx(
            wasserstein(in_the_plane(x[:30]), in_the_plane(y), q, *weights), rel=1e-10
        )


@pytest.mark.parametrize("seed", range(50))
def test_on_the_line_points_of_mass_zero_at_the_end_get_nothing(seed):
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.normal(size=(2, 20, 1)), axis=1)
    a, b = np.zeros((2, 20))
    a[:17], b[:18] = rng.dirichlet(np.ones(17)), rng.dirichlet(np.ones(18))
    value, plan = wasserstein(x, y, x_weights=a, y_weights=b, plan=True)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-15)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-15)
    assert plan[17:].max() == plan[:, 18:].max() == 0
    assert value == pytest.approx(scipy.stats.wasserstein_distance(x[:, 0], y[:, 0], a, b))
    x, y = np.r_[x[:17], [[1000.0]]], np.r_[x[:17], [[-1000.0]]]
    assert wasserstein(x, y, q=4, x_weights=a[:18], y_weights=a[:18]) == 0


def test_on_the_line_w1_is_scipys():
    x, y, a, b = clouds(3, 50, 20, 1)
    expected = scipy.stats.wasserstein_distance(x[:, 0], y[:, 0], a, b)
    assert wasserstein(x[:, 0], y[:, 0], 1, a, b) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_plan_is_a_coupling_that_attains_the_value(d, q, kind):
    x, y, a, b = clouds(4, 12, 8, d)
    convert = torch.from_numpy if kind == "torch" else np.asarray
    value, plan = wasserstein(*map(convert, (x, y)), q, *map(convert, (a, b)), plan=True)
    assert isinstance(plan, torch.Tensor if kind == "torch" else np.ndarray)
    plan = np.asarray(plan)
    assert plan.min() >= 0 and plan.shape == (12, 8)
    np.testing.assert_allclose(plan.sum(1), a, atol=1e-12)
    np.testing.assert_allclose(plan.sum(0), b, atol=1e-12)
    assert (plan * cdist(x, y) ** q).sum() ** (1 / q) == pytest.approx(value, rel=1e-10)


numbers = st.floats(-5, 5, allow_subnormal=False)


@st.composite
def three_clouds(draw):
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    return [
        np.array(draw(st.lists(numbers, min_size=n * d, max_size=n * d))).reshape(n, d)
        for _ in range(3)
    ]


@settings(max_examples=60, deadline=None)
@given(three_clouds(), st.sampled_from([1, 1.5, 2, 4]))
def test_wasserstein_satisfies_the_axioms_of_a_metric(points, q):
    x, y, z = points
    w = wasserstein(x, y, q)
    assert w == pytest.approx(wasserstein(y, x, q), rel=1e-6, abs=1e-9)
    assert w <= wasserstein(x, z, q) + wasserstein(z, y, q) + 1e-9
    assert wasserstein(x, x[::-1], q) <= 1e-9
    assert wasserstein(x, y, 1) <= w * (1 + 1e-9) + 1e-12  # Jensen
    if w == 0:
        assert sorted(map(tuple, x)) == sorted(map(tuple, y))


@pytest.mark.parametrize("q", [1, 2, 30])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_translation_costs_its_length_and_a_scale_scales(d, q):
    rng = np.random.default_rng(5)
    x, t = rng.normal(size=(20, d)), rng.normal(size=d)
    assert wasserstein(x, x + t, q) == pytest.approx(np.linalg.norm(t), rel=1e-9)
    y = rng.normal(size=(20, d))
    for scale in (1e-8, 1e8):
        assert wasserstein(scale * x, scale * y, q) == pytest.approx(
            scale * wasserstein(x, y, q), rel=1e-9
        )


def test_equal_clouds_and_single_points():
    x = np.ones((3, 2))
    assert wasserstein(x, x) == 0 and wasserstein(x, x, 2) == 0
    assert wasserstein([[0.0, 0.0]], [[3.0, 4.0]], 2) == pytest.approx(5)
    assert wasserstein([0.0, 1.0], [0.0], 1, [0.25, 0.75]) == pytest.approx(0.75)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed, n, m, d", [(0, 60, 40, 2), (1, 50, 50, 1), (2, 30, 45, 6)])
def test_potentials_are_one_lipschitz_function_that_attains_w1(seed, n, m, d, metric):
    x, y, _, _ = clouds(seed, n, m, d)
    f_x, f_y = kantorovich_potentials(x, y, metric)
    assert f_x.mean() - f_y.mean() == pytest.approx(wasserstein(x, y, metric=metric), abs=1e-9)
    assert f_y.mean() == pytest.approx(0, abs=1e-12)
    z, f = np.vstack([x, y]), np.concatenate([f_x, f_y])
    assert (f[:, None] - f - cdist(z, z, metric)).max() <= 1e-9


def test_potentials_come_as_tensors_for_tensors():
    x, y, _, _ = clouds(6, 5, 6, 2)
    f_x, f_y = kantorovich_potentials(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    assert f_x.dtype == f_y.dtype == torch.float64 and f_x.shape == (5,) and f_y.shape == (6,)


def test_pushed_density_of_a_squared_normal_is_chi_square_with_both_branches():
    normal = torch.distributions.Normal(0.0, 1.0)
    y = torch.linspace(0.1, 5, 20, dtype=torch.float64)[:, None]
    branches = [torch.sqrt, lambda y: -torch.sqrt(y)]

    def density(w):
        return normal.log_prob(w[:, 0]).exp()

    found = pushed_density(density, branches, y)
    np.testing.assert_allclose(found, scipy.stats.chi2(1).pdf(y[:, 0]), rtol=1e-12)
    np.testing.assert_allclose(pushed_density(density, branches[:1], y), found / 2, rtol=1e-12)


def test_pushed_density_of_an_affine_map_is_the_gaussian_that_reverses_orientation():
    A = torch.tensor([[0.0, 2.0], [1.0, 0.5]], dtype=torch.float64)  # det −2
    c = torch.tensor([1.0, -1.0], dtype=torch.float64)
    y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    standard = scipy.stats.multivariate_normal(np.zeros(2), np.eye(2))
    found = pushed_density(
        lambda w: torch.from_numpy(standard.pdf(w.numpy())),
        [lambda y: torch.linalg.solve(A, y - c)],
        y,
    )
    expected = scipy.stats.multivariate_normal(c.numpy(), (A @ A.T).numpy()).pdf(y.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def uniform(d):
    return lambda n, generator: torch.rand(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_fitted_rates_of_the_uniform_measure_follow_its_dimension(seed):
    slopes = [
        empirical_rate(uniform(d), [32, 64, 128, 256], repeats=8, seed=seed).slope
        for d in (1, 3, 5)
    ]
    for slope, (low, high) in zip(
        slopes, [(-0.65, -0.4), (-0.4, -0.28), (-0.28, -0.18)], strict=True
    ):
        assert low <= slope <= high


def test_the_mean_between_two_uniform_samples_on_the_line_has_its_limit():
    """E W_1(μ_n, μ'_n) √n tends to E ∫|B_1 − B_2| dt = 2 √(1/π) ∫ √(t (1 − t)) dt = √π / 4."""
    rate = empirical_rate(uniform(1), [500, 2000], repeats=400, seed=0)
    scaled = rate.mean * torch.tensor(rate.sizes).sqrt()
    error = 4 * rate.deviation * torch.tensor(rate.sizes).sqrt() / math.sqrt(400)
    assert ((scaled - math.sqrt(math.pi) / 4).abs() < error + 0.003).all()


def test_a_rate_is_made_of_the_distances_of_fresh_pairs():
    draw, generator = uniform(2), torch.Generator().manual_seed(3)
    rate = empirical_rate(draw, [4, 9], q=2, repeats=3, seed=3)
    rows = np.array(
        [[wasserstein(draw(n, generator), draw(n, generator), 2) for _ in range(3)] for n in (4, 9)]
    )
    np.testing.assert_allclose(rate.mean, rows.mean(1))
    np.testing.assert_allclose(rate.deviation, rows.std(1, ddof=1))
    [first, last] = np.log(rows.mean(1))
    assert rate.slope == pytest.approx((last - first) / math.log(9 / 4))


X, Y = np.zeros((3, 2)), np.ones((4, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((X, Y, 0.5)), "q must be in"),
        (((X, Y, math.inf)), "q must be in"),
        (((X, Y, math.nan)), "q must be in"),
        (((X, Y[:, :1])), "x is in R\\^2 and y in R\\^1"),
        (((X[:0], Y)), "x must hold points"),
        (((X, Y[None])), "y must hold points"),
        (((X, np.full((4, 2), np.nan))), "y must be finite"),
        (((X, Y, 1, [0.5, 0.5])), "x_weights must be \\[3\\]"),
        (((X, Y, 1, [0.5, 0.6, -0.1])), "x_weights must be >= 0"),
        (((X, Y, 1, [0.5, 0.5, math.nan])), "x_weights must be >= 0"),
        (((X, Y, 1, None, [0.5, 0.5, 0.5, 0.5])), "y_weights must add up to 1"),
        (((X, Y, 1, None, None, "cosine")), "metric must be one of"),
    ],
)
def test_bad_input_gets_a_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        wasserstein(*arguments)


@pytest.mark.parametrize(
    ("call", "x", "y", "needed"),
    [
        (wasserstein, X, Y, 48 * 3 * 4),
        (kantorovich_potentials, X, Y, 48 * 4 * 4),
        (kantorovich_potentials, Y, X, 48 * 3 * 4),
        (wasserstein, np.zeros((5, 3)), np.ones((5, 3)), 24 * 5 * 5),
        (wasserstein, np.zeros((5, 3)), np.ones((4, 3)), 48 * 5 * 4),
        (lambda x, y: wasserstein(x, y, plan=True), X[:, 0], Y[:, 0], 48 * 3 * 4),
    ],
)
def test_clouds_that_cannot_fit_in_memory_are_refused_with_the_size(
    call, x, y, needed, monkeypatch
):
    monkeypatch.setattr(_memory, "memory_free", lambda: needed)
    call(x, y)
    monkeypatch.setattr(_memory, "memory_free", lambda: needed - 1)
    with pytest.raises(MemoryError, match=r"against . points need about .* GB, .* free: draw sub"):
        call(x, y)


def test_memory_grows_with_the_product_of_the_sizes_and_on_the_line_with_their_sum():
    assert memory_needed(1000, 2000, 2) == memory_needed(1000, 2000, 3) == 48 * 1000 * 2000
    assert memory_needed(1000, 1000, 3) == 24 * 1000 * 1000
    assert memory_needed(10**6, 10**6, 1) < 1e9
    assert memory_needed(1, 39, 1) == memory_needed(39, 1, 1) == 20 * memory_needed(1, 1, 1) > 0
    for wrong in ({"n": 0, "m": 1, "d": 1}, {"n": 1, "m": 0, "d": 1}, {"n": 1, "m": 1, "d": 0}):
        [name] = [name for name, value in wrong.items() if not value]
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            memory_needed(**wrong)
    assert 0 < memory_free() <= psutil.virtual_memory().total


VERSIONS = {
    2: ("0::/a/b\n", "", ("memory.max", "memory.current", "inactive_file")),
    1: (
        "9:name=systemd:/a\n4:memory:/a/b\n0::/\n",
        "memory",
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("groups", "left"),
    [
        ({"a/b": (1000, 400, 100)}, 700),
        ({"": (1000, 400, 0), "a/b": ("max", 400, 0)}, 600),
        ({"a": (500, 450, 10), "a/b": (1000, 400, 0)}, 60),  # the group around is fuller
        ({"a/b": (1000, 1200, 100)}, 0),
        ({"": (1000, 0, 0)}, 1000),  # a container that sees its group as the root
        ({}, None),
        ({"a/b": ("max", 400, 0)}, None),
    ],
)
def test_a_control_group_s_limit_counts(version, groups, left, tmp_path, monkeypatch):
    own, tree, names = VERSIONS[version]
    (tmp_path / "own").write_text(own, encoding="utf-8")
    for path, (limit, used, cached) in groups.items():
        group = tmp_path / tree / path
        group.mkdir(parents=True, exist_ok=True)
        if limit == "max" and version == 1:
            limit = 2**63 - 4096
        for name, value in ((names[0], limit), (names[1], used)):
            (group / name).write_text(f"{value}\n", encoding="utf-8")
        stat = f"cache 5\n{names[2]} {cached}\n" if cached else "cache 5\n"
        (group / "memory.stat").write_text(stat, encoding="utf-8")
    monkeypatch.setattr(_memory, "GROUPS", tmp_path)
    monkeypatch.setattr(_memory, "OWN_GROUP", tmp_path / "own")
    machine = psutil.virtual_memory()._replace(available=10**6)
    monkeypatch.setattr(_memory.psutil, "virtual_memory", lambda: machine)
    assert memory_free() == (10**6 if left is None else left)


def test_without_control_groups_the_machine_s_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "OWN_GROUP", tmp_path / "missing")
    assert memory_free() > 0


# Types, and magnitudes at the ends of float64.


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "int64", "uint8"])
def test_clouds_and_weights_of_every_real_type_are_taken(kind):
    rng = np.random.default_rng(0)
    dtype = getattr(torch, kind)
    x, y = (torch.from_numpy(rng.normal(size=(50, 2)) * 3 + 5).to(dtype) for _ in range(2))
    exact = wasserstein(x.double(), y.double())
    assert wasserstein(x, y) == exact and exact > 0
    torch.testing.assert_close(
        kantorovich_potentials(x, y)[0], kantorovich_potentials(x.double(), y.double())[0]
    )
    if dtype.is_floating_point:
        share = (torch.rand(50, generator=torch.Generator().manual_seed(0)) + 0.5).to(dtype)
        share = share / share.sum()  # adds up to 1 up to the rounding of its type
        exact = wasserstein(x, y, 2, share.double() / share.double().sum())
        assert wasserstein(x, y, 2, share) == pytest.approx(exact, rel=1e-12)


def test_the_weights_of_a_wide_type_must_add_up_to_one_more_closely():
    share = torch.full((50,), 0.0201)
    with pytest.raises(ValueError, match="x_weights must add up to 1"):
        wasserstein(torch.zeros(50, 2), torch.ones(50, 2), 1, share)
    wasserstein(torch.zeros(50, 2), torch.ones(50, 2), 1, share.bfloat16())
    with pytest.raises(ValueError, match="y_weights must add up to 1"):
        wasserstein(torch.zeros(50, 2), torch.ones(2, 2), 1, None, torch.tensor([0.5, 0.51]).half())


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_the_weights_of_an_array_may_miss_one_by_the_rounding_of_its_type(kind):
    x, y, off = np.zeros((2, 1)), np.ones((2, 1)), np.finfo(kind).eps / 2
    share = np.array([0.5, 0.5 + off], kind)  # the sum of the two is 1 + off in float64
    assert 0 < float(share.astype(float).sum()) - 1 <= np.finfo(kind).eps
    assert wasserstein(x, y, 1, share) == pytest.approx(1)
    for wrong in ([0.5, 0.5 + 1e-5], np.array([0.5, 0.5 + 1e-5])):
        with pytest.raises(ValueError, match="x_weights must add up to 1"):
            wasserstein(x, y, 1, wrong)
    assert wasserstein(x, y, 1, np.array([1, 0]), [0, 1]) == 1  # of integers, and of a list


@pytest.mark.parametrize(
    "wrong", [np.array(["a", "b", "c"]), np.ones(3) * 1j, np.array([None] * 3)]
)
def test_what_is_no_real_number_is_refused(wrong):
    with pytest.raises(ValueError, match="x must hold real numbers, got"):
        wasserstein(wrong, Y[:, 0])
    if wrong.dtype == complex:
        with pytest.raises(ValueError, match="y must hold real numbers, got complex"):
            wasserstein(X[:, 0], torch.from_numpy(wrong))


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
@pytest.mark.parametrize("q", [1, 2, 8])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_magnitudes_at_the_ends_of_float64_scale_the_distance(d, q, scale):
    x, y, a, b = clouds(7, 9, 9, d)
    for weights in ((None, None), (a, b)):
        expected = wasserstein(x, y, q, *weights)
        found = wasserstein(scale * x, scale * y, q, *weights)
        assert found / scale == pytest.approx(expected, rel=1e-12)
    f_x, f_y = kantorovich_potentials(scale * x, scale * y)
    assert (f_x.mean() - f_y.mean()) / scale == pytest.approx(wasserstein(x, y), rel=1e-12)


def test_the_callers_arrays_keep_their_values():
    x, y, a, b = clouds(8, 5, 6, 2)
    given = [torch.from_numpy(c) for c in (x, y, a, b)]
    copies = [c.clone() for c in given]
    wasserstein(given[0], given[1], 2, given[2], given[3], plan=True)
    kantorovich_potentials(given[0], given[1])
    assert all(torch.equal(c, kept) for c, kept in zip(given, copies, strict=True))


def test_other_errors():
    with pytest.raises(ValueError, match="x is in"):
        kantorovich_potentials(X, Y[:, :1])
    with pytest.raises(ValueError, match="metric"):
        kantorovich_potentials(X, Y, "l2")
    with pytest.raises(ValueError, match="two whole sizes"):
        empirical_rate(uniform(1), [8, 8])
    with pytest.raises(ValueError, match="at least one branch"):
        pushed_density(lambda w: w[:, 0], [], torch.ones(2, 1))
    with pytest.raises(ValueError, match="y must be float32 or float64"):
        pushed_density(lambda w: w[:, 0], [torch.sqrt], torch.ones(2))
    with pytest.raises(ValueError, match=r"y must be float32 or float64 .*, got torch.float16"):
        pushed_density(lambda w: w[:, 0], [torch.sqrt], torch.ones(2, 1).half())
    with pytest.raises(ValueError, match=r"density \[n, d\] to \[n\], got .*\[2, 1\] for \[2, 1\]"):
        pushed_density(lambda w: w, [torch.sqrt], torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"must map \[d\] to \[d\]"):
        pushed_density(lambda w: w[:, 0], [lambda y: torch.cat([y, y])], torch.ones(2, 1))
    with pytest.raises(ValueError, match="NaN at 1 of 2 points of y: a branch is not defined"):
        pushed_density(lambda w: w[:, 0], [torch.sqrt], torch.tensor([[1.0], [-1.0]]))
    for sizes in ([8, 16.5], [0, 8], [8]):
        with pytest.raises(ValueError, match="two whole sizes >= 1"):
            empirical_rate(uniform(1), sizes)
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        empirical_rate(uniform(1), [1, 2], repeats=0)
    with pytest.raises(ValueError, match="draw must give n points, got 5 and 5 for n = 8"):
        empirical_rate(lambda n, generator: torch.rand(5, 1, generator=generator), [8, 16])
    with pytest.raises(ValueError, match="a distance of 0 has no rate"):
        empirical_rate(lambda n, generator: torch.zeros(n, 1), [8, 16])


def test_one_pair_of_samples_of_one_point_is_enough_for_a_rate():
    rate = empirical_rate(uniform(1), [1, 2], repeats=1)
    assert rate.sizes == [1, 2] and rate.deviation.tolist() == [0, 0] and math.isfinite(rate.slope)


def test_a_solver_that_fails_is_no_optimum(monkeypatch):
    import ot.lp

    found = {"cost": 0.0, "result_code": 2, "warning": "unbounded"}
    monkeypatch.setattr(ot.lp, "emd", lambda *args, **settings: (np.zeros((3, 4)), found))
    with pytest.raises(RuntimeError, match="did not end at an optimum: unbounded"):
        wasserstein(X, Y)
