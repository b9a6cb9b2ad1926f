"""lib.exercises: what check prints, line by line, for right answers, slips and accidents."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.pages import exercises
from lib.pages.exercises import check


def unit(v, eps):
    """The right answer of the example: each row of v, scaled to length eps."""
    return eps * v / v.norm(dim=1, keepdim=True)


CASES = [
    (torch.tensor([[3.0, 4.0]]), 0.5),
    (torch.tensor([[0.0, 2.0], [1.0, 0.0]]), 0.1),
]
SLIPS = {
    "one norm for the whole batch: each sample has its own.": lambda v, eps: eps * v / v.norm(),
    "scale by eps.": lambda v, eps: v / v.norm(dim=1, keepdim=True),
}


@pytest.fixture
def said(capsys):
    """What check printed: always exactly one line, and nothing on stderr."""

    def said(answer, right=unit, cases=CASES, slips=SLIPS, **settings):
        assert check(answer, right, cases, slips=slips, **settings) is None
        out, err = capsys.readouterr()
        assert err == "" and out.endswith("\n") and out.count("\n") == 1
        return out[:-1]

    return said


def test_a_right_answer_is_called_right_and_cases_are_counted(said):
    assert said(unit) == "Right: agrees with the check on 2 cases."
    assert said(lambda v, eps: unit(v, eps).numpy()) == "Right: agrees with the check on 2 cases."
    assert said(unit, cases=CASES[1:]) == "Right: agrees with the check on 1 case."
    assert said(unit, slips=None) == "Right: agrees with the check on 2 cases."


@pytest.mark.parametrize("message", SLIPS)
def test_a_slip_is_named(said, message):
    assert said(SLIPS[message]) == f"Not yet: {message}"


def test_a_slip_is_named_only_if_it_explains_every_case(said):
    # On the first case, with one row, one norm for the whole batch is right.
    def mixed(v, eps):
        return next(iter(SLIPS.values()))(v, eps) if len(v) == 2 else -v

    assert said(mixed) == (
        "Not yet: case 1 of 2, ([[3, 4]], 0.5): got [[-3, -4]], expected [[0.3, 0.4]]."
    )


def test_the_first_case_that_differs_is_shown(said):
    second = said(lambda v, eps: unit(v, eps) * (1 if len(v) == 1 else 2))
    assert second == (
        "Not yet: case 2 of 2, ([[0, 2], [1, 0]], 0.1): "
        "got [[0, 0.2], [0.2, 0]], expected [[0, 0.1], [0.1, 0]]."
    )


@pytest.mark.parametrize("answer", [None, ...])
def test_no_answer_is_said_to_be_none(said, answer):
    assert said(answer) == "No answer yet: write the function, then run this cell again."


def test_a_function_left_empty_is_no_answer(said):
    def unfinished(v, eps):
        raise NotImplementedError

    for answer in (lambda v, eps: None, lambda v, eps: ..., unfinished):
        assert said(answer) == "No answer yet: the function returns nothing."


FIRST = "Not yet: case 1 of 2, ([[3, 4]], 0.5): "


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda v, eps: 1 / 0, "the function raised ZeroDivisionError: division by zero."),
        (lambda v, eps: [][0], "the function raised IndexError: list index out of range."),
        (lambda v, eps: v.reshape(3), "the function raised RuntimeError: shape '[3]' is invalid"),
        (lambda v: v, "the function raised TypeError: <lambda>() takes 1 positional argument"),
        (torch.ones(2), "the function raised TypeError: 'Tensor' object is not callable."),
        (lambda v, eps: v[0], "got numbers of shape [2], expected numbers of shape [1, 2]."),
        (lambda v, eps: 1.0, "got a number, expected numbers of shape [1, 2]."),
        (lambda v, eps: v > 0, "got booleans of shape [1, 2], expected numbers of shape [1, 2]."),
        (lambda v, eps: (v, v), "got a tuple of 2, expected numbers of shape [1, 2]."),
        (lambda v, eps: "v", "got an object of type str, expected numbers of shape [1, 2]."),
        (lambda v, eps: {}, "got an object of type dict, expected numbers of shape [1, 2]."),
        (lambda v, eps: v * math.nan, "got [[nan, nan]], expected [[0.3, 0.4]]."),
        (lambda v, eps: v * math.inf, "got [[inf, inf]], expected [[0.3, 0.4]]."),
        (lambda v, eps: unit(v, eps).requires_grad_() - 0.1, "got [[0.2, 0.3]], expected"),
    ],
)
def test_an_accident_is_one_clear_line(said, answer, expected):
    assert said(answer).startswith(FIRST + expected)


def test_an_error_without_or_with_a_long_message_is_one_line(said):
    def silent(v, eps):
        raise ArithmeticError

    def long(v, eps):
        raise ArithmeticError("first line\nsecond line")

    assert said(silent) == FIRST + "the function raised ArithmeticError."
    assert said(long) == FIRST + "the function raised ArithmeticError: first line."


@pytest.mark.parametrize(
    ("right", "same", "other", "text"),
    [
        (2.0, 2, 3, "got 3, expected 2"),
        (2, np.float32(2), -1, "got -1, expected 2"),
        (True, np.bool_(True), False, "got False, expected True"),
        (True, torch.tensor(True), 1, "got a number, expected a boolean"),
        (
            0.5,
            torch.tensor(0.5),
            torch.tensor([0.5]),
            "got numbers of shape [1], expected a number",
        ),
        (np.arange(3), torch.arange(3), np.arange(3) + 1, "got [1, 2, 3], expected [0, 1, 2]"),
        (
            torch.tensor([True, False]),
            np.array([True, False]),
            torch.tensor([True, True]),
            "got [True, True], expected [True, False]",
        ),
        ((1.0, False), [1, False], (1, True), "entry 1 of the tuple: got True, expected False"),
        ((1.0, (2, 3)), (1, [2, 3]), (1, 5), "entry 1 of the tuple: got a number, expected a tup"),
        ((1.0, 2.0), (1, 2), (1.0, 2.0, 3.0), "got a tuple of 3, expected a tuple of 2"),
        (math.inf, math.inf, -math.inf, "got -inf, expected inf"),
        (0.5, torch.tensor(0.5, dtype=torch.bfloat16), 0.25, "got 0.25, expected 0.5"),
        (0.0, -0.0, "0", "got an object of type str, expected a number"),
        (1.0, 1.0, -0.0, "got 0, expected 1"),
        (np.arange(8), np.arange(8), np.ones(8), "got [1, 1, 1, 1, 1, 1, 1, 1], expected [0, 1, "),
        (np.arange(9), np.arange(9), np.ones(9), "got 1 at [0], expected 0"),
    ],
)
def test_numbers_booleans_arrays_tensors_and_tuples_are_compared(said, right, same, other, text):
    assert said(lambda: same, lambda: right, [()], None).startswith("Right")
    assert said(lambda: other, lambda: right, [()], None).startswith(
        f"Not yet: case 1 of 1, (): {text}"
    )


def test_a_large_result_shows_its_first_wrong_entry_and_large_inputs_their_shape(said):
    v = torch.zeros(2, 1, 28, 28)

    def slip(v):
        v = v.clone()
        v[1, 0, 3, 5] = v[1, 0, 7, 2] = 0.25
        return v

    assert said(slip, torch.clone, [(v,)], None) == (
        "Not yet: case 1 of 1, (numbers of shape [2, 1, 28, 28]): "
        "got 0.25 at [1, 0, 3, 5], expected 0."
    )


def test_inputs_that_are_functions_are_shown_without_an_address(said):
    line = said(lambda f: f(1), lambda f: f(2), [(lambda x: x,)], None)
    assert line == "Not yet: case 1 of 1, (an object of type function): got 1, expected 2."


@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-12])
def test_as_many_digits_are_shown_as_make_the_difference_visible(said, gap):
    line = said(lambda: 1 + gap, lambda: 1.0, [()], None, tolerance=1e-14)
    got, expected = re.search(r"got (\S+), expected (\S+)\.", line).groups()
    assert got != expected and float(got) == pytest.approx(1 + gap, abs=gap / 2)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(y=st.floats(-1e6, 1e6), tolerance=st.sampled_from([1e-3, 1e-6, 1e-9]))
def test_the_tolerance_is_absolute_and_relative(y, tolerance):
    import contextlib
    import io

    for share, verdict in ((0.99, "Right"), (1.01, "Not yet")):
        with contextlib.redirect_stdout(out := io.StringIO()):
            x = y + share * tolerance * (1 + abs(y))
            check(lambda x=x: x, lambda: y, [()], tolerance=tolerance)
        assert out.getvalue().startswith(verdict)


def test_an_answer_that_changes_its_arguments_changes_neither_case_nor_check(said):
    case = (torch.tensor([[3.0, 4.0]]), 0.5)
    generator = torch.Generator().manual_seed(0)

    def in_place(v, eps):
        return v.div_(v.norm(dim=1, keepdim=True)).mul_(eps)

    assert said(in_place, cases=[case, case], slips=None).startswith("Right")
    assert case[0].tolist() == [[3.0, 4.0]]

    def draw(g):
        return torch.rand(2, generator=g)

    assert said(draw, draw, [(generator,)], None).startswith("Right")


def test_the_author_is_told_of_a_slip_that_no_case_tells_from_right():
    for answer in (None, unit):  # before anyone answers
        with pytest.raises(ValueError, match="no case tells the slip 'one norm"):
            check(answer, unit, CASES[:1], slips=SLIPS)


@pytest.mark.parametrize("cases", [[], [torch.ones(2)], [(1.0,), 2.0]])
def test_the_author_is_told_of_cases_that_are_no_tuples(cases):
    with pytest.raises(ValueError, match=r"cases must be .* write \(x,\) for one x"):
        check(None, abs, cases)


@pytest.mark.parametrize(
    "value", [None, "text", math.nan, torch.tensor([1.0, math.nan]), (1, None)]
)
def test_the_author_is_told_of_results_that_cannot_be_compared(value):
    with pytest.raises(ValueError, match="'right' must return numbers"):
        check(None, lambda: value, [()])
    with pytest.raises(ValueError, match="'a slip' must return numbers"):
        check(None, lambda: 1, [()], slips={"a slip": lambda: value})


def test_an_error_in_the_right_function_or_a_slip_is_the_authors_and_is_raised():
    with pytest.raises(ZeroDivisionError):
        check(None, lambda: 1 / 0, [()])
    with pytest.raises(ZeroDivisionError):
        check(None, lambda: 1, [()], slips={"a slip": lambda: 1 / 0})


def test_a_sealed_check_keeps_its_helpers_when_the_reader_takes_their_names(capsys):
    page = {"exercises": exercises}
    exec(
        "def price(k):\n    return k**2\n"
        "def twice(k):\n    return 2 * price(k)\n"
        "@exercises.sealed\n"
        "def check_price(answer, cases=((2.0,), (3.0,))):\n"
        "    exercises.check(answer, price, list(cases), slips={'halve it.': twice})",
        page,
    )
    for line in ("def price(k): return k + 1", "def twice(k): return 0"):
        exec(line, page)
    page["check_price"](page["price"])
    assert capsys.readouterr().out.startswith("Not yet: case 1 of 2")
    page["check_price"](lambda k: 2 * k**2)
    assert capsys.readouterr().out == "Not yet: halve it.\n"
    page["check_price"](lambda k: k * k)
    assert capsys.readouterr().out.startswith("Right")


@pytest.mark.parametrize("answer", [lambda n: [1.0, 2.0], lambda n: (1, 2)])
def test_numbers_in_a_list_or_tuple_count_as_an_array_of_them(answer, capsys):
    exercises.check(answer, lambda n: np.array([1.0, 2.0]), [(2,)])
    assert capsys.readouterr().out.startswith("Right")
    exercises.check(answer, lambda n: np.array([[1.0, 2.0]]), [(2,)])
    assert "got a tuple of 2, expected numbers of shape [1, 2]" in capsys.readouterr().out
    exercises.check(lambda n: [[1.0], 2.0], lambda n: np.array([1.0, 2.0]), [(2,)])
    assert "got a tuple of 2" in capsys.readouterr().out
