"""lib.checkpoints: files that are whole at any moment, and runs that are killed and go on.

``EE556_KILLS=20 pytest tests/test_checkpoints.py -k kill`` kills 20 times instead of 4.
``python tests/test_checkpoints.py FOLDER KILLS`` does the same without pytest, and prints where
each run was when it was killed.
"""

import json
import os
import pickle
import random
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
from lib.balls import LInf
from lib.data import Images
from lib.runs import CheckpointError
from lib.runs.checkpoints import load, save
from lib.runs.fingerprints import checksum
from lib.training import adversarial, cross_entropy, erm, fit

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


def test_checksum_tells_data_apart_and_sees_values_not_layouts():
    a = images().a
    assert checksum(a, a) == checksum(a.clone(), a) != checksum(a)
    changed = a.clone()
    changed[3, 0, 2, 1] += 1e-6
    assert checksum(changed) != checksum(a)
    assert checksum(a.contiguous(memory_format=torch.channels_last)) == checksum(a)
    assert checksum(a.mT) == checksum(a.mT.contiguous()) != checksum(a)


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


def test_a_change_of_the_schedule_is_refused(tmp_path):
    run = {"epochs": 1, "checkpoint": tmp_path / "run.pt"}
    fit(network(), images(), erm(), schedule=STEPS, **run)
    with pytest.raises(CheckpointError, match=r"schedule\.gamma was 0\.5, is 0\.9"):
        fit(network(), images(), erm(), schedule=partial(STEPS, gamma=0.9), **run)


def test_a_checkpoint_of_something_else_and_a_damaged_one_are_refused_by_fit(tmp_path):
    path = tmp_path / "run.pt"
    save(path, {"generator": torch.zeros(3)})
    with pytest.raises(
        CheckpointError, match=r"run\.pt is of another run .*batch_size was missing"
    ):
        train(shuffled, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"run\.pt is damaged or cut short"):
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
