"""lib.runs.fingerprints: what tells two runs apart, and what does not."""

import random
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lib import attacks
from lib.balls import L2, LInf
from lib.runs.fingerprints import MOST, checksum, differences, fingerprint

SCALE = 2.0


def changed(was, now):
    return differences(fingerprint(it=was), fingerprint(it=now))


def power(n):
    return lambda x: x**n


def by_scale(x):
    return SCALE * x


def squared(x):
    """The square."""
    return x**2


@dataclass
class Setting:
    eps: float


class Callable:
    def __init__(self, n):
        self.n = n

    def __call__(self, x):
        return self.n * x

    def method(self, x):
        return self.n + x


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (1, 2, "it was 1, is 2"),
        (0.1, 0.3, "it was 0.1, is 0.3"),
        ("clip", "penalty", "it was clip, is penalty"),
        (None, 3, "it was None, is 3"),
        ([1, 2], [1, 3], "it was [1, 2], is [1, 3]"),
        ({"a": 1}, {"a": 2}, "it's a was 1, is 2"),
        ({"a": 1}, {}, "it's a was 1, is missing"),
        (LInf(0.1), LInf(0.2), "it's eps was 0.1, is 0.2"),
        (LInf(0.1), L2(0.1), "it was LInf, is L2"),
        (torch.tensor(1.5), torch.tensor(2.5), "it was 1.5, is 2.5"),
        (Setting(0.1), Setting(0.2), "it's eps was 0.1, is 0.2"),
        (torch.relu, torch.tanh, "it was relu, is tanh"),
        (partial(squared, n=1), partial(squared, n=2), "it's n was 1, is 2"),
        (partial(squared, 1), partial(squared, 2), "it[0] was 1, is 2"),
        (partial(squared, 1), squared, "it[0] was 1, is missing"),
        (power(2), power(3), "it's n was 2, is 3"),
        (Callable(2), Callable(3), "it's n was 2, is 3"),
        (Callable(2).method, Callable(3).method, "it's self's n was 2, is 3"),
        (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2), "of seed 1, is"),
        (nn.Dropout(0.1), nn.Dropout(0.2), "it.p was 0.1, is 0.2"),
        (nn.Linear(2, 3), nn.Linear(2, 4), "it.out_features was 3, is 4"),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none"), "it.reduction was mean"),
        (torch.zeros(3, 2), torch.ones(3, 2), "it was float32 [3, 2] CRC-32 "),
        (np.zeros(9), np.ones(9), "it was float64 [9] CRC-32 "),
        ({1, 2}, {1, 3}, "it was [1, 2], is [1, 3]"),
        ({"x": [LInf(0.1), 3]}, {"x": [LInf(0.2), 3]}, "it's x[0]'s eps was 0.1, is 0.2"),
        (torch.float32, torch.float64, "it was torch.float32, is torch.float64"),
        (range(3), range(4), "it was range(0, 3), is range(0, 4)"),
        (Setting, Callable, "it was Setting, is Callable"),
        (np.float64(1.5), np.float32(2.5), "it was 1.5, is 2.5"),
        (torch.tensor([1.5]), np.array([2.5]), "it was [1.5], is [2.5]"),
        (nn.Conv2d(1, 1, 3, stride=1), nn.Conv2d(1, 1, 3, stride=2), "it.stride was [1, 1], is"),
    ],
)
def test_what_differs_is_named(was, now, said):
    assert said in changed(was, now)[0]
    assert changed(was, was) == [] == changed(now, now)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ({1, "b", 2.5}, {2.5, 1, "b"}),
        ([1, 2], (1, 2)),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        ([LInf(0.1)], (LInf(0.1),)),
        (nn.Linear(2, 2).eval(), nn.Linear(2, 2)),  # the mode; the weights are made equal
        (Path("a"), Path("b")),
        (torch.device("cpu"), torch.device("meta")),
    ],
)
def test_what_does_not_count_is_not_told(was, now):
    if isinstance(was, nn.Module):
        now.load_state_dict(was.state_dict())
    assert changed(was, now) == []


def test_an_optimizer_is_known_by_its_groups_and_settings_not_by_what_goes_with_the_device():
    def adam(*groups, **settings):
        groups = [{"params": [torch.zeros(2) for _ in range(n)]} for n in groups]
        return torch.optim.Adam(groups, **settings)

    assert changed(adam(2, lr=0.1), adam(2, lr=0.2)) == ["it[0].lr was 0.1, is 0.2"]
    assert changed(adam(2), adam(3)) == ["it[0] was 2 parameters, is 3 parameters"]
    assert changed(adam(2), adam(2, 1))[0] == "it[1] was missing, is 1 parameters"
    for option in ("foreach", "fused", "capturable"):
        assert changed(adam(2), adam(2, **{option: True})) == []
    sgd = torch.optim.SGD([torch.zeros(2)], lr=0.1)
    assert changed(adam(1), sgd)[0] == "it was Adam, is SGD"
    step = partial(torch.optim.lr_scheduler.StepLR, sgd)
    assert "it.step_size was 3, is 4" in changed(step(3), step(4))


def test_of_options_only_those_that_both_versions_have_count():
    was, now = nn.Dropout(0.1), nn.Dropout(0.1)
    now.added_in_a_later_version = True
    assert changed(was, now) == []
    was.added_in_a_later_version = False
    assert changed(was, now) == ["it.added_in_a_later_version was False, is True"]


def test_weights_are_told_after_what_they_follow_from():
    def net(width):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, width))

    told = differences(fingerprint(a=net(3), k=1), fingerprint(a=net(4), k=2))
    assert told[:2] == ["k was 1, is 2", "a.0.out_features was 3, is 4"]
    assert [text.partition(" was ")[0] for text in told[2:]] == [
        "a's initial 0.weight",
        "a's initial 0.bias",
    ]


def test_lists_and_networks_that_a_users_function_reads_may_grow(monkeypatch):
    for value in ([1], {"a": 1}, {1}, nn.Linear(1, 1), Setting):
        monkeypatch.setitem(globals(), "SCALE", value)
        assert "it's SCALE" not in fingerprint(it=by_scale).settings
    monkeypatch.setitem(globals(), "SCALE", (1, 2))
    assert fingerprint(it=by_scale).settings["it's SCALE"] == "[1, 2]"
    one, two = power(2), power(2)
    one.note, two.note = 1, 2
    assert changed(one, two) == ["it's note was 1, is 2"]


def test_a_captured_value_that_is_not_there_yet_is_left_out():
    def outer():
        def inner():
            return later

        found = fingerprint(it=inner).settings
        later = 1
        return found, fingerprint(it=inner).settings, later

    before, after, _ = outer()
    assert "it's later" not in before and after["it's later"] == "1"


@pytest.mark.parametrize(("length", "cut"), [(80, False), (81, True)])
def test_long_texts_are_cut_to_fifty_characters(length, cut):
    [said] = changed("x" * length, "y")
    start = "it was " + "x" * (50 if cut else length)
    assert said.startswith(start + ("... (CRC-32 " if cut else ", is y"))


@pytest.mark.parametrize("count", [MOST - 1, MOST, MOST + 1])
def test_so_many_differences_are_told_and_the_number_of_the_others(count):
    was, now = (fingerprint(**{f"x{i}": i + k for i in range(count)}) for k in (0, 1))
    told = differences(was, now)
    assert told[:MOST] == [f"x{i} was {i}, is {i + 1}" for i in range(min(count, MOST))]
    assert told[MOST:] == ["and 1 more"] * (count > MOST)


def test_the_code_of_a_users_function_counts_and_not_where_it_stands_or_its_docstring():
    def made(body):
        space = {"__name__": "__main__"}
        exec(f"def f(x, k=1):\n    {body}", space)
        return space["f"]

    assert changed(made("return x"), made("'''Says much.'''\n\n    return x")) == []
    assert "it's code was" in changed(made("return x"), made("return x + 1"))[0]
    assert "it's code was" in changed(made("return x + 2"), made("return x + 1"))[0]
    assert "it's code was" in changed(made("return x.sin()"), made("return x.cos()"))[0]
    assert "it's code was" in changed(made("return x in {1, 2}"), made("return x in {1, 3}"))[0]
    assert changed(made("return x in {'a', 'b'}"), made("return x in {'b', 'a'}")) == []
    assert changed(made("\n\n    return x"), made("return x")) == []
    inner = "return list(map(lambda y: y + {}, x))"
    assert "it's code was" in changed(made(inner.format(1)), made(inner.format(2)))[0]
    one, two = made("return x"), made("return x")
    two.__defaults__ = (2,)
    assert changed(one, two) == ["it's defaults[0] was 1, is 2"]


def test_a_global_number_that_a_users_function_reads_counts(monkeypatch):
    was = fingerprint(it=by_scale)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert differences(was, fingerprint(it=by_scale)) == ["it's SCALE was 2.0, is 3.0"]


def test_a_librarys_function_is_known_by_its_name_alone():
    for function in (attacks.attack, nn.functional.cross_entropy, np.sum):
        found = fingerprint(it=function)
        assert found.settings == {"it": function.__qualname__}


def test_forward_of_a_users_network_counts():
    def made(body):
        space = {"__name__": "__main__", "nn": nn}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}", space)
        return space["Net"]()

    assert changed(made("x"), made("x")) == []
    assert "it's forward's code was" in changed(made("x"), made("2 * x"))[0]


def test_initial_weights_and_buffers_count_by_their_names():
    torch.manual_seed(0)
    was, now = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    now.load_state_dict(was.state_dict())
    assert changed(was, now) == []
    now[1].running_mean += 1
    [said] = changed(was, now)
    assert said.startswith("it's initial 1.running_mean was ")


def test_generators_are_found_wherever_they_are():
    g = [torch.Generator().manual_seed(i) for i in range(6)]

    def draws(x):
        return torch.rand(1, generator=g[0])

    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = g[2]

    class Known:
        settings, generators = {"name": "known", "eps": 1}, (g[3],)

    found = fingerprint(
        a=draws, b=partial(draws, generator=g[1]), c=Noise(), d=Known(), e={"x": [g[4]]}
    )
    assert {id(x) for x in found.generators.values()} == {id(x) for x in g}  # the closure has all
    assert found.generators["b's generator"] is g[1]
    assert found.generators["c.generator"] is g[2]
    assert found.generators["d's generators[0]"] is g[3]
    assert found.generators["e's x[0]"] is g[4]


@pytest.mark.parametrize(
    "rng", [np.random.default_rng(0), random.Random(0), np.random.RandomState(0)]
)
def test_a_generator_that_no_checkpoint_can_hold_is_refused_with_advice(rng):
    with pytest.raises(ValueError, match=r"attack's rng is a .*: draw from a torch\.Generator"):
        fingerprint(attack=partial(squared, rng=rng))


def test_circles_and_great_depths_end():
    class Node:
        pass

    node = Node()
    node.again = node
    assert fingerprint(it=node).settings["it's again"] == "Node"
    deep = 0.5
    for _ in range(50):
        deep = [deep, deep]
    assert len(fingerprint(it=deep).settings) < 2**14


def test_where_a_run_is_kept_and_computed_does_not_count():
    assert changed({"path": Path("a"), "on": torch.device("cpu")}, {"path": Path("b")}) == []


def test_no_address_and_no_file_is_in_a_fingerprint():
    class Odd:
        __slots__ = ()

    found = fingerprint(a=Odd(), b=lambda x: x, c=nn.ReLU(), d=object(), e=open, f=torch)
    assert not any(" at 0x" in text for text in found.settings.values())


def test_many_differences_are_cut_short_and_the_innermost_left_out():
    was, now = (fingerprint(**{f"x{i}": i + k for i in range(9)}) for k in (0, 1))
    told = differences(was, now)
    assert len(told) == MOST + 1 and told[-1] == f"and {9 - MOST} more"
    assert changed(partial(squared, n=1), partial(power, n=2)) == ["it was squared, is power"]
    [said] = changed("x" * 200, "x" * 201)
    assert len(said) < 200 and said.count("CRC-32") == 2


def test_every_constant_of_a_function_counts_and_those_of_functions_inside_it():
    def line(x):
        return 2 * x + 3

    def steeper(x):
        return 5 * x + 3

    def inner(x):
        return sorted(x, key=lambda y: 2 * y)[7:]

    def other(x):
        return sorted(x, key=lambda y: 5 * y)[7:]

    def sums(x):
        return sorted(x + x, key=lambda y: y)

    def products(x):
        return sorted(x * x, key=lambda y: y)

    for was, now in ((line, steeper), (inner, other), (sums, products)):
        now.__name__, now.__qualname__ = was.__name__, was.__qualname__
        [said] = changed(was, now)
        assert said.startswith("it's code was CRC-32")


def test_the_order_of_a_list_counts_and_that_of_a_set_does_not():
    assert changed([1, 2], [2, 1]) and changed((1.5, 2.5), (2.5, 1.5))
    assert not changed({"a", "b"}, {"b", "a"})


def test_the_code_of_a_library_does_not_count():
    from jsonschema import validate  # pure Python, from a package that was installed

    assert fingerprint(f=validate).settings == {"f": "validate"}


def test_a_checksum_is_the_crc_32_of_the_bytes():
    numbers = torch.arange(100, dtype=torch.uint8)
    assert checksum(numbers[:60], numbers[60:]) == zlib.crc32(bytes(range(100)))


def test_checksum_tells_data_apart_and_sees_values_not_layouts():
    a = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert checksum(a, a) == checksum(a.clone(), a) != checksum(a)
    other = a.clone()
    other[3, 0, 2, 1] += 1e-6
    assert checksum(other) != checksum(a)
    assert checksum(a.contiguous(memory_format=torch.channels_last)) == checksum(a)
    assert checksum(a.mT) == checksum(a.mT.contiguous()) != checksum(a)
