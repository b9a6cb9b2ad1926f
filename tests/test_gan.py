"""train_wgan and train_gan: by hand, counts, constraints, scores, and runs that go on."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from lib import gan
from lib.gan import (
    gaussian,
    image_critic,
    image_generator,
    point_critic,
    point_generator,
    train_gan,
    train_wgan,
)
from lib.gan._objectives import CONSTRAINTS
from lib.lipschitz import lipschitz_bound
from lib.runs import CheckpointError
from lib.runs.checkpoints import load
from lib.transport import wasserstein

SEEDS = (0, 1, 2)
SGD = partial(torch.optim.SGD, lr=0.1)
HALVED = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
gan_adam = partial(torch.optim.Adam, betas=(0.5, 0.9))  # as the default, but for lr


class Shift(nn.Module):
    """``h_x(ω) = ω + x``."""

    def __init__(self, x=0.0, dim=1):
        super().__init__()
        self.x = nn.Parameter(torch.full((dim,), x, dtype=torch.float64))

    def forward(self, omega):
        return omega + self.x


class Line(nn.Module):
    """``d_y(a) = ⟨y, a⟩``."""

    def __init__(self, y=0.0, dim=1):
        super().__init__()
        self.y = nn.Parameter(torch.full((dim,), y, dtype=torch.float64))

    def forward(self, a):
        return a @ self.y


def zeros(n, generator=None):
    return torch.zeros(n, 1, dtype=torch.float64)


ONES = torch.ones(8, 1, dtype=torch.float64)
DIRAC = {"batch_size": 4, "evaluate_every": 0, "progress": False}
DIRAC |= {"generator_optimizer": SGD, "critic_optimizer": SGD}


def small(seed=0, *, weights=None, noise=None, size=200, **settings):
    """A short training on points: (generator, critic, history)."""
    weights = seed if weights is None else weights
    networks = point_generator(2, 2, (16,), seed=weights), point_critic(2, (16,), seed=weights + 1)
    real = gan.eight_gaussians(size, torch.Generator().manual_seed(seed))
    fixed = {"batch_size": 16, "samples": 50, "seed": seed, "progress": False} | settings
    train = train_gan if "loss" in fixed else train_wgan
    return *networks, train(*networks, real, noise or gaussian(2), **fixed)


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- the loop, by hand ---------------------------------------------------------------------


def test_both_updates_are_those_of_the_dirac_game_solved_by_hand():
    """Real at 1, fake at x, d(a) = y a: y ascends by 1 − x, then x ascends along the new y."""
    h, d = Shift(0.25), Line(-0.5)
    history = train_wgan(
        h, d, ONES, zeros, "penalty", penalty=0.0, steps=3, critic_steps=2, **DIRAC
    )
    x, y, values = 0.25, -0.5, []
    for _ in range(3):
        for _ in range(2):
            values.append(y * (1 - x))
            y += 0.1 * (1 - x)
        x += 0.1 * y
    assert float(h.x.detach()) == pytest.approx(x, abs=1e-12)
    assert float(d.y.detach()) == pytest.approx(y, abs=1e-12)
    assert history["value"] == pytest.approx(values[1::2], abs=1e-12)


@pytest.mark.parametrize("slope", [0.3, 2.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_the_penalty_is_subtracted_from_what_the_critic_maximizes(slope, one_sided):
    h, d = Shift(0.0), Line(slope)
    settings = {"penalty": 1.5, "one_sided": one_sided, "steps": 1, "critic_steps": 1}
    train_wgan(h, d, ONES, zeros, "penalty", **settings, **DIRAC)
    excess = max(slope - 1, 0) if one_sided else slope - 1
    assert float(d.y.detach()) == pytest.approx(slope + 0.1 * (1 - 2 * 1.5 * excess), abs=1e-12)


def test_a_schedule_slows_both_networks_after_each_generator_step():
    """The Dirac game by hand, with learning rates that are halved each time."""
    h, d = Shift(0.25), Line(-0.5)
    settings = {"penalty": 0.0, "steps": 3, "critic_steps": 2, "schedule": HALVED}
    train_wgan(h, d, ONES, zeros, "penalty", **settings, **DIRAC)
    x, y, lr = 0.25, -0.5, 0.1
    for _ in range(3):
        for _ in range(2):
            y += lr * (1 - x)
        x, lr = x + lr * y, lr / 2
    assert float(h.x.detach()) == pytest.approx(x, abs=1e-12)
    assert float(d.y.detach()) == pytest.approx(y, abs=1e-12)


@pytest.mark.parametrize("loss", ["saturating", "non-saturating"])
def test_the_vanilla_game_by_hand(loss):
    """V = log σ(y) + log(1 − σ(y x)), and the generator's two losses, differentiated by hand."""

    def sigmoid(t):
        return 1 / (1 + math.exp(-t))

    h, d = Shift(0.25), Line(-0.5)
    history = train_gan(h, d, ONES, zeros, loss, steps=3, critic_steps=2, **DIRAC)
    x, y, values = 0.25, -0.5, []
    for _ in range(3):
        for _ in range(2):
            values.append(math.log(sigmoid(y)) + math.log(1 - sigmoid(y * x)))
            y += 0.1 * (1 - sigmoid(y) - x * sigmoid(y * x))
        x += 0.1 * y * (sigmoid(y * x) if loss == "saturating" else 1 - sigmoid(y * x))
    assert float(h.x.detach()) == pytest.approx(x, abs=1e-12)
    assert float(d.y.detach()) == pytest.approx(y, abs=1e-12)
    assert history["value"] == pytest.approx(values[1::2], abs=1e-12)


class Counting(torch.optim.SGD):
    """Notes its name in a common list at each step."""

    def __init__(self, parameters, name, steps):
        super().__init__(parameters, lr=0.01)
        self.name, self.steps = name, steps

    def step(self, closure=None):
        self.steps.append(self.name)
        return super().step(closure)


@pytest.mark.parametrize("steps, critic_steps", [(1, 1), (4, 3), (3, 5)])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_each_generator_step_follows_its_critic_steps(constraint, steps, critic_steps):
    taken = []
    small(
        constraint=constraint,
        steps=steps,
        critic_steps=critic_steps,
        generator_optimizer=partial(Counting, name="generator", steps=taken),
        critic_optimizer=partial(Counting, name="critic", steps=taken),
    )
    assert taken == (["critic"] * critic_steps + ["generator"]) * steps


def test_the_critic_goes_on_from_where_it_was():
    """Two runs of one step are one run of two where nothing is drawn: the critic is kept."""
    h, d = Shift(0.25), Line(-0.5)
    for _ in range(2):
        train_wgan(h, d, ONES, zeros, "clip", clip=9.0, steps=1, critic_steps=3, **DIRAC)
    both = Shift(0.25), Line(-0.5)
    train_wgan(*both, ONES, zeros, "clip", clip=9.0, steps=2, critic_steps=3, **DIRAC)
    assert h.x == both[0].x and d.y == both[1].y != -0.5


def test_every_batch_is_drawn_anew_and_of_the_size_asked_for():
    seen = []

    def noise(n, generator=None):
        seen.append(torch.randn(n, 2, generator=generator))
        return seen[-1]

    real = gan.eight_gaussians(100, torch.Generator().manual_seed(0))
    networks = point_generator(2, 2, (4,)), point_critic(2, (4,))
    settings = {"samples": 30, "batch_size": 7, "progress": False, "evaluate_every": 0}
    train_wgan(*networks, real, noise, "clip", steps=2, critic_steps=3, **settings)
    assert [len(omega) for omega in seen] == [30] + [7] * 8
    flat = torch.cat(seen)
    assert len(flat.unique(dim=0)) == len(flat)


def test_an_optimizer_that_exists_is_used_as_it_is():
    h, d = Shift(0.25), Line(-0.5)
    made = {"generator_optimizer": SGD(h.parameters()), "critic_optimizer": SGD(d.parameters())}
    train_wgan(h, d, ONES, zeros, "clip", clip=9.0, steps=2, critic_steps=1, **DIRAC | made)
    other = Shift(0.25), Line(-0.5)
    train_wgan(*other, ONES, zeros, "clip", clip=9.0, steps=2, critic_steps=1, **DIRAC)
    assert h.x == other[0].x and d.y == other[1].y


# --- the constraints -----------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_clipped_weights_are_within_c(seed):
    _, critic, _ = small(seed, constraint="clip", clip=0.05, steps=5)
    largest = max(float(p.detach().abs().max()) for p in critic.parameters())
    assert largest == pytest.approx(0.05, abs=1e-7)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_spectrally_normalized_critic_is_1_lipschitz_after_training(seed):
    _, critic, history = small(seed, constraint="spectral", steps=30)
    assert lipschitz_bound(critic) == pytest.approx(1, abs=0.05)
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 500, 2, generator=generator) * 3
    with torch.no_grad():
        slope = (critic(a) - critic(b))[:, 0].abs() / (a - b).norm(dim=1)
    assert slope.max() <= lipschitz_bound(critic) + 1e-5
    assert len(history["value"]) == 30


def test_normalizing_spectrally_twice_is_once():
    h, d, _ = small(constraint="spectral", steps=1)
    names = list(d.state_dict())
    real = gan.eight_gaussians(200, torch.Generator().manual_seed(0))
    settings = {"steps": 1, "batch_size": 16, "samples": 50, "progress": False}
    train_wgan(h, d, real, gaussian(2), "spectral", **settings)
    assert list(d.state_dict()) == names


def test_a_critic_with_another_parametrization_is_normalized_too():
    critic = point_critic(2, (8,), seed=2)
    torch.nn.utils.parametrizations.weight_norm(critic[-1])
    real = gan.eight_gaussians(50, torch.Generator().manual_seed(0))
    settings = {"steps": 2, "batch_size": 16, "evaluate_every": 0, "progress": False}
    train_wgan(point_generator(2, 2, (8,)), critic, real, gaussian(2), "spectral", **settings)
    assert lipschitz_bound(critic) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_critics_value_is_at_most_w1_for_a_1_lipschitz_critic(seed):
    """V is a lower bound of W1 between the two batches; with all of both it is one of W1."""
    _, critic, history = small(seed, constraint="spectral", steps=60, evaluate_every=20)
    real = gan.eight_gaussians(200, torch.Generator().manual_seed(seed))
    fake = history["samples"][-1]
    with torch.no_grad():
        value = float(critic(real).mean() - critic(fake).mean())
    assert value <= lipschitz_bound(critic) * wasserstein(real, fake) + 1e-5


def test_the_optimizers_seed_and_samples_that_are_not_named_are_those_of_the_docstring():
    """Adam with Gulrajani et al.'s momenta, for both networks; a sample of 500; seed 0."""
    adam = partial(gan_adam, lr=1e-3)
    fixed = {"constraint": "clip", "steps": 1, "batch_size": 16, "progress": False}
    real, runs = gan.eight_gaussians(600, torch.Generator().manual_seed(0)), []
    named = {"generator_optimizer": adam, "critic_optimizer": adam, "seed": 0, "samples": 500}
    for settings in ({}, named | {"evaluate_every": 1}):
        networks = point_generator(2, 2, (16,)), point_critic(2, (16,))
        history = train_wgan(*networks, real, gaussian(2), **fixed, **settings)
        weights = torch.cat([p.detach().flatten() for n in networks for p in n.parameters()])
        runs.append((weights, history))
    (weights, history), (found, other) = runs
    assert history["samples"][0].shape == (500, 2) and history["step"] == [0, 1]
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-6)
    assert other["w1"] == pytest.approx(history["w1"], abs=1e-5)


# --- the history ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "every, expected",
    [(None, [*range(0, 31, 4), 31]), (10, [*range(0, 31, 10), 31]), (99, [0, 31]), (0, [])],
)
def test_scores_stand_where_they_were_asked_for(every, expected):
    generator, _, history = small(constraint="clip", steps=31, evaluate_every=every)
    assert history["step"] == expected
    assert len(history["w1"]) == len(history["samples"]) == len(expected)
    assert len(history["value"]) == 31
    assert not generator.training


def test_the_distance_is_that_of_the_samples_to_the_target():
    target = gan.eight_gaussians(40, torch.Generator().manual_seed(5))
    _, _, history = small(constraint="clip", steps=4, evaluate_every=2, target=target)
    again = [wasserstein(samples, target) for samples in history["samples"]]
    assert history["w1"] == again
    assert not torch.equal(history["samples"][0], history["samples"][-1])


def test_images_are_learned_with_every_constraint_and_flattened_for_the_distance():
    real = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    settings = {"steps": 2, "critic_steps": 1, "batch_size": 8, "samples": 16, "progress": False}
    for constraint in CONSTRAINTS:
        networks = image_generator(4, 4), image_critic(4)
        history = train_wgan(*networks, real, gaussian(4), constraint, **settings)
        assert history["samples"][-1].shape == (16, 1, 28, 28)
        assert all(samples.min() >= 0 and samples.max() <= 1 for samples in history["samples"])
    assert lipschitz_bound(networks[1], (1, 28, 28)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("train", [partial(train_wgan, penalty=0.1), train_gan])
@pytest.mark.parametrize("seed", SEEDS)
def test_training_brings_the_samples_to_the_target(train, seed):
    generator = torch.Generator().manual_seed(seed)
    real = 0.3 * torch.randn(400, 2, generator=generator) + torch.tensor([2.0, -1.0])
    networks = point_generator(2, 2, (16,), seed=seed), point_critic(2, (16,), seed=seed)
    adam = partial(torch.optim.Adam, lr=0.005, betas=(0.5, 0.9))
    settings = {"generator_optimizer": adam, "critic_optimizer": adam, "seed": seed}
    settings |= {"batch_size": 64, "steps": 120, "samples": 200, "progress": False}
    history = train(*networks, real, gaussian(2), **settings)
    assert min(history["w1"]) < 0.5 * history["w1"][0]


# --- seeds, checkpoints, precision ---------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"constraint": c} for c in CONSTRAINTS] + [{"loss": "saturating"}]
)
def test_a_seed_says_all_and_torchs_own_generator_stays(settings):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = small(1, steps=3, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    second = small(1, steps=3, **settings)
    assert equal(state(first[0]), state(second[0])) and equal(state(first[1]), state(second[1]))
    assert first[2]["value"] == second[2]["value"] and first[2]["w1"] == second[2]["w1"]
    other = small(2, steps=3, **settings)
    assert other[2]["value"] != first[2]["value"]


class Killed(Exception):
    pass


CALLS = {"so far": 0, "the last": None}


def killing(n, generator=None):
    """Noise that ends the run at its last call."""
    CALLS["so far"] += 1
    if CALLS["so far"] == CALLS["the last"]:
        raise Killed
    return torch.randn(n, 2, generator=generator)


@pytest.fixture
def last_call(monkeypatch):
    def set_to(n):
        monkeypatch.setitem(CALLS, "so far", 0)
        monkeypatch.setitem(CALLS, "the last", n)

    return set_to


@pytest.mark.parametrize(
    "settings", [{"constraint": c} for c in CONSTRAINTS] + [{"loss": "saturating"}]
)
@pytest.mark.parametrize("at", [2, 9, 20])
def test_a_run_cut_off_anywhere_goes_on_bit_for_bit(tmp_path, settings, at, last_call):
    settings = dict(settings)
    train = train_gan if "loss" in settings else train_wgan
    rule = settings.popitem()[1]
    real = gan.eight_gaussians(200, torch.Generator().manual_seed(0))
    settings = {"steps": 6, "critic_steps": 3, "batch_size": 8, "samples": 20, "progress": False}
    settings |= {"evaluate_every": 2, "seed": 4}

    def networks():
        return point_generator(2, 2, (8,), seed=1), point_critic(2, (8,), seed=2)

    whole = networks()
    expected = train(*whole, real, gaussian(2), rule, **settings)
    kept = {"checkpoint": tmp_path / "run.pt", "every": 0.0}
    last_call(at)
    with pytest.raises(Killed):
        train(*networks(), real, killing, rule, **settings, **kept)
    last_call(None)
    # One call for the scored noise, then four for each step.
    assert load(tmp_path / "run.pt")["run"]["done"] == (at - 2) // 4
    again = networks()
    history = train(*again, real, killing, rule, **settings, **kept)
    assert equal(state(again[0]), state(whole[0])) and equal(state(again[1]), state(whole[1]))
    assert {k: history[k] for k in ("value", "step", "w1")} == {
        k: expected[k] for k in ("value", "step", "w1")
    }
    assert all(map(torch.equal, history["samples"], expected["samples"]))


def wide(n, generator=None):
    return 2 * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"constraint": "clip"}, "constraint was penalty, is clip"),
        ({"penalty": 0.5}, r"penalty was 10\.0, is 0\.5"),
        ({"one_sided": True}, "one_sided was False, is True"),
        ({"batch_size": 17}, "batch_size was 16, is 17"),
        ({"critic_steps": 2}, "critic_steps was 5, is 2"),
        ({"samples": 51}, "samples was 50, is 51"),
        ({"evaluate_every": 1}, "evaluate_every was None, is 1"),
        ({"precision": "bfloat16"}, "precision was float32, is bfloat16"),
        ({"noise": wide}, "noise was .*gaussian.*, is wide"),
        ({"critic_optimizer": SGD}, "critic's optimizer was Adam, is SGD"),
        ({"generator_optimizer": SGD}, "generator's optimizer was Adam, is SGD"),
        ({"critic_optimizer": partial(gan_adam, lr=0.01)}, r"lr was 0\.001, is 0\.01"),
        ({"schedule": HALVED}, "critic's schedule was None, is ExponentialLR"),
        ({"weights": 7}, "generator's initial 2.weight was"),
        ({"size": 201}, r"real was float32 \[200, 2\] CRC-32 .*, is float32 \[201, 2\]"),
        ({"target": torch.zeros(5, 2)}, r"target was .*, is float32 \[5, 2\]"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, said):
    settings = {"steps": 2, "checkpoint": tmp_path / "run.pt"}
    small(**settings)
    kept = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(CheckpointError, match=said):
        small(**settings | change)
    assert (tmp_path / "run.pt").read_bytes() == kept


@pytest.mark.parametrize(
    "settings, change, said",
    [
        ({"constraint": "clip"}, {"clip": 0.02}, r"clip was 0\.01, is 0\.02"),
        ({"loss": "saturating"}, {"loss": "non-saturating"}, "loss was saturating, is non-sat"),
        (
            {"schedule": HALVED},
            {"schedule": partial(HALVED, gamma=0.9)},
            r"gamma was 0\.5, is 0\.9",
        ),
    ],
)
def test_a_checkpoint_with_other_numbers_is_refused(tmp_path, settings, change, said):
    settings = {"steps": 2, "checkpoint": tmp_path / "run.pt"} | settings
    small(**settings)
    with pytest.raises(CheckpointError, match=said):
        small(**settings | change)


def test_a_finished_run_goes_on_with_more_steps_but_not_with_fewer(tmp_path):
    settings = {"constraint": "clip", "evaluate_every": 2}
    small(steps=4, checkpoint=tmp_path / "run.pt", **settings)
    *_, history = small(steps=6, checkpoint=tmp_path / "run.pt", **settings)
    *_, whole = small(steps=6, **settings)
    assert history["value"] == whole["value"] and history["w1"] == whole["w1"]
    settings["evaluate_every"] = None
    small(steps=20, checkpoint=tmp_path / "default.pt", **settings)
    *_, history = small(steps=40, checkpoint=tmp_path / "default.pt", **settings)
    assert history["step"] == [*range(0, 20, 2), *range(20, 41, 4)]
    settings["evaluate_every"] = 2
    with pytest.raises(CheckpointError, match="begun step 6, more than steps=5"):
        small(steps=5, checkpoint=tmp_path / "run.pt", **settings)


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_bfloat16_trains_float32_weights(constraint):
    generator, critic, history = small(constraint=constraint, steps=3, precision="bfloat16")
    assert all(p.dtype == torch.float32 for p in [*generator.parameters(), *critic.parameters()])
    *_, full = small(constraint=constraint, steps=3)
    assert history["value"] != full["value"]
    assert history["w1"] == pytest.approx(full["w1"], rel=0.05)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch._dynamo looks at it
@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_compiled_networks_learn_the_same(constraint, monkeypatch):
    """With "aot_eager": it has no second derivatives either, but needs no C++ compiler."""
    real, compiled = torch.compile, []

    def capture(network, **settings):
        compiled.append(network)
        return real(network, backend="aot_eager", **settings)

    monkeypatch.setattr(torch, "compile", capture)
    generator, critic, history = small(constraint=constraint, steps=4, compile=True)
    assert compiled == [generator, critic]
    *_, plain = small(constraint=constraint, steps=4)
    assert history["value"] == pytest.approx(plain["value"], abs=1e-4)
    assert history["w1"] == pytest.approx(plain["w1"], abs=1e-4)


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"constraint": "none"}, "constraint must be one of clip, penalty, spectral, got 'none'"),
        ({"clip": 0.0}, "clip must be finite and > 0"),
        ({"penalty": -1.0}, "penalty must be finite and >= 0"),
        ({"loss": "hinge"}, "loss must be one of saturating, non-saturating, got 'hinge'"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"critic_steps": 0}, "critic_steps must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"samples": 0}, "samples must be >= 1, got 0"),
        ({"every": -1}, "every must be >= 0 seconds, got -1"),
        ({"evaluate_every": -1}, "evaluate_every must be >= 0, got -1"),
        ({"steps": 2.5}, r"steps must be a whole number, got 2\.5"),
        ({"samples": "many"}, "samples must be a whole number, got 'many'"),
        ({"precision": "half"}, 'precision must be "float32" or "bfloat16"'),
    ],
)
def test_settings_out_of_range_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        small(**{"steps": 1} | change)


def test_a_training_that_diverges_ends_with_an_error():
    wild = partial(torch.optim.SGD, lr=1e30)
    with pytest.raises(FloatingPointError, match=r"in step \d+: try a smaller lr than 1e\+30"):
        small(constraint="penalty", steps=50, critic_optimizer=wild, generator_optimizer=wild)
