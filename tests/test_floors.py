"""The house keeps its floors: imports go down only, files stay short, and importing the package loads nothing heavy.

The import graph is read from the source by `ast`, so an import inside a function counts as much as one at the top.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lth_sparse"
LONGEST_FILE = 400

# From the ground up. Rooms on one floor know nothing of each other; the packages themselves may import within.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "_version"),
    ("_files",),
    ("kernels", "_C"),
    ("formats",),
    ("ops",),
    ("nn",),
    ("engine",),
    ("paper", "integrations", "report"),
    ("benchmarks",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("matplotlib", "jinja2", "rich", "typer", "sklearn", "scipy")


def sources() -> list[Path]:
    """Every Python file of the package, and those of kernels/ and benchmarks/, which the build maps into it."""
    trees = (PACKAGE, ROOT / "kernels", ROOT / "benchmarks")
    return sorted(path for tree in trees for path in tree.rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name under which a file is imported."""
    relative = path.relative_to(ROOT).with_suffix("")
    parts = relative.parts if relative.parts[0] == "lth_sparse" else ("lth_sparse", *relative.parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """`lth_sparse.ops.cpu` is in the room `ops`; the package itself is in the room ``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) for each import in a file; `from lth_sparse import nn` counts as lth_sparse.nn."""
    module = module_of(path)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            if target == "lth_sparse":
                yield from ((node.lineno, f"{target}.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, target


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# The package's own __init__ stands above the floors and re-exports from them.
@pytest.mark.parametrize("path", [path for path in sources() if room_of(module_of(path))], ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    here = room_of(module_of(path))
    assert here in LEVEL, f"{name_of(path)}: '{here}' has no floor; give it one in FLOORS"
    wrong = []
    for line, target in imports_of(path):
        if target.split(".")[0] != "lth_sparse" or (there := room_of(target)) == here:
            continue
        if LEVEL.get(there, len(FLOORS)) >= LEVEL[here]:
            wrong.append(f"{name_of(path)}:{line} imports {target}")
    assert not wrong, "an import must go to a lower floor:\n" + "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_file_stays_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", sorted(ROOT.glob("csrc/*")), ids=name_of)
def test_a_file_of_cpp_stays_under_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "the first lines must show the idea of the file"


def test_only_the_files_of_the_module_know_pybind11_and_no_file_knows_libtorch() -> None:
    includes = {
        (path.name, line.strip())
        for path in ROOT.glob("csrc/*")
        for line in path.read_text().splitlines()
        if line.lstrip().startswith("#") and "include" in line
    }
    knowing = {"module.h", "module.cpp", "module_rebuild.cpp", "module_reorder.cpp"}
    assert {name for name, line in includes if "pybind11" in line or "module.h" in line} == knowing
    assert not {(name, line) for name, line in includes if any(s in line for s in ("torch/", "ATen/", "c10/"))}


def test_importing_the_package_loads_nothing_heavy_and_nothing_of_the_upper_floors() -> None:
    heavy = [*HEAVY, *(f"lth_sparse.{room}" for rooms in FLOORS[-2:] for room in rooms)]
    # torch may load some of these on its own, hence the difference.
    code = (
        "import json, sys, torch, numpy, safetensors\n"
        "before = set(sys.modules)\n"
        "import lth_sparse\n"
        f"print(json.dumps(sorted(set({heavy!r}) & (set(sys.modules) - before))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(result.stdout) == []
