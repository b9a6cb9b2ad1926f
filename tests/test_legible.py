"""experiments.legible and the pictures of records: by hand, and against torch's own average."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from experiments import games, wgan_digits
from experiments.legible import Averaged, generator, legibility, mosaic
from lib.runs import records


def noise(n, seed=0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


def test_the_generator_makes_images_in_the_unit_interval_from_its_seed_alone():
    network = generator(4, 2, seed=0)
    images = network(noise(5))
    assert images.shape == (5, 1, 28, 28) and 0 < images.min() < images.max() < 1
    assert len([m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]) == 2
    same, other = (generator(4, 2, seed=seed)(noise(5)) for seed in (0, 1))
    assert torch.equal(same, images) and not torch.equal(other, images)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_the_average_is_torchs_of_the_weights_before_each_step(decay):
    network = Averaged(generator(4, 2, seed=0), decay)
    reference = AveragedModel(
        generator(4, 2, seed=0), multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
    )
    reference.n_averaged += 1  # it begins at the first weights, as ours does
    sgd = torch.optim.SGD(network.parameters(), 0.5)
    assert len(list(network.parameters())) == len(list(network.network.parameters()))
    for step in range(3):
        network.train()
        reference.update_parameters(network.network)
        network(noise(6, step)).square().mean().backward()
        sgd.step()
        with torch.no_grad():  # a critic's step does not count
            network(noise(6, step + 10))
    network.eval(), reference.eval()
    with torch.no_grad():
        assert torch.allclose(network(noise(5)), reference(noise(5)), atol=1e-6)
        assert not torch.allclose(network(noise(5)), network.network(noise(5)), atol=1e-3)
        again = Averaged(generator(4, 2, seed=9), decay).eval()
        again.load_state_dict(network.state_dict())
        assert torch.equal(again(noise(5)), network(noise(5)))
    assert network(noise(5)).requires_grad  # then it is what is trained
    assert torch.equal(network(noise(5)), network.network(noise(5)))
    with pytest.raises(ValueError, match=r"average must be in \[0, 1\), got 1"):
        Averaged(nn.Identity(), 1)


def test_an_image_is_legible_if_the_classifier_is_sure_of_it():
    shares = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.95, 0.05, 0.0], [0.0, 0.0, 1.0]])
    found = legibility((shares + 1e-9).log(), 0.89)
    assert found == {"sure": 0.75, "least_digit": 0.0, "digits": [0.5, 0.0, 0.25]}
    assert legibility(torch.zeros(2, 10), 0.9)["sure"] == 0


def test_a_mosaic_shows_every_image_at_its_place():
    images = torch.rand(6, 1, 2, 5, generator=torch.Generator().manual_seed(0))
    found = mosaic(images, 3)
    assert found.shape == (4, 15) and found.dtype == torch.uint8
    for i in range(6):
        row, column = divmod(i, 3)
        part = found[2 * row : 2 * row + 2, 5 * column : 5 * column + 5]
        assert torch.equal(part, (images[i, 0] * 255).round().to(torch.uint8))


def test_pictures_survive_a_record_and_slips_are_named():
    picture = torch.randint(256, (7, 9), dtype=torch.uint8)
    assert torch.equal(records.pixels(records.picture(picture)), picture)
    with pytest.raises(ValueError, match=r"pixels must be uint8 \[h, w\], got torch.float32"):
        records.picture(picture.float())
    for text in ("no picture", "AAAA", ""):
        with pytest.raises(ValueError, match="text must be a PNG in base 64"):
            records.pixels(text)


@pytest.mark.parametrize(
    "share, half, last", [(1.0, 0.505, 0.01), (0.5, 1.0, 0.01), (0.0, 1, 0.01)]
)
def test_the_rate_falls_over_its_share_of_the_steps(share, half, last):
    rate = games.Falling(100, share)
    assert rate(0) == 1 and rate(50) == pytest.approx(half) and rate(100) == pytest.approx(last)
    assert all(rate(t) >= rate(t + 1) for t in range(100))


@pytest.mark.parametrize(
    "slip, said",
    [
        ({"falling": 1.5}, "falling must be at most 1, got 1.5"),
        ({"sure": 2.0}, "sure must be at most 1, got 2.0"),
        ({"pictures": 40}, "pictures must be at most √1000, got 40"),
        ({"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused_before_the_first_cell(slip, said):
    with pytest.raises(ValueError, match=said):
        next(wgan_digits.cells(wgan_digits.Config(**slip)))


def test_the_digits_of_the_record_can_be_read():
    """On each seed three quarters of what true digits get, every digit 3 %: a WGAN and a GAN."""
    results = records.load("wgan-digits")["results"]
    needed = [0.75 * row["sure"] for row in results["target"]]
    assert len(needed) >= 3
    for games_ in (("clip", "penalty", "spectral"), ("vanilla", "vanilla-spectral")):
        assert any(
            all(row["sure"] >= share for row, share in zip(results[game], needed, strict=True))
            and all(row["least_digit"] >= 0.03 for row in results[game])
            for game in games_
        )
