"""lib.sharpness: the largest eigenvalue against the whole Hessian and its eigenvalues."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lib import models, sharpness
from lib.attacks import cross_entropy
from lib.data import Images
from lib.sharpness import hessian_product, largest_eigenvalue

SEEDS = 0, 1, 2, 3


def images(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    a = torch.rand(n, 1, 2, 2, generator=rng, dtype=torch.float64)
    return Images(a, torch.randint(3, (n,), generator=rng), ("0", "1", "2"))


def network(activation="celu", seed=0):
    return models.mlp((1, 2, 2), (5,), 3, activation=activation, seed=seed).double()


def whole_hessian(model, data):
    """∇² of the mean loss by torch.autograd.functional.hessian, [p, p]."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    x = [model.get_parameter(name).detach() for name in names]

    def risk(vector):
        parts = vector.split([p.numel() for p in x])
        parameters = {n: v.view_as(p) for n, v, p in zip(names, parts, x, strict=True)}
        return cross_entropy(functional_call(model, parameters, (data.a,)), data.b).mean()

    return torch.autograd.functional.hessian(risk, nn.utils.parameters_to_vector(x))


class Quadratic(nn.Module):
    """x alone is the model; with ``loss`` the mean loss is xᵀ H x / 2."""

    def __init__(self, H, dtype=torch.float64):
        super().__init__()
        self.H = torch.as_tensor(H, dtype=dtype)
        self.x = nn.Parameter(torch.ones(len(self.H), dtype=dtype))

    def forward(self, a):
        return self.x.expand(len(a), -1)

    def loss(self, h, b):
        return ((h @ self.H) * h).sum(1) / 2


def rotated(eigenvalues, seed=0):
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    return Q @ np.diag(eigenvalues) @ Q.T


@pytest.mark.parametrize("activation", ["celu", "relu"])
@pytest.mark.parametrize("seed", SEEDS)
def test_hessian_product_is_the_whole_hessian_times_the_vector(seed, activation):
    data, model = images(9, seed), network(activation, seed)
    H = whole_hessian(model, data)
    v = torch.randn(len(H), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for batch_size in (9, 100, 4, 1):
        product = hessian_product(model, data, batch_size=batch_size)
        for vector in (v, H @ v):  # the kept graph serves more than once
            torch.testing.assert_close(product(vector), H @ vector, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_hessian_product_is_the_finite_difference_of_gradients(seed):
    data, model = images(9, seed), network(seed=seed)
    x = nn.utils.parameters_to_vector(model.parameters()).detach()
    v = torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def gradient(t):
        nn.utils.vector_to_parameters(x + t * v, model.parameters())
        model.zero_grad()
        cross_entropy(model(data.a), data.b).mean().backward()
        return nn.utils.parameters_to_vector([p.grad for p in model.parameters()])

    difference = (gradient(1e-5) - gradient(-1e-5)) / 2e-5
    gradient(0.0)
    torch.testing.assert_close(hessian_product(model, data)(v), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", ["celu", "relu"])
@pytest.mark.parametrize("seed", SEEDS)
def test_largest_eigenvalue_is_that_of_the_whole_hessian(seed, activation):
    data, model = images(9, seed), network(activation, seed)
    H = whole_hessian(model, data)
    right = float(torch.linalg.eigvalsh(H)[-1])
    for batch_size in (100, 4):
        settings = {"tolerance": 1e-6, "iterations": 5000, "batch_size": batch_size}
        value, residual, v = largest_eigenvalue(model, data, **settings)
        assert value == pytest.approx(right, rel=1e-9)
        assert float(v.norm()) == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(H @ v, value * v, rtol=0, atol=1e-6 * right)
        assert residual == pytest.approx(float((H @ v - value * v).norm()), abs=1e-9)
    rough = largest_eigenvalue(model, data)  # the default
    assert rough.residual <= 1e-2 * rough.value * 1.01
    assert right * (1 - 2e-2) <= rough.value <= right * (1 + 1e-12)


@pytest.mark.parametrize(
    ("eigenvalues", "right"),
    [
        ([3.0, 1.0, 0.5], 3.0),
        ([2.0, 1.0, -5.0], 2.0),  # the negative end is larger in modulus
        ([-1.0, -2.0, -4.0], -1.0),  # no positive end
        ([3.0, 1.0, -3.0], 3.0),  # a tie: power iteration alone does not settle
        ([3.0, 1.0, -2.999], 3.0),
        ([2.0, 2.0, 1.0], 2.0),
        ([-1.0, -1.0, -1.0], -1.0),
        ([0.0, 0.0, 0.0], 0.0),
        ([1e-6, 1e-7, -1e-5], 1e-6),
    ],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_largest_means_algebraically_largest(eigenvalues, right, seed):
    model, data = Quadratic(rotated(eigenvalues, seed)), images(3)
    generator = torch.Generator().manual_seed(seed)
    value, residual, _ = largest_eigenvalue(
        model, data, loss=model.loss, tolerance=1e-5, iterations=1000, generator=generator
    )
    assert value == pytest.approx(right, rel=1e-8, abs=1e-12)
    assert residual <= 1.01e-5 * abs(right) + 1e-14


@pytest.mark.parametrize("seed", range(10))
def test_a_first_round_that_does_not_settle_at_the_negative_end_does_not_hide_the_top(seed):
    model, data = Quadratic(rotated([0.3, -0.98, -1.0], seed)), images(3)
    generator = torch.Generator().manual_seed(seed)
    settings = {"tolerance": 1e-4, "iterations": 200, "generator": generator}
    value, _, _ = largest_eigenvalue(model, data, loss=model.loss, **settings)
    assert value == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize("p", [2, 40])
def test_a_loss_linear_in_the_parameters_has_the_eigenvalue_zero(p):
    model = Quadratic(np.eye(p))
    assert largest_eigenvalue(model, images(3), loss=lambda h, b: h.sum(1))[:2] == (0, 0)


MANY = {  # eigenvalues of larger matrices, which the Lanczos method gets
    "a gap": [3.0, *np.linspace(-1, 1, 59)],
    "the negative end is larger": [2.0, *np.linspace(-5, 1, 59)],
    "no positive end": [-0.5, *np.linspace(-4, -1, 59)],
    "a tie of both ends": [3.0, *np.linspace(-2.9, 1, 58), -3.0],
    "several at the top": [2.0, 2.0, 2.0, *np.linspace(-2, 1, 57)],
    "one for all": [-1.0] * 60,
    "a small top": [1e-3, *np.linspace(-2, -1, 59)],
    "tiny": [1e-12, *np.linspace(-1e-11, 1e-13, 59)],
    "huge": [1e100, *np.linspace(-1e100, 1e99, 59)],
}


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("seed", SEEDS)
def test_of_many_eigenvalues_the_algebraically_largest_is_found(name, seed):
    eigenvalues = np.array(MANY[name])
    model, data = Quadratic(rotated(eigenvalues, seed)), images(3)
    generator = torch.Generator().manual_seed(seed)
    value, residual, v = largest_eigenvalue(
        model, data, loss=model.loss, tolerance=1e-6, iterations=2000, generator=generator
    )
    right = eigenvalues.max()
    assert value == pytest.approx(right, rel=1e-6)
    assert residual <= 1e-5 * abs(right) + 1e-14 * abs(eigenvalues).max()
    assert float(v.norm()) == pytest.approx(1, abs=1e-12)
    rough = largest_eigenvalue(model, data, loss=model.loss, generator=generator)
    assert rough.value <= right + 1e-12 * abs(right)
    assert rough.residual <= 0.05 * abs(right)


def counted(monkeypatch):
    """Each product with H adds to the list."""
    count, original = [], sharpness.hessian_product

    def product(*arguments, **settings):
        times = original(*arguments, **settings)
        return lambda v: count.append(1) or times(v)

    monkeypatch.setattr(sharpness, "hessian_product", product)
    return count


@pytest.mark.parametrize("iterations", [1, 2, 5, 20, 100])
def test_it_takes_about_as_many_products_as_it_may(monkeypatch, iterations):
    model = models.mlp((1, 2, 2), (5,), 3, activation="celu").double()
    count = counted(monkeypatch)
    largest_eigenvalue(model, images(3), tolerance=1e-15, iterations=iterations)
    assert len(count) <= iterations + 25


def test_a_loose_tolerance_takes_few_products(monkeypatch):
    model, count = Quadratic(rotated([10.0, *np.linspace(-1, 1, 59)])), counted(monkeypatch)
    assert largest_eigenvalue(model, images(3), loss=model.loss, tolerance=0.3).residual <= 3
    assert len(count) <= 6


@pytest.mark.parametrize("seed", SEEDS)
def test_too_few_iterations_show_in_the_residual_and_the_best_found_counts(seed):
    model = Quadratic(rotated(np.r_[3.0, np.linspace(-3, 2.99, 199)], seed))
    settings = {"loss": model.loss, "tolerance": 1e-9, "iterations": 3}
    value, residual, v = largest_eigenvalue(model, images(3), **settings)
    assert residual > 1e-9 * value and 2.7 < value < 3
    assert residual == pytest.approx(float((model.H @ v - value * v).norm()), rel=1e-6)


def test_the_first_vector_is_the_generators_and_the_default_is_seed_0():
    model = Quadratic(rotated(np.linspace(1, 3, 60)))
    values = [
        largest_eigenvalue(model, images(3), loss=model.loss, iterations=1, generator=g).value
        for g in (None, *(torch.Generator().manual_seed(seed) for seed in (0, 1)))
    ]
    assert values[0] == values[1] != values[2]


def test_single_precision_is_close_to_double():
    data, model = images(50), network()
    exact = largest_eigenvalue(model, data, tolerance=1e-4).value
    single = largest_eigenvalue(model.float(), data, tolerance=1e-4)
    assert single.vector.dtype == torch.float32
    assert single.value == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_seen_in_evaluation_mode_and_left_as_it_was(training):
    layers = nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.CELU(), nn.Flatten(), nn.Linear(4, 3)
    model, data = nn.Sequential(*layers, nn.Dropout(0.5)).double(), images(9)
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(torch.linspace(-1, 1 + k, p.numel()).view_as(p))
    model.train(training)
    model[1].eval()  # a mixture of modes stays one
    model(data.a)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    value = largest_eigenvalue(model, data, tolerance=1e-6, iterations=5000).value
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert model.training == training and not model[1].training
    assert (model[0].weight.grad == 1).all() and model[4].weight.grad is None
    model.eval()
    right = float(torch.linalg.eigvalsh(whole_hessian(model, data))[-1])
    assert value == pytest.approx(right, rel=1e-8)


def test_frozen_parameters_are_held_fixed_and_gradients_may_be_off():
    data, model = images(9), network()
    for p in model[2].parameters():
        p.requires_grad_(False)
    right = float(torch.linalg.eigvalsh(whole_hessian(model, data))[-1])
    with torch.no_grad():
        value, _, v = largest_eigenvalue(model, data, tolerance=1e-5)
    assert value == pytest.approx(right, rel=1e-8) and v.shape == (18,)


def test_bad_settings_and_a_diverged_model_are_refused():
    data, model = images(4), network()
    for settings, message in (
        ({"iterations": 0}, "iterations must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"tolerance": 0.0}, r"tolerance must be in \(0, 1\), got 0.0"),
        ({"tolerance": float("nan")}, r"tolerance must be in \(0, 1\), got nan"),
        ({"loss": nn.CrossEntropyLoss()}, "one value a sample"),
    ):
        with pytest.raises(ValueError, match=message):
            largest_eigenvalue(model, data, **settings)
    with pytest.raises(ValueError, match="at least one image"):
        largest_eigenvalue(model, data[:0])
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="requires a gradient"):
        largest_eigenvalue(model, data)
    model = network()
    with torch.no_grad():
        model[2].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="has the training diverged"):
        largest_eigenvalue(model, data)
    assert model.training
