"""A tiny network with BatchNorm and dropout, a training loop for it, and searches over both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lth_sparse as ls

Train = Callable[..., dict[str, float]]


class Net(nn.Module):
    """[n, 1, 6, 6] -> [n, 3]: convolution, BatchNorm, dropout, linear layers; and a buffer outside the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 12)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        x = F.relu(self.norm(self.conv(x))).flatten(1)
        return self.out(self.drop(F.relu(self.fc(x))))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small spend their time waiting for threads, and minutes of it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """96 noisy images of three classes."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(96) % 3
    x = torch.rand(96, 1, 6, 6, generator=generator)
    x[torch.arange(96), 0, y, :] += 0.7
    return x, y


@pytest.fixture
def net(seed: int) -> Net:
    return Net()


@pytest.fixture
def make_train(data: tuple[torch.Tensor, torch.Tensor]) -> Callable[..., Train]:
    """make_train(steps, watch, schedule): SGD with momentum and decay; ``watch(model, level)`` is called before it."""
    x, y = data

    def make(steps: int = 8, watch: Callable[..., None] | None = None, schedule: bool = False) -> Train:
        def train(model: nn.Module, level: ls.engine.Level) -> dict[str, float]:
            if watch is not None:
                watch(model, level)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
            scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 6], 0.5)
            level.attach(optimizer=optimizer, scheduler=scheduler)
            model.train()
            inputs = x.to(next(model.parameters()).dtype)
            for step in range(level.start_step + 1, steps + 1):
                batch = torch.randperm(len(x))[:32]
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs[batch]), y[batch])
                loss.backward()
                optimizer.step()
                if schedule:
                    scheduler.step()
                level.step()
                if step % 4 == 0:
                    level.record(step=step, val_loss=loss.item(), test_acc=accuracy(model, inputs))
            return {"test_acc": accuracy(model, inputs)}

        @torch.no_grad()
        def accuracy(model: nn.Module, inputs: torch.Tensor) -> float:
            model.eval()
            right = float((model(inputs).argmax(1) == y).float().mean())
            model.train()
            return right

        return train

    return make


@pytest.fixture
def search(net: Net, make_train: Callable[..., Train]) -> Callable[..., Any]:
    """search(**keywords) runs find_ticket on the tiny network; ``train`` and ``model`` may be given."""

    def run(**keywords: Any) -> Any:
        options = {"levels": 3, "rate": 0.3, **keywords}
        model, train = options.pop("model", net), options.pop("train", None) or make_train()
        return ls.find_ticket(model, train, **options)

    return run
