"""lib.runs.session: what long runs do alike; a step that is not finite does not count."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from pretend_cuda import DEVICE, Pretending
from torch import nn

from lib.runs import CheckpointError
from lib.runs.checkpoints import load
from lib.runs.session import (
    Session,
    all_finite,
    require_at_most,
    require_finite,
    torch_seeded,
)


def networks():
    torch.manual_seed(0)
    return {"generator": nn.Linear(2, 2), "critic": nn.Sequential(nn.Linear(2, 1), nn.Dropout())}


def states(session):
    return [
        t.clone() for network in session.networks.values() for t in network.state_dict().values()
    ]


def same(first, second):
    return all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


class Count:
    """A loop's state."""

    settings = {}  # noqa: RUF012

    def __init__(self, done=0):
        self.done = done

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def run(steps, checkpoint=None, settings=None, breaks=None, **more):
    """A loop of two networks, as the docstring shows one; returns the session and its state."""
    session = Session(networks(), checkpoint=checkpoint, every=0.0, progress=False, **more)
    sgd = {
        f"{k}'s optimizer": torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9)
        for k, n in session.networks.items()
    }
    state = Count()
    with session.resumed({"run": state, **sgd}, settings or {}), session.bar(steps, state.done):
        while state.done < steps:
            before = states(session)
            try:
                with session.step(f"step {state.done + 1}"):
                    for name, optimizer in sgd.items():
                        network = session.compiled[name.split("'")[0]]
                        optimizer.zero_grad()
                        with session.autocast:
                            loss = network(torch.rand(4, 2)).pow(2).mean()
                        loss.backward()
                        require_finite(loss=loss.detach())
                        optimizer.step()
                        if breaks == (state.done, name):
                            with torch.no_grad():
                                next(network.parameters()).fill_(float("nan"))
            except FloatingPointError:
                assert same(states(session), before)  # of both networks
                raise
            state.done += 1
            session.checkpoint.save_if_due()
    return session, state


def test_a_run_in_two_pieces_is_the_run_in_one(tmp_path):
    whole, _ = run(5)
    run(2, tmp_path / "run.pt")
    again, state = run(5, tmp_path / "run.pt")
    assert state.done == 5 and same(states(whole), states(again))
    with pytest.raises(CheckpointError, match="constraint was missing, is clip"):
        run(6, tmp_path / "run.pt", {"constraint": "clip"})


@pytest.mark.parametrize("name", ["generator's optimizer", "critic's optimizer"])
def test_a_step_that_ends_in_nan_does_not_count_for_any_network(tmp_path, name):
    path = tmp_path / "run.pt"
    with pytest.raises(
        FloatingPointError,
        match=r"a weight is not finite .*in step 3: try a smaller lr than 0\.1, or check the data"
        r".*before this step were kept, and so was the checkpoint .*run\.pt",
    ):
        run(5, path, breaks=(2, name))
    kept, (expected, _) = load(path), run(2)
    assert kept["run"]["done"] == 2
    assert same(kept["critic"].values(), expected.networks["critic"].state_dict().values())


def test_a_number_that_is_not_finite_is_named_and_buffers_are_put_back():
    session = Session({"model": nn.BatchNorm1d(2)})
    optimizers = [torch.optim.SGD(session.networks["model"].parameters(), lr=lr) for lr in (1, 2)]
    objects = {f"optimizer {i}": optimizer for i, optimizer in enumerate(optimizers)}
    with session.resumed(objects, {}):
        before = states(session)
        with (
            pytest.raises(
                FloatingPointError, match=r"the critic value is nan, in step 1: .*1 and 2"
            ),
            session.step("step 1"),
        ):
            session.networks["model"](torch.randn(5, 2))
            assert not same(states(session), before)
            require_finite(loss=1.0, critic_value=torch.tensor(float("nan")))
        assert same(states(session), before)


def test_other_errors_pass_as_they_are():
    session = Session(networks())
    with session.resumed({}, {}), pytest.raises(KeyError), session.step("step 1"):
        raise KeyError


def test_training_mode_within_and_evaluation_mode_afterwards_even_if_interrupted():
    session = Session({name: network.eval() for name, network in networks().items()})
    with pytest.raises(KeyboardInterrupt), session.resumed({}, {}):
        assert all(layer.training for n in session.networks.values() for layer in n.modules())
        raise KeyboardInterrupt
    assert not any(layer.training for n in session.networks.values() for layer in n.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, 'precision must be "float32" or "bfloat16", got'),
        ({"every": -1.0}, "every must be >= 0 seconds, got -1.0"),
        ({"every": float("nan")}, "every must be >= 0 seconds"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Session(networks(), **settings)


def test_a_network_without_trained_parameters_is_refused_by_its_name():
    players = networks()
    players["critic"].requires_grad_(False)
    with pytest.raises(ValueError, match=r"the critic has no parameters to train.*requires_grad_"):
        Session(players)


def test_all_networks_go_to_the_device_and_none_moves_before_the_checks():
    with Pretending():
        players = networks()
        assert Session(players, device=DEVICE).device == torch.device(DEVICE)
        assert {p.device for n in players.values() for p in n.parameters()} == {DEVICE}
        players = networks()
        with pytest.raises(ValueError, match="precision"):
            Session(players, device=DEVICE, precision="half")
        assert {p.device.type for n in players.values() for p in n.parameters()} == {"cpu"}
    with pytest.raises(ValueError, match=r"device must be at hand, .*got 'meta'"):
        Session(players, device="meta")


def test_bfloat16_is_by_autocast_and_compiled_networks_share_weights(monkeypatch):
    session = Session(networks(), precision="bfloat16")
    with session.autocast:
        assert session.networks["critic"](torch.rand(4, 2)).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    session = Session(networks(), compile=True)
    assert session.compiled["critic"]._orig_mod is session.networks["critic"]


def test_the_bar_begins_where_the_run_is(capsys):
    session = Session(networks(), progress=True)
    with session.bar(5, 3, "epoch") as bar:
        bar.update()
    assert "4/5" in capsys.readouterr().err
    Session(networks()).bar(5, 3).close()
    assert capsys.readouterr().err == ""  # no terminal


# --- seeds ---------------------------------------------------------------------------------


def test_torchs_generator_is_seeded_and_put_back():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch_seeded(3, torch.device("cpu")) as generators:
        drawn = torch.rand(3)
        assert generators == {"torch cpu": torch.default_generator}
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_devices_generator_is_seeded_and_put_back(monkeypatch, kind):
    theirs = [torch.Generator().manual_seed(i) for i in range(3)]
    module = SimpleNamespace(default_generators=theirs)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    before = [generator.get_state() for generator in theirs]
    with torch_seeded(7, torch.device(kind, 2)) as generators:
        assert generators[f"torch {kind}"] is theirs[2] and theirs[2].initial_seed() == 7
        theirs[2].manual_seed(9)
    assert same([generator.get_state() for generator in theirs], before)


def test_on_mps_too(monkeypatch):
    one = torch.Generator().manual_seed(1)
    for name, method in (
        ("manual_seed", one.manual_seed),
        ("get_rng_state", one.get_state),
        ("set_rng_state", one.set_state),
    ):
        monkeypatch.setattr(torch.mps, name, method)
    before = one.get_state()
    with torch_seeded(7, torch.device("mps")) as generators:
        assert one.initial_seed() == 7
        state = generators["torch mps"].get_state()
        torch.rand(2, generator=one)
        generators["torch mps"].set_state(state)
    assert torch.equal(one.get_state(), before)


# --- the small functions -------------------------------------------------------------------


def test_all_finite_finds_each_entry_and_does_not_overflow():
    assert all_finite([torch.tensor([1.0, -3.0]), torch.zeros(2, 2)]) and all_finite([])
    assert all_finite([torch.full((9,), 1e30)])  # whose square is infinite
    for bad in ("nan", "inf", "-inf"):
        assert not all_finite([torch.zeros(3), torch.tensor([1e30, float(bad)])])
        with pytest.raises(FloatingPointError, match="the gradient is not finite"):
            require_finite(loss=1, gradient=[torch.zeros(3), torch.tensor([0.0, float(bad)])])
        with pytest.raises(FloatingPointError, match=f"the loss is {bad}"):
            require_finite(loss=torch.tensor(float(bad)))


def test_require_at_most_says_what_to_ask_for():
    require_at_most(3, 3, "step")
    with pytest.raises(CheckpointError, match="begun step 4, more than steps=3: ask for steps=4"):
        require_at_most(3, 4, "step")


def test_the_networks_handed_in_are_the_ones_that_are_trained():
    players = networks()
    session = Session(players)
    assert session.networks["critic"] is players["critic"]
    assert copy.copy(players).keys() == session.networks.keys()


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_lie_in_memory_as_the_kernels_do(channels_last):
    kernel, images = nn.Conv2d(3, 2, 3), torch.rand(2, 3, 4, 4)
    session = Session({"model": kernel}, channels_last=channels_last)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (session.laid_out(images), kernel.weight):
        assert tensor.is_contiguous(memory_format=wanted)
    assert torch.equal(session.laid_out(images), images)
