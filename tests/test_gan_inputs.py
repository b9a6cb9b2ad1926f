"""What people bring to train_wgan and train_gan: the documented result, or one plain error."""

import copy
import math

import pytest
import torch
from torch import nn

from lib import gan
from lib.gan import gaussian, point_critic, point_generator, train_gan, train_wgan
from lib.runs.checkpoints import load

FEW = {"steps": 1, "critic_steps": 1, "batch_size": 4, "samples": 10, "progress": False}
POINTS = gan.eight_gaussians(30, torch.Generator().manual_seed(0))


def tensors(*networks):
    return [t.clone() for network in networks for t in network.state_dict().values()]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


class Ending(nn.Module):
    """A critic whose numbers go through a function at its end."""

    def __init__(self, end):
        super().__init__()
        self.critic, self.end = point_critic(hidden=(8,)), end

    def forward(self, a):
        return self.end(self.critic(a))


def network(**hidden):
    return point_generator(hidden=(8,), **hidden), point_critic(hidden=(8,))


def with_nan(module):
    with torch.no_grad():
        module[-1].bias.fill_(math.nan)
    return module


def linear(out):
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, out))


REAL = {  # real samples -> what is said
    "integers": ((POINTS * 99).to(torch.uint8), r"real must be floats, got torch.uint8: convert"),
    "booleans": (POINTS > 0, "real must be floats, got torch.bool"),
    "complex": (POINTS.to(torch.complex64), "real must be floats, got torch.complex64"),
    "double": (POINTS.double(), r"makes torch.float32, real is torch.float64: .*real.to\("),
    "half": (POINTS.half(), "makes torch.float32, real is torch.float16"),
    "three columns": (torch.zeros(9, 3), r"makes \[2, 2\] of 2 noises, real is \[9, 3\]"),
    "a row of numbers": (torch.zeros(9), r"real must be \[N, ...\], got \[9\]: .*real\[:, None\]"),
    "empty": (torch.zeros(0, 2), r"real samples must be >= 1, got \[0, 2\]"),
    "NaN": (torch.full((9, 2), math.nan), "real must be finite, got NaN or infinity"),
    "infinity": (torch.full((9, 2), math.inf), "real must be finite, got NaN or infinity"),
    "an array": (POINTS.numpy(), "real must be a tensor .*, got ndarray"),
    "a list": (POINTS.tolist(), "real must be a tensor .*, got list"),
}
TARGETS = {
    "integers": (torch.zeros(5, 2).long(), "target must be floats, got torch.int64"),
    "another shape": (
        torch.zeros(5, 3),
        r"target is \[5, 3\], and real \[30, 2\]: they must agree",
    ),
    "empty": (torch.zeros(0, 2), "target samples must be >= 1"),
    "NaN": (torch.full((5, 2), math.nan), "target must be finite"),
}


def noise_of(*shape, dtype=torch.float32, value=0.5):
    return lambda n, generator=None: torch.full((n, *shape), value, dtype=dtype)


NOISES = {
    "another shape": (gaussian(3), r"the generator cannot take noise \[2, 3\] of torch.float32"),
    "another type": (noise_of(2, dtype=torch.float64), "cannot take noise .* of torch.float64"),
    "another number": (lambda n, generator=None: torch.zeros(n + 1, 2), r"noise\(10\) must return"),
    "NaN": (noise_of(2, value=math.nan), r"noise\(10\) must be finite"),
    "no tensor": (lambda n, generator=None: [[0.0, 0.0]] * n, "must return a tensor .*, got list"),
    "a scalar": (lambda n, generator=None: torch.tensor(0.0), r"must return a tensor \[10, ...\]"),
    "a changing shape": (
        lambda n, generator=None: torch.zeros(n, 2 if n == 10 else 3),
        r"noise\(4\) returned \[4, 3\] torch.float32, after \[10, 2\]",
    ),
    "a changing type": (
        lambda n, generator=None: torch.zeros(n, 2, dtype=torch.float64 if n == 4 else None),
        r"noise\(4\) returned \[4, 2\] torch.float64, after",
    ),
    "a changing number": (
        lambda n, generator=None: torch.zeros(max(n, 10), 2),
        r"noise\(4\) must return a tensor \[4, ...\], got \[10, 2\]",
    ),
}
CRITICS = {
    "two classes": (
        lambda: linear(2),
        r"one number a sample, \[n\] or \[n, 1\], got \[3, 2\] for 3",
    ),
    "one for the batch": (lambda: Ending(torch.mean), r"one number a sample, .*, got \[\] for 3"),
    "three columns": (lambda: point_critic(3), r"the critic cannot take real \[3, 2\] of torch.fl"),
    "double": (
        lambda: linear(1).double(),
        r"the critic cannot take real \[3, 2\] of torch.float32",
    ),
    "NaN": (lambda: with_nan(point_critic()), "the critic returns NaN or infinity before any step"),
    "no gradient": (lambda: Ending(torch.Tensor.detach), "the critic returns has no gradient"),
    "classes": (
        lambda: Ending(lambda z: (z > 0).long()),
        "must return a float tensor, got torch.i",
    ),
    "a tuple": (lambda: Ending(lambda z: (z, z)), "must return a float tensor, got tuple"),
    "frozen": (
        lambda: point_critic().requires_grad_(False),
        "the critic has no parameters to train",
    ),
}
GENERATORS = {
    "half the samples": (
        lambda: Ending(lambda z: z[: len(z) // 2].expand(-1, 2)),
        r"makes \[1, 2\]",
    ),
    "NaN": (lambda: with_nan(point_generator()), "the generator returns NaN or infinity before"),
    "no gradient": (
        lambda: Ending(lambda z: z.detach().expand(-1, 2)),
        "what the generator returns has no gradient",
    ),
    "nothing to train": (nn.Identity, "the generator has no parameters to train"),
}
PROBABILITIES = {
    "sigmoid": torch.sigmoid,
    "squeezed": lambda z: torch.sigmoid(z).squeeze(1),
    "clamped": lambda z: torch.sigmoid(z).clamp(1e-6, 1 - 1e-6),
    "logarithm": nn.functional.logsigmoid,
}


def refused(said, generator, critic, real=POINTS, noise=None, train=train_wgan, **settings):
    """Refused with what is said, and neither the networks nor the data changed."""
    before, modes = tensors(generator, critic), (generator.training, critic.training)
    data = copy.deepcopy(real)
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match=said) as raised:
        train(generator, critic, real, noise or gaussian(2), **FEW | settings)
    assert type(raised.value) is ValueError
    after = tensors(generator, critic)
    assert all(torch.equal(a, b) or b.isnan().any() for a, b in zip(after, before, strict=True))
    assert str(data) == str(real) and torch.equal(torch.get_rng_state(), random)
    return modes == (generator.training, critic.training)


@pytest.mark.parametrize("train", [train_wgan, train_gan])
@pytest.mark.parametrize("real, said", REAL.values(), ids=REAL)
def test_other_real_samples_are_refused(real, said, train):
    assert refused(said, *network(), real, train=train)


@pytest.mark.parametrize("constraint", gan.CONSTRAINTS)
@pytest.mark.parametrize("real, said", REAL.values(), ids=REAL)
def test_a_critic_is_not_normalized_for_what_is_refused(real, said, constraint):
    assert refused(said, *network(), real, constraint=constraint)


@pytest.mark.parametrize("target, said", TARGETS.values(), ids=TARGETS)
def test_other_targets_are_refused(target, said):
    assert refused(said, *network(), target=target)


@pytest.mark.parametrize("noise, said", NOISES.values(), ids=NOISES)
def test_other_noises_are_refused(noise, said):
    refused(said, *network(), noise=noise)


@pytest.mark.parametrize("critic, said", CRITICS.values(), ids=CRITICS)
def test_other_critics_are_refused(critic, said):
    assert refused(said, network()[0], critic())


@pytest.mark.parametrize("generator, said", GENERATORS.values(), ids=GENERATORS)
def test_other_generators_are_refused(generator, said):
    assert refused(said, generator(), network()[1])


@pytest.mark.parametrize("end", PROBABILITIES.values(), ids=PROBABILITIES)
def test_a_discriminator_of_probabilities_is_refused(end):
    """Their logarithm would be taken once more; a critic of a Wasserstein GAN may be bounded."""
    said = "the discriminator must return logits, and ends in .*Sigmoid: leave the sigmoid out"
    assert refused(said, network()[0], Ending(end), train=train_gan)
    history = train_wgan(network()[0], Ending(end), POINTS, gaussian(2), **FEW)
    assert math.isfinite(history["value"][0])


def test_a_sigmoid_within_a_discriminator_is_fine():
    inner = nn.Sequential(nn.Linear(2, 8), nn.Sigmoid(), nn.Linear(8, 1))
    train_gan(network()[0], inner, POINTS, gaussian(2), **FEW)


@pytest.mark.parametrize(
    "given, said",
    [
        (0.1, "generator_optimizer must be an optimizer, or a function .*, got 0.1"),
        ("adam", "generator_optimizer must be an optimizer, or a function .*, got 'adam'"),
        (lambda p: None, "generator_optimizer must be an optimizer, or a function .*, got None"),
    ],
)
def test_what_is_no_optimizer_is_refused(given, said):
    assert refused(said, *network(), generator_optimizer=given)


def test_an_optimizer_of_other_parameters_is_refused():
    generator, critic = network()
    both = torch.optim.SGD([*generator.parameters(), *critic.parameters()], lr=0.1)
    said = "critic_optimizer holds 4 parameters that are not the critic's: make it of critic.param"
    for constraint in gan.CONSTRAINTS:
        assert refused(said, generator, critic, constraint=constraint, critic_optimizer=both)
    said = "generator_optimizer holds 4 parameters that are not the generator's"
    refused(said, generator, critic, generator_optimizer=lambda _: both)


@pytest.mark.parametrize("train", [train_wgan, train_gan])
def test_one_sample_one_row_one_step_and_no_score(train):
    one = {"steps": 1, "batch_size": 1, "samples": 1, "progress": False}
    history = train(*network(), POINTS[:1], gaussian(2), **one)
    assert len(history["value"]) == 1 and len(history["w1"]) == 2
    history = train(*network(), POINTS[:1], gaussian(2), **one, evaluate_every=0)
    assert history["w1"] == history["samples"] == history["step"] == []


@pytest.mark.parametrize("constraint", gan.CONSTRAINTS)
def test_double_networks_learn_double_samples(constraint):
    generator, critic = (module.double() for module in network())

    def noise(n, generator=None):
        return torch.randn(n, 2, dtype=torch.float64, generator=generator)

    history = train_wgan(generator, critic, POINTS.double(), noise, constraint, **FEW)
    assert history["samples"][-1].dtype == torch.float64


@pytest.mark.parametrize("constraint", gan.CONSTRAINTS)
def test_frozen_layers_are_left_alone(constraint):
    generator, critic = network()
    generator[2].requires_grad_(False), critic[2].requires_grad_(False)
    frozen = [generator[2].weight, generator[2].bias]
    before = [p.clone() for p in frozen]
    train_wgan(generator, critic, POINTS, gaussian(2), constraint, **FEW | {"steps": 3})
    assert same(frozen, before) and all(p.grad is None for p in frozen)
    assert not critic[2].bias.requires_grad


class Particles(nn.Module):
    """Whose samples are its parameters: a view that training changes."""

    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.zeros(10, 2))

    def forward(self, omega):
        return self.at[: len(omega)]


def test_the_samples_in_the_history_stay_as_they_were():
    history = train_wgan(Particles(), point_critic(), POINTS, gaussian(2), **FEW | {"steps": 3})
    assert torch.equal(history["samples"][0], torch.zeros(10, 2))
    assert history["samples"][-1].abs().max() > 0


def test_networks_that_change_their_input_in_place_change_nothing_of_the_callers():
    real, constant = POINTS.clone().requires_grad_(), torch.full((10, 2), -1.0)
    generator = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2))
    critic = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 1))

    def noise(n, generator=None):
        return constant[:n]

    train_wgan(generator, critic, real, noise, "clip", **FEW | {"steps": 2})
    assert torch.equal(real, POINTS) and real.grad is None
    assert torch.equal(constant, torch.full((10, 2), -1.0))


def test_noise_of_torchs_own_generator_is_seeded_and_leaves_it_as_it_was():
    def noise(n, generator=None):
        return torch.randn(n, 2)

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = train_wgan(*network(), POINTS, noise, **FEW)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert train_wgan(*network(), POINTS, noise, **FEW)["value"] == first["value"]


# --- what is not finite ----------------------------------------------------------------------


class Root(nn.Module):
    """Finite values and a gradient of NaN: a square root at 0, a common slip."""

    def __init__(self, out):
        super().__init__()
        self.layer = nn.Linear(2, out)

    def forward(self, a):
        z = self.layer(a)
        return z + (0 * z).abs().sqrt()


@pytest.mark.parametrize("train", [train_wgan, train_gan])
@pytest.mark.parametrize("evaluate_every", [0, 1])
@pytest.mark.parametrize("who", ["generator", "critic"])
def test_a_weight_of_nan_stops_the_run_and_is_not_kept(train, evaluate_every, who, tmp_path):
    generator, critic = network()
    if who == "generator":
        generator = Root(2)
    else:
        critic = Root(1)
    before, path = tensors(generator, critic), tmp_path / "run.pt"
    settings = {"evaluate_every": evaluate_every, "checkpoint": path, "every": 0.0}
    with pytest.raises(FloatingPointError, match=r"in step 1: try a smaller lr than 0\.001"):
        train(generator, critic, POINTS, gaussian(2), **FEW | {"steps": 5} | settings)
    assert same(tensors(generator, critic), before)
    state = load(path)
    assert state["run"]["done"] == 0
    kept = [*state["generator"].values(), *state["critic"].values()]
    assert same(kept, before)


def test_the_weights_are_those_of_the_last_step_that_counts(tmp_path):
    """An infinite learning rate in the fourth step: the weights of three are left and kept."""

    class Burst(torch.optim.SGD):
        def step(self, closure=None):
            self.count = getattr(self, "count", 0) + 1
            self.param_groups[0]["lr"] = math.inf if self.count == 4 else 0.01
            return super().step(closure)

    settings = FEW | {"generator_optimizer": lambda p: Burst(p, lr=0.01), "evaluate_every": 0}
    networks, path = network(), tmp_path / "run.pt"
    kept = {"checkpoint": path, "every": 0.0}
    with pytest.raises(FloatingPointError, match=r"in step 4.*and so was the checkpoint .*run\.pt"):
        train_wgan(*networks, POINTS, gaussian(2), **settings | kept | {"steps": 9})
    whole = network()
    train_wgan(*whole, POINTS, gaussian(2), **settings | {"steps": 3})
    assert same(tensors(*networks), tensors(*whole))
    state = load(path)
    assert state["run"]["done"] == 3
    assert same([*state["generator"].values(), *state["critic"].values()], tensors(*whole))


def test_samples_that_are_not_finite_stop_the_run_too():
    class Fading(nn.Module):
        """Finite in training mode, and in evaluation mode until the weight has moved."""

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2))

        def forward(self, omega):
            moved = not self.training and bool(self.shift.abs().max() > 0)
            return omega + self.shift / (0.0 if moved else 1.0)

    with pytest.raises(
        FloatingPointError, match="NaN or infinity in evaluation mode after 1 steps"
    ):
        train_wgan(Fading(), point_critic(), POINTS, gaussian(2), **FEW)
