"""SGD with momentum, decay, warm-up, milestones and augmentation in the paper's loop: torch's own, on live weights.

A narrow network stands for ResNet-20 where only the loop is looked at.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lth_sparse import find_ticket, sparsify_
from lth_sparse.nn import dense_state_dict
from lth_sparse.paper import PRESETS, DataSet, PaperNet, make_train
from lth_sparse.paper.augmentation import augmented
from lth_sparse.paper.models import Block

PRESET = replace(
    PRESETS["resnet"].quick(), iterations=12, batch=20, evaluate_every=6, levels=2, lr=0.05, milestones=(6, 9), crop=1
)
AUGMENTED = replace(PRESET, flip=True, warmup=6)


def narrow(seed: int = 0) -> PaperNet:
    """A residual network of 4 and 6 channels with the names of the paper's."""
    torch.manual_seed(seed)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 4, 3, padding=1, bias=False)),
        ("conv1_bn", nn.BatchNorm2d(4)),
        ("conv1_relu", nn.ReLU()),
        ("block1", Block(4, 6, 2)),
        ("mean", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("output", nn.Linear(6, 10)),
    ]
    return PaperNet(OrderedDict(layers))


def search(data: DataSet, preset: Any = AUGMENTED, **keywords: Any) -> Any:
    options = {"levels": preset.levels, "rates": preset.rates, "scope": preset.scope, "layout": "csr", **keywords}
    return find_ticket(narrow(), make_train(preset, data), **options)


class Watch:
    """Notes, after each step of each training, what a test asks for."""

    def __init__(self, look: Any) -> None:
        self.look, self.seen = look, []

    def on_level_start(self, level: Any) -> None:
        self.seen.append([])

    def on_step(self, level: Any) -> None:
        self.seen[-1].append(self.look(level))


def rate_of(level: Any) -> float:
    return level._attached["optimizer"].param_groups[0]["lr"]


def test_it_is_sgd_with_momentum_decay_schedule_and_augmented_batches(tiny: DataSet, level: Any, seed: int) -> None:
    model, plain = narrow(), narrow()
    torch.manual_seed(5)
    make_train(AUGMENTED, tiny)(model, level)
    torch.manual_seed(5)
    state = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    order = torch.empty(0, dtype=torch.int64)
    plain.train()
    for step in range(12):
        if order.numel() < 20:
            order = torch.randperm(100)
        indices, order = order[:20], order[20:]
        plain.zero_grad()
        x = augmented(tiny.train.x[indices], flip=True, crop=1)
        F.cross_entropy(plain(x), tiny.train.y[indices]).backward()
        lr = 0.05 * min(1, (step + 1) / 6) * (0.1 if step >= 6 else 1) * (0.1 if step >= 9 else 1)
        with torch.no_grad():
            for name, p in plain.named_parameters():
                assert p.grad is not None
                state[name] = 0.9 * state[name] + p.grad + 1e-4 * p
                p -= lr * state[name]
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4, msg=name)


def test_what_is_measured_is_never_augmented(tiny: DataSet, level: Any, seed: int) -> None:
    model = narrow()
    metrics = make_train(AUGMENTED, tiny)(model, level)
    model.eval()
    with torch.no_grad():
        assert metrics["val_loss"] == pytest.approx(float(F.cross_entropy(model(tiny.val.x), tiny.val.y)), rel=1e-6)


def test_every_iteration_has_the_presets_learning_rate(tiny: DataSet) -> None:
    """After a step, the rate is that of the next one; every level begins the schedule anew."""
    watch = Watch(rate_of)
    search(tiny, callbacks=[watch])
    expected = [0.05 * AUGMENTED.lr_factor(step) for step in range(1, 13)]
    assert len(watch.seen) == 3
    for seen in watch.seen:
        assert seen == pytest.approx(expected)


def test_without_milestones_and_warmup_nothing_is_scheduled(tiny: DataSet, level: Any, seed: int) -> None:
    make_train(replace(PRESET, milestones=()), tiny)(narrow(), level)
    assert set(level.attached) == {"optimizer", "batches"}


def test_levels_start_with_fresh_momentum_and_the_first_statistics(tiny: DataSet) -> None:
    starts: list[dict[str, Tensor]] = []
    make = make_train(AUGMENTED, tiny)

    class Noted:
        """The level, looked at when the loop has made its optimiser."""

        def __init__(self, level: Any) -> None:
            self.level = level

        def __getattr__(self, name: str) -> Any:
            return getattr(self.level, name)

        def attach(self, **things: Any) -> None:
            self.level.attach(**things)
            assert not things["optimizer"].state
            assert things["optimizer"].param_groups[0]["lr"] == pytest.approx(0.05 / 6)
            starts.append({k: v.clone() for k, v in dense_state_dict(self.level.model).items() if "running" in k})

    find_ticket(
        narrow(),
        lambda model, level: make(model, Noted(level)),
        levels=2,
        rates=AUGMENTED.rates,
        scope="global",
        controls=["reinit"],
    )
    assert len(starts) == 4
    for start in starts:
        for name, statistic in start.items():
            assert torch.equal(statistic, torch.full_like(statistic, float("var" in name))), name


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_decay_and_momentum_leave_pruned_weights_at_zero(tiny: DataSet, level: Any, seed: int, layout: str) -> None:
    """Heavy decay: the live weights follow masked dense SGD, and no parameter holds a pruned one."""
    preset = replace(AUGMENTED, weight_decay=0.05)
    masks = {f"{name}.weight": torch.rand(w.shape) < 0.4 for name, w in convs(narrow()).items()}
    sparse, dense = narrow(), narrow()
    sparsify_(sparse, masks, layout=layout)
    torch.manual_seed(3)
    make_train(preset, tiny)(sparse, level)
    live = sum(int(mask.sum()) for mask in masks.values()) + sum(
        p.numel() for name, p in dense.named_parameters() if name not in masks
    )
    assert sum(p.numel() for p in sparse.parameters()) == live
    buffers = level.attached["optimizer"].state.values()
    assert sum(entry["momentum_buffer"].numel() for entry in buffers) == live

    for name, p in dense.named_parameters():  # the same in plain torch: gradient, momentum and decay through the mask
        if name in masks:
            p.register_hook(lambda gradient, mask=masks[name]: gradient * mask)
            with torch.no_grad():
                p.mul_(masks[name])
    torch.manual_seed(3)
    make_train(preset, tiny)(dense, type(level)())
    reached = dense_state_dict(sparse)
    for name, p in dense.named_parameters():
        torch.testing.assert_close(reached[name], p.detach(), atol=1e-6, rtol=1e-4, msg=name)
    for name, mask in masks.items():
        assert not reached[name][~mask].any()


def convs(model: nn.Module) -> dict[str, Tensor]:
    return {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "shortcut" not in name}


def test_decay_reaches_biases_and_batch_normalisation(tiny: DataSet, level: Any, seed: int) -> None:
    """As in the released code of the paper's authors: one group of all parameters."""
    model = narrow()
    make_train(AUGMENTED, tiny)(model, level)
    (group,) = level.attached["optimizer"].param_groups
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (1e-4, 0.9, False)
    assert len(group["params"]) == len(list(model.parameters()))


def test_shortcuts_and_output_are_never_pruned(tiny: DataSet) -> None:
    masks = search(tiny).ticket.masks
    assert masks["block1.shortcut.weight"].all()
    assert masks["output.weight"].all()
    pruned = [mask for name, mask in masks.items() if name not in ("block1.shortcut.weight", "output.weight")]
    numel = sum(mask.numel() for mask in pruned)
    assert sum(int(mask.sum()) for mask in pruned) == round(numel * 0.64)


@pytest.mark.parametrize("rewind", ["init", "5it", "continue"])
@pytest.mark.parametrize("kill_at", [4, 20])
def test_a_search_killed_in_a_level_ends_as_an_unbroken_one(
    tiny: DataSet, tmp_path: Path, rewind: str, kill_at: int
) -> None:
    class Kill:
        steps = 0

        def on_step(self, level: Any) -> None:
            self.steps += 1
            if self.steps == kill_at:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny, directory=tmp_path, callbacks=[Kill()], rewind=rewind)
    torch.manual_seed(99)  # whatever the state of the process that goes on
    resumed, whole = search(tiny, directory=tmp_path, rewind=rewind), search(tiny, rewind=rewind)
    assert [ticket.hash for ticket in resumed.tickets] == [ticket.hash for ticket in whole.tickets]


def test_a_level_rewound_to_a_step_sees_the_images_and_rates_that_followed_it(
    tiny: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lth_sparse.paper import training

    seen: list[Tensor] = []

    def noted(x: Tensor, **options: Any) -> Tensor:
        seen.append(augmented(x, **options))
        return seen[-1]

    monkeypatch.setattr(training, "augmented", noted)
    watch = Watch(rate_of)
    search(tiny, rewind="5it", levels=1, callbacks=[watch])
    assert len(seen) == 12 + 7
    assert all(torch.equal(a, b) for a, b in zip(seen[12:], seen[5:12], strict=True))
    assert watch.seen[1] == watch.seen[0][5:]


def test_learning_rate_rewinding_replays_the_schedule_and_fine_tuning_keeps_its_end(tiny: DataSet) -> None:
    for rewind in ("lr", "finetune"):
        watch = Watch(rate_of)
        search(tiny, rewind=rewind, levels=1, callbacks=[watch])
        dense, later = watch.seen
        assert later == pytest.approx(dense if rewind == "lr" else [0.05 * 0.01] * 12)


def test_a_stored_schedule_comes_back_from_disk(tiny: DataSet, tmp_path: Path) -> None:
    class Kill:
        def on_level_end(self, record: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tiny, rewind="5it", levels=1, directory=tmp_path, callbacks=[Kill()])
    assert search(tiny, rewind="5it", levels=1, directory=tmp_path).ticket.hash == (
        search(tiny, rewind="5it", levels=1).ticket.hash
    )
