"""Each learner against its formula written out for one episode, and episodes in a batch against episodes by themselves."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastmem.attacks.membership.few_shot import finetune
from fastmem.attacks.membership.few_shot.batch import Batch, last_best, true_positives
from fastmem.attacks.membership.few_shot.finetune import FineTune, FineTuneHead
from fastmem.attacks.membership.few_shot.fit import IMAGES, TEXT, Schedule
from fastmem.attacks.membership.few_shot.laplacian import LAMBDAS, NEIGHBOURS, LaplacianShot
from fastmem.attacks.membership.few_shot.methods import make_learner
from fastmem.compat import import_transformers
from fastmem.errors import InputError
from fastmem.models.shape import LanguageShape

Arrays = dict[str, np.ndarray]


def _batch(episodes: int = 5, shots: int = 3, width: int = 6, seed: int = 0, effect: float = 0.8) -> Batch:
    rng = np.random.default_rng(seed)

    def part(each: int) -> tuple[Tensor, Tensor]:
        members = rng.permuted(np.tile(np.arange(2 * each) < each, (episodes, 1)), axis=1)
        features = rng.normal(size=(episodes, 2 * each, width)) + effect * members[:, :, None]
        return torch.from_numpy(features), torch.from_numpy(members)

    support, support_members = part(shots)
    val, val_members = part(8)
    query, _ = part(8)
    return Batch.of(support, support_members, query, val, val_members)


def _parts(batch: Batch) -> dict[str, Tensor | None]:
    return {name: getattr(batch, name) for name in ("support", "support_members", "query", "val", "val_members")}


def _one(batch: Batch, episode: int) -> Arrays:
    return {name: values[episode].numpy() for name, values in _parts(batch).items() if values is not None}


def _found(scores: np.ndarray, members: np.ndarray, cap: int = 0) -> int:
    """Most members at or above a threshold that at most ``cap`` non-members reach."""
    called = [scores >= threshold for threshold in scores]
    return max((int((call & members).sum()) for call in called if (call & ~members).sum() <= cap), default=0)


def _last(values: list[Any]) -> int:
    return max(index for index, value in enumerate(values) if value == max(values))


def _prototypes(support: np.ndarray, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    means = [support[~members].mean(axis=0), support[members].mean(axis=0)]
    return np.concatenate([support, means]), np.append(members, [False, True])


def _simpleshot(one: Arrays) -> tuple[np.ndarray, int]:
    gallery, members = _prototypes(one["support"], one["support_members"])
    centre = one["support"].mean(axis=0)

    def g(rows: np.ndarray) -> np.ndarray:
        return np.array([(row - centre) / max(np.linalg.norm(row - centre), 1e-6) for row in rows])

    def score(asked: np.ndarray, k: int) -> np.ndarray:
        found = []
        for row in g(asked):
            distance = ((g(gallery) - row) ** 2).sum(axis=1)
            near = np.argsort(distance, kind="stable")[:k]
            weight = 1 / np.maximum(distance[near], 1e-12)
            found.append(weight[members[near]].sum() / weight.sum())
        return np.array(found)

    ks = list(range(1, len(gallery) // 2 + 1, 2))
    k = ks[_last([_found(score(one["val"], k), one["val_members"]) for k in ks])]
    return score(one["query"], k), k


def _laplacian(one: Arrays) -> tuple[np.ndarray, tuple[float, int]]:
    prototypes, members = _prototypes(one["support"], one["support_members"])

    def score(asked: np.ndarray, lam: float, k: int) -> np.ndarray:
        a = ((asked[:, None] - prototypes) ** 2).sum(axis=2)
        apart = ((asked[:, None] - asked) ** 2).sum(axis=2)
        affinity = np.zeros_like(apart)
        for row in range(len(asked)):
            others = [other for other in np.argsort(apart[row], kind="stable") if other != row]
            affinity[row, others[: k - 1]] = 1

        def softmax(z: np.ndarray) -> np.ndarray:
            p = np.exp(z - z.max(axis=1, keepdims=True))
            return p / p.sum(axis=1, keepdims=True)

        y, old = softmax(-a), math.inf
        for number in range(1, 21):
            y = softmax(-a + lam * affinity @ y)
            energy = (y * np.log(np.maximum(y, 1e-20))).sum() + (a * y).sum() - lam * (y * (affinity @ y)).sum()
            if number >= 3 and abs(energy - old) <= 1e-6 * abs(old):
                break
            old = energy
        return np.log(y[:, members].sum(axis=1)) - np.log(y[:, ~members].sum(axis=1))

    grid = [(lam, k) for lam in LAMBDAS for k in NEIGHBOURS]
    best = grid[_last([_found(score(one["val"], *each), one["val_members"]) for each in grid])]
    return score(one["query"], *best), best


def _tim(one: Arrays) -> np.ndarray:
    support, query = torch.from_numpy(one["support"]), torch.from_numpy(one["query"])
    members = torch.from_numpy(one["support_members"])
    centre = support.mean(dim=0)
    support, query = ((x - centre) / (x - centre).norm(dim=1, keepdim=True) for x in (support, query))
    w = torch.stack([support[~members].mean(dim=0), support[members].mean(dim=0)]).requires_grad_()
    adam = torch.optim.Adam([w], lr=1e-4)

    def log_p(x: Tensor) -> Tensor:
        return (-15 / 2 * ((x[:, None] - w) ** 2).sum(dim=2)).log_softmax(dim=1)

    for _ in range(150):
        p = log_p(query).exp()
        mean = p.mean(dim=0)
        ce = -log_p(support)[torch.arange(len(support)), members.long()].mean()
        loss = 0.1 * ce + (mean * mean.log()).sum() - 0.1 * (p * p.log()).sum(dim=1).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (log_p(query)[:, 1] - log_p(query)[:, 0]).detach().numpy()


def _entropy(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy().mean()


def _finetune(one: Arrays, model: nn.Module | None, schedule: Schedule = IMAGES) -> tuple[np.ndarray, float]:
    """One temperature after the other, by torch's own Adam; with a model all of its weights move too.

    Models that give an answer a token are averaged over tokens.
    """
    tensors = {name: torch.from_numpy(values) for name, values in one.items()}
    label, val_label = tensors["support_members"].long(), tensors["val_members"].long()
    found = []
    for temperature in schedule.temperatures:
        copied = copy.deepcopy(model) if model is not None else nn.Identity()

        def body(rows: Tensor, network: nn.Module = copied) -> Tensor:
            answers = network(rows)
            return answers.mean(dim=1) if answers.ndim == 3 else answers

        with torch.no_grad():
            phi = body(tensors["support"]).relu()
            columns = [phi[label == c].mean(dim=0) for c in (0, 1)]
            w = torch.stack([m / max(float(m.norm()), 1e-6) for m in columns], dim=1)
        w.requires_grad_()
        b = torch.zeros(2, dtype=w.dtype, requires_grad=True)
        adam = torch.optim.Adam([*copied.parameters(), w, b], lr=schedule.learning_rate)
        best, waited, kept = math.inf, 0, (np.empty(0), np.empty(0))
        for _ in range(30):
            for known in (True, False):
                rows = tensors["support" if known else "query"]
                logits = body(rows).relu() @ w + b
                loss = nn.functional.cross_entropy(logits, label) if known else _entropy(logits / temperature)
                adam.zero_grad()
                loss.backward()
                adam.step()
            with torch.no_grad():
                held = body(tensors["val"]).relu() @ w + b
                held_loss = float(nn.functional.cross_entropy(held, val_label))
                asked = body(tensors["query"]).relu() @ w + b
            if held_loss < best:
                best, waited = held_loss, 0
                kept = tuple((x[:, 1] - x[:, 0]).numpy() for x in (held, asked))
            else:
                waited += 1
                if waited == schedule.patience:
                    break
        found.append(kept)
    members = one["val_members"]
    cap = math.ceil(math.log(len(members))) if schedule.regular_ties else 0
    choice = _last([(_found(held, members), _found(held, members, cap)) for held, _ in found])
    return found[choice][1], schedule.temperatures[choice]


@pytest.mark.parametrize("shots", [1, 3])
def test_simpleshot_is_its_formula(shots: int) -> None:
    batch = _batch(shots=shots)
    scored = make_learner("simpleshot")(batch)
    for episode in range(5):
        scores, k = _simpleshot(_one(batch, episode))
        np.testing.assert_allclose(scored.query[episode], scores, rtol=1e-9, atol=1e-12)
        assert int(scored.params["k"][episode]) == k


@pytest.mark.parametrize("shots", [1, 3])
def test_laplacianshot_is_its_formula(shots: int) -> None:
    batch = _batch(episodes=4, shots=shots)
    scored = LaplacianShot()(batch)
    for episode in range(4):
        scores, (lam, k) = _laplacian(_one(batch, episode))
        np.testing.assert_allclose(scored.query[episode], scores, rtol=1e-6, atol=1e-8)
        assert (float(scored.params["lam"][episode]), int(scored.params["k"][episode])) == (pytest.approx(lam), k)


def test_tim_is_its_formula() -> None:
    batch = _batch(episodes=2)
    scored = make_learner("tim")(batch)
    for episode in range(1):
        np.testing.assert_allclose(scored.query[episode], _tim(_one(batch, episode)), rtol=1e-6, atol=1e-9)


def test_a_fine_tuned_head_is_its_formula() -> None:
    batch = _batch(episodes=2)
    scored = FineTuneHead()(batch)
    for episode in range(1):
        scores, temperature = _finetune(_one(batch, episode), None)
        np.testing.assert_allclose(scored.query[episode], scores, rtol=1e-6, atol=1e-9)
        assert float(scored.params["temperature"][episode]) == temperature


def test_fine_tuning_moves_every_weight_of_a_copy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    before = copy.deepcopy(model.state_dict())
    # At this rate problems of one batch stop after different epochs.
    schedule = replace(IMAGES, learning_rate=0.02)
    batch = _batch(episodes=3)
    scored = FineTune(model, schedule)(batch)
    for episode in range(3):
        scores, temperature = _finetune(_one(batch, episode), model, schedule)
        np.testing.assert_allclose(scored.query[episode], scores, rtol=1e-5, atol=1e-8)
        assert float(scored.params["temperature"][episode]) == temperature
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        head_only = FineTuneHead(schedule)(
            Batch.of(*(model(x) if x.is_floating_point() else x for x in _parts(batch).values()))
        )
    assert not torch.allclose(scored.query, head_only.query, rtol=1e-6)  # the network moved


def test_a_language_model_is_fine_tuned_as_one_would_by_hand() -> None:
    try:
        import_transformers()
    except ImportError as error:
        pytest.skip(f"transformers does not import: {error}")
    from fastmem.models import language

    model = language.build_language_model(LanguageShape(layers=1, width=8, heads=2, block=5), 11, seed=0).double()
    rng = np.random.default_rng(0)
    members = rng.permuted(np.tile(np.arange(12) < 6, (2, 1)), axis=1)

    def part(records: int) -> Tensor:
        return torch.from_numpy(rng.integers(0, 11, (2, records, 5)))

    known = torch.from_numpy(members)
    batch = Batch.of(part(4), torch.tensor([[True, False] * 2] * 2), part(12), part(12), known)
    schedule = replace(TEXT, learning_rate=0.02)
    scored = FineTune(language.PooledLogits(model), schedule)(batch)
    for episode in range(2):
        scores, temperature = _finetune(_one(batch, episode), model, schedule)
        np.testing.assert_allclose(scored.query[episode], scores, rtol=1e-5, atol=1e-8)
        assert float(scored.params["temperature"][episode]) == temperature


def test_no_work_is_done_for_an_episode_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = []

    def counted(active: Tensor, values: Sequence[Tensor]) -> Tensor:
        at_work.append(len(active))
        return head(active, values)

    head = finetune._head
    monkeypatch.setattr(finetune, "_head", counted)
    batch, learner = _batch(episodes=6), FineTuneHead(replace(IMAGES, learning_rate=0.05))
    whole = learner(batch).query
    assert at_work == sorted(at_work, reverse=True)
    assert 0 < at_work[-1] < 6
    for episode in range(6):
        alone = learner(Batch.of(*(part[episode : episode + 1] for part in _parts(batch).values() if part is not None)))
        torch.testing.assert_close(alone.query[0], whole[episode], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["simpleshot", "laplacian", "tim", "finetune_head"])
@pytest.mark.parametrize("tuned", [True, False])
def test_an_episode_does_not_depend_on_its_batch(method: str, tuned: bool) -> None:
    batch = _batch(episodes=3)
    if not tuned:
        batch = Batch.of(batch.support, batch.support_members, batch.query)
    learner = make_learner(method)
    whole = learner(batch)
    for episode in range(3):
        parts = {name: None if value is None else value[episode : episode + 1] for name, value in _parts(batch).items()}
        alone = learner(Batch.of(**parts))
        torch.testing.assert_close(alone.query[0], whole.query[episode], rtol=1e-9, atol=1e-12)
    assert (whole.val is None) == (not tuned)
    assert whole.query.dtype == torch.float64


def test_only_transductive_learners_look_at_the_other_records() -> None:
    batch = _batch(episodes=1)
    changed = batch.query.clone()
    changed[0, 1:] = changed[0, 1:] * 3 + 1
    for method in ("simpleshot", "laplacian", "tim", "finetune_head"):
        learner = make_learner(method)
        before = learner(batch).query[0, 0]
        after = learner(Batch.of(batch.support, batch.support_members, changed, batch.val, batch.val_members)).query[
            0, 0
        ]
        assert (before == after) == (not learner.transductive), method


def test_an_exact_copy_of_a_known_record_is_no_division_by_zero() -> None:
    batch = _batch(episodes=1)
    query = torch.cat([batch.support, batch.query], dim=1)
    for method in ("simpleshot", "laplacian"):
        scores = make_learner(method)(Batch.of(batch.support, batch.support_members, query)).query
        assert scores.isfinite().all()
    scores = make_learner("simpleshot")(Batch.of(batch.support, batch.support_members, query)).query[0, :6]
    assert torch.equal(scores > 0.5, batch.support_members[0])


def test_gallery_and_query_go_through_the_same_transform() -> None:
    """A shift and a scale of all features change nothing: in the published code they did."""
    batch = _batch(episodes=2)
    moved = Batch.of(*(value * 7 + 100 if value.is_floating_point() else value for value in _parts(batch).values()))
    for method in ("simpleshot", "tim"):
        learner = make_learner(method)
        torch.testing.assert_close(learner(moved).query, learner(batch).query, rtol=1e-6, atol=1e-9)


def test_a_given_centre_is_used() -> None:
    batch = _batch(episodes=2)
    at_mean = make_learner("simpleshot", centre=batch.support[0].mean(dim=0).numpy())
    torch.testing.assert_close(at_mean(batch).query[0], make_learner("simpleshot")(batch).query[0])
    assert not torch.allclose(make_learner("simpleshot", centre=None)(batch).query, at_mean(batch).query)


def test_a_prior_moves_tim() -> None:
    batch = _batch(episodes=2, effect=0.1)
    even, rare = (make_learner("tim", prior=prior)(batch).query.mean() for prior in (0.5, 0.02))
    assert rare < even


def test_ties_are_accepted_whole_and_the_last_of_equals_wins() -> None:
    scores = torch.tensor([[3.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    members = torch.tensor([[True, False, True, True], [True, True, False, True]])
    assert true_positives(scores, members).tolist() == [0, 2]
    assert true_positives(scores, members, cap=1).tolist() == [3, 3]
    assert last_best(torch.tensor([[1, 5], [2, 5], [2, 1]])).tolist() == [2, 1]


def test_fine_tuning_without_a_network_is_refused() -> None:
    with pytest.raises(InputError, match="give the target as model="):
        make_learner("finetune")
    with pytest.raises(InputError, match="did you mean 'simpleshot'"):
        make_learner("simpelshot")
