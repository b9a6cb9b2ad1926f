"""lib.gan._steps: each step by hand, in the slide's order, and the long run made of the same."""

import copy
import math

import pytest
import torch
from torch import nn

from lib import gan
from lib.gan import (
    Objective,
    critic_step,
    gan_objective,
    gaussian,
    generator_step,
    point_critic,
    point_generator,
    train_gan,
    train_wgan,
    training_round,
    wgan_objective,
)
from lib.lipschitz import normalize_spectrally_


class Shift(nn.Module):
    """``h_x(ω) = ω + x``."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([x], dtype=torch.float64))

    def forward(self, omega):
        return omega + self.x


class Line(nn.Module):
    """``d_y(a) = y a``."""

    def __init__(self, y):
        super().__init__()
        self.y = nn.Parameter(torch.tensor([y], dtype=torch.float64))

    def forward(self, a):
        return a @ self.y


def zeros():
    return torch.zeros(4, 1).double()


def ones():
    return torch.ones(4, 1).double()


def sgd(network, lr=0.1):
    return torch.optim.SGD(network.parameters(), lr)


GAP = Objective(lambda real, fake: real.mean() - fake.mean(), lambda fake: -fake.mean())


def test_a_critic_step_by_hand():
    """V = y (1 − x): y goes up by γ (1 − x), x stays, and V is that before the step."""
    h, d = Shift(0.25), Line(-0.5)
    value = critic_step(GAP, h, d, zeros, ones, sgd(d))
    assert value.shape == () and not value.requires_grad
    assert value.item() == pytest.approx(-0.5 * 0.75, abs=1e-15)
    assert d.y.item() == pytest.approx(-0.5 + 0.1 * 0.75, abs=1e-15)
    assert h.x.item() == 0.25 and h.x.grad is None


def test_a_generator_step_by_hand():
    """ℓ = −y x: x goes up by α y, y stays, and ℓ is that before the step."""
    h, d = Shift(0.25), Line(-0.5)
    loss = generator_step(GAP, h, d, zeros, sgd(h))
    assert loss.shape == () and not loss.requires_grad
    assert loss.item() == pytest.approx(0.5 * 0.25, abs=1e-15)
    assert h.x.item() == pytest.approx(0.25 - 0.1 * 0.5, abs=1e-15)
    assert d.y.item() == -0.5 and d.y.grad is None


def test_a_round_by_hand():
    h, d, x, y = Shift(0.25), Line(-0.5), 0.25, -0.5
    value, loss = training_round(GAP, h, d, zeros, ones, sgd(h, 0.2), sgd(d, 0.1), 3)
    for _ in range(3):
        expected, y = y * (1 - x), y + 0.1 * (1 - x)
    assert value.item() == pytest.approx(expected, abs=1e-15)
    assert loss.item() == pytest.approx(-y * x, abs=1e-15)
    assert d.y.item() == pytest.approx(y, abs=1e-15)
    assert h.x.item() == pytest.approx(x + 0.2 * y, abs=1e-15)


def test_the_critics_step_does_not_look_into_the_generator():
    """Its graph would cost as much again, and nothing of it is asked for."""
    h, d, seen = Shift(0.25), Line(-0.5), []

    def critic(a):
        seen.append(a.requires_grad)
        return d(a)

    critic_step(GAP, h, critic, zeros, ones, sgd(d))
    generator_step(GAP, h, critic, zeros, sgd(h))
    assert seen == [False, True]


def test_the_penalty_is_ascended_with_the_value_and_is_no_part_of_it():
    penalized = Objective(GAP.critic_value, GAP.generator_loss, penalty=lambda *_: 3 * d.y.sum())
    h, d = Shift(0.25), Line(-0.5)
    value = critic_step(penalized, h, d, zeros, ones, sgd(d))
    assert value.item() == pytest.approx(-0.5 * 0.75, abs=1e-15)
    assert d.y.item() == pytest.approx(-0.5 + 0.1 * (0.75 - 3), abs=1e-15)


def test_the_lines_come_in_the_slides_order():
    """Noise, real samples, V, the step, the constraint; then new noise, ℓ and the step on x."""
    log = []

    def noting(what, function):
        def noted(*inputs):
            log.append(what)
            return function(*inputs)

        return noted

    h, d = Shift(0.25), Line(-0.5)
    objective = Objective(
        noting("V", GAP.critic_value),
        noting("loss", GAP.generator_loss),
        noting("penalty", lambda real, fake: fake.mean()),
        noting("constraint", lambda: None),
    )
    optimizers = sgd(h), sgd(d)
    for name, optimizer in zip("xy", optimizers, strict=True):
        optimizer.register_step_pre_hook(lambda *_, name=name: log.append(name))
    draws = noting("noise", zeros), noting("real", ones)
    training_round(objective, h, d, *draws, *optimizers, 2)
    inner = ["noise", "real", "V", "penalty", "y", "constraint"]
    assert log == 2 * inner + ["noise", "loss", "x"]


def test_frozen_layers_stay_and_the_others_move():
    h, d = point_generator(hidden=(8,)), point_critic(hidden=(8,))
    for network in (h, d):
        first = next(layer for layer in network if isinstance(layer, nn.Linear))
        first.requires_grad_(False)
    before = copy.deepcopy((h.state_dict(), d.state_dict()))
    draws = (lambda: torch.ones(8, 2)), (lambda: torch.zeros(8, 2))
    training_round(wgan_objective(d), h, d, *draws, sgd(h), sgd(d), 2)
    for network, old in zip((h, d), before, strict=True):
        stayed = {name: torch.equal(p, old[name]) for name, p in network.named_parameters()}
        frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
        assert len(frozen) == 2 and all(stayed[name] for name in frozen)
        assert not stayed[f"{len(network) - 1}.weight"]
        assert all(network.get_parameter(name).grad is None for name in frozen)


def test_the_optimizer_says_which_parameters_are_trained():
    h, d = point_generator(hidden=(8,)), point_critic(hidden=(8,))
    before = copy.deepcopy(d.state_dict())
    last = torch.optim.SGD(d[-1].parameters(), 0.1)
    critic_step(wgan_objective(d), h, d, lambda: torch.zeros(8, 2), lambda: torch.ones(8, 2), last)
    moved = [name for name, value in d.state_dict().items() if not torch.equal(value, before[name])]
    assert moved and all(name.startswith(f"{len(d) - 1}.") for name in moved)


@pytest.mark.parametrize("rule", [*gan.CONSTRAINTS, "saturating", "non-saturating"])
def test_the_long_run_takes_these_steps_bit_for_bit(rule):
    """train_wgan and train_gan against critic_step and generator_step with the same draws."""
    real = gan.eight_gaussians(200, torch.Generator().manual_seed(0))
    networks = point_generator(hidden=(16,), seed=1), point_critic(hidden=(16,), seed=2)
    by_hand = copy.deepcopy(networks)
    train = train_wgan if rule in gan.CONSTRAINTS else train_gan
    settings = {"critic_steps": 3, "batch_size": 16, "samples": 10, "seed": 5, "progress": False}
    settings |= {"evaluate_every": 0, "target": real[:10]}
    adam = {"lr": 1e-2, "betas": (0.5, 0.9)}
    for name in ("generator", "critic"):
        settings[f"{name}_optimizer"] = lambda p: torch.optim.Adam(p, **adam)
    history = train(*networks, real, gaussian(2), rule, steps=4, **settings)

    h, d = by_hand
    objective = wgan_objective(d, rule) if rule in gan.CONSTRAINTS else gan_objective(rule)
    if rule == "spectral":
        normalize_spectrally_(d)
    of_x, of_y = (torch.optim.Adam(network.parameters(), **adam) for network in (h, d))
    draws = torch.Generator().manual_seed(5)

    def draw_noise(n=16):
        return torch.randn(n, 2, generator=draws)

    def draw_real():
        return real[torch.randint(200, (16,), generator=draws)]

    draw_noise(10)  # of the scores
    values = []
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(4):
            for _ in range(3):
                value = critic_step(objective, h, d, draw_noise, draw_real, of_y)
            values.append(value.item())
            generator_step(objective, h, d, draw_noise, of_x)
    assert history["value"] == values
    for trained, expected in zip(networks, by_hand, strict=True):
        for name, weights in expected.state_dict().items():
            assert torch.equal(trained.state_dict()[name], weights), name


@pytest.mark.parametrize("returned", [(), (8, 2), (4,), (1, 8), (2, 4)])
def test_a_critic_of_other_numbers_is_refused(returned):
    def critic(a):
        return torch.ones(returned, requires_grad=True)

    d = Line(0.0)
    with pytest.raises(ValueError, match=r"one number a sample, \[n\] or \[n, 1\], got .* for 8"):
        critic_step(GAP, Shift(0.0), critic, zeros, ones, sgd(d))


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 1, 1, 1)])
def test_one_number_a_sample_may_have_any_shape(shape):
    d = Line(-0.5)
    value = critic_step(GAP, Shift(0.25), lambda a: d(a).reshape(shape), zeros, ones, sgd(d))
    assert value.item() == pytest.approx(-0.5 * 0.75, abs=1e-15)


def test_other_shapes_and_counts_are_refused():
    h, d = Shift(0.0), Line(0.0)
    with pytest.raises(ValueError, match=r"the generator makes \[4, 1\], real are \[3, 1\]"):
        critic_step(GAP, h, d, zeros, lambda: ones()[:3], sgd(d))
    for wrong, said in ((0, "must be >= 1, got 0"), (1.5, "must be a whole number, got 1.5")):
        with pytest.raises(ValueError, match=f"critic_steps {said}"):
            training_round(GAP, h, d, zeros, ones, sgd(h), sgd(d), wrong)
    assert d.y.item() == h.x.item() == 0 and math.isfinite(h.x.item())
