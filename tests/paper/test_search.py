"""Models, data, presets and loop inside the engine: a whole search on a tiny budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lth_sparse import find_ticket
from lth_sparse.paper import PRESETS, DataSet, build_model, make_train

PRESET = replace(PRESETS["lenet"].quick(), iterations=24, evaluate_every=8, batch=20, levels=2)


def search(data: DataSet, model: str = "lenet", iterations: int = 24, **keywords: Any) -> Any:
    preset = replace(PRESET, model=model, rates=PRESETS[model].rates, iterations=iterations)
    net = build_model(model, data)
    return find_ticket(
        net, make_train(preset, data), **{"levels": 2, "rates": preset.rates, "layout": "csr", **keywords}
    )


def test_rates_of_the_preset_reach_the_layers(tiny: DataSet) -> None:
    masks = search(tiny).ticket.masks
    assert {name: round(float(mask.float().mean()), 2) for name, mask in masks.items()} == {
        "fc1.weight": 0.64,
        "fc2.weight": 0.64,
        "output.weight": 0.81,
    }


def test_every_level_and_control_has_the_loops_history_and_metrics(tiny: DataSet) -> None:
    result = search(tiny, controls=("reinit", "shuffled"))
    records = [*result.levels, *result.controls.values()]
    assert len(records) == 5
    for record in records:
        assert [row["step"] for row in record.history] == [8, 16, 24]
        assert record.metrics == {key: record.history[-1][key] for key in ("val_loss", "val_acc", "test_acc")}
        assert record.early_stop.metrics["val_loss"] == min(row["val_loss"] for row in record.history)


def test_the_random_reinitialisation_is_the_networks_own(tiny: DataSet) -> None:
    torch.manual_seed(0)
    result = search(tiny, controls=("reinit",), levels=1)
    control = result.control_tickets[1, "reinit"].state_dict("initial")
    ticket = result.ticket.state_dict("initial")
    assert not torch.equal(control["fc1.weight"], ticket["fc1.weight"])
    assert all(not control[f"{layer}.bias"].any() for layer in ("fc1", "fc2", "output"))
    kept = result.ticket.masks["fc1.weight"]
    assert float(control["fc1.weight"][kept].std()) == pytest.approx((2 / (64 + 300)) ** 0.5, rel=0.05)


def test_a_search_repeats_bit_for_bit(tiny: DataSet) -> None:
    assert search(tiny, seed=3).ticket.hash == search(tiny, seed=3).ticket.hash


def test_a_level_rewound_to_a_step_sees_the_batches_that_followed_it(
    tiny: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lth_sparse.paper.training import Batches

    drawn: list[list[int]] = []
    draw = Batches.next

    def noted(self: Batches) -> torch.Tensor:
        indices = draw(self)
        drawn.append(indices.tolist())
        return indices

    monkeypatch.setattr(Batches, "next", noted)
    search(tiny, rewind="7it", levels=1)
    assert len(drawn) == 24 + 17
    assert drawn[24:] == drawn[7:24]


def test_a_killed_search_ends_with_the_ticket_of_an_unbroken_one(tiny: DataSet, tmp_path: Path) -> None:
    class Kill:
        steps = 0

        def on_step(self, level: Any) -> None:
            self.steps += 1
            if self.steps == 40:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny, directory=tmp_path, callbacks=[Kill()])
    assert search(tiny, directory=tmp_path).ticket.hash == search(tiny).ticket.hash


def test_a_conv_net_is_pruned_at_its_own_rates(tiny: DataSet) -> None:
    masks = search(tiny, model="conv6", iterations=1, levels=1).ticket.masks
    density = {name: round(float(mask.float().mean()), 2) for name, mask in masks.items()}
    assert density == {f"conv{i}.weight": 0.85 for i in range(1, 7)} | {
        "fc1.weight": 0.8,
        "fc2.weight": 0.8,
        "output.weight": 0.9,
    }


def test_the_same_loop_trains_a_network_without_the_engine(tiny: DataSet, level: Any) -> None:
    assert make_train(PRESET, tiny)(build_model("lenet", tiny), level)["val_acc"] > 0.3
