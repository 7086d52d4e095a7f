"""The README's code runs as printed, and the paths that it and the pages of the rooms name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = (
    "README.md",
    "benchmarks/README.md",
    "kernels/README.md",
    *(f"lth_sparse/{room}/README.md" for room in ("engine", "nn", "paper")),
)


def test_python_code_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # hundreds of small steps: on a busy machine two threads mostly wait for each other
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:  # later blocks use the names of earlier ones
        exec(compile(block, "README.md", "exec"), names)
    model = names["model"]
    assert isinstance(model, torch.nn.Module)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.4 * (784 * 300 + 300 * 10)


@pytest.mark.parametrize("page", PAGES)
def test_paths_named_in_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = re.findall(r"(?<![\w/.])(?:lth_sparse|csrc|kernels|benchmarks|tests|\.ci)/[\w./]*(?![\w./<])", text)
    # A pattern such as kernels/<op>.py is cut at its bracket and names the folder.
    assert [path for path in sorted(set(named)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("target", sorted(set(re.findall(r"`?make ([a-z-]+)`?", README)) - {"and"}))
def test_make_targets_named_in_the_readme_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
