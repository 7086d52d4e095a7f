"""The ledger: what it measures of a small network, its arithmetic, and the entry that it chooses."""

from __future__ import annotations

import json

import pytest
import torch
from conversion_cases import dense_ticket, imagined_entry, imagined_ledger
from conversion_cases import model as model
from conversion_cases import ticket as ticket
from torch import Tensor, nn
from torch.nn import functional as F

import lth_sparse as ls
from lth_sparse.engine import Ticket
from lth_sparse.engine.analyses import count_cost
from lth_sparse.engine.conversion import Ledger, ledger
from lth_sparse.engine.conversion.entries import work_of
from lth_sparse.engine.conversion.timing import Span, time_networks
from lth_sparse.errors import ArgumentError, ArgumentTypeError

METHODS = ("cover:4x1", "drop:4x4", "refill", "2:4")


@pytest.fixture
def sample(seed: int) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 4, 4), torch.arange(6)


def train(model: nn.Module) -> None:
    """Three steps on images drawn from the global generator."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(6, 3, 4, 4)), torch.arange(6)).backward()
        optimizer.step()


def evaluate(model: nn.Module) -> float:
    """Share of outputs above 0: a number that moves with every weight."""
    x = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return float((model.eval()(x) > 0).double().mean())


def made(ticket: Ticket, model: nn.Module, sample: tuple[Tensor, Tensor], **more: object) -> Ledger:
    options = {"dense": dense_ticket(model), "evaluate": evaluate, "train": train, "steps": 3, **more}
    return ledger(ticket, METHODS, model=model, sample=sample, seconds=0.0, rounds=2, **options)


def test_every_method_has_an_entry_and_every_figure(
    ticket: Ticket, model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    seen: list[float] = []
    book = made(ticket, model, sample, repeats=2, progress=lambda done, words: seen.append(done))
    assert [entry.name for entry in book.entries] == ["dense", "csr", "auto", "cover:4x1", "drop:4x4", "refill", "2:4"]
    for entry in book.entries[1:]:
        assert entry.time is not None
        assert entry.time.step.median > 0
        assert len(entry.retrained) == 2
        assert entry.accuracy is not None
        assert entry.kept is not None
        assert entry.kept + (entry.dropped or 0) == ticket.masks.nnz
        assert entry.live == entry.kept + (entry.added or 0)
        assert book.loss(entry) is not None
        assert all(entry.padded(row) > 0 for row in entry.layers)
    assert book["cover:4x1"].padded(book["cover:4x1"].layers[0]) == 2.0 * 16 * book["cover:4x1"].layers[0].stored
    assert book["csr"].retrained == book["auto"].retrained
    assert book["cover:4x1"].added == book["cover:4x1"].dropped == 0
    assert book["cover:4x1"].accuracy == book["csr"].accuracy
    assert book["dense"].accuracy == evaluate(model)
    assert seen == sorted(seen)
    assert 0.0 <= seen[0] < seen[-1] <= 1.0
    json.dumps(book.to_dict(), allow_nan=False)


def test_the_ticket_is_retrained_with_the_random_states_of_its_conversions(
    ticket: Ticket, model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    book = made(ticket, model, sample)
    # Covering with zeros changes nothing of the function, so the same batches give the same network but for rounding.
    assert book["cover:4x1"].retrained[0] == pytest.approx(book["csr"].retrained[0], abs=0.01)
    assert made(ticket, model, sample)["drop:4x4"].retrained == book["drop:4x4"].retrained


def test_random_state_and_model_of_the_caller_stay_as_they_are(
    ticket: Ticket, model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    before, weights = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    made(ticket, model, sample)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_another_ticket_is_compared_without_counts_against_this_one(
    ticket: Ticket, model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    masks = {
        name: (torch.rand(8 if i != 1 else 20, 1) < 0.5).expand(8 if i != 1 else 20, m[0].numel()).reshape(m.shape)
        for i, (name, m) in enumerate(ticket.masks.items())
    }
    state = ticket.state_dict("initial")
    other = Ticket.of(masks, state, state, hyperparameters={"granularity": "block:1x2"})
    book = ledger(ticket, (), model=model, sample=sample, others={"rows": other}, seconds=0.0, rounds=2)
    entry = book["rows"]
    assert (entry.kept, entry.added, entry.magnitude) == (None, None, None)
    assert entry.time is not None
    with pytest.raises(ArgumentError, match="others"):
        ledger(ticket, (), model=model, sample=sample, others={"csr": other}, seconds=0.0, rounds=2)


def test_without_a_device_nothing_is_timed_and_the_choice_goes_by_multiplications(
    ticket: Ticket, model: nn.Module, sample: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    book = ledger(
        ticket,
        ["drop:4x4:unordered"],
        model=model,
        sample=sample,
        target="cuda",
        dense=dense_ticket(model),
        evaluate=evaluate,
    )
    assert all(entry.time is None for entry in book.entries)
    assert book.pareto() == ()
    assert "no time was taken" in book.best(100.0).text or "multiplies less" in book.best(100.0).text


def test_flops_count_live_weights_and_padding_apart(model: nn.Module) -> None:
    masks = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    masks["4.weight"] = torch.zeros(20, 128, dtype=torch.bool)
    masks["4.weight"][::4, 0] = True  # one of each 4 x 1 block
    x = torch.randn(1, 3, 4, 4)
    state = dict(model.state_dict())
    sparse = Ticket.of(masks, state, state).apply(model, layout="bsr", block=(4, 1), cover="zeros")
    work = work_of(sparse, count_cost(model, masks, x))
    rest = 8 * 27 * 16 + 160
    assert work.flops == 2.0 * (rest + 5)
    assert work.padded == 2.0 * (rest + 20)
    assert work.value_bytes == 4 * (8 * 27 + 160 + 20)
    assert work.index_bytes == sparse[4].layout.nbytes


def test_the_dense_layout_multiplies_everything(model: nn.Module) -> None:
    masks = {"6.weight": torch.rand(8, 20) < 0.5}
    masks["6.weight"][0, 0] = True
    state = dict(model.state_dict())
    sparse = Ticket.of(masks, state, state).apply(model, layout="dense")
    work = work_of(sparse, count_cost(model, masks, torch.randn(1, 3, 4, 4)))
    assert (work.flops, work.padded) == (2.0 * int(masks["6.weight"].sum()), 320.0)


def test_ratios_are_of_the_same_round_and_networks_stay_as_they_are(model: nn.Module) -> None:
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x, y = torch.randn(4, 3, 4, 4), torch.arange(4)
    times = time_networks(
        {"a": model, "b": model}, x, y, device=torch.device("cpu"), against=("a",), seconds=0.0, rounds=3
    )
    assert times["a"].step_ratios["a"] == Span(1.0, 1.0, 1.0)
    assert times["b"].rounds == 3
    assert times["b"].forward.low <= times["b"].forward.median <= times["b"].forward.high
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_span_of_few_samples() -> None:
    assert Span.of([2.0]) == Span(2.0, 2.0, 2.0)
    assert Span.of([1.0, 2.0, 3.0, 4.0, 5.0]).median == 3.0


def test_losses_are_points_below_the_ticket() -> None:
    book = imagined_ledger()
    assert book.loss(book["csr"]) == 0.0
    assert book.loss(book["vectors:4x1"]) == pytest.approx(0.4)
    assert book.loss(book["cover:4x1"]) == pytest.approx(-0.1)
    assert book.loss(book["dense"]) is None  # not retrained, so not comparable


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    assert [entry.name for entry in imagined_ledger().pareto()] == ["refill", "vectors:4x1", "auto", "cover:4x1"]


@pytest.mark.parametrize(
    ("budget", "name"), [(0.5, "vectors:4x1"), (0.3, "auto"), (2.0, "refill"), (0.4, "vectors:4x1")]
)
def test_the_best_is_the_fastest_within_the_budget(budget: float, name: str) -> None:
    book = imagined_ledger()
    best = book.best(budget)
    assert best.entry.name == name
    assert ("itself" in best.text) == (name == "auto")


def test_without_accuracies_only_what_drops_nothing_is_chosen() -> None:
    assert imagined_ledger(judged=False).best(5.0).entry.name == "auto"


def test_without_times_the_fewest_multiplications_win() -> None:
    best = imagined_ledger(timed=False).best(0.5)
    assert best.entry.name == "vectors:4x1"
    assert "no time was taken" in best.text


def test_block_densities_of_an_entry_without_blocks_are_unknown() -> None:
    assert imagined_entry("x", 1.0, stored=0, stored_before=0).block_density is None


def test_bad_input_names_its_argument(ticket: Ticket, model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ArgumentTypeError, match="model"):
        ledger(ticket, model=3, sample=sample)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="sample"):
        ledger(ticket, model=model, sample=sample[0])  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="evaluate"):
        ledger(ticket, model=model, sample=sample, evaluate=0.5)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="evaluate"):
        ledger(ticket, model=model, sample=sample, train=train)
    with pytest.raises(ArgumentError, match="repeats"):
        ledger(ticket, model=model, sample=sample, repeats=0)
    with pytest.raises(ArgumentError, match="target"):
        ledger(ticket, model=model, sample=sample, target="tpu")
    with pytest.raises(ArgumentError, match="method"):
        ledger(ticket, ["blocks"], model=model, sample=sample)
    with pytest.raises(ArgumentError, match="each method once"):
        ledger(ticket, ["cover", "cover"], model=model, sample=sample)
    with pytest.raises(ArgumentError, match="share in"):
        ledger(ticket, [], model=model, sample=sample, evaluate=lambda network: 98.0)
    with pytest.raises(ArgumentError, match="budget_loss"):
        imagined_ledger().best(-1.0)
    with pytest.raises(ArgumentError, match="entry"):
        imagined_ledger()["blocks"]
    assert ls.convert is not None
