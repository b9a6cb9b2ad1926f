"""lib.gan._networks: shapes, ranges, seeds, and that critics treat each sample for itself."""

import inspect

import pytest
import torch
import torch.nn.functional as F

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


def test_the_image_networks_are_those_of_their_docstrings_written_with_functions():
    generator = torch.Generator().manual_seed(0)
    noise, images = torch.randn(3, 5, generator=generator), torch.rand(3, 1, 28, 28)
    maker, judge = image_generator(5, 4), image_critic(4)
    V, v, K, k, M, m = maker.parameters()
    assert (V.shape, K.shape, M.shape) == ((8 * 49, 5), (8, 4, 4, 4), (4, 1, 4, 4))
    hidden = F.relu(noise @ V.T + v).reshape(3, 8, 7, 7)
    hidden = F.relu(F.conv_transpose2d(hidden, K, k, stride=2, padding=1))
    expected = F.conv_transpose2d(hidden, M, m, stride=2, padding=1).sigmoid()
    assert torch.allclose(maker(noise), expected, atol=1e-6)
    K, k, M, m, V, v = judge.parameters()
    assert (K.shape, M.shape, V.shape) == ((4, 1, 4, 4), (8, 4, 4, 4), (1, 8 * 49))
    hidden = F.leaky_relu(F.conv2d(images, K, k, stride=2, padding=1), 0.2)
    hidden = F.leaky_relu(F.conv2d(hidden, M, m, stride=2, padding=1), 0.2)
    assert torch.allclose(judge(images), hidden.flatten(1) @ V.T + v, atol=1e-6)


def test_the_point_networks_are_relu_networks_of_the_widths_that_are_given():
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for net, out in ((point_generator(3, 2, (5, 4)), 2), (point_critic(3, (5, 4)), 1)):
        weights = list(net.parameters())
        assert [tuple(w.shape) for w in weights] == [(5, 3), (5,), (4, 5), (4,), (out, 4), (out,)]
        a = points
        for V, v in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            a = F.relu(a @ V.T + v)
        assert torch.allclose(net(points), a @ weights[-2].T + weights[-1], atol=1e-6)
    for make in MADE[:2]:
        assert [w.shape[0] for w in make(dim=3).parameters()][:4] == [128] * 4


@pytest.mark.parametrize("make", MADE)
def test_sizes_of_one_are_enough_and_sizes_of_zero_are_refused(make):
    names = {"dim", "noise_dim", "channels"} & inspect.signature(make).parameters.keys()
    a = torch.zeros(2, 1, 28, 28) if make is image_critic else torch.zeros(2, 1)
    assert len(make(**dict.fromkeys(names, 1))(a)) == 2
    for name in names:
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got 0"):
            make(**{name: 0})
