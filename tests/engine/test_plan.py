"""Tasks cover what is missing, once, in small pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastmem.engine import make_tasks

_ROWS = st.lists(st.integers(0, 500), unique=True, max_size=200).map(sorted)


@given(st.dictionaries(st.sampled_from(["", "null"]), _ROWS), st.integers(1, 64), st.integers(1, 16))
def test_every_missing_row_is_in_one_task(missing: dict[str, list[int]], workers: int, most: int) -> None:
    tasks = make_tasks(missing, workers, most)
    for group, rows in missing.items():
        assert [row for task in tasks if task.group == group for row in task.rows] == rows
    assert all(1 <= len(task.rows) <= most for task in tasks)


def test_few_models_on_many_cores_go_one_by_one() -> None:
    assert len(make_tasks({"": range(16)}, 8, 16)) == 16
    assert len(make_tasks({"": range(64)}, 2, 16)) == 8
