"""lib.checkpoints: files that are whole at any moment, and runs that are killed and go on.

``EE556_KILLS=20 pytest tests/test_checkpoints.py -k kill`` kills 20 times instead of 4.
``python tests/test_checkpoints.py FOLDER KILLS`` does the same without pytest, and prints where
each run was when it was killed.
"""

import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lib import attacks, fairness, models
from lib.balls import L2, LInf
from lib.data import Images
from lib.runs import CheckpointError
from lib.runs.checkpoints import load, save
from lib.training import (
    Update,
    adversarial,
    ball_stability,
    cross_entropy,
    danskin,
    erm,
    fit,
    sharpness_aware,
)

# One of the small networks has a unit that is off wherever an attack looks.
pytestmark = pytest.mark.filterwarnings("ignore::lib.attacks.NoGradientWarning")

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
STEPS = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5)


def images(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, 1, 4, 4, generator=generator)
    return Images(a, torch.arange(n) % 3, tuple("012"))


def network(seed=0):
    """With dropout (torch's global generator) and batch norm (state that is no parameter)."""
    head = models.mlp((1, 4, 4), (8,), 5, mean=0.5, std=0.3, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(head, nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 3))


def everything(data):
    """Arguments of fit with all that has a state: attack, optimizer, schedule, sampler."""
    generator = torch.Generator().manual_seed(7)
    attack = partial(attacks.attack, ball=LInf(0.1), steps=1, restarts=2)
    sampler = fairness.ClassFocusedSampler(data.b, step_size=0.01)
    update = adversarial(attack, loss=sampler.watch(cross_entropy), generator=generator)
    return {"update": update, "sampler": sampler, "optimizer": SGD, "schedule": STEPS}


def shuffled(data):
    """The same with an epoch in a new order instead of a sampler, and Adam."""
    generator = torch.Generator().manual_seed(7)
    attack = partial(attacks.attack, ball=LInf(0.1), steps=1, restarts=2)
    return {"update": adversarial(attack, generator=generator), "lr": 0.01, "schedule": STEPS}


def train(settings, checkpoint=None, wrap=lambda update: update, epochs=3, **more):
    """A run from the start or from its checkpoint: (the model's state, the history)."""
    data, model = images(), network()
    settings = settings(data)
    update = wrap(settings.pop("update"))
    fixed = {"epochs": epochs, "batch_size": 7, "seed": 5, "checkpoint": checkpoint}
    history = fit(model, data, update, **fixed, **settings, **more)
    return {name: value.clone() for name, value in model.state_dict().items()}, history


def identical(first, second):
    (state, history), (other, other_history) = first, second
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name
    assert history == other_history


# --- the file ------------------------------------------------------------------------------


def example():
    generator = torch.Generator().manual_seed(0)
    return {
        "weights": torch.randn(3, 5, generator=generator),
        "nested": {"list": [1, 2.5, None, "text"], "steps": (1, 2)},
        "generator": generator.get_state(),
    }


def test_what_is_saved_is_loaded_in_new_folders_too(tmp_path):
    path = tmp_path / "new" / "run.pt"
    save(path, example())
    loaded = load(path)
    assert torch.equal(loaded["weights"], example()["weights"])
    assert torch.equal(loaded["generator"], example()["generator"])
    assert loaded["nested"] == example()["nested"]
    save(str(path), {"other": 1})
    assert load(path) == {"other": 1}
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]


def test_a_file_cut_short_at_any_length_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    save(path, example())
    raw = path.read_bytes()
    for length in (*range(80), *range(80, len(raw), 37), len(raw) - 1):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"run\.pt .*delete it to start anew") as info:
            load(path)
        assert ("cut short" in str(info.value)) or ("not a checkpoint" in str(info.value))


def test_a_single_wrong_byte_anywhere_is_noticed(tmp_path):
    """torch.load alone does not notice a wrong byte within a tensor."""
    path = tmp_path / "run.pt"
    save(path, example())
    raw = path.read_bytes()
    for place in (*range(0, len(raw), 29), len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged|not a checkpoint"):
            load(path)


def test_torch_itself_opens_a_checkpoint(tmp_path):
    save(tmp_path / "run.pt", example())
    found = torch.load(tmp_path / "run.pt", weights_only=True)
    assert torch.equal(found["weights"], example()["weights"])
    assert found["nested"] == example()["nested"]


def test_files_of_others_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weights": torch.zeros(3)}, path)
    saved = path.read_bytes()
    for raw in (saved, b"", b"hello", pickle.dumps({"weights": 1})):
        path.write_bytes(raw)
        with pytest.raises(CheckpointError, match=r"other\.pt is cut short, or not a checkpoint"):
            load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing.pt")


class Touch:
    """Pickled, it makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_loading_runs_no_code_out_of_a_checkpoint(tmp_path):
    path, made = tmp_path / "run.pt", tmp_path / "made"
    save(path, {"weights": Touch(made)})
    with pytest.raises(CheckpointError, match="not plain data"):
        load(path)
    assert not made.exists()


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    save(path, {"step": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, {"step": 2})
    assert load(path) == {"step": 1} and [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_the_bytes_reach_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path, monkeypatch
):
    path, events = tmp_path / "run.pt", []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name if PROC else "?"
        events.append(("fsync", name, path.exists()))
        fsync(descriptor)

    def replaced(source, target):
        assert Path(source).parent == Path(target).parent
        events.append(("replace", Path(target).name, path.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save(path, {"step": 1})
    assert [(kind, exists) for kind, _, exists in events] == [
        ("fsync", False),
        ("replace", False),
        ("fsync", True),
    ]
    if PROC:
        assert [name for _, name, _ in events] == ["run.pt.partial", "run.pt", tmp_path.name]


PROC = Path("/proc/self/fd").exists()


# --- runs that go on -----------------------------------------------------------------------


class Stopped(Exception):
    pass


def stopping_at(step):
    """Wrap an update so that it raises Stopped after its gradient, at its call number step."""

    def wrap(update):
        def stops(model, a, b):
            calls.append(1)
            loss = update(model, a, b)
            if len(calls) == step:
                raise Stopped
            return loss

        calls = []
        return replace(update, gradient=stops)

    return wrap


@pytest.mark.parametrize("settings", [everything, shuffled])
@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (8,), (12,), (3, 2, 1, 4), (9, 1)])
def test_a_run_stopped_at_any_step_and_resumed_is_bit_identical(tmp_path, settings, stops):
    """4 minibatches an epoch, so that the stops are at the ends of epochs and within them."""
    path = tmp_path / "run.pt"
    whole = train(settings, wrap=stopping_at(None))
    for k, step in enumerate(stops):
        torch.manual_seed(k)  # what else is drawn in the process does not matter
        with pytest.raises(Stopped):
            train(settings, path, stopping_at(step), every=0.0)
    identical(train(settings, path, stopping_at(None), every=0.0), whole)


@pytest.mark.parametrize("step", [6, 7])  # 4 minibatches an epoch: within the second one
def test_fewer_epochs_than_were_begun_are_refused(tmp_path, step):
    path = tmp_path / "run.pt"
    with pytest.raises(Stopped):
        train(everything, path, stopping_at(step), every=0.0)
    with pytest.raises(CheckpointError, match="begun epoch 2, more than epochs=1: ask for epochs="):
        train(everything, path, stopping_at(None), epochs=1)
    train(everything, path, stopping_at(None), epochs=2)


@pytest.mark.parametrize("step", [1, 3, 6, 12])
def test_a_run_stopped_between_two_checkpoints_goes_on_from_the_earlier_one(tmp_path, step):
    path = tmp_path / "run.pt"
    with pytest.raises(Stopped):
        train(everything, path, stopping_at(step), every=float("inf"))
    assert load(path)["run"]["epoch"] == 0
    identical(
        train(everything, path, stopping_at(None)), train(everything, None, stopping_at(None))
    )


def test_a_checkpoint_every_so_many_seconds(tmp_path, monkeypatch):
    """A clock that a step moves by one second: with every=2.5 each third step is kept."""
    path, clock, positions = tmp_path / "run.pt", [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def ticking(update):
        def ticks(model, a, b):
            position = load(path)["run"]
            positions.append(4 * position["epoch"] + position["batch"])
            clock[0] += 1.0
            return update(model, a, b)

        return ticks

    settings = lambda data: {"update": erm()}  # noqa: E731
    train(settings, path, ticking, epochs=2, every=2.5)
    assert positions == [0, 0, 0, 3, 3, 3, 6, 6]
    assert load(path)["run"]["epoch"] == 2


def test_a_finished_run_returns_at_once_and_more_epochs_continue_it(tmp_path):
    path = tmp_path / "run.pt"
    first = train(everything, path, epochs=2)
    written = path.read_bytes()

    def never(update):
        def fails(model, a, b):
            raise AssertionError("no step is left")

        return replace(update, gradient=fails)

    identical(train(everything, path, never, epochs=2), first)
    assert path.read_bytes() == written
    identical(train(everything, path, epochs=4), train(everything, epochs=4))
    with pytest.raises(CheckpointError, match="has begun epoch 4, more than epochs=3: ask for"):
        train(everything, path, epochs=3)


def test_with_a_checkpoint_a_run_gives_the_same_as_without(tmp_path):
    identical(train(everything, tmp_path / "run.pt", every=0.0), train(everything))


def test_the_bar_starts_where_the_run_goes_on(tmp_path, capsys):
    train(shuffled, tmp_path / "run.pt", epochs=2)
    train(shuffled, tmp_path / "run.pt", epochs=3, progress=True)
    assert "2/3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 8}, "batch_size was 5, is 8"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"lr": 0.1}, r"optimizer\[0\]\.lr was 0\.001, is 0\.1"),
        ({"optimizer": SGD}, "optimizer was Adam, is SGD"),
        ({"schedule": STEPS}, "schedule was None, is StepLR"),
        ({"schedule_each": "minibatch"}, "schedule_each was epoch, is minibatch"),
        ({"precision": "bfloat16"}, "precision was float32, is bfloat16"),
        ({"channels_last": True}, "channels_last was False, is True"),
        ({"data": images(23)}, r"images was float32 \[24, .*is float32 \[23, "),
        ({"data": images(24, seed=1)}, r"images was .* CRC-32 .*is .* CRC-32"),
        ({"update": adversarial(lambda model, a, b: a)}, "update was erm.*, is adversarial"),
        ({"model": models.mlp((1, 4, 4), (9,), 3)}, r"model\.2\.out_features was 8, is 9"),
        (
            {"model": models.mlp((1, 4, 4), (8,), 3, activation="celu")},
            r"model\.3 was ReLU, is CELU",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_before_the_model_changes(
    tmp_path, changes, message
):
    path, model = tmp_path / "run.pt", models.mlp((1, 4, 4), (8,), 3)
    settings = {"epochs": 1, "batch_size": 5, "checkpoint": path}
    fit(model, images(), erm(), **settings)
    written = path.read_bytes()
    settings |= {"model": models.mlp((1, 4, 4), (8,), 3), "data": images(), "update": erm()}
    settings |= changes
    before = [p.detach().clone() for p in settings["model"].parameters()]
    with pytest.raises(CheckpointError, match=f"is of another run.*{message}.*same settings"):
        fit(**settings)
    for x, y in zip(settings["model"].parameters(), before, strict=True):
        assert torch.equal(x, y)
    assert path.read_bytes() == written


def pgd(*, ball=LInf, eps=0.1, loss=cross_entropy, seed=7, **settings):
    """Adversarial training, by its defaults and what is another."""
    attack = partial(attacks.attack, ball=ball(eps), **{"steps": 2, "restarts": 2} | settings)
    return adversarial(attack, loss=loss, generator=torch.Generator().manual_seed(seed))


def ddi(ball=LInf, eps=0.1, seed=None, **settings):
    if seed is not None:
        settings["generator"] = torch.Generator().manual_seed(seed)
    return danskin(ball(eps), **{"k": 2, "steps": 2} | settings)


def sam(rho=0.1, **settings):
    return sharpness_aware(rho, **settings)


def ball(eps=0.1, seed=1, **settings):
    generator = torch.Generator().manual_seed(seed)
    return ball_stability(eps, **{"steps": 2, "generator": generator} | settings)


def hinge(h, b):
    return (1 - h.gather(1, b[:, None])[:, 0]).relu()


def scaled(factor):
    """A loss in a closure: known by its code and by the factor."""
    return lambda h, b: factor * cross_entropy(h, b)


UPDATES = [
    (erm, {"loss": hinge}, "update's loss was cross_entropy, is hinge"),
    (erm, {"loss": scaled(2)}, "update's loss was cross_entropy, is scaled"),
    (partial(erm, loss=scaled(2)), {"loss": scaled(3)}, "update's loss's factor was 2, is 3"),
    (
        partial(erm, loss=lambda h, b: 2 * cross_entropy(h, b)),
        {"loss": lambda h, b: 3 * cross_entropy(h, b)},
        "update's loss's code was CRC-32 .*, is CRC-32 ",
    ),
    (
        partial(erm, loss=nn.CrossEntropyLoss(reduction="none")),
        {"loss": nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)},
        r"update's loss\.label_smoothing was 0\.0, is 0\.1",
    ),
    (pgd, {"ball": L2}, "update's attack's ball was LInf, is L2"),
    (pgd, {"eps": 0.3}, r"update's attack's ball's eps was 0\.1, is 0\.3"),
    (pgd, {"steps": 3}, "update's attack's steps was 2, is 3"),
    (pgd, {"restarts": 1}, "update's attack's restarts was 2, is 1"),
    (pgd, {"step_size": 0.1}, r"update's attack's step_size was missing, is 0\.1"),
    (pgd, {"step_size": [0.1, 0.2]}, r"step_size was missing, is \[0\.1, 0\.2\]"),
    (pgd, {"bounds": (0, 2)}, r"update's attack's bounds was missing, is \[0, 2\]"),
    (pgd, {"loss": hinge}, "update's loss was cross_entropy, is hinge"),
    (pgd, {"seed": 8}, r"update's generators\[0\] was generator of seed 7, is .* 8"),
    (ddi, {"ball": L2}, "update's ball was LInf, is L2"),
    (ddi, {"eps": 0.3}, r"update's ball's eps was 0\.1, is 0\.3"),
    (ddi, {"k": 3}, "update's k was 2, is 3"),
    (ddi, {"steps": 3}, r"update's step_size was \[0\.125, 0\.125\], is "),
    (ddi, {"step_size": 0.1}, r"update's step_size was \[0\.125, 0\.125\], is \[0\.1, 0\.1\]"),
    (ddi, {"bounds": (0, 2)}, "update's bounds was"),
    (ddi, {"weight_decay": 0.1}, r"update's weight_decay was 0\.0, is 0\.1"),
    (ddi, {"loss": hinge}, "update's loss was cross_entropy, is hinge"),
    (ddi, {"seed": 3}, r"update's generators\[0\] was generator of seed 0, is .* 3"),
    (sam, {"rho": 0.2}, r"update's rho was 0\.1, is 0\.2"),
    (sam, {"per_sample": True}, "per_sample was False, is True"),
    (sam, {"loss": hinge}, "update's loss was cross_entropy, is hinge"),
    (ball, {"eps": 0.2}, r"update's eps was 0\.1, is 0\.2"),
    (ball, {"steps": 3}, "update's step_size was .*, is "),
    (ball, {"step_size": 0.05}, "update's step_size was .*, is "),
    (ball, {"loss": hinge}, "update's loss was cross_entropy, is hinge"),
    (ball, {"generator": None}, r"update's generators\[0\] was generator of seed 1, is missing"),
]


@pytest.mark.parametrize(("make", "changes", "message"), UPDATES)
def test_a_checkpoint_of_another_update_is_refused_and_of_the_same_goes_on(
    tmp_path, make, changes, message
):
    run = {"data": images(), "batch_size": 8, "checkpoint": tmp_path / "run.pt"}
    network = partial(models.mlp, (1, 4, 4), (4,), 3)
    first, again, whole = network(), network(), network()
    fit(first, update=make(), epochs=1, **run)
    with pytest.raises(CheckpointError, match=message):
        fit(network(), update=make(**changes), epochs=2, **run)
    history = fit(again, update=make(), epochs=2, **run)
    assert history == fit(whole, update=make(), epochs=2, **run | {"checkpoint": None})
    identical((again.state_dict(), history), (whole.state_dict(), history))


def sampler(**settings):
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    return fairness.ClassFocusedSampler(images().b, generator=generator, **settings)


def with_slope(slope=0.1, p=0.2, eps=1e-5, stride=1):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 1, stride), nn.BatchNorm2d(2, eps), nn.LeakyReLU(slope)
    return nn.Sequential(*layers, nn.Dropout(p), nn.Flatten(), nn.LazyLinear(3))


class Times(nn.Module):
    """A network of the user's own, with a number that torch knows nothing of."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.last = factor, models.linear((1, 4, 4), 3)

    def forward(self, a):
        return self.factor * self.last(a)


def rates(power):
    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: power**k)


ADAM = torch.optim.Adam


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ({"sampler": sampler()}, {"sampler": sampler(gamma=0.0)}, r"gamma was 0\.5, is 0\.0"),
        ({"sampler": sampler()}, {"sampler": sampler(step_size=10.0)}, r"step_size was 0\.001, is"),
        ({"sampler": sampler()}, {"sampler": sampler(seed=1)}, "of seed 0, is generator of seed 1"),
        ({"sampler": sampler()}, {}, "sampler was ClassFocusedSampler, is None"),
        ({}, {"model": models.linear((1, 4, 4), 3, seed=1)}, r"model's initial .*weight was"),
        ({}, {"model": models.linear((1, 4, 4), 3, mean=0.5)}, r"model's initial 0\.mean was"),
        ({"model": Times(2)}, {"model": Times(3)}, r"model\.factor was 2, is 3"),
        ({"optimizer": ADAM}, {"optimizer": partial(ADAM, betas=(0.8, 0.9))}, r"\[0\]\.betas was"),
        ({"optimizer": ADAM}, {"optimizer": partial(ADAM, weight_decay=0.1)}, "weight_decay was"),
        ({"schedule": STEPS}, {"schedule": partial(STEPS, gamma=0.9)}, r"gamma was 0\.5, is 0\.9"),
        ({"schedule": STEPS}, {"schedule": partial(STEPS, step_size=3)}, "step_size was 2, is 3"),
        ({"schedule": rates(0.5)}, {"schedule": rates(0.9)}, r"power was 0\.5, is 0\.9"),
    ],
)
def test_a_checkpoint_of_another_sampler_network_optimizer_or_schedule_is_refused(
    tmp_path, was, now, message
):
    def run(changes, epochs):
        settings = {"model": models.linear((1, 4, 4), 3), "data": images(), "update": erm()}
        settings |= {"checkpoint": tmp_path / "run.pt", "batch_size": 12} | changes
        fit(**settings, epochs=epochs)

    run(was, 1)
    with pytest.raises(CheckpointError, match=message):
        run(now, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slope": 0.9}, r"model\.2\.negative_slope was 0\.1, is 0\.9"),
        ({"p": 0.5}, r"model\.3\.p was 0\.2, is 0\.5"),
        ({"eps": 1e-3}, r"model\.1\.eps was 1e-05, is 0\.001"),
        ({"stride": 2}, r"model\.0\.stride was \[1, 1\], is \[2, 2\]"),
    ],
)
def test_a_number_inside_the_network_is_compared_though_no_shape_changes(tmp_path, change, message):
    run = {"data": images(), "update": erm(), "epochs": 1, "checkpoint": tmp_path / "run.pt"}

    def network(**changes):
        model = with_slope(**changes)
        with torch.no_grad():
            model(images().a)
        return model

    first = network()
    fit(first, **run)
    with pytest.raises(CheckpointError, match=message):
        fit(network(**change), **run)


def test_the_same_network_object_goes_on_from_where_it_stopped(tmp_path):
    """A cell that is run again, with more epochs, in a kernel where the network is trained."""
    run = {"data": images(), "update": erm(), "checkpoint": tmp_path / "run.pt"}
    model, whole = network(), network()
    fit(model, epochs=1, **run)
    history = fit(model, epochs=3, **run)
    assert history == fit(whole, epochs=3, **run | {"checkpoint": None})
    identical((model.state_dict(), history), (whole.state_dict(), history))
    with torch.no_grad():
        next(model.parameters()).add_(0.1)  # neither as at the beginning nor as it stopped
    with pytest.raises(CheckpointError, match=r"model's initial 0\.2\.weight was"):
        fit(model, epochs=4, **run)


def test_the_names_in_a_checkpoint(tmp_path):
    """They stay, so that a checkpoint of today can be gone on with tomorrow."""
    path = tmp_path / "run.pt"
    fit(network(), images(), erm(), epochs=1, checkpoint=path)
    state = load(path)
    parts = {"run", "model", "optimizer", "schedule", "sampler", "update's state"}
    assert state.keys() == parts | {"generators", "settings", "options"}
    assert state["generators"].keys() == {"order", "torch cpu"}
    own = {"update", "update's loss", "batch_size", "schedule_each", "images", "labels"}
    session = {"seed", "precision", "compile", "channels_last"}
    named = {name for name in state["settings"] if not re.search(r"model|optimizer\[", name)}
    assert named == own | session | parts - {"model"}
    assert state["settings"]["seed"] == "0"  # the default


def test_where_and_how_long_and_how_often_may_change(tmp_path):
    path = tmp_path / "run.pt"
    train(everything, path, epochs=1)
    state = load(path)
    state["generators"]["torch cuda"] = torch.zeros(16, dtype=torch.uint8)  # as from a GPU
    state["generators"]["order"] = torch.zeros(16, dtype=torch.uint8)
    save(path, state)
    train(everything, path, epochs=2, every=1e9, progress=True, device="cpu")
    assert not any("device" in name for name in state["settings"] | state["options"])


def test_an_option_that_a_newer_torch_adds_or_drops_does_not_matter(tmp_path):
    path = tmp_path / "run.pt"
    run = {"data": images(), "update": erm(), "optimizer": SGD, "checkpoint": path}
    fit(network(), epochs=1, **run)
    state = load(path)
    for name in ("optimizer[0].nesterov", "model.1.momentum"):
        del state["options"][name]
    state["options"]["optimizer[0].brand_new"] = "True"
    save(path, state)
    fit(network(), epochs=2, **run)
    state["options"]["optimizer[0].momentum"] = "0.5"
    save(path, state)
    with pytest.raises(CheckpointError, match=r"optimizer\[0\]\.momentum was 0\.5, is 0\.9"):
        fit(network(), epochs=2, **run)


def test_a_generator_inside_a_partial_is_kept(tmp_path):
    """The natural spelling: before, a resumed run drew other points than one in a piece."""

    def settings(data):
        generator = torch.Generator().manual_seed(3)
        attack = partial(attacks.attack, ball=LInf(0.2), steps=1, restarts=2, generator=generator)
        return {"update": adversarial(attack)}

    with pytest.raises(Stopped):
        train(settings, tmp_path / "run.pt", stopping_at(5), every=0.0)
    identical(train(settings, tmp_path / "run.pt", every=0.0), train(settings))


def test_the_state_of_a_wrapped_update_is_kept(tmp_path):
    class Ramp:
        t = 0

        def state_dict(self):
            return {"t": self.t}

        def load_state_dict(self, state):
            self.t = state["t"]

    def settings(data):
        ramp, plain = Ramp(), erm()

        def rising(model, a, b):
            ramp.t += 1
            return plain(model, a * min(1.0, ramp.t / 10), b)

        update = Update(rising, {"name": "rising", "until": 10}, state=ramp)
        return {"update": replace(update, gradient=lambda *batch: update(*batch))}

    with pytest.raises(Stopped):
        train(settings, tmp_path / "run.pt", stopping_at(5), every=0.0)
    identical(train(settings, tmp_path / "run.pt", every=0.0), train(settings))


def test_a_checkpoint_of_something_else_and_a_damaged_one_are_refused_by_fit(tmp_path):
    path = tmp_path / "run.pt"
    save(path, {"generator": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"run\.pt is of another run .*seed was missing"):
        train(shuffled, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"run\.pt is cut short"):
        train(shuffled, path)


def test_a_state_that_could_not_be_read_back_is_found_at_the_start(tmp_path):
    class Sampler(fairness.ClassFocusedSampler):
        def state_dict(self):
            return {"sampler": Touch(tmp_path / "made")}

    with pytest.raises(CheckpointError, match="not plain data"):
        fit(
            network(),
            images(),
            lambda *_: pytest.fail("no step may be taken"),
            epochs=1,
            sampler=Sampler(images().b),
            checkpoint=tmp_path / "run.pt",
        )


def test_a_diverging_run_keeps_its_last_good_checkpoint(tmp_path):
    path, calls = tmp_path / "run.pt", []

    def breaks(model, a, b):
        calls.append({name: value.clone() for name, value in model.state_dict().items()})
        loss = erm()(model, a, b)
        return loss * float("nan") if len(calls) == 6 else loss

    model = network()
    with pytest.raises(FloatingPointError, match=r"in epoch 2.*so was the checkpoint .*run\.pt"):
        fit(model, images(), breaks, epochs=3, batch_size=7, checkpoint=path, every=0.0)
    kept = load(path)
    assert (kept["run"]["epoch"], kept["run"]["batch"]) == (1, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, calls[-1][name])
        assert torch.equal(value, kept["model"][name])


# --- kill -9 -------------------------------------------------------------------------------


def in_child(work, *, kill_after=None):
    """Run work in a forked process; True if kill -9 ended it before it was done."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def kill_runs(folder, kills):
    """Kill runs at random moments until so many were killed; every one is resumed and compared.

    A run is killed up to three times before it may finish. Where it stood goes into the result.
    """
    torch.set_num_threads(1)
    random.seed(0)
    folder, positions, number = Path(folder), [], 0
    found = folder / "found.pt"
    while len(positions) < kills:
        # Checkpoints all the time, so that many kills are within save; or at some distance.
        settings, every = (everything, shuffled)[number % 2], (0.0, 0.02)[number // 2 % 2]
        path = folder / f"run{number}.pt"

        def run(target, checkpoint=None, settings=settings, every=every):
            torch.save(train(settings, checkpoint, epochs=6, every=every), target)

        whole = train(settings, epochs=6)  # in this process, which so imports what torch needs
        start = time.monotonic()
        in_child(partial(run, found, folder / f"timed{number}.pt"))
        duration = time.monotonic() - start
        for _ in range(min(3, kills - len(positions))):
            if in_child(partial(run, found, path), kill_after=random.uniform(0, duration)):
                at = load(path)["run"] if path.exists() else {"epoch": 0, "batch": 0}
                positions.append((at["epoch"], at["batch"]))
        in_child(partial(run, found, path))
        identical(torch.load(found), whole)
        number += 1
    return positions


def kill_saves(folder, kills):
    """Kill a process that does nothing but save 4 MB again and again: the file is always whole.

    It is stopped (SIGSTOP) at random moments until one is within a save, and killed there.
    """
    path, within = Path(folder) / "saves.pt", 0
    partial_path = path.with_name(path.name + ".partial")
    for _ in range(kills):
        path.unlink(missing_ok=True)
        partial_path.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                for k in range(10**9):
                    save(path, {"k": k, "weights": torch.full((10**6,), float(k))})
            finally:
                os._exit(1)
        while not path.exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        for _ in range(1000):
            time.sleep(random.uniform(0, 0.02))
            os.kill(child, signal.SIGSTOP)
            assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
            if partial_path.exists():
                break
            os.kill(child, signal.SIGCONT)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        within += partial_path.exists()
        state = load(path)
        assert (state["weights"] == state["k"]).all()
    return within


def test_runs_killed_with_signal_9_at_random_moments_end_bit_identical(tmp_path):
    kills = int(os.environ.get("EE556_KILLS", "4"))
    command = [sys.executable, __file__, str(tmp_path), str(kills)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["epoch, batch of the last checkpoint when killed"]) == kills
    assert report["saves killed half-way"] == kills


if __name__ == "__main__":
    positions = kill_runs(sys.argv[1], int(sys.argv[2]))
    within = kill_saves(sys.argv[1], int(sys.argv[2]))
    report = {"epoch, batch of the last checkpoint when killed": positions}
    print(json.dumps(report | {"saves killed half-way": within}))
