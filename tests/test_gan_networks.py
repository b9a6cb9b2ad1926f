"""lib.gan._networks: shapes, ranges, seeds, and that critics treat each sample for itself."""

import pytest
import torch

from lib.gan import gaussian, image_critic, image_generator, point_critic, point_generator
from lib.lipschitz import lipschitz_bound

MADE = (point_generator, point_critic, image_generator, image_critic)


def test_shapes_and_ranges():
    noise = gaussian(32)(5, torch.Generator().manual_seed(0))
    images = image_generator()(noise)
    assert images.shape == (5, 1, 28, 28)
    assert images.min() > 0 and images.max() < 1
    assert image_critic()(images).shape == (5, 1)
    assert point_generator(3, 4, (8,))(noise[:, :3]).shape == (5, 4)
    assert point_critic(4, (8,))(noise[:, :4]).shape == (5, 1)


@pytest.mark.parametrize("make", MADE)
def test_the_weights_depend_on_the_seed_alone(make):
    before = torch.get_rng_state()
    first, again, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    for p, q, r in pairs:
        assert torch.equal(p, q) and not torch.equal(p, r)


def test_critics_treat_each_sample_for_itself_and_have_a_known_bound():
    generator = torch.Generator().manual_seed(0)
    for critic, shape in ((point_critic(), (2,)), (image_critic(4), (1, 28, 28))):
        a = torch.rand(6, *shape, generator=generator)
        with torch.no_grad():
            together, alone = critic(a), torch.cat([critic(sample[None]) for sample in a])
        assert torch.allclose(together, alone, atol=1e-6)
        assert lipschitz_bound(critic, shape) > 0


def test_the_noise_is_standard_normal_and_its_generators_alone():
    noise = gaussian(3)
    first, again = (noise(20_000, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.allclose(first.mean(0), torch.zeros(3), atol=0.03)
    assert torch.allclose(first.T.cov(), torch.eye(3), atol=0.05)
    with pytest.raises(ValueError, match="dim must be >= 1, got 0"):
        gaussian(0)
