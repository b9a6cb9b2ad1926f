"""lib on a device that pretends to be CUDA: the CPU's values, and mixtures of devices go red."""

from functools import partial

import numpy as np
import pytest
import torch
from pretend_cuda import DEVICE, Mixed, Pretended, Pretending
from torch import nn

from lib import attacks, danskin, fairness, games, gan, lipschitz, models, sharpness, transport
from lib.balls import L1, L2, LInf
from lib.data import Images
from lib.gan import gaussian, point_critic, point_generator, train_gan, train_wgan
from lib.gan._run import Run
from lib.runs.checkpoints import load
from lib.training import (
    accuracy,
    adversarial,
    ball_stability,
    erm,
    fit,
    sharpness_aware,
)
from lib.training import (
    danskin as danskin_update,
)

BALLS = (LInf, L2, L1)
CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.rand(shape, generator=seeded(seed))


def on_both(compute, *, where=DEVICE):
    """compute(device) on the CPU and on the device: the same numbers, tensors on ``where``."""
    expected = compute(CPU)
    with Pretending():
        found = compute(DEVICE)
        check_alike(expected, found, where)
    return found


def check_alike(expected, found, where):
    if isinstance(expected, torch.Tensor):
        assert found.device == where, f"a result on {found.device}"
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-7)
    elif isinstance(expected, dict):
        assert expected.keys() == found.keys()
        check_alike(list(expected.values()), list(found.values()), where)
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            check_alike(one, other, where)
    else:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


def digits(n=24):
    """Small images of three classes that a network can tell apart."""
    b = torch.arange(n) % 3
    a = 0.3 * draw(n, 1, 4, 4) + 0.2 * b[:, None, None, None]
    return Images(a, b, ("zero", "one", "two"))


def network(device, seed=0, **settings):
    return models.mlp((1, 4, 4), (12,), 3, mean=0.5, std=0.3, seed=seed, **settings).to(device)


def trained(device):
    torch.manual_seed(0)
    model = network(device)
    images = digits().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.a), images.b).backward()
        optimizer.step()
    return model.eval(), images


# --- the device itself -------------------------------------------------------------------------


def test_the_device_refuses_what_cuda_refuses():
    with Pretending():
        ours, index = torch.ones(3, device=DEVICE), torch.tensor([0, 1])
        assert ours.is_cuda and ours.device == DEVICE and not ours.cpu().is_cuda
        assert type(ours.cpu()) is torch.Tensor and isinstance(ours + 1, Pretended)
        assert ours[index].tolist() == [1, 1]  # as on CUDA
        assert float(ours.sum() * torch.tensor(2.0)) == 6  # single numbers may be on the CPU
        mixtures = [
            lambda: ours + torch.ones(3),
            lambda: torch.cat([torch.ones(3), ours]),
            lambda: torch.where(ours > 0, torch.ones(3), ours),
            lambda: torch.ones(3)[index.to(DEVICE)],
            lambda: ours.index_select(0, index),
            lambda: ours.gather(0, index),
            lambda: ours.index_put_((index,), torch.ones(2)),
            lambda: ours.masked_fill(torch.ones(3) > 0, 2.0),
            lambda: nn.Linear(3, 1)(ours),
            lambda: nn.Linear(3, 1).to(DEVICE)(torch.ones(3)),
            lambda: torch.rand(3, device=DEVICE, generator=seeded()),
        ]
        for mixture in mixtures:
            with pytest.raises(Mixed):
                mixture()
        for to_numpy in (ours.numpy, lambda: np.asarray(ours), lambda: np.add(ours, 1)):
            with pytest.raises(TypeError, match="to numpy"):
                to_numpy()


# --- balls and attacks -------------------------------------------------------------------------


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("Ball", BALLS)
def test_balls(Ball, each, boxed):
    def compute(device):
        eps = torch.tensor([0.2, 0.0, 0.5, 1.0], device=device) if each else 0.4
        v, ball = (2 * draw(4, 2, 3) - 1).to(device), Ball(eps)
        box = {}
        if boxed:
            box = {"low": (-draw(4, 2, 3, seed=1)).to(device), "high": 0.3}
        return ball.norm(v), ball.dual_norm(v), ball.project(v, **box), ball.lmo(v, **box)

    on_both(compute)


@pytest.mark.parametrize("Ball", BALLS)
def test_bounds_and_radii_may_stay_on_the_cpu(Ball):
    v, low, eps = 2 * draw(4, 6) - 1, -draw(4, 6, seed=1), draw(4, seed=2)
    with Pretending():
        found = Ball(eps).project(v.to(DEVICE), low=low), Ball(eps).lmo(v.to(DEVICE), low=low)
        check_alike((Ball(eps).project(v, low=low), Ball(eps).lmo(v, low=low)), found, DEVICE)


@pytest.mark.parametrize("Ball", BALLS)
def test_samples_of_a_ball_are_drawn_on_the_cpu(Ball):
    with Pretending():
        assert torch.equal(Ball(0.5).sample((4, 3), seeded()), Ball(0.5).sample((4, 3), seeded()))


@pytest.mark.parametrize("Ball", BALLS)
def test_the_slides_attacks(Ball):
    def compute(device):
        model, images = trained(device)
        f, ball = attacks.loss_of(model, images.a, images.b), Ball(0.1)
        start = torch.zeros_like(images.a)
        box = {"low": -images.a, "high": 1 - images.a}
        steepest = Ball is LInf
        found = [attacks.fgsm(f, start, ball, **box)]
        found.append(attacks.pga(f, start, ball, 0.05, 5, **box, steepest=steepest))
        gradient = draw(*images.a.shape, seed=3).to(device)
        return [*found, attacks.mm_step(gradient, start, 0.1, 2.0)]

    on_both(compute)


@pytest.mark.parametrize("settings", [{}, {"steps": 4}, {"steps": 3, "restarts": 3}], ids=str)
@pytest.mark.parametrize("Ball", [LInf, L2])
def test_the_attack(Ball, settings):
    def compute(device):
        model, images = trained(device)
        more = settings | ({"generator": seeded(1)} if "restarts" in settings else {})
        adversarial_inputs = attacks.attack(model, images.a, images.b, Ball(0.15), **more)
        more |= {"generator": seeded(1)} if "restarts" in settings else {}
        return adversarial_inputs, attacks.robust_accuracy(
            model, images.a, images.b, Ball(0.15), **more
        )

    on_both(compute)


def test_the_attack_of_radii_on_the_device():
    def compute(device):
        model, images = trained(device)
        eps = draw(len(images), seed=2).to(device) / 5
        return attacks.attack(model, images.a, images.b, LInf(eps))

    on_both(compute)


# --- Danskin and training ----------------------------------------------------------------------


def test_danskin():
    def compute(device):
        g = (2 * draw(4, 6) - 1).to(device)
        return danskin.directional_derivative(g, g[0]), danskin.descent_direction(g)

    on_both(compute)


def test_the_shortest_vectors_weights():
    def compute(device):
        weights = danskin.min_norm_point((2 * draw(4, 6) - 1).to(device))
        return weights.cpu()

    on_both(compute, where=CPU)


ATTACK = partial(attacks.attack, ball=LInf(0.1), steps=2)
UPDATES = {
    "erm": erm,
    "adversarial": partial(adversarial, ATTACK),
    "danskin": partial(danskin_update, LInf(0.1), k=2, steps=2),
    "sharpness aware": partial(sharpness_aware, 0.05),
    "per sample": partial(sharpness_aware, 0.05, per_sample=True),
    "ball stability": partial(ball_stability, 0.05, steps=2),
}
SETTINGS = {"batch_size": 8, "lr": 0.01, "progress": False}


@pytest.mark.parametrize("make", UPDATES.values(), ids=UPDATES)
def test_every_update(make):
    def compute(device):
        model = network(device, activation="celu")
        history = fit(model, digits().to(device), make(), epochs=2, **SETTINGS)
        return [p.detach() for p in model.parameters()], list(history.values())

    on_both(compute)


@pytest.mark.parametrize("name", ["erm", "danskin"])
def test_fit_moves_the_model_and_the_data_and_goes_on(name, tmp_path):
    """From the CPU to the device by ``device=``, cut off after an epoch and gone on with there."""

    def compute(device):
        model, path = network(CPU), tmp_path / f"{device.type}.pt"
        settings = SETTINGS | {"checkpoint": path, "device": device}
        fit(model, digits(), UPDATES[name](), epochs=1, **settings)
        again = network(CPU)
        history = fit(again, digits(), UPDATES[name](), epochs=3, **settings)
        assert accuracy(again, digits().to(device)) == history["accuracy"][-1]
        return [p.detach() for p in again.parameters()], list(history.values())

    on_both(compute)
    with Pretending():
        whole = network(DEVICE)
        fit(whole, digits(), UPDATES[name](), epochs=3, **SETTINGS)
        weights = load(tmp_path / f"{DEVICE.type}.pt")["model"]
        assert all(type(value) is torch.Tensor for value in weights.values())
        for path, value in whole.state_dict().items():
            assert torch.equal(value.cpu(), weights[path]), path


def test_batch_norm_dropout_schedules_and_momentum():
    def compute(device):
        layers = nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(*layers, nn.Linear(8, 3))
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(0.5 * draw(*p.shape, seed=i) - 0.25)
        sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
        halved = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
        settings = SETTINGS | {"optimizer": sgd, "schedule": halved, "device": device}
        history = fit(model, digits(), erm(), epochs=2, **settings)
        return list(model.state_dict().values()), list(history.values())

    on_both(compute)


# --- fairness, sharpness, Lipschitz ------------------------------------------------------------


def test_fairness():
    def compute(device):
        model, images = network(device), digits().to(device)
        sampler = fairness.ClassFocusedSampler(images.b, step_size=0.1)
        update = erm(loss=sampler.watch(attacks.cross_entropy))
        history = fit(model, images, update, epochs=2, sampler=sampler, **SETTINGS)
        shares = [fairness.classwise_accuracy(model, images, ball) for ball in (None, LInf(0.05))]
        right = [share.right.tolist() for share in shares]
        return [p.detach().cpu() for p in model.parameters()], history["loss"], right, sampler.q

    on_both(compute, where=CPU)


def test_sharpness():
    def compute(device):
        return float(sharpness.largest_eigenvalue(*trained(device), generator=seeded())[0])

    on_both(compute)


def test_lipschitz():
    def compute(device):
        critic = point_critic(2, (8, 8)).to(device)
        real, fake = draw(16, 2, seed=1).to(device), draw(16, 2, seed=2).to(device)
        plain = nn.Sequential(critic[2], nn.ReLU(), critic[-1])
        images = gan.image_critic(2).to(device)
        found = [lipschitz.lipschitz_bound(critic), lipschitz.lipschitz_constant(plain)]
        found.append(lipschitz.lipschitz_lower_bound(critic, real, steps=3))
        found.append(lipschitz.lipschitz_bound(images, (1, 28, 28)))
        found.append(float(lipschitz.spectral_norm(images[0].weight, (6, 6))))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            penalty = lipschitz.gradient_penalty(critic, real, fake)
        [g] = torch.autograd.grad(penalty, critic[2].weight)
        seen = lipschitz.gradient_penalty(critic, real, fake, one_sided=True, generator=seeded())
        lipschitz.clip_weights_(critic, 0.05)
        normalized = lipschitz.normalize_spectrally_(images, (1, 28, 28))
        with torch.no_grad():
            numbers = normalized(draw(2, 1, 28, 28).to(device))
        return found, [penalty.detach(), g, seen.detach(), critic[2].weight.detach(), numbers]

    on_both(compute)


# --- transport and GANs ------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_transport_is_computed_on_the_cpu(dim):
    def compute(device):
        x, y = draw(12, dim, seed=1).to(device), draw(12, dim, seed=2).to(device)
        weights = draw(12, seed=3).double().to(device)
        weights = weights / weights.sum()
        value, plan = transport.wasserstein(x, y, 2, plan=True)
        weighted = transport.wasserstein(x, y, x_weights=weights)
        return value, weighted, plan, list(transport.kantorovich_potentials(x, y))

    on_both(compute, where=CPU)


FEW = {"steps": 4, "critic_steps": 2, "batch_size": 8, "samples": 12, "progress": False}
RULES = [*gan.CONSTRAINTS, *gan.LOSSES]


def gan_of(rule, device, *, on=None, **settings):
    """Networks trained by a rule on the device; ``on``: where they and the data begin."""
    on = on or device
    networks = point_generator(hidden=(8,)).to(on), point_critic(hidden=(8,), seed=1).to(on)
    real = gan.eight_gaussians(40, seeded()).to(on)
    train = train_wgan if rule in gan.CONSTRAINTS else train_gan
    history = train(*networks, real, gaussian(2), rule, device=device, **FEW | settings)
    return networks, history


def compared(networks, history):
    state = [value for network in networks for value in network.state_dict().values()]
    assert all(samples.device == CPU for samples in history["samples"])
    return state, history["value"], history["w1"]


@pytest.mark.parametrize("on", [None, CPU])
@pytest.mark.parametrize("rule", RULES)
def test_gans(rule, on):
    on_both(lambda device: compared(*gan_of(rule, device, on=on)))


def test_gans_of_images_schedules_and_targets_on_the_device():
    def compute(device):
        real = draw(20, 1, 28, 28).to(device)
        networks = gan.image_generator(3, 2).to(device), gan.image_critic(2).to(device)
        halved = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
        settings = FEW | {"steps": 2, "schedule": halved, "target": real[:12]}
        history = train_wgan(*networks, real, gaussian(3), "spectral", **settings)
        return compared(networks, history)

    on_both(compute)


@pytest.mark.parametrize("rule", ["spectral", "penalty", "saturating"])
def test_a_gan_goes_on_from_its_checkpoint_on_the_device(rule, tmp_path):
    def compute(device):
        kept = {"checkpoint": tmp_path / f"{device.type}.pt", "evaluate_every": 2}
        gan_of(rule, device, steps=2, **kept)
        return compared(*gan_of(rule, device, steps=4, **kept))

    state, *numbers = on_both(compute)
    with Pretending():
        whole, *expected = compared(*gan_of(rule, DEVICE, steps=4, evaluate_every=2))
        assert numbers == expected
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(state, whole, strict=True))


def test_a_gan_that_diverges_on_the_device_is_put_back():
    wild = partial(torch.optim.SGD, lr=1e30)
    with Pretending():
        networks = point_generator(hidden=(8,)).to(DEVICE), point_critic(hidden=(8,)).to(DEVICE)
        before = [p.detach().cpu() for network in networks for p in network.parameters()]
        real = gan.eight_gaussians(40, seeded()).to(DEVICE)
        optimizers = {"generator_optimizer": wild, "critic_optimizer": wild}
        with pytest.raises(FloatingPointError, match="in step 1"):
            train_wgan(*networks, real, gaussian(2), **FEW | optimizers)
        after = [p.detach().cpu() for network in networks for p in network.parameters()]
        assert all(map(torch.equal, before, after))


def test_modes_and_divergences_of_tensors_on_the_device():
    def compute(device):
        points = gan.eight_gaussians(200, seeded()).to(device)
        p = torch.softmax(draw(5).double(), 0).to(device)
        return list(gan.modes(points)), gan.js_divergence(p, p.flip(0))

    on_both(compute)


def test_games():
    def compute(device):
        start = draw(2, seed=1).to(device), draw(2, seed=2).to(device)
        return games.extragradient(lambda x, y: (x * y).sum(), *start, 0.1, 5)

    on_both(compute)


# --- planted faults ----------------------------------------------------------------------------


class Forgetful(nn.Module):
    """Keeps a tensor that no ``.to(device)`` finds."""

    def __init__(self, model):
        super().__init__()
        self.model, self.mean = model, torch.zeros(1, 4, 4)

    def forward(self, a):
        return self.model(a - self.mean)


def noise_left_on_the_cpu(run):
    return run.noise(run.batch_size, generator=run.draws)


FAULTS = {
    "a tensor that does not move with a network": lambda images: fit(
        Forgetful(network(DEVICE)), images, erm(), epochs=1, **SETTINGS
    ),
    "labels on the CPU": lambda images: attacks.attack(
        network(DEVICE).eval(), images.a, digits().b, LInf(0.1), steps=1
    ),
    "an index into the CPU": lambda images: digits().a[images.b],
    "an index of the CPU's": lambda images: images.a.index_select(0, digits().b),
    "a generator of the CPU": lambda images: torch.randn(
        images.a.shape, generator=seeded(), device=images.a.device
    ),
    "random points on the CPU": lambda images: images.a + LInf(0.1).sample(images.a.shape),
    "fakes on the CPU": lambda images: lipschitz.gradient_penalty(
        nn.Flatten(), images.a, digits().a
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_faults_go_red(fault):
    """By the device, or before it by a check that names both."""
    with Pretending(), pytest.raises((Mixed, ValueError), match=r"CPU|cpu"):
        fault(digits().to(DEVICE))


def test_noise_that_stays_on_the_cpu_goes_red(monkeypatch):
    monkeypatch.setattr(Run, "_draw_noise", noise_left_on_the_cpu)
    with Pretending(), pytest.raises(Mixed):
        gan_of("clip", DEVICE)
