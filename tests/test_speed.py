"""experiments.speed: what is counted, and that the plain loops are the algorithms."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from experiments import speed
from lib.attacks import robust_accuracy
from lib.balls import LInf
from lib.data import OBJECTS, Images
from lib.gan import gaussian, point_critic, point_generator
from lib.models import cnn
from lib.transport import wasserstein

CPU = torch.device("cpu")
SMALL = speed.Config(
    network="cnn",
    images=40,
    batch_size=20,
    steps=2,
    matrix=8,
    generator_steps=2,
    width=8,
    points=8,
)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_operations_are_those_counted_by_hand(steps, tmp_path):
    config = speed.Config(**vars(SMALL) | {"steps": steps})
    row = speed.measure(config, "pgd", 0, CPU, tmp_path / "none")
    forward = 2 * (16 * 16 * 16 * 48 + 32 * 8 * 8 * 256 + 2048 * 100 + 100 * 10)
    needed = forward * (2 * steps + 4) / 1e12  # of one image
    assert row["tflops"] == pytest.approx(needed * row["ours_per_second"])
    assert row["share_of_matrix"] == pytest.approx(row["tflops"] / row["matrix_tflops"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("variant", ["pgd", "wgan"])
def test_a_profile_names_operations_with_falling_shares(variant, tmp_path):
    row = speed.measure(SMALL, variant, 0, CPU, tmp_path / "none")
    assert row["speedup"] == pytest.approx(row["ours_per_second"] / row["plain_per_second"])
    shares = [share for _, share in row["profile"]]
    assert shares == sorted(shares, reverse=True) and 0.3 < sum(shares) <= 1.001
    assert any(name.startswith("aten::") for name, _ in row["profile"])


@pytest.mark.parametrize("seed", range(3))
def test_plain_epochs_train_a_robust_network(seed):
    generator = torch.Generator().manual_seed(seed)
    b = torch.randint(2, (400,), generator=generator)
    a = 0.2 + 0.5 * b[:, None, None, None] * torch.ones(1, 3, 32, 32)
    images = Images(a + 0.1 * torch.rand(a.shape, generator=generator), b, OBJECTS)
    model = cnn((3, 32, 32), mean=0.5, std=0.2, seed=seed)
    config = speed.Config(network="cnn", batch_size=20, eps=0.1, steps=3, lr=0.01)
    torch.manual_seed(seed)  # the plain loop draws from it
    for _ in range(4):
        speed.plain_epoch(config, model, images)
    assert robust_accuracy(model.eval(), images.a, images.b, LInf(0.1)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_plain_game_learns_where_the_points_are(seed):
    h, d = point_generator(hidden=(64,), seed=seed), point_critic(hidden=(64,), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(2500, 2, generator=generator) + torch.tensor([3.0, 0.0])

    def distance():
        with torch.no_grad():
            return wasserstein(h(gaussian(2)(500, torch.Generator().manual_seed(2))), real[:500])

    before = distance()
    torch.manual_seed(seed)
    speed.plain_wgan(h, d, real, 64, 150)
    assert distance() < 0.5 * before


def test_the_matrix_product_has_a_rate():
    assert 0 < speed.matrix_rate(64, CPU) < 1e3


def test_the_plain_attack_climbs_and_stays_in_the_ball_and_the_box():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(20, 3, 32, 32, generator=generator)
    images = Images(a, torch.arange(20) % 10, OBJECTS)
    model, seen = cnn((3, 32, 32), mean=0.5, std=0.2), []
    model.register_forward_hook(lambda model, args, logits: seen.append((args[0], logits)))
    config = speed.Config(network="cnn", batch_size=20, eps=0.05, steps=4, lr=0.0)
    torch.manual_seed(0)
    speed.plain_epoch(config, model, images)
    assert len(seen) == 5
    for moved, _ in seen:
        assert (moved - a).abs().max() <= 0.05 + 1e-6 and moved.min() >= 0 and moved.max() <= 1
    losses = [cross_entropy(logits, images.b).item() for _, logits in seen]
    assert losses == sorted(losses) and losses[-1] > losses[0] + 0.01
