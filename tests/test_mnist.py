"""experiments.attacks_mnist and training_mnist: what they measure, against closed forms."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import softplus

from experiments import __main__ as command
from experiments import attacks_mnist, training_mnist
from lib import data
from lib.attacks import fgsm, pga
from lib.balls import LInf
from lib.models import linear


@pytest.fixture(autouse=True)
def shipped_digits(monkeypatch):
    """Instead of MNIST: the digits that a package ships."""
    monkeypatch.setattr(data, "mnist", data.digits)


def two_classes(seed, n=7):
    """Images of two classes, a linear model, its margins and the margins' gradients."""
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.rand(n, 1, 3, 3, generator=rng).double(), torch.arange(n) % 2
    model = linear((1, 3, 3), 2, mean=0.0, std=1.0, seed=seed).double().eval()
    w = (model[-1].weight[1] - model[-1].weight[0]).detach().reshape(1, 1, 3, 3)
    sign = (2 * b - 1).reshape(-1, 1, 1, 1)
    margins = (sign * w * a).flatten(1).sum(1)
    margins = margins + sign.flatten() * (model[-1].bias[1] - model[-1].bias[0]).detach()
    return data.Images(a, b, ("0", "1")), model, margins, sign * w


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("box", [True, False])
def test_each_iterate_on_a_linear_model_has_the_margin_of_the_closed_form(seed, box):
    """k sign steps of eps/4 move every pixel min(k/4, 1) eps, or to the box, against the margin."""
    images, model, margins, gradient = two_classes(seed)
    eps, room = 0.3, torch.where(gradient > 0, images.a, 1 - images.a)
    room = room if box else torch.full_like(room, torch.inf)
    drop = [
        (gradient.abs() * room.clamp(max=min(k / 4, 1) * eps)).flatten(1).sum(1) for k in range(7)
    ]
    expected = torch.stack([margins - d for d in drop])
    signs = partial(pga, ball=LInf(eps), step_size=eps / 4, steps=6, steepest=True)
    for size in (2, 7):
        losses, right = attacks_mnist.watch(model, images, signs, box=box, batch_size=size)
        assert torch.allclose(losses, softplus(-expected), rtol=1e-9)
        assert torch.equal(right, expected > 0)
    once = attacks_mnist.watch(model, images, partial(fgsm, ball=LInf(eps)), box=box, batch_size=3)
    assert torch.allclose(once[0], softplus(-expected[[0, 4]]), rtol=1e-9)


def test_a_row_of_the_attacks_agrees_with_itself(tmp_path):
    """Clean numbers are the curves' first entries, final ones their last, and robust the least."""
    radii = (0.1, 0.3, 0.025)
    config = attacks_mnist.Config(train_images=300, images=60, epochs=2, steps=3, radii=radii)
    device = torch.device("cpu")
    rows = {
        name: attacks_mnist.measure(config, name, 0, device, tmp_path / f"{name}.pt")
        for name in ("mlp-0.1-box", "mlp-0.1-free", "mlp-0.3-box", "mlp-0.025-box")
    }
    for row in rows.values():
        curves = {name: row[name] for name in row if isinstance(row[name], list)}
        assert len(curves) == 6 and all(len(curve) == 4 for curve in curves.values())
        for name, curve in curves.items():
            number = {"accuracies": "accuracy", "losses": "loss"}[name.rsplit("_", 1)[1]]
            assert curve[0] == row[f"clean_{number}"]
            assert curve[-1] == row[f"{name.rsplit('_', 1)[0]}_{number}"]
        accuracies = [min(c) for name, c in curves.items() if name.endswith("accuracies")]
        assert row["robust_accuracy"] <= min(*accuracies, row["fgsm_accuracy"])
    box, free, large, quarter = rows.values()
    assert box["clean_loss"] == free["clean_loss"] == large["clean_loss"]  # trained once
    assert [path.name for path in tmp_path.iterdir()] == ["mlp-0.pt"]
    assert box["fgsm_loss"] < min(free["fgsm_loss"], large["fgsm_loss"])
    # The first sign step, of a quarter of the radius, is FGSM at that radius.
    assert box["pga_linf_losses"][1] == pytest.approx(quarter["fgsm_loss"], abs=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_pgd_starts_anywhere_in_ball_and_box_and_ends_at_a_linear_maximizer(seed):
    images, model, _, gradient = two_classes(seed)
    a, b, eps = images.a, images.b, 0.3

    def on_images(z):
        assert -1e-12 <= z.min() <= z.max() <= 1 + 1e-12 and (z - a).abs().max() <= eps + 1e-12
        return model(z)

    attack = partial(training_mnist.pgd, on_images, a, b, ball=LInf(eps))
    generator = torch.Generator().manual_seed(seed)
    starts = [attack(step_size=0.0, steps=1, generator=generator) for _ in range(2)]
    for start in starts:
        assert (start - a).abs().max() <= eps + 1e-12 and 0 <= start.min() <= start.max() <= 1
        assert (start - a).abs().mean() > eps / 10
    assert not torch.equal(*starts)
    worst = (a - eps * gradient.sign()).clamp(0, 1)
    found = attack(step_size=eps / 2, steps=4, generator=generator)
    assert torch.allclose(found, worst, atol=1e-12)


def small(**settings):
    """A training whose radius and learning rate rise over half of it."""
    return training_mnist.Config(images=10, rise=0.5, steps=1, attack_steps=1, **settings)


def test_the_radius_of_pgd_training_rises_to_eps_and_erm_is_not_attacked(tmp_path, monkeypatch):
    radii, pgd = [], training_mnist.pgd

    def watched(model, a, b, *, ball, **settings):
        radii.append((round(ball.eps, 6), round(settings["step_size"] / ball.eps, 6)))
        return pgd(model, a, b, ball=ball, **settings)

    monkeypatch.setattr(training_mnist, "pgd", watched)
    config = small(train_images=25, batch_size=10, epochs=2, restarts=1, radii=(0.1, 0.6))
    for update in training_mnist.UPDATES:
        path = Path(tmp_path, f"{update}.pt")
        row = training_mnist.measure(config, update, 0, torch.device("cpu"), path)
        assert len(row["losses"]) == 2 and len(row["by_radius"]) == 2
        assert max(row["robust_accuracy"], *row["by_radius"]) <= row["clean_accuracy"]
        assert (update == "erm") == (not radii)
    assert radii == [(eps, 0.25) for eps in (0.1, 0.2, 0.3, 0.3, 0.3, 0.3)]


def test_the_learning_rate_rises_as_long_as_the_radius_and_falls_to_almost_0(tmp_path, monkeypatch):
    config = small(train_images=50, batch_size=10, epochs=4, lr=0.1)
    rates = []

    class Watched(training_mnist.OneCycleLR):
        def step(self):  # the first time when it is made
            super().step()
            rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(training_mnist, "OneCycleLR", Watched)
    training_mnist.measure(config, "erm", 0, torch.device("cpu"), tmp_path / "erm.pt")
    rates.pop()  # of the minibatch after the last
    assert len(rates) == 20 and max(rates) == pytest.approx(rates[9]) == 0.1
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-4


@pytest.mark.parametrize("stopped_at", [2, 3, 7])
def test_pgd_training_stopped_anywhere_goes_on_to_the_same_row(stopped_at, tmp_path, monkeypatch):
    config = small(train_images=40, batch_size=20, epochs=4, radii=())
    pgd, calls = training_mnist.pgd, []

    def stopped(*args, **settings):
        calls.append(args)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return pgd(*args, **settings)

    cpu, path = torch.device("cpu"), tmp_path / "pgd-0.pt"
    monkeypatch.setattr(training_mnist, "fit", partial(training_mnist.fit, every=0.0))
    whole = training_mnist.measure(config, "pgd", 0, cpu, tmp_path / "whole.pt")
    monkeypatch.setattr(training_mnist, "pgd", stopped)
    with pytest.raises(KeyboardInterrupt):
        training_mnist.measure(config, "pgd", 0, cpu, path)
    assert training_mnist.measure(config, "pgd", 0, cpu, path) == whole
    assert len(calls) == 8 + 1  # the minibatch that was stopped is the only one seen twice


@pytest.mark.parametrize(
    "name, more, said",
    [
        ("attacks-mnist", ["--radii", "-0.1"], "eps must be finite and >= 0, got -0.1"),
        ("attacks-mnist", ["--alphas", "inf"], "step sizes must be finite and >= 0"),
        ("attacks-mnist", ["--steps", "0"], "steps must be >= 1, got 0"),
        ("attacks-mnist", ["--images", "0"], "images must be >= 1, got 0"),
        ("training-mnist", ["--eps", "-0.1"], "eps must be finite and >= 0, got -0.1"),
        ("training-mnist", ["--rise", "0"], "rise must be between 0 and 1, got 0"),
        ("training-mnist", ["--rise", "1"], "rise must be between 0 and 1, got 1"),
        (
            "training-mnist",
            ["--rise", "1e-5"],
            "rise must be 2 minibatches or more of 9000, got 1e-05",
        ),
        ("training-mnist", ["--attack-steps", "0"], "steps must be >= 1, got 0"),
        ("training-mnist", ["--restarts", "0"], "restarts must be >= 1, got 0"),
    ],
)
def test_bad_settings_end_with_one_clear_line_before_anything_is_trained(
    name, more, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(data, "mnist", None)
    kept = ["--out", str(tmp_path / "records"), "--runs", str(tmp_path / "runs")]
    assert command.main([name, *kept, *more]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if f"{name}: " in line]
    assert said in line
