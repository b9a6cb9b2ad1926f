"""experiments.cifar10: augmentation, schedules, networks, and runs that are killed and go on."""

import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from experiments import cifar10, danskin_cifar10
from lib import attacks, models
from lib.balls import LInf
from lib.data import Images
from lib.fairness import ClassFocusedSampler
from lib.runs import checkpoints, processes
from lib.training import Update, adversarial, cross_entropy, danskin, erm, sharpness_aware

CPU = torch.device("cpu")


def noise(n=6, shape=(3, 5, 6), seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def by_loops(image, down, right, mirror, padding):
    """One image, pixel by pixel: black where the cut reaches over the edge, then mirrored."""
    c, h, w = image.shape
    out = torch.zeros(c, h, w)
    for i in range(h):
        for j in range(w):
            y, x = i + down - padding, j + right - padding
            if 0 <= y < h and 0 <= x < w:
                out[:, i, w - 1 - j if mirror else j] = image[:, y, x]
    return out


def explanations(image, found, padding):
    """Every (down, right, mirror) that makes found of the image."""
    size = range(2 * padding + 1)
    choices = [(down, right, mirror) for down in size for right in size for mirror in (0, 1)]
    return [c for c in choices if torch.equal(found, by_loops(image, *c, padding))]


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_each_image_is_a_crop_by_loops_and_all_crops_are_equally_likely(padding):
    """Compared with every crop there is; 4,000 images, chi-square at 1 in 1,000."""
    image = noise(1)[0]
    size = 2 * padding + 1
    crops = [
        by_loops(image, down, right, mirror, padding)
        for down in range(size)
        for right in range(size)
        for mirror in (0, 1)
    ]
    table = torch.stack(crops).flatten(1)
    found = cifar10.cropped(image.expand(4000, -1, -1, -1), generator(), padding).flatten(1)
    which = (torch.cdist(found, table, compute_mode="donot_use_mm_for_euclid_dist") == 0).double()
    assert (which.sum(1) == 1).all()
    assert chisquare(which.sum(0).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_images_of_a_batch_are_cut_independently_and_the_batch_is_left_as_it_was(seed):
    a, draws = noise(seed=seed), generator(seed)
    before, chosen = a.clone(), []
    for _ in range(3):
        found = cifar10.cropped(a, draws, 2)
        for image, crop in zip(a, found, strict=True):
            [choice] = explanations(image, crop, 2)
            chosen.append(choice)
    assert torch.equal(a, before)
    assert len(set(chosen)) > 6  # not one choice for the batch, nor the same at each call


def test_the_layout_of_the_images_is_kept():
    a = noise()
    there = a.to(memory_format=torch.channels_last)
    plain, last = (cifar10.cropped(images, generator()) for images in (a, there))
    assert torch.equal(plain, last) and plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_two_processes_cut_the_minibatch_as_one_does(monkeypatch):
    a = noise(8)
    whole, alone = cifar10.cropped(a, one := generator(3)), one.get_state()
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        draws = generator(3)
        assert torch.equal(
            cifar10.cropped(processes.local_rows(a), draws), processes.local_rows(whole)
        )
        assert torch.equal(draws.get_state(), alone)


def test_a_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding must be >= 0, got -1"):
        cifar10.cropped(noise(), generator(), -1)


def test_an_augmented_update_hands_on_crops_and_shows_all_generators():
    seen, own, draws = [], generator(1), generator(2)

    def gradient(model, a, b):
        seen.append(a)
        return torch.zeros(())

    a = noise()
    outer = cifar10.augmented(Update(gradient, {"name": "seen"}, (own,)), draws, 2)
    outer(None, a, None)
    assert torch.equal(seen[0], cifar10.cropped(a, generator(2), 2))
    assert outer.generators == (draws, own) and outer.settings == {"name": "seen", "padding": 2}
    assert cifar10.augmented(erm(), draws).generators == (draws,)


# --- killed runs ---------------------------------------------------------------------------


def run(which: str, checkpoint: Path | None, stop_at: int = -1, schedule: str = "one-cycle"):
    """A small run, killed with kill -9 in its step stop_at: (weights, history)."""
    config = cifar10.Attacked(network="cnn", epochs=3, batch_size=8, lr=0.05, schedule=schedule)
    a = noise(24, (3, 32, 32))
    images = Images(a, torch.arange(24) % 10, tuple("0123456789"))
    attack, sampler = partial(attacks.attack, ball=LInf(0.03), steps=1, restarts=2), None
    if which == "danskin":
        update = danskin(LInf(0.03), k=2, steps=1, generator=generator(4))
    elif which == "class-focused":
        sampler = ClassFocusedSampler(images.b, step_size=0.01)
        watched = sampler.watch(cross_entropy)
        update = adversarial(attack, loss=watched, generator=generator(4))
    else:
        update = sharpness_aware(0.05)
    steps = iter(range(100))

    def counted(model, a, b):
        if next(steps) == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(model, a, b)

    model = cifar10.network(config, 0)
    history = cifar10.train(
        config,
        model,
        images,
        replace(update, gradient=counted),
        seed=1,
        checkpoint=checkpoint,
        sampler=sampler,
        evaluate=lambda model: {"spread": float(model(images.a).detach().std())},
        every=0.0,
    )
    return model.state_dict(), history


def run_alone(*args):
    """Runs in a process of its own, on as many threads as the tests."""
    torch.set_num_threads(1)
    run(*args)


@pytest.mark.parametrize("which", ["danskin", "class-focused", "sam"])
@pytest.mark.parametrize("stop_at", [0, 1, 4, 8])
def test_a_run_killed_in_any_step_goes_on_bit_for_bit(which, stop_at, tmp_path):
    """kill -9 in the first step, within an epoch, in another one, and in the last step."""
    path = tmp_path / "run.pt"
    # Not a fork of this process, in which autograd's threads, if a test started them, are dead.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["experiments.cifar10"])
    killed = server.Process(target=run_alone, args=(which, path, stop_at))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert checkpoints.load(path)["run"]["epoch"] == stop_at // 3
    state, history = run(which, path)
    expected, its_history = run(which, None)
    assert history == its_history
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


# --- training ------------------------------------------------------------------------------


@pytest.mark.parametrize("epochs", [1, 2, 30])
@pytest.mark.parametrize("name", ["one-cycle", "piecewise"])
def test_the_schedules_rates(name, epochs):
    config = cifar10.Cifar10(schedule=name, epochs=epochs, lr=0.2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2, momentum=0.9)
    steps, rates = cifar10.schedule(config)(optimizer), []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[0]["momentum"] == 0.9
        optimizer.step()
        steps.step()
    if epochs < 30:
        assert all(0 < rate <= 0.2 for rate in rates)
    elif name == "one-cycle":
        top = rates.index(max(rates))
        assert rates[0] == pytest.approx(0.02) and rates[-1] == pytest.approx(0.002)
        assert rates[top] == pytest.approx(0.2) and rates[:top] == sorted(rates[:top])
        assert rates[top:] == sorted(rates[top:], reverse=True)
    else:
        assert rates == pytest.approx([0.2] * 15 + [0.02] * 7 + [0.002] * 8)


def test_the_networks_of_slide_22_are_built_and_a_step_trains_each():
    config = danskin_cifar10.Config(epochs=1, batch_size=2, images=2, tests=2)
    kinds = {"celu": (nn.CELU, nn.GroupNorm), "relu": (nn.ReLU, nn.BatchNorm2d)}
    images = Images(noise(2, (3, 8, 8)), torch.arange(2), tuple("0123456789"))
    for name, (activation, norm) in kinds.items():
        model = cifar10.network(config, 0, **danskin_cifar10.NETWORKS[name])
        layers = [type(layer) for layer in model.modules()]
        assert layers.count(activation) == 17 and layers.count(norm) == 20
        before = [p.detach().clone() for p in model.parameters()]
        settings = {"seed": 0, "checkpoint": None, "evaluate": lambda model: {}}
        cifar10.train(config, model, images, erm(), **settings)
        assert not any(torch.equal(*p) for p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("setting, number", [("images", 0), ("images", 101), ("tests", 101)])
def test_more_images_than_there_are_are_refused(setting, number, monkeypatch):
    few = Images(noise(100, (3, 32, 32)), torch.arange(100) % 10, tuple("0123456789"))
    monkeypatch.setattr("lib.data.cifar10", lambda split: few)
    config = cifar10.Cifar10(**{"images": 10, "tests": 10, setting: number})
    with pytest.raises(ValueError, match=f"{setting} must be 1 to 100, got {number}"):
        cifar10.load(config, CPU)


@pytest.mark.parametrize("variant, k", [("celu-pgd", 1), ("relu-ddi", 4)])
def test_ddi_decays_the_weights_within_the_hull_and_not_once_more(variant, k, monkeypatch):
    seen = {}

    def keep(name, found):
        return lambda *args, **settings: seen.update({name: settings}) or found

    images = Images(noise(20, (3, 32, 32)), torch.arange(20) % 10, tuple("0123456789"))
    monkeypatch.setattr("lib.data.cifar10", lambda split: images)
    monkeypatch.setattr(danskin_cifar10, "danskin", keep("danskin", erm()))
    history = {name: [0.0] for name in ("loss", "clean", "robust")}
    monkeypatch.setattr(cifar10, "train", keep("train", history))
    config = danskin_cifar10.Config(
        network="cnn", images=20, tests=20, test_steps=1, k=4, weight_decay=0.25
    )
    try:
        danskin_cifar10.measure(config, variant, 0, CPU, None)
    except ValueError as error:  # nothing was trained: the network is in training mode
        assert "call model.eval() before an attack" in str(error)
    assert seen["danskin"]["k"] == k and seen["danskin"]["weight_decay"] == 0.25
    assert seen["train"]["weight_decay"] == 0.0


def test_the_radius_rises_in_equal_steps_and_a_run_goes_on_at_its_place():
    """With 3 of 10 minibatches to rise over: a third, two thirds, all of eps, and so on."""
    seen = []

    def make(ball):
        def gradient(model, a, b):
            seen.append(ball.eps)
            return torch.zeros(())

        return Update(gradient, {"name": "seen", "ball": ball})

    config = cifar10.Attacked(epochs=2, images=9, batch_size=2, eps=0.3, rise=0.3)
    rising = config.rising(make)
    for _ in range(2):
        rising(None, None, None)
    again = cifar10.augmented(config.rising(make), generator())
    again.state.load_state_dict(rising.state.state_dict())
    for _ in range(3):
        again(None, noise(), None)
    assert seen == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    assert again.state.state_dict() == {"t": 5} and again.settings["rising over"] == 3
    assert again.settings["ball"].eps == 0.3
    seen.clear()
    cifar10.Attacked(eps=0.3).rising(make)(None, None, None)
    assert seen == [0.3]  # by default from the start


@pytest.mark.parametrize("way, k, length", [("pgd", 1, None), ("ddi", 3, None), ("ddi-unit", 3, 1)])
def test_what_the_gradients_of_a_step_were_like_is_kept(way, k, length):
    """Against cosines and norms by numpy, of gradients taken at the same k attacks."""
    config = danskin_cifar10.Config(eps=0.05, steps=2, k=3, weight_decay=0.1)
    model, found = models.cnn((3, 32, 32), mean=0.5, std=0.25).train(), []
    a, b = noise(4, (3, 32, 32)), torch.arange(4)
    angles = danskin_cifar10.Angles()
    update = danskin_cifar10.hull(config, way, 0, angles)
    make = partial(danskin, LInf(0.05), k=k, steps=2, weight_decay=0.1)
    make(generator=generator(2000), watch=found.append)(model, a, b)
    plain = torch.cat([p.grad.flatten() for p in model.parameters()])
    update(model, a, b)
    mine = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert len(found) == 1 and len(found[0]) == k
    scale = 1 if length is None else length / plain.norm()
    assert torch.allclose(mine, plain * scale, rtol=1e-4, atol=1e-7)
    if k == 1:
        assert angles.taken() == {}
        return
    again = danskin_cifar10.Angles()
    again.load_state_dict(angles.state_dict())
    g = found[0].double().numpy()
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    cosines = [g[i] @ g[j] for i in range(k) for j in range(i)]
    expected = {"cosine": np.mean(cosines), "least_cosine": min(cosines), "not_descending": 0.0}
    assert again.t == 1 and again.taken() == pytest.approx(expected, rel=1e-6)
    assert again.taken() == {} and angles.taken()
    for row in ([1.0, 0.0], [1.0, 0.5]):
        angles.see(torch.tensor([row, [0.0, 1.0], [1.0, 1.0]]))
    assert angles.taken()["not_descending"] == 0.5  # a right angle does not descend


def test_the_small_size_is_a_set_of_defaults_that_can_be_overruled():
    for name in ("training", "fairness", "danskin", "sam"):
        full, small = (
            import_module(f"experiments.{name}_cifar10").Config.of_size(size, momentum=0.5)
            for size in ("full", "small")
        )
        assert (full.network, full.size) == ("resnet18", "full")
        assert (small.network, small.size, small.seeds) == ("cnn", "small", 3)
        assert full.momentum == small.momentum == 0.5 and small.described()["size"] == "small"
        assert small.computing() == {
            "precision": "float32",
            "channels_last": True,
            "compile": False,
        }


def test_the_second_network_comes_last_and_has_its_own_epochs(monkeypatch):
    module = import_module("experiments.training_cifar10")
    config = module.Config.of_size("small", seeds=2, second_epochs=3, images=20, tests=20)
    names = list(module.cells(config))
    assert names[:2] == [("standard", 0), ("adversarial", 0)]
    assert names[4:] == [("resnet8-standard", 0), ("resnet8-adversarial", 0)]
    images, seen = Images(noise(20, (3, 32, 32)), torch.arange(20) % 10, tuple("0123456789")), {}

    def train(config, model, *rest, **more):
        seen.update(
            epochs=config.epochs, convolutions=sum(p.dim() == 4 for p in model.parameters())
        )
        model.eval()
        return {"loss": [0.0], "clean": [0.0]}

    monkeypatch.setattr("lib.data.cifar10", lambda split: images)
    monkeypatch.setattr(cifar10, "train", train)
    for variant, epochs, kernels in (("adversarial", 15, 2), ("resnet8-adversarial", 3, 9)):
        row = module.measure(config, variant, 0, CPU, None)
        assert seen == {"epochs": epochs, "convolutions": kernels}
        for share, (low, high) in zip(row["robust_classes"], row["robust_intervals"], strict=True):
            assert 0 <= low <= share <= high <= 1


@pytest.mark.parametrize("count, device, layer", [(2, "cuda", nn.SyncBatchNorm), (2, "cpu", None)])
def test_batch_norm_is_synchronized_on_several_gpus(count, device, layer, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: count)
    model = cifar10.network(cifar10.Cifar10(device=device), 0)
    layers = [type(part) for part in model.modules()]
    assert layers.count(layer or nn.BatchNorm2d) == 20
    expected = models.resnet18().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("own, shrinks", [(None, True), (0.0, False)])
def test_the_weights_decay_as_the_settings_say_or_the_caller(own, shrinks):
    def still(model, a, b):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        return torch.zeros(())

    config = cifar10.Cifar10(network="cnn", epochs=1, batch_size=2, weight_decay=0.5)
    images = Images(noise(2, (3, 32, 32)), torch.arange(2), tuple("0123456789"))
    model = cifar10.network(config, 0)
    before = model[1].weight.detach().clone()
    settings = {"seed": 0, "checkpoint": None, "evaluate": lambda model: {}}
    cifar10.train(config, model, images, Update(still, {}), weight_decay=own, **settings)
    ratio = (model[1].weight / before).detach()
    assert (ratio < 1).all() if shrinks else (ratio == 1).all()


@pytest.mark.parametrize(
    "name, setting, value",
    [
        ("training", "eps", -0.1),
        ("training", "rise", 1.0),
        ("training", "second_epochs", 0),
        ("training", "steps", 0),
        ("training", "test_steps", 0),
        ("training", "lr", float("nan")),
        ("training", "epochs", 0),
        ("danskin", "k", 0),
        ("danskin", "watched", -5),
        ("fairness", "gamma", 2.0),
        ("fairness", "class_step", 0.0),
        ("sam", "rho", -1.0),
        ("sam", "hessian_batch", 0),
        ("sam", "padding", -1),
        ("sam", "noise", 1.5),
        ("sam", "surface", 1),
        ("sam", "weight_decay", float("inf")),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_first_cell(name, setting, value):
    module = import_module(f"experiments.{name}_cifar10")
    said = "step_size" if setting == "class_step" else setting
    with pytest.raises(ValueError, match=rf"{said} must be .*, got {value}"):
        next(module.cells(module.Config(**{setting: value})))
    found = list(module.cells(module.Config(seeds=2, padding=0)))
    assert {seed for _, seed in found} == {0, 1} and len(found) == len(set(found))


# --- slide 43's pictures -------------------------------------------------------------------


def test_wrong_labels_are_as_many_as_asked_and_of_every_other_class():
    module = import_module("experiments.sam_cifar10")
    images = Images(noise(4000, (1, 1, 1)), torch.arange(4000) % 4, tuple("abcd"))
    found = module.wrong(images, 0.25, seed=1)
    changed = found.b != images.b
    assert int(changed.sum()) == 1000 and torch.equal(found.a, images.a)
    pairs = torch.bincount(images.b[changed] * 4 + found.b[changed], minlength=16).view(4, 4)
    off = pairs[~torch.eye(4, dtype=torch.bool)]
    assert (pairs.diagonal() == 0).all() and chisquare(off.numpy()).pvalue > 1e-3
    assert not torch.equal(module.wrong(images, 0.25, seed=2).b, found.b)
    assert torch.equal(module.wrong(images, 0.25, seed=1).b, found.b)
    assert torch.equal(module.wrong(images, 0.0, seed=1).b, images.b)


def test_the_surface_is_the_loss_on_a_plane_of_filter_normalized_directions():
    """A quadratic form would not know the filters' lengths: the corners, from scratch."""
    module = import_module("experiments.sam_cifar10")
    model = models.cnn((3, 32, 32), mean=0.5, std=0.25, seed=3).eval()
    images = Images(noise(10, (3, 32, 32)), torch.arange(10), tuple("0123456789"))
    before = [p.detach().clone() for p in model.parameters()]
    found = module.surface(model, images, 3, 0.5, 4)
    assert all(torch.equal(*p) for p in zip(before, model.parameters(), strict=True))
    draws, plane = generator(0), []
    for _ in range(2):
        plane.append([])
        for p in before:
            if p.dim() == 1:
                plane[-1].append(torch.zeros_like(p))
                continue
            d = torch.randn(p.shape, generator=draws)
            for i in range(len(p)):
                d[i] *= p[i].norm() / d[i].norm()
            plane[-1].append(d)
    for i, t in enumerate((-0.5, 0.0, 0.5)):
        for j, s in enumerate((-0.5, 0.0, 0.5)):
            moved = {
                name: p + s * u + t * v
                for (name, _), p, u, v in zip(model.named_parameters(), before, *plane, strict=True)
            }
            logits = torch.func.functional_call(model, moved, (images.a,))
            loss = nn.functional.cross_entropy(logits, images.b)
            assert found[i][j] == pytest.approx(loss.item(), abs=2e-4)
    assert found[0][0] != found[1][1]
