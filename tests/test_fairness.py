"""lib.fairness: the sampler against hand-made steps, enumeration and theory; counts by hand."""

import copy
import io
import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import beta, chisquare, norm

from lib import attacks, models
from lib.balls import LInf
from lib.data import Images
from lib.fairness import (
    ClassFocusedSampler,
    ClasswiseAccuracy,
    class_focused_step,
    classwise_accuracy,
)
from lib.training import adversarial

SEEDS = 0, 1, 2
LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 1, 2, 1])  # 2, 5 and 4 samples of 3 classes


def sampler_for(classes, gamma, step_size):
    return ClassFocusedSampler(torch.arange(classes), gamma, step_size)


# --- the sampler -------------------------------------------------------------------------------


def test_the_sampler_starts_uniform_whatever_the_counts():
    sampler = ClassFocusedSampler(LABELS)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(sampler.q, third)
    torch.testing.assert_close(sampler.p, third)
    assert sampler.q.dtype == sampler.p.dtype == torch.float64


def test_two_hand_computed_updates():
    sampler = ClassFocusedSampler(LABELS, gamma=0.4, step_size=0.25)
    # p = (1/3, 1/3, 1/3), so class 0 gets 0.25 * 3 * (1 + 0.5) and class 2 gets 0.25 * 3 * 0.2.
    sampler.update([0, 2, 0], [1.0, 0.2, 0.5])
    w = np.array([1.125, 0.0, 0.15])
    q = np.exp(w) / np.exp(w).sum()
    p = 0.4 / 3 + 0.6 * q
    np.testing.assert_allclose(sampler.w, w, rtol=1e-14)
    np.testing.assert_allclose(sampler.q, q, rtol=1e-14)
    np.testing.assert_allclose(sampler.p, p, rtol=1e-14)
    # Both samples of class 1 are divided by the p from before the batch.
    sampler.update([1, 1, 2], [1.0, 0.5, 2.0])
    w += 0.25 * np.array([0, 1.5 / p[1], 2 / p[2]])
    np.testing.assert_allclose(sampler.w, w, rtol=1e-14)


def test_the_sampler_takes_the_slide_s_step():
    sampler = ClassFocusedSampler(LABELS, gamma=0.4, step_size=0.25)
    classes, losses = torch.tensor([0, 2, 0]), torch.tensor([1.0, 0.2, 0.5]).double()
    for _ in range(2):
        before = sampler.w.clone()
        step = class_focused_step(sampler.w, classes, losses, 0.4, 0.25)
        assert torch.equal(sampler.w, before)  # a new tensor
        sampler.update(classes, losses)
        assert torch.equal(sampler.w, step) and not torch.equal(step, before)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 5),
    st.floats(0.01, 1),
    st.floats(1e-4, 2),
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), max_size=6), max_size=4),
)
def test_any_sequence_of_updates_follows_the_formula(classes, gamma, step_size, batches):
    sampler = sampler_for(classes, gamma, step_size)
    w = [0.0] * classes
    for batch in batches:
        top = max(w)
        q = [math.exp(x - top) for x in w]
        p = [gamma / classes + (1 - gamma) * x / sum(q) for x in q]
        for c, loss in batch:
            w[c % classes] += step_size * loss / p[c % classes]
        sampler.update(
            torch.tensor([c % classes for c, _ in batch], dtype=torch.int64),
            torch.tensor([loss for _, loss in batch], dtype=torch.float64),
        )
        np.testing.assert_allclose(sampler.w, w, rtol=1e-12)
        assert float(sampler.p.sum()) == pytest.approx(1, abs=1e-12)
        assert float(sampler.p.min()) >= gamma / classes - 1e-15


@pytest.mark.parametrize("m", [1, 2, 4])
def test_the_importance_weighted_update_is_unbiased_by_enumeration_of_all_draws(m):
    """E[w after − w before] = step_size · m · (mean loss of each class), over all C^m batches."""
    loss = torch.tensor([0.9, 0.1, 0.4], dtype=torch.float64)
    before = ClassFocusedSampler(LABELS, gamma=0.2, step_size=0.3)
    before.update([0, 2], [1.0, 0.3])
    p, mean = before.p, torch.zeros(3, dtype=torch.float64)
    assert p.max() > 2 * p.min()  # far from uniform
    for batch in product(range(3), repeat=m):
        after = copy.deepcopy(before)
        after.update(batch, loss[list(batch)])
        mean += p[list(batch)].prod() * (after.w - before.w)
    torch.testing.assert_close(mean, 0.3 * m * loss, rtol=1e-12, atol=0)


def test_large_weights_stay_exact_and_finite():
    sampler = sampler_for(3, 0.5, 1.0)
    state = sampler.state_dict()
    state["w"] = torch.tensor([1e6 + 1, 1e6, -1e6], dtype=torch.float64)
    sampler.load_state_dict(state)
    e = math.e
    np.testing.assert_allclose(sampler.q, [e / (1 + e), 1 / (1 + e), 0], rtol=1e-14)
    for _ in range(1000):
        sampler.update([2], [1e300 / 1e296])
    assert torch.isfinite(sampler.w).all() and float(sampler.p.sum()) == pytest.approx(1)
    np.testing.assert_allclose(sampler.p, np.array([1, 1, 4]) / 6, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_draws_follow_p_and_are_uniform_within_a_class_by_a_chi_square_test(seed):
    generator = torch.Generator().manual_seed(seed)
    sampler = ClassFocusedSampler(LABELS, gamma=0.5, step_size=0.5, generator=generator)
    sampler.update([0], [1.0])
    p = sampler.p
    assert p.max() > 2 * p.min()
    draws = torch.cat([sampler.draw(n) for n in (20_000, 1, 9_999)])
    assert draws.dtype == torch.int64 and draws.shape == (30_000,)
    expected = 30_000 * (p / LABELS.bincount())[LABELS]  # p_c / n_c each
    seen = draws.bincount(minlength=len(LABELS))
    assert chisquare(seen, expected).pvalue > 0.01
    # The draws are independent: the next class does not depend on the last.
    c = LABELS[draws]
    pairs = (3 * c[:-1] + c[1:]).bincount(minlength=9)
    assert chisquare(pairs, len(c[1:]) * torch.outer(p, p).flatten()).pvalue > 0.001


def test_draws_depend_on_the_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again = (ClassFocusedSampler(LABELS).draw(50) for _ in range(2))
    other = ClassFocusedSampler(LABELS, generator=torch.Generator().manual_seed(1)).draw(50)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


# --- theory ------------------------------------------------------------------------------------


def expected_gain(losses, gamma, step_size):
    """E Σ_t <q_t, losses_t> with one draw a round, exactly: over all C^T sequences of draws."""

    def below(sampler, t):
        if t == len(losses):
            return 0.0
        total = float(sampler.q @ losses[t])
        for c, probability in enumerate(sampler.p.tolist()):
            child = copy.deepcopy(sampler)
            child.update([c], losses[t, c : c + 1])
            total += probability * below(child, t + 1)
        return total

    return below(sampler_for(losses.shape[1], gamma, step_size), 0)


def regret_bound(classes, rounds, gamma, step_size):
    """ln C / step + (e − 2) · step · C · T / (1 − gamma), for step · C / gamma <= 1."""
    assert step_size * classes / gamma <= 1
    spread = (math.e - 2) * step_size * classes * rounds / (1 - gamma)
    return math.log(classes) / step_size + spread


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("classes", "rounds"), [(2, 7), (3, 5)])
def test_exp3_regret_bound_holds_in_exact_expectation(classes, rounds, seed):
    rng = torch.Generator().manual_seed(seed)
    losses = torch.rand(rounds, classes, generator=rng, dtype=torch.float64).round(decimals=1)
    for gamma in (0.2, 0.5):
        step = gamma / classes
        regret = float(losses.sum(0).max()) - expected_gain(losses, gamma, step)
        assert regret <= regret_bound(classes, rounds, gamma, step)


def play(adversary, classes, rounds, gamma, step_size, seed, weighted=True):
    """The gain <q_t, loss_t> summed over a game, and each class's total loss."""
    rng = torch.Generator().manual_seed(seed)
    sampler = ClassFocusedSampler(torch.arange(classes), gamma, step_size, rng)
    gain, totals = 0.0, torch.zeros(classes, dtype=torch.float64)
    for t in range(rounds):
        q = sampler.q
        loss = adversary(t, rounds, q)
        gain, totals = gain + float(q @ loss), totals + loss
        c = sampler.draw(1)
        # Without importance weights: as if each class had been drawn with probability 1/C.
        scale = 1.0 if weighted else float(sampler.p[c] * classes)
        sampler.update(c, loss[c] * scale)
    return gain, totals


def switching(t, rounds, q):
    """Class 0 is bad for a quarter of the game, class 1 for the rest."""
    loss = torch.zeros(len(q), dtype=torch.float64)
    loss[0 if t < rounds / 4 else 1] = 1
    return loss


def evading(t, rounds, q):
    """The class that the sampler believes in least is bad."""
    loss = torch.zeros(len(q), dtype=torch.float64)
    loss[q.argmin()] = 1
    return loss


def coins(t, rounds, q):
    """All classes alike but one, which is bad a little more often."""
    u = torch.rand(len(q), generator=torch.Generator().manual_seed(t), dtype=torch.float64)
    u[-1] += 0.1
    return (u > 0.5).double()


@pytest.mark.parametrize("adversary", [switching, evading, coins])
@pytest.mark.parametrize("classes", [2, 5])
def test_exp3_regret_stays_below_its_bound_on_adversarial_losses(adversary, classes):
    rounds, gamma = 300, 0.2
    step = min(gamma / classes, math.sqrt(math.log(classes) / (classes * rounds)))
    games = [play(adversary, classes, rounds, gamma, step, seed) for seed in range(12)]
    totals = torch.stack([totals for _, totals in games])
    regrets = totals[:, totals.mean(0).argmax()] - torch.tensor([gain for gain, _ in games])
    error = regrets.std() / math.sqrt(len(games))  # the bound is one on the mean regret
    assert regrets.mean() - 2 * error <= regret_bound(classes, rounds, gamma, step)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("adversary", [switching, evading, coins])
def test_the_regret_against_the_estimated_losses_is_bounded_in_every_single_game(adversary, seed):
    """max w − ln C <= Σ step <q, l> + (e − 2) step² <q, l²> with l = loss / p, where drawn."""
    classes, rounds, gamma, step = 4, 300, 0.2, 0.05
    rng = torch.Generator().manual_seed(seed)
    sampler = ClassFocusedSampler(torch.arange(classes), gamma, step, rng)
    bound = math.log(classes)
    for t in range(rounds):
        q, p = sampler.q, sampler.p
        loss = adversary(t, rounds, q)
        [c] = sampler.draw(1).tolist()
        sampler.update([c], loss[c : c + 1])
        z = step * loss[c] / p[c]
        assert z <= 1
        bound += float(q[c] * (z + (math.e - 2) * z**2))
    assert float(sampler.w.max()) <= bound


@pytest.mark.parametrize("seed", SEEDS)
def test_without_importance_weights_the_regret_bound_breaks(seed):
    """The bound has teeth: a sampler that forgets to divide by p ends far above it."""
    rounds, gamma, step = 1000, 0.05, 0.025
    bound = regret_bound(2, rounds, gamma, step)
    regrets = []
    for weighted in (True, False):
        gain, totals = play(switching, 2, rounds, gamma, step, seed, weighted)
        regrets.append(float(totals.max()) - gain)
    assert regrets[0] <= 2 * bound  # one game scatters about the mean
    assert regrets[1] > 5 * bound


# The exact model of slide 25: u ~ N(±m0, s±²), robust margin m = m0 − eps, threshold b.
S_PLUS, S_MINUS = 1.0, 0.5


def errors_at(b, m):
    return torch.from_numpy(norm.cdf([(b - m) / S_PLUS, (-b - m) / S_MINUS]))


def best_threshold(weight, m):
    """The minimizer of weight · error₊ + (1 − weight) · error₋, where its derivative vanishes."""

    def derivative(b):
        plus = weight / S_PLUS * math.exp(-(((b - m) / S_PLUS) ** 2) / 2)
        return plus - (1 - weight) / S_MINUS * math.exp(-(((b + m) / S_MINUS) ** 2) / 2)

    return brentq(derivative, -m, m, xtol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_hedge_on_the_gaussian_model_finds_the_minimax_threshold_and_weights(gamma):
    """Full information: each class's expected loss goes in, times p, so that w += step · loss.

    The limit is b = −m (s₊ − s₋)/(s₊ + s₋), both errors Φ(−2m/(s₊ + s₋)), and the distribution
    that is trained on, p, puts s₊/(s₊ + s₋) = 2/3 on the wide class.
    """
    m = 0.8
    sampler = sampler_for(2, gamma, step_size=5.0)
    for _ in range(300):
        b = best_threshold(float(sampler.p[0]), m)
        errors = errors_at(b, m)
        sampler.update([0, 1], sampler.p * errors)
    assert b == pytest.approx(-0.266667, abs=1e-6)
    np.testing.assert_allclose(errors, [0.143061, 0.143061], atol=5e-7)
    np.testing.assert_allclose(sampler.p, [2 / 3, 1 / 3], atol=1e-6)
    expected_q = (np.array([2 / 3, 1 / 3]) - gamma / 2) / (1 - gamma)
    np.testing.assert_allclose(sampler.q, expected_q, atol=1e-6)


# --- watch, state, errors ----------------------------------------------------------------------


def test_watch_returns_the_loss_unchanged_and_feeds_zero_one_losses():
    sampler, twin = (ClassFocusedSampler(LABELS, 0.3, 0.2) for _ in range(2))
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [1, 0, 0]], requires_grad=True)
    b = torch.tensor([0, 0, 1, 2])
    losses = sampler.watch(attacks.cross_entropy)(logits, b)
    assert losses.requires_grad
    assert torch.equal(losses, attacks.cross_entropy(logits, b))
    twin.update(b, torch.tensor([0.0, 1, 0, 1]))
    assert torch.equal(sampler.w, twin.w) and sampler.w.sum() > 0


def test_watch_of_a_single_logit_predicts_one_where_it_is_positive():
    sampler = sampler_for(2, 0.5, 1.0)
    watched = sampler.watch(lambda h, b: (h[:, 0] - b) ** 2)
    watched(torch.tensor([[0.7], [-0.2], [0.1]]), torch.tensor([1, 1, 0]))
    np.testing.assert_allclose(sampler.w, [2, 2])


def test_in_adversarial_training_the_sampler_sees_each_attacked_batch_once():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(12, 1, 2, 2, generator=generator), torch.arange(12) % 3
    model = models.mlp((1, 2, 2), (5,), 3, seed=0)
    sampler, twin = (ClassFocusedSampler(b, step_size=0.1) for _ in range(2))
    attack = partial(attacks.attack, ball=LInf(0.2), steps=3)
    adversarial(attack, loss=sampler.watch(attacks.cross_entropy))(model, a, b)
    worst = attack(model.eval(), a, b)
    twin.update(b, (model(worst).argmax(1) != b).double())
    assert torch.equal(sampler.w, twin.w) and sampler.w.sum() > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sampler_restored_from_its_state_goes_on_bit_for_bit(seed):
    rng = torch.Generator().manual_seed(seed)
    sampler = ClassFocusedSampler(LABELS, 0.3, 0.2, rng)

    def step(sampler):
        i = sampler.draw(7)
        sampler.update(LABELS[i], (i % 2).double())
        return i

    for _ in range(3):
        step(sampler)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    taken = sampler.state_dict()
    expected = [step(sampler) for _ in range(5)]
    assert not torch.equal(taken["w"], sampler.w)  # the state is a copy

    file.seek(0)
    restored = ClassFocusedSampler(LABELS, 0.3, 0.2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(torch.stack([step(restored) for _ in range(5)]), torch.stack(expected))
    assert torch.equal(restored.w, sampler.w)
    again = ClassFocusedSampler(LABELS, 0.3, 0.2)
    again.load_state_dict(taken)
    step(again)
    assert not torch.equal(again.w, taken["w"])  # and what was loaded is one too


def test_states_that_do_not_fit_are_refused_and_change_nothing():
    sampler = ClassFocusedSampler(LABELS)
    state = sampler.state_dict()
    bad = (
        ({"w": state["w"]}, r'must hold "w" and "generator", got \[\'w\'\]'),
        (state | {"w": torch.zeros(4).double()}, r"float64 \[3\], got torch.float64 \[4\]"),
        (state | {"w": torch.zeros(3)}, "got torch.float32"),
        (state | {"w": torch.full((3,), math.nan).double()}, "finite"),
    )
    for wrong, message in bad:
        with pytest.raises(ValueError, match=message):
            sampler.load_state_dict(wrong)
    assert torch.equal(sampler.draw(9), ClassFocusedSampler(LABELS).draw(9))


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (torch.tensor([0, 2, 2]), {}, r"class 1 of 3 has no sample"),
        (torch.tensor([1, 1]), {}, r"class 0 of 2 has no sample"),
        (torch.tensor([0, -1]), {}, r"labels must be >= 0, got -1"),
        (torch.tensor([0.0, 1.0]), {}, r"must be int64 \[n\].*torch.float32 \[2\]"),
        (torch.zeros(2, 2).long(), {}, r"must be int64 \[n\].*\[2, 2\]"),
        (torch.tensor([], dtype=torch.int64), {}, r"n >= 1"),
        (LABELS, {"gamma": -0.1}, r"gamma must be in \[0, 1\], got -0.1"),
        (LABELS, {"gamma": 1.1}, r"gamma must be"),
        (LABELS, {"gamma": math.nan}, r"gamma must be"),
        (LABELS, {"step_size": 0.0}, r"step_size must be finite and > 0, got 0.0"),
        (LABELS, {"step_size": math.inf}, r"step_size must be"),
    ],
)
def test_bad_settings_of_a_sampler_are_refused(labels, settings, message):
    with pytest.raises(ValueError, match=message):
        ClassFocusedSampler(labels, **settings)


@pytest.mark.parametrize(
    ("classes", "losses", "message"),
    [
        ([0, 3], [1.0, 1.0], r"classes must be 0 to 2, got \[3\]"),
        ([-1, 0], [1.0, 1.0], r"classes must be 0 to 2, got \[-1\]"),
        ([0, 1], [1.0], r"one loss for each, got torch.int64 \[2\] and \[1\]"),
        ([0, 1], 1.0, r"one loss for each"),
        ([0.0, 1.0], [1.0, 1.0], r"torch.float32"),
        ([0, 1], [1.0, math.nan], r"a loss is not finite"),
        ([0, 1], [math.inf, 1.0], r"a loss is not finite"),
    ],
)
def test_bad_updates_are_refused_and_change_nothing(classes, losses, message):
    sampler = ClassFocusedSampler(LABELS)
    with pytest.raises(ValueError, match=message):
        sampler.update(classes, losses)
    assert not sampler.w.any()


def test_a_class_of_probability_zero_cannot_have_been_drawn():
    sampler = sampler_for(2, 0.0, 1.0)
    sampler.load_state_dict(sampler.state_dict() | {"w": torch.tensor([2000.0, 0]).double()})
    with pytest.raises(ValueError, match=r"probability 0.*gamma > 0"):
        sampler.update([1], [1.0])


@pytest.mark.parametrize("n", [0, -3])
def test_draw_needs_a_positive_number(n):
    with pytest.raises(ValueError, match=f"n must be >= 1, got {n}"):
        ClassFocusedSampler(LABELS).draw(n)


# --- class-wise accuracy -----------------------------------------------------------------------


def gray(values, labels, classes=("dark", "light")):
    a = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)
    return Images(a, torch.tensor(labels), classes)


def threshold(a):
    """Class 1 where the pixel is above 0.5; the cross-entropy grows toward the other side."""
    u = 10 * (a.flatten(1) - 0.5)
    return torch.cat([-u, u], 1)


SHADES = gray([0.1, 0.42, 0.45, 0.6, 0.2, 0.9, 0.55, 0.3], [0, 0, 0, 0, 0, 1, 1, 1])


def test_clean_class_wise_accuracy_counts_by_hand():
    result = classwise_accuracy(threshold, SHADES)
    assert result.classes == ("dark", "light") and result.confidence == 0.95
    assert result.right.tolist() == [4, 2] and result.count.tolist() == [5, 3]
    np.testing.assert_allclose(result.accuracy, [4 / 5, 2 / 3])
    assert result.average == 6 / 8 and result.worst == pytest.approx(2 / 3)
    assert result.gap == pytest.approx(4 / 5 - 2 / 3)


def test_robust_class_wise_accuracy_counts_by_hand_with_one_radius_or_one_a_sample():
    result = classwise_accuracy(threshold, SHADES, LInf(0.09))
    assert result.right.tolist() == [2, 1]  # 0.1 and 0.2; 0.9
    result = classwise_accuracy(threshold, SHADES, LInf(0.06), steps=2)
    assert result.right.tolist() == [3, 1]  # 0.42 too
    mixed = SHADES[[5, 0, 6, 1, 2, 3, 7, 4]]
    radii = torch.tensor([0.5, 0.5, 0.01, 0.01, 0.01, 0.01, 0.3, 0.01])
    result = classwise_accuracy(threshold, mixed, LInf(radii))
    assert result.right.tolist() == [3, 1]  # 0.42, 0.45, 0.2; 0.55


def test_the_attack_settings_reach_the_attack():
    weak = classwise_accuracy(threshold, SHADES, LInf(0.09), steps=1, step_size=0.01)
    assert weak.right.tolist() == [4, 2]  # no pixel moves by more than 0.01
    with pytest.raises(ValueError, match="restarts must be >= 1, got 0"):
        classwise_accuracy(threshold, SHADES, LInf(0.09), restarts=0)
    # A model that errs beyond 1.2 only: pixels up to 1 do not get there, pixels up to 2 do.
    data = gray([0.9, 0.1, 0.9], [0, 0, 1])

    def beyond(a):
        return threshold(a - 0.7)

    for bounds, right in (((0.0, 1.0), [2, 0]), ((0.0, 2.0), [1, 0])):
        found = classwise_accuracy(beyond, data, LInf(0.5), bounds=bounds, confidence=0.8)
        assert found.right.tolist() == right and found.confidence == 0.8


def test_what_settings_are_an_attacks_alone_is_said_by_name():
    settings = {
        "steps": 3,
        "step_size": 0.1,
        "restarts": 2,
        "bounds": (0.0, 2.0),
        "generator": torch.Generator(),
        "loss": attacks.cross_entropy,
    }
    for name, value in settings.items():
        with pytest.raises(ValueError, match=f"{name} are an attack's: give its ball too"):
            classwise_accuracy(threshold, SHADES, **{name: value})
    classwise_accuracy(threshold, SHADES, restarts=1, bounds=[0.0, 1.0], batch_size=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_class_wise_counts_add_up_to_the_robust_accuracy(seed):
    rng = torch.Generator().manual_seed(seed)
    a, b = torch.rand(60, 1, 4, 4, generator=rng), torch.randint(3, (60,), generator=rng)
    model, data = models.mlp((1, 4, 4), (8,), 3, seed=seed).eval(), Images(a, b, ("x", "y", "z"))
    ball = LInf(0.1)
    with torch.no_grad():
        right = model(a).argmax(1) == b
    for k, result in enumerate(
        (
            classwise_accuracy(model, data, batch_size=7),
            classwise_accuracy(model, data, ball, batch_size=7, steps=5),
        )
    ):
        if k:
            share = attacks.robust_accuracy(model, a, b, ball, steps=5)
            assert share < right.double().mean()
        else:
            share = float(right.double().mean())
            assert result.right.tolist() == [int(right[b == c].sum()) for c in range(3)]
        assert result.average == pytest.approx(share)
        assert result.count.tolist() == b.bincount().tolist()


def test_a_single_logit_is_judged_by_its_sign():
    result = classwise_accuracy(lambda a: a.flatten(1) - 0.5, SHADES)
    assert result.right.tolist() == [4, 2]


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_are_clopper_and_pearsons(confidence):
    right, count = torch.tensor([0, 3, 50, 97, 10]), torch.tensor([10, 10, 100, 100, 10])
    result = ClasswiseAccuracy(tuple("abcde"), right, count, confidence)
    tail, k, n = (1 - confidence) / 2, right.numpy(), count.numpy()
    low = np.where(k == 0, 0, beta.ppf(tail, np.maximum(k, 1), n - k + 1))
    high = np.where(k == n, 1, beta.ppf(1 - tail, k + 1, np.maximum(n - k, 1)))
    np.testing.assert_allclose(result.interval, np.stack([low, high], 1), atol=1e-10)


@pytest.mark.parametrize("truth", [0.05, 0.4, 0.9])
def test_the_interval_holds_the_truth_as_often_as_it_says_by_enumeration(truth):
    n = 30
    right = torch.arange(n + 1)
    result = ClasswiseAccuracy(("c",) * (n + 1), right, torch.full_like(right, n), 0.9)
    low, high = result.interval.T
    holds = (low <= truth) & (truth <= high)
    mass = torch.tensor([math.comb(n, k) * truth**k * (1 - truth) ** (n - k) for k in right])
    assert float(mass[holds].sum()) >= 0.9


def test_a_result_is_frozen():
    result = classwise_accuracy(threshold, SHADES)
    with pytest.raises(AttributeError):
        result.right = None


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        (gray([0.1], [0]), {}, "class 'light' has no sample"),
        (SHADES, {"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
        (SHADES, {"confidence": 0.0}, r"confidence must be in \(0, 1\), got 0.0"),
        (SHADES, {"batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_bad_settings_of_class_wise_accuracy_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        classwise_accuracy(threshold, data, **settings)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"training mode: call model.eval\(\)"):
        classwise_accuracy(models.linear((1, 1, 1), 2), SHADES)
