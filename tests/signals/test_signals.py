"""The table of signals: what it refuses at the door, what it derives, and that it reads only what it is asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import log_softmax, xlogy

from fastmem.errors import InputError, UnknownNameError
from fastmem.signals import Signals, stored_names

PROPERTY = settings(deadline=None, derandomize=True)

M, N, A, C = 3, 5, 2, 4


def parts(dtype: str = "float64") -> dict:
    rng = np.random.default_rng(0)
    return {
        "labels": rng.integers(0, C, N),
        "keep": rng.random((M, N)) < 0.5,
        "logits": rng.normal(size=(M, N, A, C), scale=3).astype(dtype),
    }


def stats(*names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(M, N, A)) for name in names}


# -- the door ---------------------------------------------------------------------------------------------------------


def nan_at(array: np.ndarray, *places: tuple[int, ...]) -> np.ndarray:
    array = array.copy()
    for place in places:
        array[place] = np.nan
    return array


BAD = {
    "keep of integers": ({"keep": np.ones((M, N), int)}, "keep: dtype int64 is not boolean; convert a 0/1 mask with"),
    "keep of floats": ({"keep": np.ones((M, N))}, "keep: dtype float64 is not boolean"),
    "keep of another length": ({"keep": np.ones((M, N + 1), bool)}, f"keep: shape ({M}, {N + 1}) for {N} labels"),
    "keep of one model, flat": ({"keep": np.ones(N, bool)}, "keep: shape (5,)"),
    "no models": ({"keep": np.ones((0, N), bool)}, "at least one"),
    "labels of floats": ({"labels": np.zeros(N)}, "labels: dtype float64 is not integer; convert with"),
    "labels of truth values": ({"labels": np.zeros(N, bool)}, "labels: dtype bool"),
    "labels in a column": ({"labels": np.zeros((N, 1), int)}, "labels: shape (5, 1)"),
    "label too large": ({"labels": np.array([0, 1, C, 0, C])}, "labels: 2 values out of range, first 4 at sample 2; labels must be in 0..3"),
    "label below zero": ({"labels": np.array([0, -1, 0, 0, 0])}, "first -1 at sample 1"),
    "labels that are no numbers": ({"labels": np.array(list("abcde"))}, "labels: dtype <U1 is not numeric"),
    "logits without queries": ({"logits": np.zeros((M, N, C))}, "logits: shape (3, 5, 4) has no query axis; for one query give logits[:, :, None, :]"),
    "logits of zero queries": ({"logits": np.zeros((M, N, 0, C))}, "at least one query and two classes"),
    "logits of one class": ({"logits": np.zeros((M, N, A, 1))}, "two classes"),
    "logits of other models": ({"logits": np.zeros((M + 1, N, A, C))}, "logits: shape (4, 5, 2, 4) for keep (3, 5)"),
    "logits of integers": ({"logits": np.zeros((M, N, A, C), int)}, "logits: dtype int64"),
    "ragged logits": ({"logits": [[1.0], [1.0, 2.0]]}, "logits: its rows have different lengths"),
    "statistic without queries": ({"stats": {"entropy": np.zeros((M, N))}}, "for one query give stats['entropy'][:, :, None]"),
    "statistic of other queries": ({"stats": {"entropy": np.zeros((M, N, A + 1))}}, "stats['entropy']: shape (3, 5, 3) for keep (3, 5) and 2 queries"),
    "top3 of two": ({"stats": {"top3": np.zeros((M, N, A, 2))}}, "give [M, N, A, 3]"),
    "a statistic twice": ({"stats": {"margin": np.zeros((M, N, A)), "margin@1": np.zeros((M, N, A))}}, "'margin' is given twice"),
    "a statistic of truth values": ({"stats": {"margin": np.zeros((M, N, A), bool)}}, "stats['margin']: dtype bool"),
    "an unknown statistic": ({"stats": {"margins": np.zeros((M, N, A))}}, "did you mean 'margin'?"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Signals(**{**parts(), **change})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nan_and_infinite_values_are_counted_and_located() -> None:
    given = parts()
    given["logits"] = nan_at(given["logits"], (0, 3, 1, 2), (1, 0, 0, 0), (2, 4, 1, 3))
    with pytest.raises(InputError, match="logits: 3 NaN values, first at model 0, sample 3, query 1, class 2; "):
        Signals(**given)
    given["logits"][0, 1, 0, 0] = -np.inf
    with pytest.raises(InputError, match="logits: 4 NaN or infinite values, first at model 0, sample 1, query 0"):
        Signals(**given)
    margin = stats("margin")["margin"]
    margin[2, 1, 1] = np.inf
    with pytest.raises(InputError, match=r"stats\['margin'\]: 1 infinite value, first at model 2, sample 1, query 1"):
        Signals(parts()["labels"], parts()["keep"], stats={"margin": margin})


def test_something_must_be_known() -> None:
    with pytest.raises(InputError, match="neither logits nor statistics"):
        Signals(parts()["labels"], parts()["keep"])
    with pytest.raises(InputError, match="neither logits nor statistics"):
        Signals(parts()["labels"], parts()["keep"], stats={})


def test_tensors_are_taken_without_a_copy() -> None:
    given = parts("float32")
    logits = torch.from_numpy(given["logits"]).requires_grad_()
    from_tensors = Signals(torch.from_numpy(given["labels"]).int(), torch.from_numpy(given["keep"]), logits)
    np.testing.assert_array_equal(from_tensors.stat("margin"), Signals(**given).stat("margin"))
    assert from_tensors.logits is not None
    assert np.shares_memory(from_tensors.logits, given["logits"])
    assert from_tensors.labels.dtype == np.int64
    assert from_tensors.logits.dtype == np.float32
    half = Signals(given["labels"], given["keep"], torch.from_numpy(given["logits"]).bfloat16())
    assert half.logits is not None
    assert half.logits.dtype == np.float32


def test_inputs_are_left_alone() -> None:
    given = parts()
    before = {name: array.copy() for name, array in given.items()}
    signals = Signals(**given)
    for name in ("margin", "entropy", "modified_entropy", "top3", "loss@3"):
        signals.stat(name)
    for name, array in before.items():
        np.testing.assert_array_equal(given[name], array)


# -- statistics -------------------------------------------------------------------------------------------------------


@PROPERTY
@given(
    hnp.arrays(np.float64, st.tuples(*[st.integers(1, 3)] * 3, st.integers(2, 5)), elements=st.floats(-15, 15)),
    st.randoms(use_true_random=False),
)
def test_every_statistic_by_its_definition(logits: np.ndarray, random) -> None:
    num_models, num_samples, _, num_classes = logits.shape
    labels = np.array([random.randrange(num_classes) for _ in range(num_samples)])
    signals = Signals(labels, np.zeros((num_models, num_samples), bool), logits=logits)
    p = np.exp(log_softmax(logits, axis=-1))
    own = np.eye(num_classes, dtype=bool)[labels][None, :, None, :].repeat(num_models, 0).repeat(logits.shape[2], 1 + 1)
    rest = np.where(own, 0, p).sum(-1)  # 1 - p_y
    others = np.stack([np.where(np.arange(num_classes) == c, 0, p).sum(-1) for c in range(num_classes)], -1)  # 1 - p_c
    p_y = p[own].reshape(rest.shape)
    expected = {
        "margin": np.log(p_y) - np.log(rest),
        "loss": -np.log(p_y),
        "true_log_prob": np.log(p_y),
        "hinge": logits[own].reshape(rest.shape) - np.where(own, -np.inf, logits).max(-1),
        "max_prob": p.max(-1),
        "entropy": -xlogy(p, p).sum(-1),
        "modified_entropy": -rest * np.log(p_y) - np.where(own, 0, xlogy(p, others)).sum(-1),
        "top3": np.sort(np.concatenate([p, np.zeros((*rest.shape, 1))], -1), -1)[..., ::-1][..., :3],
    }
    for name, values in expected.items():
        found = signals.stat(name)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(
        signals.stat("margin@2.0"),
        Signals(labels, signals.keep, logits=logits / 2).stat("margin"),
        rtol=1e-12,
        atol=1e-12,
    )


def test_confident_answers_keep_their_digits() -> None:
    # Through probabilities, 1 - p_y is 0 here and every one of these is lost.
    logits = np.array([[[[60.0, 0.0, 1.0]], [[60.0, 0.0, 1.0]]]])
    signals = Signals([0, 1], np.zeros((1, 2), bool), logits=logits)
    rest = np.exp(-60.0) + np.exp(-59.0)  # 1 - p of class 0, to 26 digits
    assert signals.stat("margin")[0, 0, 0] == pytest.approx(-np.log(rest), rel=1e-15)
    assert signals.stat("loss")[0, 0, 0] == pytest.approx(rest, rel=1e-12)
    assert signals.stat("loss")[0, 1, 0] == pytest.approx(60.0, rel=1e-15)
    p1, p2 = np.exp(-60.0), np.exp(-59.0)
    # True class 0: (1 - p_0) * rest + p_1 * p_1 + p_2 * p_2, to first order.
    assert signals.stat("modified_entropy")[0, 0, 0] == pytest.approx(rest * rest + p1 * p1 + p2 * p2, rel=1e-9)
    # True class 1: -log p_1, and -p_0 log(1 - p_0).
    assert signals.stat("modified_entropy")[0, 1, 0] == pytest.approx(60.0 - np.log(rest), rel=1e-12)


def test_loss_and_log_probability_follow_from_a_stored_margin() -> None:
    margin = np.array([[[-800.0], [0.0], [40.0]]])
    signals = Signals([0, 0, 0], np.zeros((1, 3), bool), stats={"margin": margin, "margin@2": margin / 2})
    np.testing.assert_allclose(signals.stat("loss").ravel(), [800.0, np.log(2), np.exp(-40.0)], rtol=1e-15)
    np.testing.assert_array_equal(signals.stat("true_log_prob"), -signals.stat("loss"))
    np.testing.assert_allclose(signals.stat("loss@2").ravel()[:2], [400.0, np.log(2)])


def test_what_is_stored_wins_over_what_could_be_derived() -> None:
    given = parts()
    signals = Signals(**given, stats=stats("entropy", "loss"))
    np.testing.assert_array_equal(signals.stat("entropy"), stats("entropy", "loss")["entropy"])
    np.testing.assert_array_equal(signals.stat("loss"), stats("entropy", "loss")["loss"])


def test_a_statistic_that_cannot_be_had() -> None:
    signals = Signals(parts()["labels"], parts()["keep"], stats=stats("margin"))
    assert signals.has("loss")
    assert not signals.has("entropy")
    assert not signals.has("margin@2")
    with pytest.raises(InputError) as raised:
        signals.stat("entropy")
    assert "'entropy' is not stored and does not follow from margin; give logits=, or store it" in str(raised.value)
    with pytest.raises(UnknownNameError, match="did you mean 'entropy'"):
        signals.stat("entropi")
    for name in ("margin@0", "margin@-1", "margin@x", "margin@nan", "margin@inf", "entropy@2"):
        with pytest.raises(InputError, match="statistic"):
            signals.stat(name)


def test_what_must_be_stored_for_what_is_asked() -> None:
    assert stored_names(["loss", "entropy", "margin", "true_log_prob@2.0", "loss@2"]) == (
        "margin",
        "entropy",
        "margin@2",
    )


def test_logits_are_reduced_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    signals = Signals(**parts())
    whole = {name: signals.stat(name) for name in ("margin", "modified_entropy", "top3")}
    monkeypatch.setattr("fastmem.signals.statistics._BLOCK_ELEMENTS", 2 * A * C)  # two samples at a time; N is odd
    for name, expected in whole.items():
        np.testing.assert_array_equal(Signals(**parts()).stat(name), expected)


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("derived_first", [False, True])
def test_selections(derived_first: bool) -> None:
    signals = Signals(**parts(), stats=stats("entropy"))
    if derived_first:
        signals.stat("margin")
    chosen = signals.select_models([2, 0]).rows(np.array([True, False, True, True, False]))
    assert (chosen.num_models, chosen.num_samples, chosen.num_queries) == (2, 3, A)
    for name in ("margin", "entropy", "loss"):
        np.testing.assert_array_equal(chosen.stat(name), signals.stat(name)[[2, 0]][:, [0, 2, 3]])
    np.testing.assert_array_equal(chosen.keep, signals.keep[[2, 0]][:, [0, 2, 3]])
    np.testing.assert_array_equal(chosen.labels, signals.labels[[0, 2, 3]])
    assert signals.select_models(slice(1, None)).num_models == M - 1


@pytest.mark.parametrize("indices", [[M], [-M - 1], [], [0.5], [True], [[0, 1]], slice(0, 0)])
def test_selections_out_of_range(indices: object) -> None:
    with pytest.raises(InputError, match="indices"):
        Signals(**parts()).select_models(indices)


def test_another_mask() -> None:
    signals = Signals(**parts())
    flipped = signals.with_keep(~signals.keep)
    np.testing.assert_array_equal(flipped.keep, ~signals.keep)
    assert flipped.stat("margin") is signals.stat("margin")  # shared, not computed again
    with pytest.raises(InputError, match="keep: dtype"):
        signals.with_keep(signals.keep.astype(int))
    with pytest.raises(InputError, match="give \\(3, 5\\), a row per model"):
        signals.with_keep(signals.keep[:2])


def test_it_says_what_it_holds() -> None:
    assert repr(Signals(**parts(), stats=stats("entropy"))) == (
        "Signals(3 models, 5 samples, 2 queries; entropy, logits)"
    )
