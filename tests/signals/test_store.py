"""Nothing lost: kills, full disks, truncated files and concurrent writers, and what each costs."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

from fastmem.errors import InputError, StoreError
from fastmem.signals import Signals, SignalsWriter, stored_groups
from tests.signals import store_crash

M, N, A, C = 4, 6, 2, 3
KEYS = [f"{model:064x}" for model in range(M)]


def labels_and_keep() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, C, N), rng.random((M, N)) < 0.5


def make(path: Path | str, stats: tuple[str, ...] = ("margin", "top3"), **options) -> SignalsWriter:
    return SignalsWriter(path, *labels_and_keep(), stats, num_queries=A, **options)


def row(model: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, model])
    return {"margin": rng.normal(size=(N, A)), "top3": rng.random((N, A, 3))}


def filled(path: Path | str, **options) -> SignalsWriter:
    writer = make(path, **options)
    for model, key in enumerate(KEYS):
        writer.write_row(model, row(model), key)
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store but what killed writes left behind."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".partial")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# -- round trips ------------------------------------------------------------------------------------------------------


def signals() -> Signals:
    rng = np.random.default_rng(2)
    labels, keep = labels_and_keep()
    logits = rng.normal(size=(M, N, A, C)).astype(np.float32)
    return Signals(labels, keep, logits, {"entropy": rng.random((M, N, A)), "margin@2": rng.normal(size=(M, N, A))})


@pytest.mark.parametrize("group", ["", "population", "null", "null/population"])
@pytest.mark.parametrize("place", ["folder", "memory://", "file://"])
def test_what_is_saved_is_opened(tmp_path: Path, place: str, group: str) -> None:
    path = {"folder": tmp_path / "s.zarr", "file://": f"file://{tmp_path}/s.zarr"}.get(
        place, f"memory://{tmp_path.name}/{group}/s.zarr"
    )
    given = signals()
    given.save(path, group)
    found = Signals.open(path, group)
    assert repr(found) == repr(given)
    np.testing.assert_array_equal(found.labels, given.labels)
    np.testing.assert_array_equal(found.keep, given.keep)
    assert found.logits is not None
    assert given.logits is not None
    assert found.logits.dtype == np.float32
    np.testing.assert_array_equal(found.logits, given.logits)
    for name in ("entropy", "margin@2", "margin", "loss@2", "top3"):
        np.testing.assert_array_equal(found.stat(name), given.stat(name))
    assert stored_groups(path) == (group,)


def test_groups_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    whole = signals()
    groups = {"population": whole.rows([0, 1]), "": whole, "null/population": whole.rows([2]), "null": whole.rows([3])}
    for group, part in groups.items():
        part.save(path, group)
    assert stored_groups(path) == ("", "population", "null", "null/population")
    for group, part in groups.items():
        np.testing.assert_array_equal(Signals.open(path, group).stat("margin"), part.stat("margin"))


def test_any_zarr_reader_can_read_it(tmp_path: Path) -> None:
    filled(tmp_path / "s.zarr")
    found = zarr.open_group(tmp_path / "s.zarr", mode="r")
    np.testing.assert_array_equal(found["margin"][2], row(2)["margin"])
    assert found["margin"].chunks == (1, N, A)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    filled(tmp_path / "s.zarr")
    for chunk in (tmp_path / "s.zarr" / "top3" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()
    (next((tmp_path / "s.zarr" / "margin" / "c" / "3").rglob("0/0"))).unlink()
    found = Signals.open(tmp_path / "s.zarr").select_models([0, 2]).rows([1, 5])
    np.testing.assert_array_equal(found.stat("margin")[1], row(2)["margin"][[1, 5]])
    with pytest.raises(StoreError):
        found.stat("top3")


def test_rows_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "s.zarr")
    whole = Signals.open(tmp_path / "s.zarr").select_models([3, 0, 1])
    expected = whole.stat("top3")
    monkeypatch.setattr("fastmem.signals.stored._BLOCK_BYTES", 2 * N * A * 3 * 8)  # two rows
    np.testing.assert_array_equal(whole.stat("top3"), expected)
    np.testing.assert_array_equal(expected[0], row(3)["top3"])


def test_saving_over_something(tmp_path: Path) -> None:
    path, given = tmp_path / "s.zarr", signals()
    given.save(path)
    with pytest.raises(StoreError, match="already holds signals; choose another path or pass overwrite=True"):
        given.save(path)
    given.with_keep(~given.keep).save(path, overwrite=True)
    np.testing.assert_array_equal(Signals.open(path).keep, ~given.keep)
    with pytest.raises(InputError, match="is where these signals are read from"):
        Signals.open(path).save(path, overwrite=True)  # would delete what it is about to read
    np.testing.assert_array_equal(Signals.open(path).stat("margin"), given.stat("margin"))


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_exists_once_it_is_committed(tmp_path: Path) -> None:
    writer = make(tmp_path / "s.zarr")
    assert not writer.completed(KEYS).any()
    for model in (2, 0):
        writer.write_row(model, row(model), KEYS[model])
    assert writer.completed(KEYS).tolist() == [True, False, True, False]
    assert make(tmp_path / "s.zarr").completed(KEYS).tolist() == [True, False, True, False]  # another process
    assert not writer.completed(["f" * 64] * M).any()  # a changed config asks for other keys
    found = Signals.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"s\.zarr row 1: was never finished; run the audit again"):
        found.stat("margin")
    np.testing.assert_array_equal(found.select_models([0, 2]).stat("margin")[1], row(2)["margin"])


class Crash(BaseException):
    """A process that ends here: nothing in fastmem may catch it."""


@pytest.fixture
def after_writes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, BaseException], None]]:
    """Let this many files be written; the next write fails."""
    original = LocalStore.set
    left: list[int] = []
    failure: list[BaseException] = []

    async def limited(self, key, value):
        if left and left[0] == 0:
            raise failure[0]
        if left:
            left[0] -= 1
        await original(self, key, value)

    monkeypatch.setattr(LocalStore, "set", limited)

    def arm(writes: int, error: BaseException) -> None:
        left[:], failure[:] = [writes], [error]

    yield arm
    left.clear()


@pytest.mark.parametrize("writes", range(3))
def test_a_crash_at_any_step_costs_one_row(tmp_path: Path, after_writes, writes: int) -> None:
    filled(tmp_path / "undisturbed")
    writer = filled(tmp_path / "s.zarr")
    after_writes(writes, Crash())
    with pytest.raises(Crash):
        writer.write_row(1, row(1, seed=9), KEYS[1])  # the same row again, with other values under its old key
    after_writes(1000, Crash())
    # The old commit record, with the right key, is still there: only the checksum knows about the new payload.
    assert writer._table.commits[1][0].tobytes().hex() == KEYS[1]
    assert writer.completed(KEYS).tolist() == [True, writes == 0, True, True]
    if writes:
        with pytest.raises(StoreError, match="row 1: 'margin' does not match its checksum"):
            Signals.open(tmp_path / "s.zarr").stat("margin")
    writer.write_row(1, row(1), KEYS[1])
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("writes", range(11))
def test_a_crash_while_the_table_is_made(tmp_path: Path, after_writes, writes: int) -> None:
    filled(tmp_path / "undisturbed")
    after_writes(writes, Crash())
    try:
        make(tmp_path / "s.zarr")
        finished = True
    except Crash:
        finished = False
    after_writes(1000, Crash())
    if not finished and (tmp_path / "s.zarr").exists():
        with pytest.raises(StoreError):
            Signals.open(tmp_path / "s.zarr")
    filled(tmp_path / "s.zarr")
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("writes", range(3))
def test_a_full_disk(tmp_path: Path, after_writes, writes: int) -> None:
    writer = filled(tmp_path / "s.zarr")
    after_writes(writes, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StoreError) as raised:
        writer.write_row(1, row(1, seed=9), "a" * 64)
    assert str(raised.value) == (
        f"{tmp_path}/s.zarr row 1: no space left on the disk; free some space and run again: finished rows are kept"
    )
    after_writes(1000, Crash())
    assert writer.completed([KEYS[0], "a" * 64, KEYS[2], KEYS[3]]).tolist() == [True, False, True, True]


def test_a_write_that_the_system_cuts_off(tmp_path: Path) -> None:
    # A real short write: no file of this process may grow beyond 4 kB, a row of margins is 8 kB.
    script = """
import resource, sys
from tests.signals.store_crash import KEYS, row, writer
from fastmem.errors import StoreError
table = writer(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    table.write_row(0, row(0), KEYS[0])
except StoreError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert not table.completed(KEYS).any()
"""
    done = run_python("-c", script, str(tmp_path / "s.zarr"))
    assert (
        done.stdout.strip()
        == f"{tmp_path}/s.zarr row 0: File too large; check the disk or the connection, and run again"
    )
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=120
    )


def test_killed_at_random_instants(tmp_path: Path) -> None:
    run_python("-m", "tests.signals.store_crash", "kill", str(tmp_path / "s.zarr"), "20")
    table = store_crash.writer(tmp_path / "s.zarr")
    complete = [table.completed(keys) for keys in (store_crash.KEYS, store_crash.OTHER_KEYS)]
    assert np.any(complete)
    for config in (0, 1):  # what is called complete is right
        for model in np.flatnonzero(complete[config]):
            found = Signals.open(tmp_path / "s.zarr").select_models([model]).stat("margin")[0]
            np.testing.assert_array_equal(found, store_crash.row(int(model), config)["margin"])
    store_crash.write_missing(tmp_path / "s.zarr")
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "undisturbed")


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    store_crash.write_missing(tmp_path / "undisturbed")
    run_python("-m", "tests.signals.store_crash", "race", str(tmp_path / "s.zarr"), "4")
    # Each child wrote its share of what it found missing; which rows those were depends on who came first.
    store_crash.write_missing(tmp_path / "s.zarr")
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "undisturbed")


# -- damage -----------------------------------------------------------------------------------------------------------


def chunk(store: Path, name: str, model: int) -> Path:
    (found,) = [file for file in (store / name / "c" / str(model)).rglob("*") if file.is_file()]
    return found


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit": flip,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-8]),
    "emptied": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", ["margin", "commits"])
def test_a_damaged_row_is_named_and_made_again(tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "s.zarr"
    writer = filled(path)
    whole = contents(path)
    damage(chunk(path, name, 2))  # the middle byte of a commit record is of the margin's checksum
    assert writer.completed(KEYS).tolist() == [True, True, False, True]
    found = Signals.open(path)
    with pytest.raises(StoreError) as raised:
        found.stat("margin")
    assert f"{path} row 2: " in str(raised.value)
    assert "run the audit again" in str(raised.value)
    assert "\n" not in str(raised.value)
    np.testing.assert_array_equal(found.select_models([0, 1, 3]).stat("margin")[2], row(3)["margin"])
    if name == "margin":
        np.testing.assert_array_equal(found.stat("top3")[2], row(2)["top3"])
    writer.write_row(2, row(2), KEYS[2])
    assert contents(path) == whole


@pytest.mark.parametrize("damage", ["one bit", "truncated", "emptied", "missing"])
@pytest.mark.parametrize("name", ["labels", "keep"])
def test_damaged_labels_and_masks(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / "s.zarr"
    filled(path)
    DAMAGE[damage](next(file for file in (path / name / "c").rglob("*") if file.is_file()))
    with pytest.raises(StoreError, match="--fresh"):
        Signals.open(path)


@pytest.mark.parametrize(
    "file", ["zarr.json", "commits/zarr.json", "margin/zarr.json", "labels/zarr.json", "keep/zarr.json"]
)
@pytest.mark.parametrize("content", [b"", b"[]", b'{"zarr_format": 3}', b"\xff\xfe", None])
def test_damaged_metadata(tmp_path: Path, file: str, content: bytes | None) -> None:
    path = tmp_path / "s.zarr"
    filled(path)
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(content)
    problem = outcome(lambda: Signals.open(path).stat("margin"))
    assert problem is None or str(path) in problem
    assert problem is not None or file == "zarr.json"  # the root's own metadata say nothing that is needed
    # A writer refuses, or makes good what is missing without losing a row; ``fresh`` starts over where it may.
    outcome(lambda: make(path))
    problem = outcome(lambda: filled(path, fresh=True))
    assert problem is None or (content is None and file == "zarr.json")  # not recognised as a store: left alone


def outcome(attempt: Callable[[], np.ndarray | SignalsWriter]) -> str | None:
    """The one line of a :class:`StoreError`; otherwise None, and what was given is right."""
    try:
        found = attempt()
    except StoreError as error:
        line = str(error)
        assert "\n" not in line
        return line
    if isinstance(found, SignalsWriter):
        assert found.completed(KEYS).all()
    else:
        np.testing.assert_array_equal(found, [row(model)["margin"] for model in range(M)])
    return None


def test_another_format(tmp_path: Path) -> None:
    filled(tmp_path / "s.zarr")
    commits = zarr.open_group(tmp_path / "s.zarr")["commits"]
    commits.attrs["fastmem_signals"] = {**commits.attrs["fastmem_signals"], "format": 99}
    with pytest.raises(StoreError, match="signals of format 99, this version reads 1"):
        Signals.open(tmp_path / "s.zarr")


def test_places_that_hold_no_signals(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there are no signals; check the path"):
        Signals.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()  # looking leaves no trace
    filled(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match=r"s\.zarr \[population\]: there are no signals"):
        Signals.open(tmp_path / "s.zarr", "population")
    zarr.open_group(tmp_path / "foreign.zarr").create_array("margin", shape=(2,), dtype="f8")
    with pytest.raises(StoreError, match="holds no signals"):
        Signals.open(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="'margin' is left over from another run"):
        make(tmp_path / "foreign.zarr")
    with pytest.raises(StoreError, match="protocol"):
        Signals.open("nosuchprotocol://bucket/s.zarr")


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(StoreError, match="a folder with other files in it; choose an empty or new folder"):
            make(tmp_path, fresh=fresh)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file is in the way"):
        make(tmp_path / "file" / "s.zarr")
    with pytest.raises(StoreError, match="a file is in the way"):
        make(tmp_path / "file")


def test_no_permission(tmp_path: Path, after_writes) -> None:
    after_writes(0, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(StoreError, match=r"permission denied .*; choose a folder that you can write to"):
        make(tmp_path / "s.zarr")


def test_a_store_of_another_run(tmp_path: Path) -> None:
    filled(tmp_path / "s.zarr")
    labels, keep = labels_and_keep()
    with pytest.raises(StoreError, match=r"another run \(keep_sha256 differ\); .*--fresh"):
        SignalsWriter(tmp_path / "s.zarr", labels, ~keep, ["margin", "top3"], num_queries=A)
    with pytest.raises(StoreError, match=r"another run \(arrays differ\)"):
        make(tmp_path / "s.zarr", ("margin",))
    fresh = make(tmp_path / "s.zarr", ("margin",), fresh=True)
    assert not fresh.completed(KEYS).any()
    assert not (tmp_path / "s.zarr" / "top3").exists()


# -- the writer's door ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "values", "key", "message"),
    [
        (M, row(0), KEYS[0], "model: 4; give 0..3"),
        (0, {"margin": row(0)["margin"]}, KEYS[0], "values: holds ['margin']; give exactly ['margin', 'top3']"),
        (0, {**row(0), "margin": np.zeros((N, 1))}, KEYS[0], "values['margin']: shape (6, 1); give (6, 2)"),
        (0, {**row(0), "margin": np.full((N, A), np.nan)}, KEYS[0], "12 NaN values, first at sample 0, query 0"),
        (0, row(0), "abc", "key: 'abc'; give 64 hexadecimal digits"),
        (0, row(0), "z" * 64, "give 64 hexadecimal digits"),
    ],
)
def test_bad_rows(tmp_path: Path, model: int, values: dict, key: str, message: str) -> None:
    writer = filled(tmp_path / "s.zarr")
    whole = contents(tmp_path / "s.zarr")
    with pytest.raises(InputError) as raised:
        writer.write_row(model, values, key)
    assert message in str(raised.value)
    assert contents(tmp_path / "s.zarr") == whole


def test_logits_beyond_the_dtype_they_are_kept_in(tmp_path: Path) -> None:
    labels, keep = labels_and_keep()
    options = {"num_queries": A, "num_classes": C}
    writer = SignalsWriter(tmp_path / "s.zarr", labels, keep, ["logits"], logits_dtype="float16", **options)
    with pytest.raises(InputError, match=r"values\['logits'\]: 36 infinite values, .*keep logits in more than float16"):
        writer.write_row(0, {"logits": np.full((N, A, C), 1e6)}, KEYS[0])
    writer.write_row(0, {"logits": np.full((N, A, C), 1.5)}, KEYS[0])
    assert writer.completed(KEYS).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stats": ()}, "stats: none given"),
        ({"stats": ("margn",)}, "did you mean 'margin'"),
        ({"stats": ("logits",)}, "num_classes: None"),
        ({"keep": np.zeros((M, N), int)}, "keep: dtype int64 is not boolean"),
        ({"num_queries": 0}, "num_queries: 0"),
    ],
)
def test_bad_tables(tmp_path: Path, options: dict, message: str) -> None:
    labels, keep = labels_and_keep()
    arguments = {"labels": labels, "keep": keep, "stats": ("margin",), **options}
    with pytest.raises(InputError) as raised:
        SignalsWriter(tmp_path / "s.zarr", **arguments)
    assert message in str(raised.value)
    assert not (tmp_path / "s.zarr").exists()


def test_one_key_a_row(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keys: 3 keys for 4 rows"):
        make(tmp_path / "s.zarr").completed(KEYS[:3])
