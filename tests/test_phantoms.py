"""lib.phantoms: the eyes are drawn alike for both classes, and only the mask tells them apart."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lib import data, models, training
from lib.data import LESIONS, Images, Phantoms, fundus_phantoms

SEEDS = 0, 1, 2


@pytest.fixture(scope="module", params=SEEDS)
def twins(request):
    """1,000 eyes and the same eyes without lesions."""
    return tuple(fundus_phantoms(seed=request.param, lesions=lesions) for lesions in (True, False))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["train", "test"]),
    st.integers(2, 40),
    st.sampled_from([16, 24, 32, 48, 64]),
    st.integers(0, 2**40),
)
def test_eyes_are_labeled_images_with_a_mask_where_and_only_where_the_label_is_1(
    split, n, size, seed
):
    eyes = fundus_phantoms(split, n=n, size=size, seed=seed)
    assert isinstance(eyes, Images) and len(eyes) == n  # Images checks the range [0, 1] too
    assert eyes.a.shape == (n, 3, size, size) and eyes.a.dtype == torch.float32
    assert eyes.mask.shape == (n, size, size) and eyes.mask.dtype == torch.bool
    assert eyes.classes == ("no lesions", "lesions")
    assert int(eyes.b.sum()) == n // 2
    assert torch.equal(eyes.mask.flatten(1).any(1), eyes.b == 1)


def test_the_default_is_1000_training_eyes_of_32_pixels_also_as_lib_data(twins):
    assert data.fundus_phantoms is fundus_phantoms
    eyes, _ = twins
    assert eyes.a.shape == (1000, 3, 32, 32)
    few = fundus_phantoms(n=20)
    assert torch.equal(few.a, fundus_phantoms("train", n=20, size=32, seed=0).a)


def test_the_same_arguments_give_the_same_eyes_and_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    first = fundus_phantoms("test", n=50, seed=4)
    untouched = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(untouched[0], torch.rand(2))
    assert (untouched[1] == np.random.rand(2)).all()
    second = fundus_phantoms("test", n=50, seed=4)
    for name in ("a", "b", "mask"):
        assert torch.equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize(
    ("split", "size", "pixels", "covered"),
    [
        ("train", 32, [30600.939, -45.011, 13.105, 8.323], [635, 5.053, 5.856, -3.109]),
        ("test", 24, [16772.244, -10.384, -1.964, 2.98], [403, 36.847, 3.579, -6.784]),
    ],
)
def test_the_eyes_are_those_that_the_pages_and_the_records_were_made_with(
    split, size, pixels, covered
):
    """Sums of all pixels and of the mask against four waves, which no other pixels share."""
    eyes = fundus_phantoms(split, n=40, size=size)
    for values, expected in ((eyes.a, pixels), (eyes.mask, covered)):
        flat = values.double().flatten()
        waves = torch.cos(torch.arange(4)[:, None] * torch.arange(len(flat)).double())
        np.testing.assert_allclose(waves @ flat, expected, atol=0.005)


def test_no_eye_is_in_two_splits_or_two_seeds_and_labels_are_shuffled():
    sets = [
        fundus_phantoms(split, n=200, size=24, seed=s) for split in ("train", "test") for s in SEEDS
    ]
    rows = torch.cat([eyes.a.flatten(1) for eyes in sets])
    distance = torch.cdist(rows, rows) + 1e9 * torch.eye(len(rows))
    assert distance.min() > 0.5
    assert len({tuple(eyes.b.tolist()) for eyes in sets}) == len(sets)
    for eyes in sets:
        assert 0.35 < (eyes.b[1:] != eyes.b[:-1]).double().mean() < 0.65


def test_without_its_lesions_an_eye_differs_in_every_pixel_of_the_mask_and_in_no_other(twins):
    eyes, healthy = twins
    assert not healthy.b.any() and not healthy.mask.any()
    change = (eyes.a - healthy.a).abs().amax(1)
    assert torch.equal(change > 0, eyes.mask)
    assert torch.equal(eyes.a[eyes.b == 0], healthy.a[eyes.b == 0])


def test_lesions_are_seen_and_are_dark_and_bright_about_as_often(twins):
    eyes, healthy = twins
    change = (eyes.a - healthy.a).mean(1)
    sick = eyes.b == 1
    assert change[sick].abs().flatten(1).amax(1).min() > 0.1
    assert change[eyes.mask].abs().median() > 0.1
    darker = (change[eyes.mask] < 0).double().mean()
    assert 0.45 < darker < 0.75  # bleedings are larger than deposits
    both = ((change < -0.1).flatten(1).any(1) & (change > 0.1).flatten(1).any(1))[sick]
    assert 0.6 < both.double().mean() < 1


def test_lesions_lie_inside_the_eye_and_off_the_optic_disc(twins):
    eyes, healthy = twins
    inside = F.avg_pool2d(healthy.a.mean(1, keepdim=True), 3, 1, 1)[:, 0] > 0.1
    assert 0.6 < inside.double().mean() < 0.8  # a disc in its square: pi/4 less a margin
    assert inside[eyes.mask].all()
    # In a healthy eye blue is brightest on the optic disc.
    blue = F.avg_pool2d(healthy.a[:, 2:], 3, 1, 1).flatten(1)
    place = blue.argmax(1, keepdim=True)
    assert not eyes.mask.flatten(1).gather(1, place).any()


def test_the_optic_disc_is_on_either_side_as_often_in_both_classes(twins):
    eyes, healthy = twins
    blue = F.avg_pool2d(healthy.a[:, 2:], 3, 1, 1).flatten(1)
    right = (blue.argmax(1) % 32 >= 16).double()
    for label in (0, 1):
        assert abs(right[eyes.b == label].mean() - 0.5) < 0.08  # 3.6 standard deviations
    column = blue.argmax(1) % 32
    assert ((column - 15.5).abs() > 3).all()


def test_lesions_cover_a_few_percent_of_a_sick_eye(twins):
    eyes, _ = twins
    area = eyes.mask[eyes.b == 1].double().mean((1, 2))
    assert 0.02 < area.mean() < 0.05 and area.min() > 0.003 and area.max() < 0.1


def test_an_eye_has_three_to_six_lesions():
    """Counted as the mask's connected parts, of which overlapping lesions make one."""
    eyes = fundus_phantoms(n=200, size=64)
    parts = [ndimage.label(mask)[1] for mask in eyes.mask[eyes.b == 1].numpy()]
    assert LESIONS == (3, 6) and max(parts) == 6 and 3.2 < np.mean(parts) < 4.5


def test_light_and_tint_are_drawn_alike_for_both_classes():
    """The mean and the spread of each channel, over 3,000 eyes before their lesions."""
    labels = torch.cat([fundus_phantoms(size=16, seed=seed).b for seed in SEEDS])
    healthy = [fundus_phantoms(size=16, seed=seed, lesions=False).a for seed in SEEDS]
    pixels = torch.cat(healthy).double().flatten(2)
    for feature in (*pixels.mean(2).T, *pixels.std(2).T):
        zero, one = feature[labels == 0], feature[labels == 1]
        deviation = (zero.var() / len(zero) + one.var() / len(one)).sqrt()
        assert (zero.mean() - one.mean()).abs() < 3 * deviation
        assert feature.std() > 0.11 * feature.mean()  # there is something to be alike in


def test_vessels_are_thin_dark_lines_on_a_healthy_eye():
    """What a closing with a window of 7 pixels fills up: neither macula, nor light, nor noise."""
    green = fundus_phantoms(n=100, size=64, lesions=False).a[:, 1].numpy()
    inside = ndimage.minimum_filter(green, (1, 9, 9)) > 0.1
    lines = (ndimage.grey_closing(green, (1, 7, 7)) - green > 0.06) & inside
    share = lines.sum((1, 2)) / inside.sum((1, 2))
    assert share.min() > 0.03 and share.max() < 0.35


def test_a_larger_size_shows_the_same_eyes():
    small, healthy = fundus_phantoms(n=50), fundus_phantoms(n=50, lesions=False)
    for k in (2, 3):
        large = fundus_phantoms(n=50, size=32 * k)
        assert torch.equal(small.b, large.b)
        assert (F.avg_pool2d(large.a, k) - small.a).abs().mean() < 0.015
        share = F.avg_pool2d(large.mask[:, None].float(), k)[:, 0]
        assert share[small.mask].mean() > 0.7 and share[~small.mask].mean() < 0.02
        # Vessels keep their width: otherwise an eye would grow darker or brighter.
        same = fundus_phantoms(n=50, size=32 * k, lesions=False)
        assert (same.a.mean((2, 3)) - healthy.a.mean((2, 3))).abs().mean() < 0.002


def with_constant(features):
    return torch.cat([features, torch.ones(len(features), 1)], 1).double()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_color_does_not_tell_the_label(seed):
    train, test = (fundus_phantoms(split, size=16, seed=seed) for split in ("train", "test"))
    weights = torch.linalg.lstsq(
        with_constant(train.a.mean((2, 3))), 2 * train.b[:, None].double() - 1
    ).solution
    says = (with_constant(test.a.mean((2, 3))) @ weights)[:, 0] > 0
    assert 0.42 < (says == (test.b == 1)).double().mean() < 0.58


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_model_cannot_tell_the_label_and_a_small_network_can(seed):
    train, test = (fundus_phantoms(split, size=24, seed=seed) for split in ("train", "test"))
    settings = {"shape": (3, 24, 24), "classes": 2, "mean": 0.25, "std": 0.25, "seed": seed}
    scores = []
    for build in (models.linear, models.cnn):
        model = build(**settings)
        training.fit(model, train, training.erm(), epochs=8, batch_size=50, lr=3e-3, seed=seed)
        scores.append(training.accuracy(model, test))
    assert scores[0] < 0.62 and scores[1] > 0.85


@pytest.mark.parametrize("index", [3, -1, slice(0, 7, 2), [4, 1], torch.arange(20) % 3 == 0])
def test_a_selection_of_eyes_keeps_their_masks(index):
    eyes = fundus_phantoms(n=20, size=16)
    rows = np.atleast_1d(np.arange(20)[index.numpy() if torch.is_tensor(index) else index])
    chosen = eyes[index]
    assert isinstance(chosen, Phantoms) and chosen.classes == eyes.classes
    for name in ("a", "b", "mask"):
        assert torch.equal(getattr(chosen, name), getattr(eyes, name)[rows])


def test_eyes_on_another_device_keep_their_masks():
    eyes = fundus_phantoms(n=4)
    moved = eyes.to("cpu")
    assert isinstance(moved, Phantoms) and torch.equal(moved.mask, eyes.mask)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of train, test, got 'val'"),
        ({"n": 1}, "n must be >= 2, got 1"),
        ({"size": 8}, "size must be >= 16, got 8"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fundus_phantoms(**arguments)


@pytest.mark.parametrize(
    "mask", [torch.zeros(4, 32, 32), torch.zeros(4, 1, 32, 32) > 0, torch.zeros(3, 32, 32) > 0]
)
def test_a_mask_that_does_not_fit_the_images_is_refused(mask):
    eyes = fundus_phantoms(n=4)
    with pytest.raises(ValueError, match=r"mask must be bool \[4, 32, 32\], got"):
        Phantoms(eyes.a, eyes.b, eyes.classes, mask)
