import numpy as np
import pytest

from workshop.lab import compare


def test_each_prediction_stands_beside_what_was_measured(capsys):
    compare({"/def": 100, "/async": ...}, {"/def": 104.3, "/async": 1002.7}, "ms")
    assert capsys.readouterr().out.splitlines() == [
        "/def    you said 100, it was 104 ms",
        "/async  no prediction, it was 1003 ms",
    ]


@pytest.mark.parametrize(
    ("guess", "measured", "line"),
    [
        (3, 4, "you said 3, it was 4"),
        (..., 4, "no prediction, it was 4"),
        ("yes", "no", "you said yes, it was no"),
        (0.5, np.float64(1.26), "you said 0.5, it was 1.3"),
        (7, float("nan"), "you said 7, it was nan"),
    ],
)
def test_single_values_need_no_name(guess, measured, line, capsys):
    compare(guess, measured)
    assert capsys.readouterr().out == f"{line}\n"


def test_one_of_something_is_singular(capsys):
    compare({"uvicorn": 3, "api": 1}, {"uvicorn": 16, "api": 1}, "lines")
    assert capsys.readouterr().out.splitlines() == [
        "uvicorn  you said 3, it was 16 lines",
        "api      you said 1, it was 1 line",
    ]
    compare(..., 1, "ms")
    assert capsys.readouterr().out == "no prediction, it was 1 ms\n"


def test_a_missing_prediction_is_not_an_error(capsys):
    compare({"bob": 3}, {"bob": 4, "carol": 5})
    compare(..., {"bob": 4})
    assert capsys.readouterr().out.splitlines() == [
        "bob    you said 3, it was 4",
        "carol  no prediction, it was 5",
        "bob  no prediction, it was 4",
    ]
