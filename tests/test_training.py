"""lib.training: gradients against finite differences and closed forms, the loop against others."""

from functools import partial
from math import ceil

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lib import attacks, fairness, models
from lib.balls import LInf
from lib.data import Images
from lib.training import (
    accuracy,
    adversarial,
    adversarial_gradient,
    ball_stability,
    cross_entropy,
    danskin,
    danskin_gradient,
    erm,
    fit,
    risk_gradient,
    sharpness_aware,
    sharpness_aware_gradient,
)

SEEDS = 0, 1, 2


def random_images(n, shape=(1, 4, 4), classes=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, *shape, generator=generator, dtype=dtype)
    b = torch.randint(classes, (n,), generator=generator)
    return Images(a, b, tuple(map(str, range(classes))))


def small_model(seed=0):
    return models.mlp((1, 4, 4), (6,), 3, mean=0.5, std=0.3, seed=seed)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(first, second):
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def squared(h, b):
    return (b - h[:, 0]) ** 2


def logistic(h, b):  # labels 0 and 1 for the slides' −1 and +1
    return torch.nn.functional.softplus(-(2 * b - 1) * h[:, 0])


@pytest.mark.parametrize("seed", SEEDS)
def test_erm_sets_the_gradient_of_the_mean_loss_by_finite_differences(seed):
    data = random_images(5, seed=seed, dtype=torch.float64)
    model = models.mlp((1, 4, 4), (6,), 3, activation="celu", seed=seed).double()
    update = erm()
    loss = update(model, data.a, data.b)

    @torch.no_grad()
    def risk():
        log_p = torch.log_softmax(model(data.a), 1)
        return -sum(float(log_p[i, data.b[i]]) for i in range(5)) / 5

    assert float(loss) == pytest.approx(risk(), abs=1e-12)
    step = 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            flat, gradient = parameter.view(-1), parameter.grad.view(-1)
            for i in range(len(flat)):
                x = float(flat[i])
                flat[i] = x + step
                up = risk()
                flat[i] = x - step
                down = risk()
                flat[i] = x
                assert float(gradient[i]) == pytest.approx((up - down) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("seed", SEEDS)
def test_erm_gradient_is_the_closed_form_for_least_squares_and_logistic(seed):
    rng = np.random.default_rng(seed)
    a, b, x = rng.random((7, 3)), rng.integers(0, 2, 7), rng.normal(size=3)
    model = models.linear((3,), 1, bias=False, mean=0, std=1).double()
    with torch.no_grad():
        model[-1].weight.copy_(torch.from_numpy(x)[None])
    batch = torch.from_numpy(a), torch.from_numpy(b)

    value = erm(squared)(model, *batch)
    assert float(value) == pytest.approx(np.mean((b - a @ x) ** 2), abs=1e-12)
    expected = 2 / 7 * a.T @ (a @ x - b)
    np.testing.assert_allclose(model[-1].weight.grad[0], expected, atol=1e-12)

    sign = 2 * b - 1
    value = erm(logistic)(model, *batch)
    assert float(value) == pytest.approx(np.mean(np.log1p(np.exp(-sign * (a @ x)))), abs=1e-12)
    expected = -(sign / (1 + np.exp(sign * (a @ x)))) @ a / 7
    np.testing.assert_allclose(model[-1].weight.grad[0], expected, atol=1e-12)


def test_erm_sets_gradients_and_does_not_add_to_old_ones():
    data, model, update = random_images(8), small_model(), erm()
    update(model, data.a, data.b)
    first = [p.grad.clone() for p in model.parameters()]
    loss = update(model, data.a, data.b)
    assert equal(first, [p.grad for p in model.parameters()])
    assert not loss.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_erm_refuses_a_loss_that_is_not_one_value_a_sample(reduction):
    data = random_images(8)
    update = erm(torch.nn.CrossEntropyLoss(reduction=reduction))
    with pytest.raises(ValueError, match=r"one value a sample, \[8\], got \[\].*reduction="):
        update(small_model(), data.a, data.b)


@pytest.mark.parametrize("seed", SEEDS)
def test_fit_is_the_hand_written_minibatch_adam_bit_for_bit(seed):
    data = random_images(23, seed=seed)
    fitted, by_hand = small_model(seed), small_model(seed)
    fit(fitted, data, erm(), epochs=3, batch_size=5, lr=0.01, seed=seed)

    order = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    for _ in range(3):
        permutation = torch.randperm(23, generator=order)
        for start in range(0, 23, 5):
            batch = permutation[start : start + 5]
            adam.zero_grad()
            cross_entropy(by_hand(data.a[batch]), data.b[batch]).mean().backward()
            adam.step()
    assert equal(weights(fitted), weights(by_hand))


def test_fit_takes_the_steps_of_adam_as_published():
    """Algorithm 1 of Kingma and Ba (2015) in float64, least squares in full batches."""
    data = random_images(12, shape=(1, 1, 3), classes=2, dtype=torch.float64)
    model = models.linear((1, 1, 3), 1, bias=False, mean=0, std=1).double()
    a, b = data.a.flatten(1).numpy(), data.b.numpy()
    x, m, v = weights(model)[0].numpy()[0], np.zeros(3), np.zeros(3)
    fit(model, data, erm(squared), epochs=50, batch_size=12, lr=0.05)
    for t in range(1, 51):
        g = 2 / 12 * a.T @ (a @ x - b)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        x = x - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(weights(model)[0][0], x, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_fit_converges_to_the_minimizer_of_a_convex_problem_that_scipy_finds(seed):
    """Logistic regression on labels that no line separates: one minimizer."""
    rng = np.random.default_rng(seed)
    a = rng.random((40, 2))
    b = (a @ [3.0, -2.0] - 0.5 + rng.logistic(size=40) > 0).astype(np.int64)
    data = Images(torch.from_numpy(a).view(-1, 1, 1, 2), torch.from_numpy(b), ("0", "1"))

    features, sign = np.c_[a, np.ones(40)], 2 * b - 1

    def risk(x):
        margin = sign * (features @ x)
        return np.mean(np.logaddexp(0, -margin)), -(sign / (1 + np.exp(margin))) @ features / 40

    best = minimize(risk, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-9})
    assert best.success and np.abs(best.x).max() < 20  # attained: not separable
    model = models.linear((1, 1, 2), 1, mean=0, std=1, seed=seed).double()
    history = fit(model, data, erm(logistic), epochs=400, batch_size=40, lr=0.1, seed=seed)
    found = torch.cat([p.flatten() for p in weights(model)]).numpy()
    np.testing.assert_allclose(found, best.x, atol=1e-6)
    assert history["loss"][-1] == pytest.approx(best.fun, abs=1e-12)


@pytest.mark.parametrize(("n", "batch_size"), [(20, 5), (23, 5), (4, 100), (1, 1)])
def test_each_epoch_visits_every_image_once_in_a_new_order_with_the_last_part_batch(n, batch_size):
    a = torch.arange(n)[:, None, None, None].expand(n, 1, 4, 4) / n
    data = Images(a.contiguous(), torch.arange(n) % 3, ("0", "1", "2"))
    seen = []

    def spy(model, a, b):
        visited = (a[:, 0, 0, 0] * n).round().long()
        assert torch.equal(b, visited % 3)  # labels go with their images
        seen.append(visited.tolist())
        return erm()(model, a, b)

    fit(small_model(), data, spy, epochs=3, batch_size=batch_size)
    per_epoch = ceil(n / batch_size)
    assert len(seen) == 3 * per_epoch
    assert [len(batch) for batch in seen[:per_epoch]] == [
        min(batch_size, n - start) for start in range(0, n, batch_size)
    ]
    flat = [i for batch in seen for i in batch]
    epochs = [flat[:n], flat[n : 2 * n], flat[2 * n :]]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert n == 1 or len({tuple(epoch) for epoch in epochs}) > 1


def test_the_same_seed_gives_the_same_weights_whatever_the_global_generator():
    data, results = random_images(30), []
    for seed, global_seed in ((5, 0), (5, 1), (6, 0)):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        model = small_model()
        fit(model, data, erm(), epochs=2, batch_size=7, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(weights(model))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_an_update_may_return_its_loss_with_the_graph_attached():
    def update(model, a, b):
        loss = cross_entropy(model(a), b).mean()
        model.zero_grad()
        loss.backward()
        return loss

    models_ = small_model(), small_model()
    histories = [
        fit(model, random_images(10), u, epochs=2, batch_size=5)
        for model, u in zip(models_, (update, erm()), strict=True)
    ]
    assert histories[0] == histories[1] and equal(*map(weights, models_))


class WithBatchNorm(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3))


def test_updates_run_in_training_mode_and_the_model_is_left_in_evaluation_mode():
    model, modes = WithBatchNorm().eval(), []

    def spy(model, a, b):
        modes.append(model.training)
        return erm()(model, a, b)

    fit(model, random_images(10), spy, epochs=2, batch_size=5)
    assert modes == [True] * 4
    assert not any(module.training for module in model.modules())
    # Batch norm counts the batches that it saw in training mode: the updates' and no others.
    assert int(model[0].num_batches_tracked) == 4


def test_an_update_that_fails_leaves_the_model_in_evaluation_mode():
    model = small_model()

    def fails(model, a, b):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, random_images(10), fails, epochs=1)
    assert not model.training


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_or_gradient_that_is_not_finite_stops_before_its_step(where, value):
    model, after = small_model(), []

    def breaks(model, a, b):
        after.append(weights(model))
        loss = erm()(model, a, b)
        if len(after) == 3:
            if where == "loss":
                return loss * value
            next(model.parameters()).grad[0, 0] = value
        return loss

    with pytest.raises(FloatingPointError, match=r"in epoch 2: try a smaller lr than 0.1"):
        fit(model, random_images(10), breaks, epochs=3, batch_size=5, lr=0.1)
    assert len(after) == 3
    assert equal(weights(model), after[-1])
    assert not equal(after[1], after[2])
    assert not model.training


def test_history_holds_the_mean_loss_over_images_and_the_accuracy_after_each_epoch():
    data, losses = random_images(12), iter([1.0, 2.0, 6.0] * 2)

    def update(model, a, b):
        erm()(model, a, b)
        return torch.tensor(next(losses))

    model = small_model()
    history = fit(model, data, update, epochs=2, batch_size=5, lr=0.05)
    assert history["loss"] == [pytest.approx((5 * 1 + 5 * 2 + 2 * 6) / 12)] * 2
    with torch.no_grad():
        h = model(data.a).numpy()
    assert history["accuracy"][-1] == pytest.approx(np.mean(h.argmax(1) == data.b.numpy()))
    assert len(history["accuracy"]) == 2


def test_accuracy_counts_right_predictions_in_batches_of_any_size():
    data = random_images(11)
    model = small_model().train()
    with torch.no_grad():
        expected = np.mean(model(data.a).numpy().argmax(1) == data.b.numpy())
    for batch_size in (1, 4, 11, 100):
        assert accuracy(model, data, batch_size=batch_size) == pytest.approx(expected)
    assert model.training and all(layer.training for layer in model)


def test_a_single_logit_predicts_one_where_it_is_positive():
    model = models.linear((1, 1, 1), 1, mean=0.5, std=1)
    with torch.no_grad():
        model[-1].weight.fill_(2.0)
        model[-1].bias.zero_()
    a = torch.tensor([0.1, 0.4, 0.6, 0.9]).view(4, 1, 1, 1)
    assert accuracy(model, Images(a, torch.tensor([0, 1, 1, 1]), ("0", "1"))) == 0.75


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"lr": -0.1}, "lr must be finite and > 0, got -0.1"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": float("inf")}, "lr must be"),
    ],
)
def test_bad_settings_are_refused_before_anything_changes(settings, message):
    model = small_model()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, random_images(10), erm(), **{"epochs": 1, **settings})
    assert equal(weights(model), before)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="images must be >= 1, got 0"):
        fit(small_model(), random_images(10)[:0], erm(), epochs=1)


def test_the_bar_is_shown_on_request_and_otherwise_only_on_a_terminal(capsys):
    for progress, shown in ((None, False), (False, False), (True, True)):
        fit(small_model(), random_images(10), erm(), epochs=2, progress=progress)
        captured = capsys.readouterr()
        assert ("epoch" in captured.err and "loss=" in captured.err) == shown
        assert bool(captured.err) == shown
        assert captured.out == ""


# --- what fit takes ------------------------------------------------------------------------


def test_the_optimizer_and_the_schedule_are_the_callers_and_lr_changes_after_each_epoch():
    data, fitted, by_hand = random_images(10), small_model(), small_model()
    optimizer = partial(torch.optim.SGD, lr=0.4, momentum=0.9, weight_decay=0.01)
    schedule = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
    settings = {"batch_size": 5, "optimizer": optimizer, "schedule": schedule}
    fit(fitted, data, erm(), epochs=5, lr=77.0, seed=3, **settings)

    order = torch.Generator().manual_seed(3)
    sgd = torch.optim.SGD(by_hand.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    for lr in (0.4, 0.4, 0.04, 0.04, 0.004):
        sgd.param_groups[0]["lr"] = lr
        for batch in torch.randperm(10, generator=order).split(5):
            erm()(by_hand, data.a[batch], data.b[batch])
            sgd.step()
    for x, y in zip(weights(fitted), weights(by_hand), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


def test_a_schedule_may_step_after_each_minibatch():
    data, fitted, by_hand = random_images(10), small_model(), small_model()
    optimizer = partial(torch.optim.SGD, lr=0.4)
    schedule = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    settings = {"batch_size": 5, "optimizer": optimizer, "schedule": schedule}
    fit(fitted, data, erm(), epochs=2, seed=3, schedule_each="minibatch", **settings)

    order, sgd = torch.Generator().manual_seed(3), torch.optim.SGD(by_hand.parameters(), lr=0.4)
    for _ in range(2):
        for batch in torch.randperm(10, generator=order).split(5):
            erm()(by_hand, data.a[batch], data.b[batch])
            sgd.step()
            sgd.param_groups[0]["lr"] /= 2
    for x, y in zip(weights(fitted), weights(by_hand), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


class EveryThird:
    """A sampler without chance: images 0, 3, 6, ..., around and around."""

    def __init__(self):
        self.at, self.asked = 0, []

    def draw(self, n):
        self.asked.append(n)
        drawn = torch.arange(self.at, self.at + n) * 3 % 10
        self.at += n
        return drawn

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_a_sampler_chooses_the_minibatches_and_an_epoch_is_n_over_batch_size_draws():
    a = torch.arange(10.0)[:, None, None, None].expand(10, 1, 4, 4) / 10
    data, sampler, seen = (
        Images(a.contiguous(), torch.arange(10) % 3, tuple("012")),
        EveryThird(),
        [],
    )

    def spy(model, a, b):
        seen.append((a[:, 0, 0, 0] * 10).round().long().tolist())
        erm()(model, a, b)
        return torch.tensor(float(len(seen)))

    history = fit(small_model(), data, spy, epochs=2, batch_size=4, sampler=sampler)
    assert sampler.asked == [4] * 6
    assert [i for batch in seen for i in batch] == [3 * i % 10 for i in range(24)]
    assert history["loss"] == [2.0, 5.0]  # the mean over all that was drawn


def test_class_focused_training_feeds_the_sampler_the_errors_that_the_update_sees():
    data, model = random_images(30), small_model()
    sampler = fairness.ClassFocusedSampler(data.b, step_size=0.01)
    fit(model, data, erm(sampler.watch(cross_entropy)), epochs=2, batch_size=10, sampler=sampler)
    assert (sampler.w > 0).all()


def test_evaluate_fills_the_history_and_sees_the_model_in_evaluation_mode():
    data, model, modes = random_images(10), small_model(), []

    def evaluate(model):
        modes.append(model.training)
        return {"robust": torch.tensor(len(modes) / 2), "constant": 1}

    history = fit(model, data, erm(), epochs=2, batch_size=5, evaluate=evaluate)
    assert list(history) == ["loss", "robust", "constant"]
    assert history["robust"] == [0.5, 1.0] and history["constant"] == [1.0, 1.0]
    assert modes == [False, False]


class WithDropout(torch.nn.Sequential):
    def __init__(self):
        super().__init__(small_model(), torch.nn.Dropout(0.5))


def test_dropout_is_reproducible_and_leaves_torchs_global_generator_as_it_was():
    data, results = random_images(30), []
    for seed, global_seed in ((5, 0), (5, 1), (6, 0)):
        model = WithDropout()
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        fit(model, data, erm(), epochs=2, batch_size=30, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(weights(model))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_bfloat16_rounds_the_layers_and_keeps_weights_gradients_and_updates_in_float32():
    data, types = random_images(30), []
    half, full = small_model(), small_model()
    half[2].register_forward_hook(lambda layer, inputs, output: types.append(output.dtype))

    def spy(model, a, b):
        loss = erm()(model, a, b)
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
        return loss

    settings = {"epochs": 3, "batch_size": 10, "lr": 0.01, "evaluate": lambda model: {}}
    history = fit(half, data, spy, precision="bfloat16", **settings)
    exact = fit(full, data, erm(), **settings)
    assert set(types) == {torch.bfloat16} and len(types) == 9
    assert history["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert history["loss"] != exact["loss"]
    assert not torch.is_autocast_enabled("cpu")


def test_bfloat16_trains_against_attacks_too():
    data, model = random_images(30), small_model()
    update = adversarial(partial(attacks.attack, ball=LInf(0.05), steps=2))
    losses = fit(model, data, update, epochs=20, lr=0.01, precision="bfloat16")["loss"]
    assert losses[-1] < losses[0]


def test_channels_last_changes_the_layout_of_kernels_and_images_and_little_else():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(12, 3, 8, 8, generator=generator)
    data = Images(a, torch.arange(12) % 3, tuple("012"))
    results = []
    for channels_last in (False, True):
        model = models.cnn((3, 8, 8), 3, mean=0.5, std=0.3)

        def spy(model, a, b, expected=channels_last):
            for tensor in (a, model[1].weight):
                assert tensor.is_contiguous(memory_format=torch.channels_last) == expected
            return erm()(model, a, b)

        fit(model, data, spy, epochs=2, batch_size=5, channels_last=channels_last)
        results.append(weights(model))
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_compile_hands_the_update_a_compiled_model_that_shares_the_weights(monkeypatch):
    """With the backend "eager": torch.compile's own capture, but no C++ compiler."""
    compiled, plain, seen, real = small_model(), small_model(), [], torch.compile
    monkeypatch.setattr(torch, "compile", partial(real, backend="eager"))

    def spy(model, a, b):
        seen.append(model)
        return erm()(model, a, b)

    data = random_images(10)
    histories = [
        fit(model, data, spy, epochs=2, batch_size=5, compile=compile)
        for model, compile in ((compiled, True), (plain, False))
    ]
    assert histories[0]["loss"] == pytest.approx(histories[1]["loss"])
    assert all(model is not compiled and model._orig_mod is compiled for model in seen[:4])
    assert all(model is plain for model in seen[4:])
    for x, y in zip(weights(compiled), weights(plain), strict=True):
        torch.testing.assert_close(x, y)
    assert not compiled.training


def test_device_moves_the_model_and_the_batches():
    model, data = small_model(), random_images(10)
    with pytest.raises(ValueError, match="device must be at hand"):  # it would lose the weights
        fit(model, data, erm(), epochs=1, device="meta")
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    fit(model, data, erm(), epochs=1, device="cpu")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


# --- runs that go wrong --------------------------------------------------------------------


def test_a_step_that_fails_leaves_batch_norms_statistics_as_before_it():
    model, data, steps = WithBatchNorm(), random_images(10), []

    def breaks(model, a, b):
        steps.append([value.clone() for value in model.state_dict().values()])
        return erm()(model, a * (float("nan") if len(steps) == 3 else 1.0), b)

    with pytest.raises(FloatingPointError, match="in epoch 2"):
        fit(model, data, breaks, epochs=3, batch_size=5)
    assert equal(model.state_dict().values(), steps[-1])
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize(("first", "last_good"), [(2.0, 2000.0), (0.01, 1000.0), (-3.0, -3000.0)])
def test_a_loss_a_thousand_times_the_first_one_or_one_stops_the_run(first, last_good):
    losses, seen = [first, last_good, last_good * 1.001, 0.0], []

    def update(model, a, b):
        erm()(model, a, b)
        seen.append(weights(model))
        return torch.tensor(losses[len(seen) - 1])

    model = small_model()
    with pytest.raises(
        FloatingPointError, match=r"diverges.* in epoch 3: try a smaller lr than 0.001"
    ):
        fit(model, random_images(10), update, epochs=4)
    assert len(seen) == 3 and equal(weights(model), seen[-1])


def test_a_learning_rate_far_too_high_is_told_so_and_the_weights_stay_finite():
    for lr in (1e6, 1e38):
        model = small_model()
        optimizer = partial(torch.optim.SGD, lr=lr)
        with pytest.raises(FloatingPointError, match="try a smaller lr than 1e"):
            fit(model, random_images(30), erm(), epochs=50, batch_size=10, optimizer=optimizer)
        assert all(x.isfinite().all() for x in weights(model))


def test_a_weight_that_is_not_finite_after_the_last_step_is_not_returned():
    def update(model, a, b):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e10)
        return torch.tensor(1.0)

    model, optimizer = small_model(), partial(torch.optim.SGD, lr=1e30)
    before = weights(model)
    with pytest.raises(FloatingPointError, match="a weight is not finite"):
        fit(model, random_images(10), update, epochs=1, optimizer=optimizer)
    assert equal(weights(model), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": -1.0}, "every must be >= 0 seconds, got -1.0"),
        ({"every": float("nan")}, "every must be"),
        ({"schedule_each": "step"}, 'schedule_each must be "epoch" or "minibatch", got .step.'),
        ({"precision": "float16"}, 'precision must be "float32" or "bfloat16", got \'float16\''),
    ],
)
def test_more_bad_settings_are_refused_before_anything_changes(settings, message):
    model = small_model()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        fit(model, random_images(10), erm(), epochs=1, **settings)
    assert equal(weights(model), before)


def test_a_model_without_parameters_to_train_is_refused():
    frozen = small_model().requires_grad_(False)
    for model in (torch.nn.Flatten(), frozen):
        with pytest.raises(ValueError, match=r"no parameters to train.*requires_grad_"):
            fit(model, random_images(10), erm(), epochs=1)


def test_a_frozen_layer_stays_as_it_was_and_the_rest_is_trained():
    model = small_model()
    model[2].requires_grad_(False)
    before = weights(model)
    fit(model, random_images(10), erm(), epochs=2, lr=0.1)
    after = weights(model)
    assert equal(before[:2], after[:2]) and not equal(before[2:], after[2:])


@pytest.mark.parametrize(
    "update",
    [
        erm(),
        adversarial(partial(attacks.attack, ball=LInf(0.1), steps=1)),
        sharpness_aware(0.1),
        sharpness_aware(0.1, per_sample=True),
        ball_stability(0.1, steps=1),
    ],
)
def test_a_loss_without_a_gradient_in_the_parameters_is_refused(update):
    class Detached(torch.nn.Sequential):
        def forward(self, a):
            return super().forward(a).detach() + a.flatten(1)[:, :3]

    model, data = Detached(torch.nn.Flatten(), torch.nn.Linear(16, 3)), random_images(6)
    with pytest.raises(ValueError, match=r"no gradient in the model's parameters.*detaches"):
        fit(model, data, update, epochs=1)


def test_an_update_that_sets_no_gradient_is_refused():
    def nothing(model, a, b):
        model.zero_grad()
        return torch.tensor(1.0)

    with pytest.raises(ValueError, match=r"update must set \.grad"):
        fit(small_model(), random_images(6), nothing, epochs=1)


def test_an_optimizer_that_holds_other_parameters_is_refused():
    other = small_model(1)
    ready = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer holds 4 parameters that are not the model's"):
        fit(small_model(), random_images(6), erm(), epochs=1, optimizer=lambda x: ready)
    with pytest.raises(ValueError, match=r"optimizer must be a function of the parameters.*SGD"):
        fit(small_model(), random_images(6), erm(), epochs=1, optimizer=ready)


def test_an_optimizer_of_some_of_the_parameters_trains_these():
    model, before = small_model(), weights(small_model())
    last = partial(torch.optim.SGD, lr=0.1)
    fit(model, random_images(6), erm(), epochs=1, optimizer=lambda x: last(list(x)[2:]))
    assert equal(before[:2], weights(model)[:2]) and not equal(before[2:], weights(model)[2:])


@pytest.mark.parametrize("found", [{"loss": 0.5}, {"accuracy": 1.0, "loss": 0.5}, None, 0.5])
def test_an_evaluation_that_returns_the_loss_or_no_dictionary_is_refused(found):
    with pytest.raises(ValueError, match=r'evaluate must return .* none of them "loss"'):
        fit(small_model(), random_images(6), erm(), epochs=1, evaluate=lambda model: found)


def test_a_gradient_beyond_the_squares_of_float32_is_finite():
    """A gradient of 1e25 is finite, though its squared length is not."""

    def huge(model, a, b):
        for p in model.parameters():
            p.grad = torch.full_like(p, 1e25)
        return torch.tensor(1.0)

    model, before = small_model(), weights(small_model())
    fit(model, random_images(6), huge, epochs=1, optimizer=partial(torch.optim.SGD, lr=1e-25))
    for x, y in zip(before, weights(model), strict=True):
        torch.testing.assert_close(x - y, torch.ones_like(x))


# --- nothing of the caller's is changed ------------------------------------------------------


class InPlace(torch.nn.Sequential):
    """Normalizes its input where it stands."""

    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        with torch.no_grad():
            self[1].weight.copy_(torch.linspace(-1, 1, 48).view(3, 16))
            self[1].bias.zero_()

    def forward(self, a):
        return super().forward(a.sub_(0.1).div_(0.3))


def test_accuracy_leaves_the_images_and_each_layers_mode_as_they_were():
    data, model = random_images(11), torch.nn.Sequential(InPlace(), torch.nn.Dropout(0.9))
    before = data.a.clone()
    model[1].eval()
    found = {accuracy(model, data, batch_size=4) for _ in range(3)}
    assert len(found) == 1 and torch.equal(data.a, before)
    assert [layer.training for layer in model] == [True, False] and model.training
    with pytest.raises(KeyError):
        accuracy(lambda_module(KeyError), data)


def lambda_module(error):
    class Fails(torch.nn.Module):
        def forward(self, a):
            raise error

    return Fails()


def test_accuracy_needs_images():
    with pytest.raises(ValueError, match=r"at least one image.* got 0 images"):
        accuracy(small_model(), random_images(3)[:0])
    with pytest.raises(ValueError, match="batch_size=0"):
        accuracy(small_model(), random_images(3), batch_size=0)


@pytest.mark.parametrize(
    "update",
    [
        erm(),
        adversarial(lambda model, a, b: a),
        sharpness_aware(0.1),
        sharpness_aware(0.1, per_sample=True),
        ball_stability(0.1, steps=2),
    ],
)
def test_a_model_that_changes_its_input_changes_no_data_and_no_second_pass(update):
    data, model, other = random_images(8, dtype=torch.float64), InPlace(), InPlace()
    model.double(), other.double()
    a = data.a.clone().requires_grad_()
    with torch.no_grad():
        before = a.clone()
    update(model, a, data.b)
    assert torch.equal(a, before) and a.grad is None
    other.forward = lambda x: torch.nn.Sequential.forward(other, (x - 0.1) / 0.3)
    update(other, data.a.clone(), data.b)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12)


# --- the engine takes the slides' steps ------------------------------------------------------

BATCH = random_images(12)


def random_start(seed):
    """An attack that draws, with its own generator."""
    generator = torch.Generator().manual_seed(seed)
    ball = LInf(0.2)

    def attack(model, a, b):
        low, high = 0.0 - a, 1.0 - a
        start = ball.project(ball.sample(tuple(a.shape), generator), low, high)
        f = attacks.loss_of(model, a, b)
        eta = attacks.pga(f, start, ball, 0.1, 2, low, high, steepest=True)
        return (a + eta).clamp(0, 1)

    return attack


@pytest.mark.parametrize(
    ("update", "step"),
    [
        (erm(), risk_gradient),
        (adversarial(random_start(1)), lambda *x: adversarial_gradient(*x, random_start(1))),
        (
            danskin(
                LInf(0.2),
                k=3,
                steps=2,
                step_size=0.1,
                generator=torch.Generator().manual_seed(2),
            ),
            lambda *x: danskin_gradient(*x, random_start(2), k=3),
        ),
        (sharpness_aware(0.3), lambda *x: sharpness_aware_gradient(*x, 0.3)),
    ],
    ids=["erm", "adversarial", "danskin", "sharpness aware"],
)
def test_a_step_of_fit_is_the_slides_function_and_an_optimizers_step_bit_for_bit(update, step):
    fitted, by_hand = small_model(), small_model()
    sgd = partial(torch.optim.SGD, lr=0.3)
    history = fit(fitted, BATCH, update, epochs=1, batch_size=12, optimizer=sgd, seed=3)
    i = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    loss = step(by_hand.train(), BATCH.a[i], BATCH.b[i])
    sgd(by_hand.parameters()).step()
    assert equal(weights(fitted), weights(by_hand)) and history["loss"] == [float(loss)]
    assert not equal(weights(fitted), weights(small_model()))
