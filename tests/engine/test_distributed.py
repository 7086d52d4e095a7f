"""Searches over two ranks: the single process's tickets, fewer bytes, errors on all ranks, and a kill of both."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parallel_search
import pytest
import torch
from torch import nn

import lth_sparse as ls
from lth_sparse.engine import distributed
from lth_sparse.engine.rng import for_every_device
from lth_sparse.errors import ArgumentTypeError, RunError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL, gloo over the loopback interface")

SECONDS = 240
#: Rather than ask the network for this machine's own name.
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


def start(out: Path, task: str) -> list[tuple[int, str]]:
    """Run both ranks to their end: their exit codes and what they said."""
    environment = {**os.environ, **LOOPBACK}
    ranks = []
    for rank in range(parallel_search.RANKS):
        words = [sys.executable, parallel_search.__file__, str(rank), str(out / f"store_{task}"), str(out), task]
        ranks.append(
            subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in ranks]
        return [(process.returncode, text) for process, text in zip(ranks, said, strict=True)]
    finally:
        for process in ranks:
            process.kill()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks left what they found, and a search in which both were killed."""
    directory = tmp_path_factory.mktemp("ranks")
    ended = start(directory, "begin")
    assert (directory / "0.json").exists(), ended[0][1]
    assert (directory / "1.json").exists(), ended[1][1]
    assert -signal.SIGKILL in [code for code, _ in ended], ended
    return directory


@pytest.fixture(scope="module")
def facts(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(parallel_search.RANKS)]


@pytest.fixture(scope="module")
def alone() -> ls.engine.TicketResult:
    """The same search in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.warns(UserWarning, match="min_kept"):
            return ls.find_ticket(parallel_search.network(), parallel_search.Trainer(), **parallel_search.OPTIONS)
    finally:
        torch.set_num_threads(threads)


def test_two_ranks_find_the_tickets_of_a_single_process(out: Path, alone: ls.engine.TicketResult) -> None:
    """Masks and theta_0 bit for bit, level 0's capture and trained weights within the rounding of float64 sums."""
    files = {f"level_{ticket.level:02d}": ticket for ticket in alone.tickets}
    files |= {f"control_{level:02d}_{kind}": ticket for (level, kind), ticket in alone.control_tickets.items()}
    assert len(files) == 5
    for name, ticket in files.items():
        found = ls.Ticket.load(out / "whole" / f"{name}.safetensors")
        assert found.density == ticket.density
        for layer, mask in ticket.masks.items():
            assert torch.equal(found.masks[layer], mask), (name, layer)
        for weights in ("initial", "trained"):
            torch.testing.assert_close(getattr(found, weights), getattr(ticket, weights), rtol=1e-9, atol=1e-11)
    first = ls.Ticket.load(out / "whole" / "level_00.safetensors")
    assert all(
        torch.equal(tensor, first.initial[name])
        for name, tensor in parallel_search.network().state_dict().items()
        if name not in first.masks
    )


@pytest.mark.parametrize("rate", parallel_search.ONE_SHOT)
def test_two_ranks_find_the_ticket_at_every_density(out: Path, rate: float) -> None:
    """At equal global batch: the same mask bit for bit, the same trained weights within float64's rounding."""
    train = parallel_search.Trainer()
    (ticket,) = ls.find_ticket(parallel_search.network(), train, **parallel_search.one_shot(rate)).tickets[1:]
    found = ls.Ticket.load(out / f"rate_{rate}" / "level_01.safetensors")
    assert found.density == pytest.approx(1 - rate, abs=1e-3)
    assert found.masks.equals(ticket.masks)
    torch.testing.assert_close(found.initial, ticket.initial, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.trained, ticket.trained, rtol=1e-9, atol=1e-11)


def test_a_search_under_torchrun_that_is_killed_ends_with_the_same_tickets(out: Path, tmp_path: Path) -> None:
    """Byte for byte those of two ranks that were started by hand and left alone."""
    script = Path(parallel_search.__file__).with_name("torchrun_search.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(parallel_search.RANKS)]
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    for task, code in (("die", 1), ("resume", 0)):
        words = [*launcher, *where, "--monitor-interval", "0.2", script, tmp_path, task]
        run = subprocess.run(words, env={**os.environ, **LOOPBACK}, capture_output=True, text=True, timeout=SECONDS)
        assert run.returncode == code, run.stdout + run.stderr
        assert (tmp_path / "run" / "level_02.safetensors").exists() == (task == "resume")
    names = {path.name for path in (out / "whole").glob("*.safetensors")}
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "run" / name).read_bytes() == (out / "whole" / name).read_bytes(), name
    trained = [(tmp_path / f"trained_{rank}").read_text() for rank in range(parallel_search.RANKS)]
    assert trained[0] == trained[1]
    assert "index=0" not in trained[0], "level 0, which was finished, is not trained again"


@pytest.fixture
def single_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone: the bytes of a bucket do not depend on how many reduce it."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    gc.collect()  # DistributedDataParallel before its process group, see tests/nn/test_compile.py
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2, 0.1, 0.05, 0.021])
def test_all_reduces_of_lenet_move_at_most_a_tenth_more_than_its_density(single_rank: None, density: float) -> None:
    """Biases, which are never pruned, are in that tenth."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    masks = {}
    for name in ("0.weight", "2.weight", "4.weight"):
        weight = model.get_parameter(name)
        masks[name] = weight.abs() >= weight.abs().flatten().quantile(1 - density)
    ls.sparsify_(model, masks, layout="csr")
    parallel = nn.parallel.DistributedDataParallel(model)
    count = distributed.reduced_bytes(parallel)
    for _ in range(2):
        parallel(torch.randn(8, 784)).square().mean().backward()
    assert (count.steps, count.dense) == (2, 4 * 266_610)
    live = sum(int(mask.sum()) for mask in masks.values())
    assert count.per_step == 4 * (live + 410)
    assert count.share <= 1.1 * live / 266_200


def test_all_ranks_have_rank_0s_results(facts: list[dict[str, Any]]) -> None:
    for search in ("whole", "auto"):
        assert facts[0][search] == facts[1][search]
    assert {metrics["test_acc"] for metrics, *_ in facts[0]["whole"]["metrics"]} == {0.0}
    assert {rows[0]["val_loss"] for _, rows, _ in facts[0]["whole"]["metrics"]} == {0.0}


def test_callbacks_warnings_and_the_rewind_error_are_rank_0s(facts: list[dict[str, Any]]) -> None:
    assert facts[0]["events"] == {"on_level_start": 5, "on_step": 2 * 8 + 3 * 5, "on_record": 5, "on_level_end": 5}
    assert facts[1]["events"] == {}
    assert [len(fact["warnings"]) for fact in facts] == [1, 0]
    assert [fact["asked"] for fact in facts] == [[0], []]


def test_gradients_that_are_reduced_weigh_what_the_density_says(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert len(fact["reduced"]) == 5
        assert fact["reduced"][0] == [1.0, 1.0]
        for density, share in fact["reduced"]:
            assert density * 0.9 <= share <= density * 1.1


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("damaged", "TicketError: .*level_01.safetensors: .*damaged.* Delete that file"),
        ("no directory", "RunError: cannot make the run directory .*file/run: Not a directory"),
        ("other settings", "ArgumentError: find_ticket: expected the same search on every rank .* on rank 1"),
        ("callback", "KeyError.'of the callback'"),
    ],
)
def test_an_error_of_rank_0_ends_all_ranks(facts: list[dict[str, Any]], what: str, said: str) -> None:
    assert re.match(said, facts[0][what])
    assert facts[1][what] == facts[0][what]


def test_a_search_goes_on_after_both_ranks_were_killed(out: Path, facts: list[dict[str, Any]]) -> None:
    assert (out / "killed" / "level_00.safetensors").exists()
    assert not (out / "killed" / "level_01.safetensors").exists()
    ended = start(out, "resume")
    assert [code for code, _ in ended] == [0, 0], ended
    resumed = [json.loads((out / f"resumed_{rank}.json").read_text()) for rank in range(parallel_search.RANKS)]
    assert resumed[0] == resumed[1]
    assert len(resumed[0]["trained"]) == 4
    assert resumed[0]["hashes"] == facts[0]["whole"]["hashes"]


# --- without a process group -----------------------------------------------------------------------------------------


def test_alone_everything_is_an_ordinary_call() -> None:
    assert (distributed.world(), distributed.leads()) == (1, True)
    thing = object()
    assert distributed.shared(lambda: thing) is thing
    assert distributed.gathered(thing) == [thing]
    captured: dict[Any, Any] = {}
    assert distributed.shared_captures(captured) is captured


@pytest.mark.parametrize("dtype", [torch.bool, torch.int16, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_a_tensor_travels_as_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.rand(shape) * 5).round().to(dtype)
    strided = tensor.T if len(shape) == 2 else tensor
    found = distributed._from_bytes(distributed._as_bytes(strided), torch.empty(strided.shape, dtype=dtype))
    assert found.dtype == dtype
    assert torch.equal(found, strided)
    assert distributed._as_bytes(tensor).numel() <= max(1, tensor.numel()) * tensor.element_size()


def test_a_mask_travels_as_bits() -> None:
    assert distributed._as_bytes(torch.ones(9, 9, dtype=torch.bool)).numel() == 11


class Picky(Exception):
    """Can be pickled, but not be made again from its one argument."""

    def __init__(self, name: str, place: int) -> None:
        super().__init__(f"{name} at {place}")


@pytest.mark.parametrize(
    ("result", "failed", "said"),
    [
        (Picky("crack", 3), True, "rank 0: Picky: crack at 3"),
        (lambda: None, False, "rank 0 cannot share its result: .*pickle.*lambda"),
    ],
)
def test_what_cannot_travel_is_an_error_and_not_silence(
    monkeypatch: pytest.MonkeyPatch, result: Any, failed: bool, said: str
) -> None:
    sent: list[list[Any]] = []
    monkeypatch.setattr(distributed, "_broadcast_facts", lambda facts: sent.append(facts) or facts)
    if failed:
        distributed._send(result, failed)
    else:
        with pytest.raises((AttributeError, pickle.PicklingError)):
            distributed._send(result, failed)
    monkeypatch.setattr(distributed, "_broadcast_facts", lambda _: sent[0])
    with pytest.raises(RunError, match=said):
        distributed._receive()


def test_every_gpu_goes_on_from_the_state_of_rank_0s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    state = {"torch": torch.ones(3), "cuda": [torch.zeros(2), torch.ones(2), torch.zeros(2)]}
    assert all(torch.equal(one, torch.ones(2)) for one in for_every_device(state)["cuda"])
    assert for_every_device({"torch": torch.ones(3)}).keys() == {"torch"}


def test_only_a_parallel_models_bytes_can_be_counted() -> None:
    with pytest.raises(ArgumentTypeError, match="model: expected a DistributedDataParallel, got Linear"):
        distributed.reduced_bytes(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_the_count_is_a_line_of_a_report() -> None:
    count = distributed.ReducedBytes(dense=4000)
    assert str(count) == "gradient all-reduce: none yet; dense 4,000 bytes a step"
    count.total, count.steps = 2400, 3
    assert str(count) == "gradient all-reduce: 800 bytes a step, 20.0% of dense (4,000)"
