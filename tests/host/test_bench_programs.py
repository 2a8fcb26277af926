"""Real programs under the freezer gate give their figures, and what they would lose is found missing."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from experiments.bench import programs, runtime
from experiments.bench.programs import AMPLITUDES, BATCH_ROWS, DIMENSIONS, KEPT_ROWS, Keeper, Redis
from vcg.errors import HostError

pytestmark = pytest.mark.usefixtures("root")


def quiet(arm: str) -> None:
    """Progress that nobody watches."""
    assert arm


def test_three_programs_side_by_side_have_shares_and_lose_nothing() -> None:
    figures = {figure.name: figure for figure in programs.measure(1, 1.0, quiet)}
    shares = [f"{p}_{kind}_{a}" for p in DIMENSIONS for a in AMPLITUDES for kind in ("cpu", "work")]
    assert set(figures) == {*shares, "cpu_error", "work_error"}
    assert all(figures[name].value > 0 for name in shares)


def test_what_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    here = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "stress-ng" else here(name))
    with pytest.raises(HostError, match=r"stress-ng: not found .apt-get install .*stress-ng"):
        programs.measure(1, 1.0, quiet)


# ── Redis ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[Path]:
    """A Redis of this test's own."""
    path = tmp_path / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, "redis-server does not listen"
        time.sleep(0.01)
    yield path
    server.terminate()
    server.wait()


@pytest.mark.parametrize("loss", [["DEL", "kept:5"], ["SET", "kept:5", "6"], ["FLUSHALL"]])
def test_a_key_that_was_acknowledged_and_is_gone_or_wrong_is_named(redis_socket: Path, loss: list[str]) -> None:
    with (
        closing(Redis(redis_socket)) as reading,
        closing(Redis(redis_socket)) as writing,
        closing(Keeper(writing)) as keeper,
    ):
        deadline = time.monotonic() + 10
        while reading.ask(["EXISTS", "kept:99"]) != [b"1"]:
            assert time.monotonic() < deadline, "no keys are written"
            time.sleep(0.005)
        keeper.check(reading)
        reading.ask(loss)
        with pytest.raises(HostError, match=r"redis: key kept:\d+ is .*, it was acknowledged as \d+"):
            keeper.check(reading)


def test_what_redis_refuses_is_told(redis_socket: Path) -> None:
    with closing(Redis(redis_socket)) as redis, pytest.raises(HostError, match="redis: -ERR unknown command"):
        redis.ask(["NONSENSE"])


def test_a_driver_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    plan = runtime.plan_of("programs", tmp_path)
    with (
        pytest.raises(HostError, match=r"redis-benchmark: .*connect"),
        programs.load(tmp_path / "nobody.sock", plan),
    ):
        time.sleep(0.5)


# ── SQLite ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def loaded(tmp_path: Path) -> Path:
    """What the bulk load of the testbed leaves behind after a while."""
    (tmp_path / "data").mkdir()
    with closing(sqlite3.connect(tmp_path / "data" / "load.db")) as database:
        database.execute("create table rows (id integer primary key, content text)")
        rows = ((number, f"{number:064x}") for number in range(5001, 5001 + KEPT_ROWS))
        database.executemany("insert into rows values (?, ?)", rows)
        database.commit()
    return tmp_path


NEWEST = 5000 + KEPT_ROWS


def test_a_whole_database_passes(loaded: Path) -> None:
    programs.check_rows(loaded, NEWEST)


@pytest.mark.parametrize(
    "harm",
    [
        f"delete from rows where id = {NEWEST}",
        "delete from rows where id = 9000",
        f"delete from rows where id > 5001 + {BATCH_ROWS}",
        "update rows set content = 'short' where id = 6000",
    ],
)
def test_rows_that_are_missing_or_damaged_are_told(loaded: Path, harm: str) -> None:
    with closing(sqlite3.connect(loaded / "data" / "load.db")) as database:
        database.execute(harm)
        database.commit()
    with pytest.raises(HostError, match=rf"sqlite3: \d+ rows from .* expected .* and row {NEWEST} among them"):
        programs.check_rows(loaded, NEWEST)


def test_a_damaged_file_is_told(loaded: Path) -> None:
    file = loaded / "data" / "load.db"
    raw = bytearray(file.read_bytes())
    raw[100 * 4096 : 101 * 4096] = bytes(4096)
    file.write_bytes(raw)
    with pytest.raises(HostError, match="sqlite3"):
        programs.check_rows(loaded, NEWEST)


def test_the_newest_row_is_the_last_whole_line_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log = tmp_path / "log" / "workload.log"
    for text, newest in (
        ("", 0),
        ("1000\n", 1000),
        ("1000\n2000\n30", 2000),
        ("".join(f"{n}\n" for n in range(99)), 98),
    ):
        log.write_text(text)
        assert programs.newest_row(tmp_path) == newest
