"""experiments: small runs of each, stopped and gone on with, their records, and bad settings."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import make_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments import __main__ as command
from experiments import running
from experiments.kept import Kept
from experiments.running import RunError, Settings, run
from lib import attacks, data
from lib.balls import LInf
from lib.runs import checkpoints, files, records

ROOT = Path(__file__).parents[1]
CIFAR10 = ["--network", "cnn", "--images", "60", "--tests", "30", "--epochs", "2"]
CIFAR10 += ["--batch-size", "20"]
ATTACKED = [*CIFAR10, "--steps", "2", "--test-steps", "2"]
SMALL = {
    "wgan-points": ["--steps", "3", "--batch-size", "8", "--samples", "40", "--hidden", "8"],
    "attacks-mnist": [
        *("--train-images", "60", "--images", "20", "--epochs", "1", "--steps", "2"),
        *("--radii", "0.1"),
    ],
    "training-mnist": [
        *("--train-images", "60", "--images", "20", "--epochs", "2", "--batch-size", "10"),
        *("--steps", "2", "--attack-steps", "2", "--restarts", "2", "--radii", "0.1", "0.3"),
    ],
    "training-cifar10": ATTACKED,
    "autoattack-cifar10": [*ATTACKED, "--judged", "20", "--second", "cnn"],
    "danskin-cifar10": [*ATTACKED, "--k", "2", "--watched", "20"],
    "fairness-cifar10": [*ATTACKED, "--class-step", "0.01"],
    "sam-cifar10": [*CIFAR10, "--hessian-images", "20", "--iterations", "9", "--surface", "2"],
    "saliency-retina": [
        *("--size", "16", "--train-eyes", "40", "--test-eyes", "20", "--clean-epochs", "1"),
        *("--epochs", "1", "--attack-steps", "2", "--test-steps", "2", "--distances", "4"),
    ],
    "wgan-digits": [
        *("--steps", "3", "--batch-size", "8", "--channels", "2", "--noise", "4"),
        *("--samples", "20", "--scores", "2", "--classifier-images", "200"),
        *("--pictures", "2"),
    ],
    "speed": [
        *(*ATTACKED, "--matrix", "16", "--generator-steps", "3", "--width", "8"),
        *("--points", "8"),
    ],
    "rates": ["--dimensions", "1", "3", "--smallest", "4", "--largest", "16", "--repeats", "2"],
}


def cifar10(split="train"):
    """Instead of CIFAR-10: noise of the same shape, each class of its own brightness."""
    n, generator = 100, torch.Generator().manual_seed(len(split))
    b = torch.arange(n) % 10
    noise = torch.rand(n, 3, 32, 32, generator=generator)
    return data.Images((noise + b[:, None, None, None] / 5) / 3, b, data.OBJECTS)


def retina(split="train"):
    """Instead of RetinaMNIST: noise of the same shape, with every grade."""
    noise = torch.rand(40, 3, 28, 28, generator=torch.Generator().manual_seed(len(split)))
    return data.Images(noise, torch.arange(40) % 5, data.GRADES)


def autoattack(model, eps, **settings):
    """Instead of torchattacks' AutoAttack: one step of the sign."""
    return lambda a, b: a + attacks.fgsm(attacks.loss_of(model, a, b), 0 * a, LInf(eps), -a, 1 - a)


TORCHATTACKS = SimpleNamespace(AutoAttack=autoattack)
AT_HAND = {"cifar10": cifar10, "retina": retina, "mnist": data.digits}


@pytest.fixture(autouse=True)
def data_at_hand(monkeypatch):
    """Instead of what is fetched: what is made up, or shipped by a package."""
    for name, images in AT_HAND.items():
        monkeypatch.setattr(data, name, images)
    monkeypatch.setitem(sys.modules, "torchattacks", TORCHATTACKS)


def arguments(name, folder, *more):
    kept = ["--out", str(folder / "records"), "--runs", str(folder / "runs")]
    return [name, "--seeds", "2", *SMALL[name], *kept, *more]


def results(record):
    """What must not depend on how often a run was stopped: all but its times."""
    if record["name"] == "speed":  # all of it is times
        return {
            variant: [(row["seed"], row.keys()) for row in rows]
            for variant, rows in record["results"].items()
        }
    return {
        variant: [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows]
        for variant, rows in record["results"].items()
    }


@pytest.mark.parametrize("name", command.MODULES)
def test_a_run_killed_in_any_cell_goes_on_to_the_same_record(name, tmp_path, capsys):
    """kill -9 in the third cell: when its second checkpoint is written, else at its end."""
    assert command.main(arguments(name, tmp_path / "whole")) == 0
    assert "The record is at" in capsys.readouterr().out
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["experiments.__main__"])
    running = server.Process(target=killed_in_its_third_cell, args=(name, tmp_path))
    running.start()
    running.join()
    assert running.exitcode == -signal.SIGKILL
    files = sorted((tmp_path / "runs" / name / "rows").glob("*.json"))
    assert ["row" in json.loads(file.read_text(encoding="utf-8")) for file in files].count(
        True
    ) == 2
    assert records.load(name, tmp_path / "records") is None
    assert command.main(arguments(name, tmp_path)) == 1
    assert "add --resume to go on with it" in capsys.readouterr().err
    assert command.main(arguments(name, tmp_path, "--resume")) == 0
    whole, found = (records.load(name, f / "records") for f in (tmp_path / "whole", tmp_path))
    assert results(found) == results(whole)
    cells = sum(len(rows) for rows in whole["results"].values())
    assert (
        len((tmp_path / "runs" / name / "log.txt").read_text(encoding="utf-8").splitlines())
        == cells
    )


def killed_in_its_third_cell(name, folder):
    """Runs in a process of its own, and does not come back."""
    vars(data).update(AT_HAND)
    sys.modules["torchattacks"] = TORCHATTACKS
    module = import_module(f"experiments.{command.MODULES[name]}")
    measure, write, cells, kept = module.measure, files.write_whole, [], []

    def measured(*args):
        cells.append(args)
        row = measure(*args)
        if len(cells) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return row

    def written(path, *parts):
        write(path, *parts)
        kept.append(len(cells))
        if kept.count(3) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    module.measure, checkpoints.write_whole = measured, written
    command.main(arguments(name, folder))


def test_the_seconds_of_a_cell_are_those_of_its_pieces(tmp_path, monkeypatch):
    """The time until the last checkpoint of each piece counts, and none between the pieces."""
    name, module = "wgan-points", import_module("experiments.wgan_points")
    clock, checkpoint = [1000.0], tmp_path / "runs" / "wgan-points" / "clip-0.pt"
    monkeypatch.setattr(running.time, "time", lambda: clock[0])
    pieces = iter([(50, 40), (30, 20), (7, None)])  # seconds, and when the checkpoint was written

    def measure(config, variant, seed, device, path):
        if (variant, seed) != ("clip", 0):
            return {"w1": 0.0}
        begun, (seconds, kept) = clock[0], next(pieces)
        clock[0] += seconds
        if kept is None:
            return {"w1": 1.0}
        path.touch()
        os.utime(path, (begun + kept, begun + kept))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure", measure)
    for _ in range(2):
        assert command.main(arguments(name, tmp_path, "--resume")) == 130
        clock[0] += 10_000
    assert checkpoint.exists() and command.main(arguments(name, tmp_path, "--resume")) == 0
    rows = records.load(name, tmp_path / "records")["results"]["clip"]
    assert [row["seconds"] for row in rows] == [67.0, 0.0]


def test_two_commands_at_once_share_the_cells_of_a_run_and_lose_none(tmp_path):
    """Each cell is measured once, by either of them; the one that ends last writes the record."""
    context = multiprocessing.get_context("forkserver")
    together = context.Barrier(2)
    both = [context.Process(target=one_of_two, args=(tmp_path, together)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    results = records.load("wgan-points", tmp_path / "records")["results"]
    rows = [row for of_variant in results.values() for row in of_variant]
    assert {variant: len(rows) for variant, rows in results.items()} == dict.fromkeys(results, 2)
    assert {row["process"] for row in rows} == {process.pid for process in both}
    log = (tmp_path / "runs" / "wgan-points" / "log.txt").read_text(encoding="utf-8")
    assert sorted(log.splitlines()) == sorted(set(log.splitlines()))
    assert len(log.splitlines()) == len(rows) == 10


def one_of_two(folder, together):
    """Runs in a process of its own; a cell takes as long as both need to be at one."""
    module = import_module("experiments.wgan_points")

    def measure(*args):
        time.sleep(0.2)
        return {"process": os.getpid()}

    module.measure = measure
    together.wait(300)
    sys.exit(command.main(arguments("wgan-points", folder, "--resume")))


def test_commands_that_begin_at_the_same_moment_do_not_trip_over_one_another(tmp_path):
    context = multiprocessing.get_context("forkserver")
    together = context.Barrier(3)
    all_of_them = [context.Process(target=begin, args=(tmp_path, together)) for _ in range(3)]
    for process in all_of_them:
        process.start()
    for process in all_of_them:
        process.join()
    assert [process.exitcode for process in all_of_them] == [0, 0, 0]


def begin(folder, together):
    """Runs in a process of its own: one of several that write a run's settings, 20 times."""
    try:
        for i in range(20):
            together.wait(300)
            Kept(folder / str(i), {"seeds": 2}, resume=True)
    except OSError:
        together.abort()
        raise


def test_a_fault_in_a_cell_leaves_its_traceback_in_the_log_and_one_line_on_the_terminal(
    tmp_path, monkeypatch, capsys
):
    module = import_module("experiments.wgan_points")
    measure = module.measure

    def faulty(config, variant, seed, *rest):
        if (variant, seed) == ("spectral", 0):
            return [0, 1, 2].index(3)
        return measure(config, variant, seed, *rest)

    monkeypatch.setattr(module, "measure", faulty)
    assert command.main(arguments("wgan-points", tmp_path)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wgan-point")]
    log = tmp_path / "runs" / "wgan-points" / "log.txt"
    assert lines[-1] == (
        f"wgan-points: spectral, seed 0: ValueError: 3 is not in list (the traceback is in {log})"
    )
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")
    assert "in faulty" in log.read_text(encoding="utf-8") and "Traceback" not in "".join(lines)
    monkeypatch.setattr(module, "measure", measure)
    assert command.main(arguments("wgan-points", tmp_path, "--resume")) == 0


@pytest.mark.parametrize(
    "name, cell, said",
    [
        ("training-cifar10", "standard", "try a smaller lr than"),
        ("wgan-points", "clip", "smaller"),
    ],
)
def test_a_run_that_diverges_says_so_and_what_to_try(name, cell, said, tmp_path, capsys):
    assert command.main(arguments(name, tmp_path, "--lr", "1e30")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"{name}: {cell}, seed 0: ") and "the traceback is in" in line
    assert said in line


@pytest.mark.parametrize(
    "damaged, remedy",
    [("settings.json", "delete the folder"), ("rows/clip-0.json", "delete it, and add --resume")],
)
@pytest.mark.parametrize("text", ['{"row": {"w1"', "[1]", ""])
def test_a_damaged_file_of_a_run_is_named_with_what_to_do(damaged, remedy, text, tmp_path, capsys):
    assert command.main(arguments("wgan-points", tmp_path)) == 0
    path = tmp_path / "runs" / "wgan-points" / damaged
    path.write_text(text, encoding="utf-8")
    assert command.main(arguments("wgan-points", tmp_path, "--resume")) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"wgan-points: {path} is damaged") and remedy in line
    if damaged != "settings.json":
        path.unlink()
        assert command.main(arguments("wgan-points", tmp_path, "--resume")) == 0


def test_a_run_of_an_older_version_is_not_taken_for_none(tmp_path, capsys):
    folder = tmp_path / "runs" / "wgan-points"
    folder.mkdir(parents=True)
    (folder / "rows.json").write_text("{}", encoding="utf-8")
    assert command.main(arguments("wgan-points", tmp_path, "--resume")) == 1
    assert "of an older version: delete it" in capsys.readouterr().err.splitlines()[-1]


def test_numbers_are_checked_by_their_types_however_these_are_written():
    """As strings in a module with ``from __future__ import annotations``, as types in another."""
    numbers = [("whole", int, 1), ("real", float, 0.5), ("maybe", int | None, None)]
    made = make_dataclass("Made", numbers, bases=(Settings,), frozen=True, kw_only=True)
    made(whole=1, real=0.0).check()
    made(whole=0).check("whole")
    for slip, said in (
        ({"whole": 0}, "whole must be >= 1, got 0"),
        ({"real": -0.5}, "real must be finite and >= 0, got -0.5"),
        ({"real": float("inf")}, "real must be finite"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            made(**slip).check()


def test_sigterm_ends_a_run_like_an_interrupt(tmp_path):
    """As torchrun sends it when another process has ended."""
    start = [sys.executable, "-m", "experiments", *arguments("wgan-points", tmp_path)]
    start += ["--steps", "100000"]
    running = subprocess.Popen(start, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "runs" / "wgan-points" / "clip-0.pt").exists():
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert "wgan-points: stopped; --resume goes on from here" in running.communicate()[1]
    assert running.returncode == 130


def test_a_run_that_is_interrupted_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("experiments.wgan_points"), "measure", stopped)
    assert command.main(arguments("wgan-points", tmp_path)) == 130
    assert "wgan-points: stopped; --resume goes on from here" in capsys.readouterr().err


def test_a_disk_that_fills_up_ends_a_run_with_one_line_and_nothing_half_written(
    tmp_path, monkeypatch, capsys
):
    """Full at once, then after one more write has reached the disk, after two, ..., never."""
    fsync, left = os.fsync, []

    def full(descriptor):
        if not left:
            raise OSError(28, "No space left on device")
        left.pop()
        fsync(descriptor)

    assert command.main(arguments("wgan-points", tmp_path / "whole")) == 0
    monkeypatch.setattr(os, "fsync", full)
    stops = 0
    while command.main(arguments("wgan-points", tmp_path, "--resume")):
        assert "[Errno 28] No space left" in capsys.readouterr().err.splitlines()[-1]
        assert not list(tmp_path.rglob("*.partial"))
        stops += 1
        left[:] = [None] * stops
    assert stops > 5
    whole, found = (
        records.load("wgan-points", f / "records") for f in (tmp_path / "whole", tmp_path)
    )
    assert results(found) == results(whole)


def test_more_seeds_are_added_to_a_run_and_other_settings_are_refused(tmp_path, capsys):
    assert command.main(arguments("wgan-points", tmp_path)) == 0
    first = records.load("wgan-points", tmp_path / "records")
    assert command.main(arguments("wgan-points", tmp_path, "--resume", "--seeds", "3")) == 0
    more = records.load("wgan-points", tmp_path / "records")
    assert [row["seed"] for row in more["results"]["clip"]] == [0, 1, 2]
    assert more["results"]["clip"][:2] == first["results"]["clip"]
    assert command.main(arguments("wgan-points", tmp_path, "--resume", "--lr", "0.01")) == 1
    assert "lr was 0.001, is 0.01" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, said",
    [
        (["--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["--device", "nowhere"], "--device must be cpu or cuda, got nowhere"),
        (["--device", "cpux"], "--device must be cpu or cuda, got cpux; at hand: cpu"),
        (["--device", "mps"], "--device must be cpu or cuda, got mps; at hand: cpu"),
        (["--device", "meta"], "--device must be cpu or cuda, got meta; at hand: cpu"),
        (["--device", "cuda:99"], "--device must be cpu or cuda, got cuda:99; at hand: cpu"),
        (["--penalty", "-1"], "penalty must be finite and >= 0, got -1"),
        (["--batch-size", "0"], "batch_size must be >= 1, got 0"),
    ],
)
def test_bad_settings_end_with_one_clear_line(more, said, tmp_path, capsys):
    assert command.main(arguments("wgan-points", tmp_path, *more)) == 1
    err = [line for line in capsys.readouterr().err.splitlines() if "wgan-points: " in line]
    assert said in err[-1]
    assert records.load("wgan-points", tmp_path / "records") is None


@pytest.mark.parametrize(
    "name, more, said",
    [
        ("wgan-points", ["--penalty", "-1"], "penalty must be finite and >= 0, got -1.0"),
        ("wgan-digits", ["--critic-steps", "0"], "critic_steps must be >= 1, got 0"),
        ("wgan-digits", ["--lr", "nan"], "lr must be finite and >= 0, got nan"),
        ("saliency-retina", ["--phantoms-eps", "-1"], "phantoms_eps must be finite and >= 0"),
        ("saliency-retina", ["--pictures", "-1"], "pictures must be >= 0, got -1"),
        ("training-mnist", ["--attack-batch", "0"], "attack_batch must be >= 1, got 0"),
        ("attacks-mnist", ["--lr", "inf"], "lr must be finite and >= 0, got inf"),
        ("training-cifar10", ["--eps", "-0.1"], "eps must be finite and >= 0, got -0.1"),
        ("autoattack-cifar10", ["--judged", "31"], "judged must be at most tests, 30, got 31"),
        ("speed", ["--matrix", "0"], "matrix must be >= 1, got 0"),
        ("rates", ["--repeats", "0"], "repeats=0"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    name, more, said, tmp_path, capsys
):
    assert command.main(arguments(name, tmp_path, *more)) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_autoattack_without_its_package_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    assert command.main(arguments("autoattack-cifar10", tmp_path)) == 1
    assert "pip install --no-deps torchattacks" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_names_and_options_end_with_the_usage(capsys):
    for wrong in (["nothing"], ["wgan-points", "--nothing", "1"]):
        with pytest.raises(SystemExit):
            command.main(wrong)
        assert "nothing" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_runs(tmp_path, monkeypatch):
    module = import_module("experiments.wgan_points")
    monkeypatch.setattr(module, "measure", None)
    (tmp_path / "file").write_text("", encoding="utf-8")
    config = module.Config(seeds=1, runs=tmp_path / "runs", out=tmp_path / "file" / "records")
    with pytest.raises(RunError, match=r"cannot write to .*records .*give another folder"):
        run("wgan-points", module, config)
    if os.geteuid():  # root may write everywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(RunError, match="cannot write to"):
            run("wgan-points", module, replace(config, out=tmp_path, runs=closed / "runs"))


def test_the_record_of_the_points_has_the_settings_of_the_code_and_enough_seeds():
    module, record = import_module("experiments.wgan_points"), records.load("wgan-points")
    settings = record["settings"]
    assert settings == module.Config(seeds=settings["seeds"], device=settings["device"]).described()
    for rows in record["results"].values():
        assert [row["seed"] for row in rows] == list(range(settings["seeds"]))
    assert settings["seeds"] >= 3 and record["results"].keys() == {*module.GAMES, "target"}


def test_the_record_of_slide_25_names_its_size_and_its_worst_class_pays():
    """In each seed, under attack, the worst class is 10 points or more below the average."""
    record = records.load("training-cifar10")
    config = import_module("experiments.training_cifar10").Config.of_size("small")
    settings, results = record["settings"], record["results"]
    assert settings.keys() == config.described().keys()
    assert [settings[name] for name in ("size", "network", "second")] == ["small", "cnn", "resnet8"]
    assert [row["seed"] for row in results["standard"]] == list(range(settings["seeds"]))
    for variant in ("adversarial", "resnet8-adversarial"):
        for row in results[variant]:
            assert row["robust_worst"] == min(row["robust_classes"]) <= row["robust"] - 0.1
            for share, (low, high) in zip(
                row["robust_classes"], row["robust_intervals"], strict=True
            ):
                assert 0 <= low <= share <= high <= 1


def test_autoattack_finds_hardly_more_on_cifar10_and_takes_fifty_times_as_long():
    for rows in records.load("autoattack-cifar10")["results"].values():
        for row in rows:
            assert row["default"] <= row["autoattack"] + 0.005  # one of 200 images
            assert 50 * row["default_seconds"] < row["autoattack_seconds"]


@pytest.mark.parametrize("name", command.MODULES)
def test_the_help_names_every_setting(name, capsys):
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for setting in import_module(f"experiments.{command.MODULES[name]}").Config().described():
        assert f"--{setting.replace('_', '-')}" in said
