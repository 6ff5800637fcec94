"""The error tree crosses process boundaries unchanged."""

import pickle

import pytest

from tests.service import every_error
from workshop.contracts.errors import OverloadedError, UnavailableError

ERRORS = every_error()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_pickled_error_is_the_same_error(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert copy.args == error.args


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_text_of_an_error_is_its_message(error):
    assert str(error) == error.message == "some text"


def test_defaults_survive_pickling_too():
    assert pickle.loads(pickle.dumps(UnavailableError("gone"))).retry_after_s == 1.0


def test_overload_is_a_kind_of_unavailability():
    assert issubclass(OverloadedError, UnavailableError)
