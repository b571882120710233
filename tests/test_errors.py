import pickle

import pytest

from fastmem.errors import FastmemError, InputError, StoreError, UnknownNameError


def test_message_is_one_line_with_argument_problem_and_remedy():
    error = InputError("labels", "value 12 at record 3", "labels lie in 0..9")
    assert str(error) == "labels: value 12 at record 3; labels lie in 0..9"
    assert "\n" not in str(error)


def test_errors_are_what_callers_expect():
    assert issubclass(InputError, ValueError)
    assert issubclass(StoreError, OSError)
    assert issubclass(UnknownNameError, InputError)
    assert issubclass(StoreError, FastmemError)


def test_store_error_does_not_print_like_an_errno():
    assert (
        str(StoreError("signals.zarr", "row 3 is corrupt", "use --fresh"))
        == "signals.zarr: row 3 is corrupt; use --fresh"
    )


def test_unknown_name_offers_the_nearest_and_lists_all():
    error = UnknownNameError("--data", "minst", ["mnist", "cifar10", "digits"])
    assert "did you mean 'mnist'" in str(error)
    assert "cifar10, digits, mnist" in str(error)


def test_unknown_name_without_a_near_one_only_lists():
    assert "did you mean" not in str(UnknownNameError("--data", "zzz", ["mnist"]))


@pytest.mark.parametrize(
    "error",
    [InputError("a", "b", "c"), StoreError("a", "b", "c"), UnknownNameError("a", "b", ["bc", "d"])],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_the_way_back_from_a_worker(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
