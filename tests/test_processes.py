"""lib.processes: one, two and four processes give the same run, and the loss of one ends it well.

``python tests/test_processes.py FOLDER`` under torchrun runs every update and the WGAN, and the
first process writes their losses.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments import training_mnist
from lib import attacks, fairness, gan, models
from lib.balls import LInf
from lib.data import Images
from lib.gan import gaussian, point_critic, point_generator, train_gan, train_wgan
from lib.runs import CheckpointError, ProcessLost, processes
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

ATTACK = partial(attacks.attack, ball=LInf(0.1), steps=2)
UPDATES = {
    "erm": erm,
    "adversarial": partial(adversarial, ATTACK),
    "random starts": partial(training_mnist.PGDTraining, training_mnist.Config(steps=2), 20, 5),
    "danskin": partial(danskin, LInf(0.1), k=3, steps=2),
    "sharpness aware": partial(sharpness_aware, 0.05),
    "sharpness aware, each sample": partial(sharpness_aware, 0.05, per_sample=True),
    "ball stability": partial(ball_stability, 0.05, steps=2),
}
GAMES = {
    "clip": (train_wgan, "clip"),
    "penalty": (train_wgan, "penalty"),
    "spectral": (train_wgan, "spectral"),
    "vanilla": (train_gan, "saturating"),
}


def images(n=40):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(n, 1, 4, 4, generator=generator)
    return Images(a, (a.sum((1, 2, 3)) * 2).long() % 3, tuple("012"))


def losses(checkpoints: Path) -> dict[str, list[float]]:
    """50 steps of every update, and of class-focused training, and 10 of each game."""
    found = {}
    settings = {"epochs": 10, "batch_size": 8, "lr": 0.01, "progress": False}
    for name, update in UPDATES.items():
        model = models.mlp((1, 4, 4), (8,), 3, activation="celu", mean=0.5, std=0.3)
        path = checkpoints / f"{name}.pt"
        found[name] = fit(model, images(), update(), checkpoint=path, **settings)["loss"]
    sampler = fairness.ClassFocusedSampler(images().b, step_size=0.1)
    model = models.mlp((1, 4, 4), (8,), 3, activation="celu", mean=0.5, std=0.3)
    update = adversarial(ATTACK, loss=sampler.watch(cross_entropy))
    found["class focused"] = fit(model, images(), update, sampler=sampler, **settings)["loss"]
    found["class weights"] = sampler.w.tolist()
    real = gan.eight_gaussians(100, torch.Generator().manual_seed(0))
    for name, (train, rule) in GAMES.items():
        players = point_generator(2, 2, (8,)), point_critic(2, (8,))
        settings = {"steps": 10, "batch_size": 8, "samples": 20, "progress": False}
        history = train(*players, real, gaussian(2), rule, **settings)
        found[name] = history["value"] + history["w1"]
    return found


def launched(folder: Path, number: int, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(number)]
    # torchrun looks every 3 seconds and ends all where one is gone: time for them to say so.
    command += ["--standalone", "--monitor-interval", "3", __file__, str(folder), *arguments]
    root = Path(__file__).parents[1]
    variables = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for _ in range(3):
        done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
        # torchrun chooses a free port and opens it later: another program may have been faster.
        if not any(
            said in done.stderr for said in ("EADDRINUSE", "DistNetworkError", "Rendezvous")
        ):
            break
    return done


@pytest.mark.parametrize("number", [2, 4])
def test_two_and_four_processes_give_the_run_of_one(tmp_path, number):
    """Losses to 1e-5 over 50 steps of each update, and over each game."""
    done = launched(tmp_path, number)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "losses.json").read_text(encoding="utf-8"))
    expected = losses(tmp_path / "alone")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-5), name
    assert len(list(tmp_path.glob("*.pt"))) == len(UPDATES)


SMALL = {"epochs": 4, "batch_size": 8, "progress": False}


def random_attacks() -> Update:
    """Adversarial training that draws in each process from its own generator, and in each step."""
    generator = torch.Generator().manual_seed(1)
    return adversarial(partial(ATTACK, restarts=2), generator=generator)


def test_a_process_that_dies_ends_the_run_with_a_message_and_a_checkpoint(tmp_path):
    done = launched(tmp_path, 2, "die")
    assert done.returncode != 0
    assert "lost the others" in done.stderr and "start the run again to go on" in done.stderr
    shutil.copy(tmp_path / "died.pt", tmp_path / "copy.pt")
    history = fit(
        models.linear((1, 4, 4), 3), images(), erm(), checkpoint=tmp_path / "copy.pt", **SMALL
    )
    fresh = fit(models.linear((1, 4, 4), 3), images(), erm(), **SMALL)
    assert history["loss"] == pytest.approx(fresh["loss"], abs=1e-5)
    # Two processes go on as well, bit for bit, and refuse another update.
    done = launched(tmp_path, 2, "again")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == [True, True, True]


def test_errors_that_are_no_lost_process_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    for error, expected in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried a connection"), torch.OutOfMemoryError),
        (RuntimeError("Tensors must be contiguous"), RuntimeError),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), ProcessLost),
        (RuntimeError("Timed out waiting 1800000ms for recv operation"), ProcessLost),
        (torch.distributed.DistBackendError("NCCL error"), ProcessLost),
    ):

        def fails(*_, error=error):
            raise error

        for name in ("all_reduce", "all_gather", "barrier"):
            monkeypatch.setattr(torch.distributed, name, fails)
        for call in (
            lambda: processes.mean_([torch.ones(2)]),
            lambda: processes.all_rows(torch.ones(2)),
            processes.barrier,
        ):
            with pytest.raises(RuntimeError) as found:
                call()
            assert found.type is expected


def test_alone_nothing_is_shared():
    t = torch.arange(7)
    assert processes.world_size() == 1 and processes.rank() == 0
    assert torch.equal(processes.local_rows(t), t) and torch.equal(processes.all_rows(t), t)
    processes.mean_([t])
    assert t.tolist() == list(range(7))
    with processes.started("cpu") as device:
        assert device == torch.device("cpu")


def test_an_attack_draws_other_points_in_each_process_from_one_state(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    points = []
    for rank in (0, 1, 1):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        generator = torch.Generator().manual_seed(5)
        points.append(torch.rand(4, generator=processes.generator_for_this_process(generator)))
        state = generator.get_state()
    assert not torch.equal(points[0], points[1]) and torch.equal(points[1], points[2])
    monkeypatch.setattr(processes, "rank", lambda: 0)
    other = torch.Generator().manual_seed(5)
    processes.generator_for_this_process(other)
    assert torch.equal(other.get_state(), state)


def test_uneven_shares_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 processes, got 7"):
        fit(models.linear((1, 4, 4), 3), images(), erm(), epochs=1, batch_size=7)
    with pytest.raises(ValueError, match="images must be a multiple of the 2 processes, got 39"):
        fit(models.linear((1, 4, 4), 3), images(39), erm(), epochs=1, batch_size=8)
    players, real = (point_generator(), point_critic()), torch.zeros(9, 2)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 2 processes, got 5"):
        train_wgan(*players, real, gaussian(2), steps=1, batch_size=5)


class Stopped(Exception):
    pass


def stopped_in_step(n: int, update: Update, stop) -> Update:
    calls = iter(range(n + 1))

    def gradient(model, a, b):
        return stop() if next(calls) == n else update(model, a, b)

    return replace(update, gradient=gradient)


def run(update: Update, checkpoint: Path | None) -> tuple[list[float], list[float]]:
    """A training with a checkpoint at each step; its losses and weights."""
    model = models.linear((1, 4, 4), 3)
    history = fit(model, images(), update, checkpoint=checkpoint, every=0.0, **SMALL)
    return history["loss"], torch.cat([p.flatten() for p in model.parameters()]).tolist()


def die(folder: Path) -> None:
    """Two runs that end in their eighth step: in both processes, and by the death of one."""

    def stop():
        raise Stopped

    with contextlib.suppress(Stopped):
        run(stopped_in_step(7, random_attacks(), stop), folder / "attacked.pt")
    processes.barrier()
    update = stopped_in_step(7, erm(), partial(os._exit, 3)) if processes.rank() == 1 else erm()
    run(update, folder / "died.pt")


def go_on(folder: Path) -> list[bool]:
    """Whether both go on bit for bit, and whether another update is refused."""
    found = [
        run(make(), folder / name) == run(make(), None)
        for name, make in (("attacked.pt", random_attacks), ("died.pt", erm))
    ]
    try:
        run(sharpness_aware(0.1), folder / "died.pt")
    except CheckpointError as error:
        return [*found, "update was erm, is sharpness_aware" in str(error)]
    return [*found, False]


def main(folder: Path, what: str) -> None:
    torch.set_num_threads(1)
    with processes.started("cpu"):
        if what == "die":
            die(folder)
        found = go_on(folder) if what == "again" else losses(folder)
        if processes.rank() == 0:
            name = "again.json" if what == "again" else "losses.json"
            (folder / name).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:] or ["losses"]))
