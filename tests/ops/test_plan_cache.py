"""The planner's cache: what goes in comes out, whoever else writes, and nothing on the disk can crash it."""

from __future__ import annotations

import json
import multiprocessing
import os
import warnings
from pathlib import Path

import pytest
import torch

from lth_sparse.ops import plan_cache
from lth_sparse.ops.plan_cache import PlanCache, cache_directory, environment, usage

HERE = {"processor": "one", "threads": "2"}


@pytest.fixture(autouse=True)
def directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    monkeypatch.setenv("LTH_SPARSE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def number(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("no number")
    return value


def test_entries_come_back_in_another_process_too() -> None:
    PlanCache(HERE).put({"a": 1, "b": 2})
    PlanCache(HERE).put({"b": 3})
    cache = PlanCache(HERE)
    assert [cache.get(key, number) for key in "abc"] == [1, 3, None]


def test_nothing_is_read_or_made_before_something_is_put(directory: Path) -> None:
    assert PlanCache(HERE).get("a", number) is None
    assert not directory.exists()


@pytest.mark.parametrize("word", ["0", "off", "No"])
def test_it_can_be_switched_off(word: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PlanCache(HERE).put({"a": 1})
    monkeypatch.setenv("LTH_SPARSE_CACHE", word)
    cache = PlanCache(HERE)
    cache.put({"b": 2})
    assert cache.get("a", number) is None
    monkeypatch.setenv("LTH_SPARSE_CACHE", "1")
    assert PlanCache(HERE).get("b", number) is None


def test_its_place_is_the_platforms_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_directory() == tmp_path / "cache"
    monkeypatch.delenv("LTH_SPARSE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "lth_sparse"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(plan_cache.sys, "platform", "linux")
    assert cache_directory() == tmp_path / "home" / ".cache" / "lth_sparse"


def test_environments_do_not_mix() -> None:
    PlanCache(HERE).put({"a": 1})
    assert PlanCache({**HERE, "threads": "4"}).get("a", number) is None


@pytest.mark.parametrize("name", ["processor", "isa", "threads", "lth_sparse", "build", "torch"])
def test_the_environment_is_all_that_a_time_depends_on(name: str) -> None:
    found = environment(torch.device("cpu"))
    assert found[name]
    assert PlanCache(found).path != PlanCache({**found, name: "another"}).path


def test_another_version_of_the_library_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    PlanCache.of(torch.device("cpu")).put({"a": 1})
    monkeypatch.setattr(plan_cache, "__version__", "99.0")
    assert PlanCache.of(torch.device("cpu")).get("a", number) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"format": 99, "entries": {}}',
        b'{"format": 1, "environment": {}, "entries": {}}',
        b'{"format": 1, "environment": {"processor": "one", "threads": "2"}, "entries": [1]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_or_foreign_file_is_reported_and_written_anew(content: bytes) -> None:
    cache = PlanCache(HERE)
    cache.put({"a": 1})
    cache.path.write_bytes(content)
    with pytest.warns(UserWarning, match="ignoring a .*cache of the planner|ignoring a file that is no cache"):
        assert cache.get("a", number) is None
    with pytest.warns(UserWarning, match="ignoring"):
        cache.put({"a": 2})
    assert cache.get("a", number) == 2


def test_a_damaged_entry_is_reported_and_the_others_kept() -> None:
    cache = PlanCache(HERE)
    cache.put({"a": "word", "b": 2})
    with pytest.warns(UserWarning, match="ignoring the damaged entry 'a'"):
        assert cache.get("a", number) is None
    assert cache.get("b", number) == 2


def test_an_entry_without_its_form_is_left_out() -> None:
    cache = PlanCache(HERE)
    cache.put({"a": 1, "b": 2})
    content = json.loads(cache.path.read_text())
    content["entries"]["a"] = {"value": 1, "when": "today"}
    cache.path.write_text(json.dumps(content))
    assert [cache.get(key, number) for key in "ab"] == [None, 2]


def test_a_place_that_cannot_be_written_is_a_warning(directory: Path) -> None:
    directory.write_text("a file where the directory should be")
    with pytest.warns(UserWarning, match="the planner's cache cannot be written"):
        PlanCache(HERE).put({"a": 1})


def test_a_directory_in_the_files_place_is_a_warning() -> None:
    cache = PlanCache(HERE)
    cache.path.mkdir(parents=True)
    with pytest.warns(UserWarning, match="ignoring a damaged cache"):
        assert cache.get("a", number) is None
    with pytest.warns(UserWarning, match="cannot be written|ignoring"):
        cache.put({"a": 1})


def test_entries_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "MOST_ENTRIES", 3)
    cache = PlanCache(HERE)
    for index in range(5):
        cache.put({f"k{index}": index})
    assert [cache.get(f"k{index}", number) for index in range(5)] == [None, None, 2, 3, 4]


def test_files_are_bounded_and_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "MOST_FILES", 2)
    caches = [PlanCache({"threads": str(count)}) for count in range(4)]
    for age, cache in enumerate(caches):
        cache.put({"a": 1})
        os.utime(cache.path, (1000 + age, 1000 + age))
    assert [cache.path.exists() for cache in caches] == [False, False, True, True]
    assert usage()[0] == 2
    assert usage()[1] == sum(cache.path.stat().st_size for cache in caches[2:])


def write_many(directory: str, first: int) -> None:
    warnings.simplefilter("error")
    os.environ.update(LTH_SPARSE_CACHE="1", LTH_SPARSE_CACHE_DIR=directory)
    cache = PlanCache(HERE)
    for index in range(first, first + 20):
        cache.put({f"k{index}": index})
        assert cache.get(f"k{index}", number) == index


def test_processes_at_once_lose_nothing_and_see_no_half_file(directory: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(str(directory), first)) for first in (0, 20, 40)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    cache = PlanCache(HERE)
    assert [cache.get(f"k{index}", number) for index in range(60)] == list(range(60))
    assert sorted(path.name for path in directory.iterdir()) == sorted([cache.path.name, "plan-lock"])
