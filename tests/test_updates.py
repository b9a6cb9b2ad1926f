"""lib.training, the updates: gradients against finite differences and closed forms."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import nn

from lib import models
from lib.attacks import attack, cross_entropy, fgsm, loss_of, pga
from lib.balls import L1, L2, LInf
from lib.training import adversarial, ball_stability, danskin, erm, sharpness_aware

SEEDS = 0, 1, 2


# --- adversarial ---------------------------------------------------------------------------


def celu_network(seed=0):
    shape = (1, 4, 4)
    return models.mlp(shape, (6,), 3, activation="celu", mean=0.5, std=0.3, seed=seed).double()


def logistic(h, b):  # labels 0 and 1 for the slides' −1 and +1
    return torch.nn.functional.softplus(-(2 * b - 1) * h[:, 0])


@pytest.mark.parametrize("seed", SEEDS)
def test_adversarial_grad_is_the_mean_of_per_sample_gradients_at_the_attacked_inputs(seed):
    (a, b), model = digits_like(5, seed), celu_network(seed)
    search = partial(attack, ball=LInf(0.1), steps=3)
    worst = search(model.eval(), a, b)
    assert ((worst - a).abs().amax(1) > 0.05).any()
    value = adversarial(search)(model.train(), a, b)

    each = []
    for i in range(5):
        losses = -torch.log_softmax(model(worst[i : i + 1]), 1)[0, b[i]]
        each.append(torch.autograd.grad(losses, list(model.parameters())))
    for parameter, *parts in zip(model.parameters(), *each, strict=True):
        torch.testing.assert_close(parameter.grad, sum(parts) / 5, atol=1e-14, rtol=0)

    @torch.no_grad()
    def risk():  # η stays where the attack put it
        return -float(torch.log_softmax(model(worst), 1)[range(5), b].mean())

    assert float(value) == pytest.approx(risk(), abs=1e-14)
    step = 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            flat, gradient = parameter.view(-1), parameter.grad.view(-1)
            for i in range(0, len(flat), 5):
                x = float(flat[i])
                flat[i] = x + step
                up = risk()
                flat[i] = x - step
                down = risk()
                flat[i] = x
                assert float(gradient[i]) == pytest.approx((up - down) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("ball", "dual"), [(LInf, 1), (L2, 2), (L1, np.inf)])
def test_adversarial_training_of_a_linear_model_is_descent_on_its_closed_form(ball, dual, seed):
    """mean log(1 + exp(−(b <x, a> − eps ‖x‖*))), its gradient written out in NumPy (slide 8)."""
    rng = np.random.default_rng(seed)
    a, b, x, eps = rng.random((7, 9)), rng.integers(0, 2, 7), rng.normal(size=9), 0.3
    model = models.linear((9,), 1, bias=False, mean=0, std=1).double()
    with torch.no_grad():
        model[-1].weight.copy_(torch.from_numpy(x)[None])

    def exact(model, a, b):
        return a + fgsm(loss_of(model, a, b, loss=logistic), torch.zeros_like(a), ball(eps))

    update = adversarial(exact, loss=logistic)
    value = update(model, torch.from_numpy(a), torch.from_numpy(b))
    sign = 2 * b - 1
    margin = sign * (a @ x) - eps * np.linalg.norm(x, dual)
    norm_gradient = {
        1: np.sign(x),
        2: x / np.linalg.norm(x),
        np.inf: np.sign(x) * (np.abs(x) == np.abs(x).max()),
    }[dual]
    slope = -1 / (1 + np.exp(margin))
    expected = (slope[:, None] * (sign[:, None] * a - eps * norm_gradient)).mean(0)
    assert float(value) == pytest.approx(np.log1p(np.exp(-margin)).mean(), abs=1e-12)
    np.testing.assert_allclose(model[-1].weight.grad[0], expected, atol=1e-12)


def test_adversarial_training_leaves_batch_norm_the_statistics_of_the_attacked_batch_alone():
    a, b = digits_like(8)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 3)).double()
    search = partial(attack, ball=LInf(0.2), steps=4)
    worst = search(model.eval(), a, b)
    adversarial(search)(model.train(), a, b)
    assert int(model[0].num_batches_tracked) == 1
    assert abs(float(worst.mean() - a.mean())) > 1e-4
    assert float(model[0].running_mean) == pytest.approx(0.1 * float(worst.mean()), abs=1e-12)
    expected = 0.9 + 0.1 * float(worst.var(unbiased=True))
    assert float(model[0].running_var) == pytest.approx(expected, abs=1e-12)


def test_adversarial_attacks_in_evaluation_mode_and_descends_in_training_mode():
    (a, b), modes = digits_like(4), []
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).double()
    model.register_forward_hook(lambda module, *_: modes.append(module.training))

    def search(model, a, b):
        assert not any(module.training for module in model.modules())
        model(a)
        return a

    adversarial(search)(model.train(), a, b)
    assert modes == [False, True]
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "update", [adversarial(lambda model, a, b: a), danskin(LInf(0.1), k=2, steps=1)]
)
@pytest.mark.parametrize("modes", [(True, True), (False, False), (True, False), (False, True)])
def test_each_layer_is_left_in_the_mode_that_it_was_in(update, modes):
    (a, b), seen = digits_like(4), []
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), nn.Linear(16, 3)).double()
    model.train(modes[0])
    model[0].train(modes[1])
    before = [layer.training for layer in model.modules()]
    model.register_forward_hook(lambda *_: seen.append([x.training for x in model.modules()]))
    update(model, a, b)
    assert [layer.training for layer in model.modules()] == before == seen[-1]


def test_adversarial_leaves_the_model_in_training_mode_when_the_attack_fails():
    model = small_network()

    def search(model, a, b):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adversarial(search)(model, *digits_like(4))
    assert all(module.training for module in model.modules())


def test_adversarial_replaces_old_gradients_and_returns_a_detached_loss():
    (a, b), model = digits_like(6), small_network()
    update = adversarial(partial(attack, ball=LInf(0.1), steps=2))
    update(model, a, b)
    first = gradients(model)
    loss = update(model, a, b)
    assert same(first, gradients(model))
    assert not loss.requires_grad


def test_an_attack_that_does_nothing_makes_adversarial_training_erm():
    (a, b), model = digits_like(6), small_network()
    value = adversarial(lambda model, a, b: a)(model, a, b)
    attacked = gradients(model)
    assert torch.equal(value, erm()(model, a, b))
    assert same(attacked, gradients(model))


def test_adversarial_passes_its_generator_to_the_attack_and_shows_it():
    (a, b), model = digits_like(6), small_network()
    search = partial(attack, ball=L2(0.5), steps=1, step_size=0.0, restarts=2)
    seen = []

    def spy(model, a, b, generator):
        seen.append(search(model, a, b, generator=generator))
        return seen[-1]

    generator = torch.Generator().manual_seed(3)
    update = adversarial(spy, generator=generator)
    assert update.generators == (generator,)
    for _ in range(2):
        update(model, a, b)
    assert not torch.equal(*seen)  # it moves on from batch to batch
    again = torch.Generator().manual_seed(3)
    for worst in seen:
        assert torch.equal(worst, search(model.eval(), a, b, generator=again))
    assert adversarial(search).generators == ()


def test_adversarial_refuses_an_attack_that_returns_other_inputs_or_a_loss_of_another_shape():
    (a, b), model = digits_like(6), small_network()
    with pytest.raises(ValueError, match=r"inputs a \+ η \[6, 1, 4, 4\], got \[6, 16\]"):
        adversarial(lambda model, a, b: a.flatten(1))(model, a, b)
    update = adversarial(lambda model, a, b: a, loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"one value a sample, \[6\], got \[\]"):
        update(model, a, b)


# --- sharpness_aware and ball_stability ----------------------------------------------------


class Point(nn.Module):
    """The parameters alone: h_x(a) = x for every input, so that a loss is a function of x."""

    def __init__(self, x, dtype=torch.float64):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(x, dtype=dtype))
        self.seen = []

    def forward(self, a):
        self.seen.append(self.x.detach().clone())
        return self.x.expand(len(a), -1)


def quadratics(*hessians):
    """L(x, b) = xᵀ H_b x / 2."""

    def loss(h, b):
        matrices = torch.stack([torch.as_tensor(H, dtype=h.dtype) for H in hessians])[b]
        return torch.einsum("mi,mij,mj->m", h, matrices, h) / 2

    return loss


def step_at(x, update, samples=1):
    """The gradient and the loss of an update on one batch with the labels 0, 1, ..."""
    model = Point(x)
    value = update(model, torch.zeros(samples, 1), torch.arange(samples))
    assert torch.equal(model.x.detach(), torch.tensor(x, dtype=torch.float64))
    return model.x.grad.numpy(), float(value)


def digits_like(n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    a = torch.rand(n, 1, 4, 4, generator=rng, dtype=torch.float64)
    return a, torch.randint(3, (n,), generator=rng)


def small_network(seed=0):
    return models.mlp((1, 4, 4), (6,), 3, mean=0.5, std=0.3, seed=seed).double()


def with_batch_norm(seed=0):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).double()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) / 3)
    return model


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def same(first, second):
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_sam_step_on_a_quadratic_by_hand():
    """g = (1, 4), η = (1, 4) / (2 √17), ∇ = H (x + η)."""
    update = sharpness_aware(0.5, loss=quadratics(np.diag([1.0, 4.0])))
    gradient, value = step_at([1.0, 1.0], update)
    np.testing.assert_allclose(gradient, [1 + 0.5 / 17**0.5, 4 + 8 / 17**0.5], rtol=1e-14)
    np.testing.assert_allclose(gradient, [1.12127, 5.94029], atol=5e-6)
    x = np.array([1 + 0.5 / 17**0.5, 1 + 2 / 17**0.5])  # the loss is that at x + η
    assert value == pytest.approx((x[0] ** 2 + 4 * x[1] ** 2) / 2, rel=1e-14)


def test_sam_per_sample_and_per_batch_differ_as_by_hand():
    loss = quadratics(np.diag([1.0, 0.0]), np.diag([0.0, 1.0]))
    each, value = step_at([2.0, 1.0], sharpness_aware(0.1, loss=loss, per_sample=True), 2)
    np.testing.assert_allclose(each, [1.05, 0.55], rtol=1e-14)
    assert value == pytest.approx((2.1**2 + 1.1**2) / 4, rel=1e-14)
    batch, _ = step_at([2.0, 1.0], sharpness_aware(0.1, loss=loss), 2)
    np.testing.assert_allclose(batch, [1 + 0.1 / 5**0.5, 0.5 + 0.05 / 5**0.5], rtol=1e-14)
    np.testing.assert_allclose(batch, [1.04472, 0.52236], atol=5e-6)


@pytest.mark.parametrize("per_sample", [False, True])
def test_sam_does_not_move_and_gives_no_nan_where_the_gradient_is_zero(per_sample):
    loss = quadratics(np.diag([1.0, 4.0]), np.zeros((2, 2)))
    gradient, value = step_at([0.0, 0.0], sharpness_aware(0.5, loss=loss, per_sample=per_sample), 2)
    assert (gradient == 0).all() and value == 0
    # One sample with a gradient and one without: only the first is perturbed.
    gradient, _ = step_at([1.0, 0.0], sharpness_aware(0.5, loss=loss, per_sample=True), 2)
    np.testing.assert_allclose(gradient, [0.75, 0], rtol=1e-14)


@pytest.mark.parametrize("x", [1e-25, 1e-30])
def test_sam_moves_by_rho_however_small_the_gradient(x):
    model = Point([x, 0.0], dtype=torch.float32)
    update = sharpness_aware(0.5, loss=quadratics(np.eye(2)))
    update(model, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    np.testing.assert_allclose(model.seen[1], [0.5, 0], rtol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_sam_moves_all_parameters_together_by_rho_along_the_gradient(seed):
    a, b = digits_like(8, seed)
    model, seen = small_network(seed), []
    erm()(model, a, b)
    x, g = nn.utils.parameters_to_vector(model.parameters()).detach(), gradients(model)
    g = torch.cat([part.flatten() for part in g])
    watch = model.register_forward_pre_hook(
        lambda model, _: seen.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    )
    value = sharpness_aware(0.3)(model, a, b)
    watch.remove()
    assert len(seen) == 2 and torch.equal(seen[0], x)
    torch.testing.assert_close(seen[1] - x, 0.3 * g / g.norm(), rtol=0, atol=1e-14)
    there = small_network(seed)
    nn.utils.vector_to_parameters(seen[1], there.parameters())
    assert torch.equal(value, erm()(there, a, b))
    assert same(gradients(model), gradients(there))


@pytest.mark.parametrize("copies", [1, 600, 2**25])
@pytest.mark.parametrize("seed", SEEDS)
def test_sam_per_sample_is_the_mean_over_batches_of_one(seed, copies, monkeypatch):
    monkeypatch.setattr("lib.training._sharpness_aware.COPIES", copies)  # four samples or fewer
    a, b = digits_like(10, seed)
    model = small_network(seed)
    losses, total = [], 0
    for i in range(10):
        losses.append(sharpness_aware(0.3)(model, a[i : i + 1], b[i : i + 1]))
        total = total + nn.utils.parameters_to_vector(gradients(model)) / 10
    value = sharpness_aware(0.3, per_sample=True)(model, a, b)
    found = nn.utils.parameters_to_vector(gradients(model))
    torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(value, torch.stack(losses).mean(), rtol=1e-12, atol=0)


def updates_that_move(rho):
    return {
        "batch": sharpness_aware(rho),
        "per sample": sharpness_aware(rho, per_sample=True),
        "ball": ball_stability(rho, steps=3),
        "ball, random": ball_stability(rho, steps=3, generator=torch.Generator().manual_seed(0)),
    }


@pytest.mark.parametrize("name", updates_that_move(0.0))
@pytest.mark.parametrize("seed", SEEDS)
def test_radius_zero_is_erm_exactly(seed, name):
    a, b = digits_like(8, seed)
    model, plain = small_network(seed), small_network(seed)
    value, expected = updates_that_move(0.0)[name](model, a, b), erm()(plain, a, b)
    if name == "per sample":  # the same up to the order of summation
        torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
        for found, right in zip(gradients(model), gradients(plain), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-14)
    else:
        assert torch.equal(value, expected) and same(gradients(model), gradients(plain))


def test_sam_costs_two_passes_and_with_rho_zero_one():
    for rho, passes in ((0.0, 1), (0.1, 2)):
        model = Point([1.0, 1.0])
        update = sharpness_aware(rho, loss=quadratics(np.eye(2)))
        update(model, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
        assert len(model.seen) == passes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", updates_that_move(0.0))
def test_parameters_buffers_and_mode_are_restored_bit_for_bit(name, dtype):
    a, b = digits_like(8)
    model = small_network().to(dtype)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    value = updates_that_move(0.7)[name](model, a.to(dtype), b)
    assert same(before, model.state_dict().values()) and model.training
    assert not value.requires_grad and value.shape == ()
    assert all(p.grad.dtype == dtype and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("name", ["batch", "ball", "ball, random"])
def test_batch_norm_statistics_see_the_first_pass_alone(name):
    a, b = digits_like(8)
    model, plain = with_batch_norm(), with_batch_norm()
    x = [p.detach().clone() for p in model.parameters()]
    updates_that_move(0.7)[name](model, a, b)
    erm()(plain, a, b)
    assert same(plain.buffers(), model.buffers()) and same(x, model.parameters())
    assert int(model[1].num_batches_tracked) == 1
    assert model.training and all(layer.training for layer in model)
    assert not same(gradients(model), gradients(plain))


class Shared(nn.Module):
    """One layer under two names, two layers with one weight, or one weight with two names."""

    def __init__(self, layers):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=rng) / 4)
        self.second = self.first if layers == "one layer" else nn.Linear(16, 16)
        self.second.weight = self.first.weight
        if layers == "two names":
            self.second.again = self.second.weight
        self.double()

    def forward(self, a):
        h = torch.tanh(self.first(a.flatten(1)))
        weight = getattr(self.second, "again", self.second.weight)
        return self.last(torch.tanh(nn.functional.linear(h, weight, self.second.bias)))


@pytest.mark.parametrize("layers", ["one layer", "one weight", "two names"])
def test_sam_per_sample_of_shared_layers_is_the_mean_over_batches_of_one(layers):
    """functional_call alone would leave plain tensors in the place of parameters."""
    (a, b), model = digits_like(5), Shared(layers)
    parameters, before = list(model.parameters()), [p.clone() for p in model.parameters()]
    total = 0
    for i in range(5):
        sharpness_aware(0.3)(model, a[i : i + 1], b[i : i + 1])
        total = total + nn.utils.parameters_to_vector(gradients(model)) / 5
    for _ in range(2):
        sharpness_aware(0.3, per_sample=True)(model, a, b)
        found = nn.utils.parameters_to_vector(gradients(model))
        torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert model.second.weight is model.first.weight is parameters[0]
    assert same(before, model.parameters())


def test_sam_per_sample_refuses_batch_norm_with_advice():
    a, b = digits_like(4)
    with pytest.raises(ValueError, match=r"batch norm mixes.*per_sample=False.*norm=\"group\""):
        sharpness_aware(0.1, per_sample=True)(with_batch_norm(), a, b)


@pytest.mark.parametrize("update", [sharpness_aware, ball_stability])
def test_parameters_are_put_back_when_the_second_pass_fails(update):
    calls = []

    def loss(h, b):
        calls.append(None)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return cross_entropy(h, b)

    model = small_network()
    before = [p.detach().clone() for p in model.parameters()]
    settings = {"steps": 1} if update is ball_stability else {}
    with pytest.raises(RuntimeError, match="out of memory"):
        update(0.5, loss=loss, **settings)(model, *digits_like(4))
    assert same(before, model.parameters())


@pytest.mark.parametrize("per_sample", [False, True])
def test_sam_leaves_frozen_parameters_out_of_the_perturbation(per_sample):
    """With the output layer alone to train, it alone takes the whole radius."""
    a, b = digits_like(1)
    model, last = small_network(), small_network()
    for p in model[2].parameters():
        p.requires_grad_(False)
    sharpness_aware(0.4, per_sample=per_sample)(model, a, b)
    head = last[4]
    h = last[:4](a).detach()
    cross_entropy(head(h), b).sum().backward()
    g = nn.utils.parameters_to_vector(gradients(head))
    x = nn.utils.parameters_to_vector(head.parameters()).detach()
    nn.utils.vector_to_parameters(x + 0.4 * g / g.norm(), head.parameters())
    head.zero_grad()
    cross_entropy(head(h), b).sum().backward()
    for p, right in zip(model[4].parameters(), gradients(head), strict=True):
        torch.testing.assert_close(p.grad, right, rtol=1e-12, atol=1e-14)
    assert all(p.grad is None for p in model[2].parameters())


def trust_region(H, x, eps):
    """argmax (x + η)ᵀ H (x + η) / 2 over ‖η‖ <= eps, H >= 0: (λ − H) η = H x with ‖η‖ = eps."""
    values, vectors = np.linalg.eigh(H)
    g = vectors.T @ H @ x

    def excess(shift):
        return np.linalg.norm(g / (values[-1] + shift - values)) - eps

    shift = brentq(excess, 1e-12, 10 * np.linalg.norm(g) / eps, xtol=1e-15)
    return vectors @ (g / (values[-1] + shift - values))


@pytest.mark.parametrize("seed", range(10))
def test_ball_stability_finds_the_trust_region_maximizer_of_a_quadratic(seed):
    rng = np.random.default_rng(seed)
    half = rng.normal(size=(4, 4))
    H, x, eps = half @ half.T, rng.normal(size=4), 0.5
    eta = trust_region(H, x, eps)
    assert np.linalg.norm(eta) == pytest.approx(eps, rel=1e-9)
    best = (x + eta) @ H @ (x + eta) / 2

    update = ball_stability(eps, steps=200, step_size=eps, loss=quadratics(H))
    gradient, value = step_at(x.tolist(), update)
    np.testing.assert_allclose(gradient, H @ (x + eta), rtol=1e-6, atol=1e-8)
    assert value == pytest.approx(best, rel=1e-10)
    # The default steps come close, and closer than SAM's one step.
    _, few = step_at(x.tolist(), ball_stability(eps, steps=10, loss=quadratics(H)))
    _, one = step_at(x.tolist(), sharpness_aware(eps, loss=quadratics(H)))
    assert one <= few <= best * (1 + 1e-12) and best - few <= 1e-3 * best


def test_ball_stability_at_a_stationary_point_needs_the_random_start():
    """x = 0 and H = diag(1, 4): the worst point is eps along the top eigenvector."""
    loss = quadratics(np.diag([1.0, 4.0]))
    gradient, value = step_at([0.0, 0.0], ball_stability(0.5, steps=50, step_size=0.5, loss=loss))
    assert (gradient == 0).all() and value == 0
    for seed in SEEDS:
        update = ball_stability(
            0.5, steps=50, loss=loss, generator=torch.Generator().manual_seed(seed)
        )
        gradient, value = step_at([0.0, 0.0], update)
        np.testing.assert_allclose(abs(gradient), [0, 2], atol=1e-4)
        assert value == pytest.approx(0.5, rel=1e-7)


@pytest.mark.parametrize("random", [False, True])
def test_ball_stability_stays_in_the_ball_counts_its_passes_and_keeps_the_worst(random):
    """An indefinite quadratic with long steps: the last point need not be the worst."""
    H = np.diag([1.0, -8.0, -8.0])
    kept_earlier = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        model = Point((0.3 * rng.normal(size=3)).tolist())
        generator = torch.Generator().manual_seed(seed) if random else None
        update = ball_stability(
            0.4, steps=5, step_size=0.7, loss=quadratics(H), generator=generator
        )
        value = float(update(model, torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)))
        seen = torch.stack(model.seen).numpy()
        assert len(seen) == 6 + random
        assert (np.linalg.norm(seen - seen[0], axis=1) <= 0.4 * (1 + 1e-12)).all()
        values = np.einsum("si,ij,sj->s", seen, H, seen) / 2
        assert value == pytest.approx(values.max(), rel=1e-14)
        np.testing.assert_allclose(model.x.grad, H @ seen[values.argmax()], rtol=1e-14)
        kept_earlier += values.argmax() < len(seen) - 1
    assert kept_earlier > 0


@pytest.mark.parametrize(("steps", "moved"), [(1, 0.1), (5, 0.5), (20, 1.0)])
def test_ball_stability_adds_its_steps_up_to_the_radius(steps, moved):
    """On a linear loss ⟨c, x⟩ each step goes 0.1 along c, until the ball ends."""
    c = torch.tensor([3.0, 4.0], dtype=torch.float64)
    update = ball_stability(1.0, steps=steps, step_size=0.1, loss=lambda h, b: h @ c)
    gradient, value = step_at([1.0, 1.0], update)
    np.testing.assert_allclose(gradient, c, rtol=1e-14)
    assert value == pytest.approx(7 + 5 * moved, rel=1e-12)


def test_ball_stability_keeps_x_when_every_step_lowers_the_loss():
    """L = |x| − x²/2: from x = 0.9 a step of 0.4 jumps over the maximum at 1."""

    def loss(h, b):
        return (h.abs() - h**2 / 2).sum(1)

    gradient, value = step_at([0.9], ball_stability(0.4, steps=1, loss=loss))
    np.testing.assert_allclose(gradient, [0.1], rtol=1e-12)
    assert value == pytest.approx(0.9 - 0.405, rel=1e-14)
    gradient, value = step_at([0.9], sharpness_aware(0.4, loss=loss))
    np.testing.assert_allclose(gradient, [-0.3], rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_step_of_ball_stability_is_sam_where_that_raises_the_loss(seed):
    a, b = digits_like(8, seed)
    model, other, plain = (small_network(seed) for _ in range(3))
    expected = sharpness_aware(0.2)(model, a, b)
    assert expected > erm()(plain, a, b)
    for step_size in (None, 0.2):
        value = ball_stability(0.2, steps=1, step_size=step_size)(other, a, b)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
        for found, right in zip(gradients(other), gradients(model), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


def test_ball_stability_shows_its_generator_and_is_its_function():
    a, b = digits_like(8)
    assert ball_stability(0.2, steps=1).generators == ()
    values = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        update = ball_stability(0.5, steps=1, step_size=0.1, generator=generator)
        assert update.generators == (generator,)
        values.append(float(update(small_network(), a, b)))
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("radius", [-0.1, float("nan"), float("inf")])
def test_sharpness_updates_refuse_bad_settings(radius):
    with pytest.raises(ValueError, match=r"rho must be finite and >= 0, got"):
        sharpness_aware(radius)
    with pytest.raises(ValueError, match=r"eps must be finite and >= 0, got"):
        ball_stability(radius, steps=1)
    with pytest.raises(ValueError, match=r"steps must be >= 1, got 0"):
        ball_stability(0.1, steps=0)
    with pytest.raises(ValueError, match=r"step sizes must be finite and >= 0"):
        ball_stability(0.1, steps=2, step_size=-1.0)
    with pytest.raises(ValueError, match=r"one value a sample"):
        sharpness_aware(0.1, loss=nn.CrossEntropyLoss())(small_network(), *digits_like(4))


def test_nan_in_the_ball_is_returned_so_that_fit_stops():
    def loss(h, b):  # NaN as soon as x grows
        return h.sum(1).log1p() + (1.2 - h.sum(1)).sqrt()

    _, value = step_at([1.0], ball_stability(0.5, steps=2, step_size=1.0, loss=loss))
    assert value != value


# --- danskin ---------------------------------------------------------------------------------


def pga_by_hand(model, a, b, eta, eps, alpha, steps):
    """PGA-ℓ∞ of the mean cross-entropy within [0, 1], one bound after the other."""
    for _ in range(steps):
        z = (a + eta).requires_grad_()
        log_p = torch.log_softmax(model(z), 1)
        [g] = torch.autograd.grad(-log_p[torch.arange(len(b)), b].mean(), z)
        eta = torch.clamp(eta + alpha * g.sign(), -eps, eps)
        eta = torch.clamp(a + eta, 0, 1) - a
    return a + eta


@pytest.mark.parametrize(("steps", "step_size"), [(4, 0.02), (2, None)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_danskin_grad_is_the_min_norm_point_of_hand_built_gradients(
    seed, weight_decay, steps, step_size
):
    a, b = digits_like(6, seed)
    model, eps, generator = small_network(seed), 0.5, torch.Generator().manual_seed(seed)
    schedule = {"steps": steps, "step_size": step_size}
    update = danskin(LInf(eps), k=4, weight_decay=weight_decay, generator=generator, **schedule)
    value = update(model, a, b)
    found = nn.utils.parameters_to_vector(gradients(model))

    plain, starts = small_network(seed), torch.Generator().manual_seed(seed)
    rows, losses = [], []
    for _ in range(4):
        start = 2 * eps * torch.rand(a.shape, generator=starts) - eps
        alpha = step_size or 2.5 * eps / steps
        z = pga_by_hand(plain, a, b, (a + start).clamp(0, 1) - a, eps, alpha, steps)
        losses.append(erm()(plain, z.detach(), b))
        x = nn.utils.parameters_to_vector(plain.parameters()).detach()
        rows.append(nn.utils.parameters_to_vector(gradients(plain)) + weight_decay * x)
    assert float(value) == pytest.approx(float(max(losses)), rel=1e-12)

    rows = torch.stack(rows).numpy()
    best = minimize(
        lambda w: (w @ rows) @ (w @ rows),
        np.full(4, 0.25),
        jac=lambda w: 2 * rows @ (w @ rows),
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-15},
    )
    assert step_size is None or np.count_nonzero(best.x > 0.01) >= 2  # no corner of the hull
    np.testing.assert_allclose(found, best.x @ rows, atol=1e-5)
    # −g descends on each of the k losses at the rate ‖g‖² or more.
    assert (rows @ found.numpy()).min() == pytest.approx(float(found @ found), rel=1e-9)


@pytest.mark.parametrize("ball", [LInf(0.2), L2(1.0), L1(3.0)])
@pytest.mark.parametrize("seed", SEEDS)
def test_danskin_with_one_attack_is_adversarial_training_with_a_random_start(seed, ball):
    a, b = digits_like(6, seed)
    model, other = small_network(seed), small_network(seed)

    def attack(model, a, b, generator):
        low, high = -a, 1 - a
        start = ball.project(ball.sample(a.shape, generator).double(), low, high)
        f = loss_of(model, a, b)
        return a + pga(f, start, ball, 0.3, 3, low, high, steepest=True)

    value = danskin(
        ball, k=1, steps=3, step_size=0.3, generator=torch.Generator().manual_seed(seed)
    )(model, a, b)
    expected = adversarial(attack, generator=torch.Generator().manual_seed(seed))(other, a, b)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for p, q in zip(gradients(model), gradients(other), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-15)


def test_danskin_attacks_in_evaluation_mode_within_ball_and_box_and_descends_in_training_mode():
    a, b = digits_like(6)
    model, seen = with_batch_norm(), []
    before = [x.clone() for x in model.buffers()]
    model.register_forward_pre_hook(lambda m, x: seen.append((m.training, x[0].detach())))
    danskin(LInf(0.3), k=5, steps=2, step_size=0.01)(model, a, b)
    assert [training for training, _ in seen] == [False] * 10 + [True] * 5
    for _, z in seen:
        assert float((z - a).abs().max()) <= 0.3 + 1e-12
        assert float(z.min()) >= 0 and float(z.max()) <= 1
    assert len({z.numpy().tobytes() for _, z in seen[10:]}) == 5
    assert model.training and all(layer.training for layer in model)
    # Running statistics move once, as if the first attacked batch alone had been seen.
    twin = with_batch_norm()
    assert same(before, twin.buffers())
    twin(seen[10][1])
    assert int(model[1].num_batches_tracked) == 1 and same(twin.buffers(), model.buffers())


def test_danskin_never_leaves_the_bounds_by_rounding():
    low, high = torch.tensor([-0.3, 0.7])
    a, b = digits_like(200)
    a = (low + (high - low) * a.float()).clamp(low, high)
    assert (a + (high - a) > high).any()
    model, seen = small_network().float(), []
    bounds = (float(low), float(high))
    update = danskin(LInf(2.0), k=2, steps=1, bounds=bounds)
    model.register_forward_pre_hook(lambda m, x: seen.append(x[0].detach()) if m.training else None)
    update(model, a, b)
    assert len(seen) == 2
    assert all(low <= z.min() and z.max() <= high for z in seen)


def test_danskin_draws_from_its_generator_alone():
    a, b = digits_like(6)
    runs = []
    for seed, global_seed in ((0, 0), (0, 1), (1, 0), (None, 0), (None, 1)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        update, model = danskin(LInf(0.3), k=2, generator=generator), small_network()
        assert len(update.generators) == 1
        assert generator is None or update.generators[0] is generator
        begin = update.generators[0].get_state()
        update(model, a, b)
        assert not torch.equal(update.generators[0].get_state(), begin)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(gradients(model))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])
    assert same(runs[0], runs[3]) and same(runs[0], runs[4])  # None is seed 0


def test_danskin_replaces_old_gradients_and_leaves_frozen_parameters_alone():
    a, b = digits_like(6)
    model = small_network()
    model[2].weight.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    loss = danskin(LInf(0.1), k=3)(model, a, b)
    assert model[2].weight.grad is None and not loss.requires_grad and loss.shape == ()
    first = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    danskin(LInf(0.1), k=3)(model, a, b)
    assert same(first, [p.grad for p in model.parameters() if p.requires_grad])


def test_danskin_combines_gradients_in_float32_under_autocast():
    a, b = digits_like(6)
    model = small_network().float()
    with torch.autocast("cpu", torch.bfloat16):
        danskin(LInf(0.3), k=3, steps=1, step_size=0.01)(model, a.float(), b)
    g = nn.utils.parameters_to_vector(gradients(model))
    assert g.dtype == torch.float32
    assert not torch.equal(g, g.bfloat16().float())


def test_danskin_passes_nan_on_so_that_fit_stops():
    a, b = digits_like(6)
    model = small_network()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    assert torch.isnan(danskin(LInf(0.1), k=2, steps=1)(model, a, b))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"step_size": -1.0}, "step sizes must be finite and >= 0"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and >= 0, got -0.1"),
    ],
)
def test_danskin_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        danskin(LInf(0.1), **settings)
    with pytest.raises(ValueError, match=r"eps must be one number for all minibatches, got \[2\]"):
        danskin(LInf(torch.ones(2)))
    with pytest.raises(ValueError, match="one value a sample"):
        mean = nn.CrossEntropyLoss()
        danskin(LInf(0.1), loss=mean)(small_network(), *digits_like(4))


@pytest.mark.parametrize(
    "make", [partial(danskin, LInf(0.1)), partial(ball_stability, 0.1, steps=1)]
)
def test_a_generator_of_another_device_is_refused(make):
    with pytest.raises(ValueError, match="generator must be on the CPU, got one on cuda:0"):
        make(generator=SimpleNamespace(device=torch.device("cuda", 0)))


@pytest.mark.parametrize("moved", [sharpness_aware(1.0), ball_stability(1.0, steps=1)])
def test_in_bfloat16_the_second_gradient_is_taken_at_the_moved_weights(moved):
    """Not at autocast's copies of those before: the loss rises by as much as in float32."""
    a = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    b, rises = torch.arange(20) % 10, []
    for on in (False, True):
        losses = []
        for update in (erm(), moved):
            with torch.autocast("cpu", torch.bfloat16, enabled=on):
                losses.append(float(update(models.mlp((1, 8, 8), (32,)), a, b)))
        rises.append(losses[1] - losses[0])
    assert rises[0] > 0.1 and rises[1] == pytest.approx(rises[0], rel=0.1)


@pytest.mark.parametrize(
    "update",
    [
        adversarial(partial(attack, ball=LInf(0.1), steps=2)),
        danskin(LInf(0.1), k=2, steps=2),
    ],
    ids=["adversarial", "danskin"],
)
def test_no_parameter_asks_for_a_gradient_while_the_attack_searches(update):
    """A compiled backward pass would make it at every step of the attack."""
    model = models.mlp((1, 4, 4), (8,), 3, mean=0.5, std=0.3)
    model[-1].bias.requires_grad_(False)
    seen = set()

    def look(*_):
        seen.add((model.training, *(p.requires_grad for p in model.parameters())))

    model.register_forward_hook(look)
    a, b = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    update(model.train(), a, b)
    assert seen == {(False, False, False, False, False), (True, True, True, True, False)}
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]


def test_an_update_says_what_it_is():
    """By these names a checkpoint knows it: renamed, they would make old checkpoints foreign."""
    ball, search_for = LInf(0.1), partial(attack, ball=LInf(0.1))
    box, draws = (0.0, 1.0), torch.Generator()
    loss = partial(cross_entropy)
    search = {"ball": ball, "step_size": [0.125, 0.125], "bounds": box}
    for update, settings in (
        (erm(loss), {"name": "erm"}),
        (adversarial(search_for, loss=loss), {"name": "adversarial", "attack": search_for}),
        (
            danskin(ball, k=3, steps=2, weight_decay=0.5, loss=loss, generator=draws),
            {"name": "danskin", **search, "k": 3, "weight_decay": 0.5},
        ),
        (
            sharpness_aware(0.1, loss=loss, per_sample=True),
            {"name": "sharpness_aware", "rho": 0.1, "per_sample": True},
        ),
        (
            ball_stability(0.5, steps=2, loss=loss),
            {"name": "ball_stability", "eps": 0.5, "step_size": [1.0, 0.5]},
        ),
    ):
        assert update.settings == settings | {"loss": loss}
    assert danskin(ball, generator=draws).generators == (draws,)
    assert danskin(ball).settings["k"] == 10 and erm().generators == ()
