"""Models that keep their activations feature-major: the same results, the format at every layer, and the way back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lth_sparse as ls
from lth_sparse.errors import ArgumentError, ArgumentTypeError
from lth_sparse.ops.strides import is_feature_major


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def network() -> nn.Sequential:
    """Every module class that knows the format, residual sums, and odd sizes."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
        Residual(6),
        nn.AvgPool2d(3, 1, 1),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.AdaptiveMaxPool2d(2),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(16, 10),
        nn.BatchNorm1d(10),
        nn.GELU(),
        nn.Linear(10, 4),
    )


def sparse_network(dense_first: bool) -> nn.Module:
    model = network().double()
    masks = {name: torch.rand(p.shape) < 0.4 for name, p in model.named_parameters() if p.dim() > 1}
    if dense_first:
        del masks["0.weight"]
    ls.sparsify_(model, masks, layout="csr")
    return model


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.arange(y.numel()).view_as(y)).sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [y, x.grad, *grads, *(buffer for buffer in model.buffers() if buffer.is_floating_point())]  # type: ignore[list-item]


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dense_first", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 5, 33])
def test_results_gradients_and_statistics_are_the_same(batch: int, dense_first: bool) -> None:
    plain = sparse_network(dense_first)
    if batch == 1:
        plain.eval()
    model = ls.nn.feature_major_(copy.deepcopy(plain))
    x = torch.randn(batch, 3, 9, 7, dtype=torch.float64)
    for ours, right in zip(run(model, x), run(plain, x), strict=True):
        torch.testing.assert_close(ours, right)
    assert model(x).is_contiguous()
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.usefixtures("seed")
@pytest.mark.parametrize("dense_first", [False, True])
def test_no_layer_drops_the_format(dense_first: bool) -> None:
    model = ls.nn.feature_major_(sparse_network(dense_first))
    seen: dict[str, bool] = {}
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda m, a, y, name=name: seen.update({name: is_feature_major(y)}))
    x = torch.randn(5, 3, 9, 7, dtype=torch.float64)
    model(x)
    assert len(seen) == 16
    assert all(seen.values()), seen


@pytest.mark.usefixtures("seed")
def test_gradients_of_images_keep_the_format_too() -> None:
    conv = ls.nn.SparseConv2d.from_dense(nn.Conv2d(3, 4, 3), torch.rand(4, 3, 3, 3) < 0.5)
    x = ls.functional.feature_major(torch.randn(5, 3, 6, 6)).requires_grad_()
    conv(x).sum().backward()
    assert x.grad is not None
    assert is_feature_major(x.grad)


@pytest.mark.usefixtures("seed")
def test_taking_it_back_restores_every_class_and_removes_the_hooks() -> None:
    plain = sparse_network(True)
    model = copy.deepcopy(plain)
    assert ls.nn.feature_major_(ls.nn.feature_major_(model)) is model
    twin = copy.deepcopy(model)
    ls.nn.feature_major_(twin, False)
    assert [type(m) for m in twin.modules()] == [type(m) for m in plain.modules()]
    assert not twin._forward_hooks
    assert not twin._forward_pre_hooks
    assert len(model._forward_hooks) == 1  # the copy's hooks were its own
    x = torch.randn(5, 3, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(model(x), twin(x))


@pytest.mark.usefixtures("seed")
def test_other_inputs_go_through_untouched() -> None:
    class Embed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(7, 6), nn.Linear(6, 4)

        def forward(self, tokens: Tensor, *, scale: Tensor, name: str) -> dict[str, Any]:
            return {"logits": self.fc(self.table(tokens)) * scale, "name": name}

    model = ls.nn.feature_major_(Embed())
    out = model(torch.randint(7, (5, 3)), scale=torch.tensor(2.0), name="a")
    assert out["logits"].shape == (5, 3, 4)
    assert out["name"] == "a"


@pytest.mark.usefixtures("seed")
def test_wrong_shapes_are_refused_as_torch_refuses_them() -> None:
    model = ls.nn.feature_major_(nn.Sequential(nn.BatchNorm2d(3)))
    with pytest.raises(ValueError, match="expected 4D input"):
        model(torch.randn(2, 3, 4))
    with pytest.raises(ValueError, match="expected 4D input"):
        model(torch.randn(2, 3))


@pytest.mark.usefixtures("seed")
def test_pooling_of_one_image_without_a_batch_and_with_indices() -> None:
    image = torch.randn(4, 6, 5).permute(2, 0, 1)  # its strides look like those of five feature-major rows
    pool = ls.nn.feature_major_(nn.Sequential(nn.MaxPool2d(2)))
    assert torch.equal(pool[0](image), nn.MaxPool2d(2)(image))
    batch = ls.functional.feature_major(torch.randn(3, 2, 6, 6))
    with_indices = ls.nn.feature_major_(nn.Sequential(nn.MaxPool2d(2, return_indices=True)))
    for ours, right in zip(with_indices(batch), nn.MaxPool2d(2, return_indices=True)(batch), strict=True):
        assert torch.equal(ours, right)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentTypeError, match=r"model: expected a torch\.nn\.Module, got dict"):
        ls.nn.feature_major_({})  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="enabled: expected True or False, got 'yes'"):
        ls.nn.feature_major_(nn.Linear(2, 2), "yes")  # type: ignore[arg-type]
