"""The package as users get it: sdist, wheel and installation, without torch at build time and without a registry.

One sdist is made of this checkout, one wheel of that sdist, and the wheel is installed into a fresh environment; the
compiler runs once. Nothing is written into the checkout.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lth_sparse

ROOT = Path(__file__).resolve().parent.parent
SITE = sysconfig.get_path("purelib")
SOURCES = ("csrc", "kernels", "lth_sparse", "tests", "benchmarks", ".ci")
BUILD_REQUIREMENTS = ("setuptools", "wheel", "pybind11", "packaging")
#: A table of launch configurations, whether one is shipped yet or not.
TABLE = "kernels/tables/some-device.json"
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with no trace of the surrounding Python environment but what is passed; output is captured."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_", "VIRTUAL"))
    }
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def checked(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """The same for a command that must succeed; returns its output."""
    result = run(command, cwd, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout as a clone would have it: sources, nothing built."""
    copy = tmp_path_factory.mktemp("clone") / "lth_sparse"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=NOT_SOURCE)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, copy)
    (copy / TABLE).parent.mkdir(exist_ok=True)
    (copy / TABLE).write_text('{"tiles": {}}')
    return copy


@pytest.fixture(scope="module")
def build_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a build may import, and nothing else: in particular no torch."""
    folder = tmp_path_factory.mktemp("tools")
    for name in BUILD_REQUIREMENTS:
        for file in metadata.distribution(name).files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty virtual environment."""
    environment = tmp_path_factory.mktemp("environment")
    checked([sys.executable, "-m", "venv", "--without-pip", environment], cwd=environment)
    return environment / "bin" / "python"


@pytest.fixture(scope="module")
def sdist(checkout: Path, build_tools: Path, fresh_python: Path) -> Path:
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    checked([fresh_python, "-c", code], cwd=checkout, PYTHONPATH=str(build_tools))
    (archive,) = checkout.glob("dist/*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, build_tools: Path, fresh_python: Path) -> Path:
    """The wheel that pip makes of the sdist in an environment without torch."""
    assert run([fresh_python, "-c", "import torch"], sdist.parent, PYTHONPATH=str(build_tools)).returncode != 0
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", fresh_python]
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", sdist.parent]
    # What is looked at is the package, and optimized code would take thrice the time.
    checked([*pip, "wheel", *options, sdist], cwd=sdist.parent, PYTHONPATH=str(build_tools), CFLAGS="-O0")
    (archive,) = sdist.parent.glob("*.whl")
    return archive


@pytest.fixture(scope="module")
def installed(wheel: Path, fresh_python: Path) -> Path:
    """The fresh interpreter with the wheel installed, and this environment's other packages as its dependencies."""
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", fresh_python]
    checked([*pip, "install", "--no-deps", "--no-index", wheel], cwd=wheel.parent)
    where = checked([fresh_python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=wheel.parent)
    # A folder named in a .pth file comes after the environment's own, and its own .pth files are not read: an editable
    # installation of lth_sparse in it stays out of sight.
    (Path(where.strip()) / "dependencies.pth").write_text(SITE)
    return fresh_python


def test_sdist_holds_all_that_builds_tests_and_explains_the_package(sdist: Path, checkout: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {
        str(path.relative_to(checkout))
        for folder in SOURCES
        for path in (checkout / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    }
    wanted |= {
        "LICENSE",
        "README.md",
        "Makefile",
        "MANIFEST.in",
        "pyproject.toml",
        "setup.py",
        "requirements.txt",
        "requirements-newest.txt",
        "requirements-oldest.txt",
    }
    assert wanted - held == set()


def test_sdist_holds_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        assert [name for name in archive.getnames() if name.endswith((".so", ".o", ".pyc"))] == []


@pytest.mark.slow
def test_wheel_holds_the_package_the_extension_and_the_kernels(wheel: Path, checkout: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(checkout)) for path in (checkout / "lth_sparse").rglob("*") if path.is_file()}
    mapped = {
        f"lth_sparse/{path.relative_to(checkout)}"
        for folder in ("kernels", "benchmarks")
        for path in (checkout / folder).rglob("*.py")
        if path.name != "conftest.py" and not path.name.startswith("test_")
    }
    assert (package | mapped | {f"lth_sparse/{TABLE}"}) - held == set()
    assert not [name for name in held if "/conftest.py" in name or "/test_" in name]
    assert "lth_sparse/py.typed" in held
    assert [name for name in held if name.startswith("lth_sparse/_C.") and name.endswith((".so", ".pyd"))]


@pytest.mark.slow
def test_wheel_holds_nothing_beside_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"lth_sparse", f"lth_sparse-{lth_sparse.__version__}.dist-info"}


@pytest.mark.slow
def test_wheel_names_its_license(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel)
    (notice,) = [name for name in held.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
    assert "Apache License" in held.read(notice).decode()


@pytest.mark.slow
def test_installed_wheel_imports_from_its_own_files(installed: Path, tmp_path: Path) -> None:
    modules = ("lth_sparse", "lth_sparse._C", "lth_sparse.kernels", "lth_sparse.benchmarks.cases")
    code = "import importlib\n" + "\n".join(f"print(importlib.import_module({name!r}).__file__)" for name in modules)
    for file in checked([installed, "-c", code], cwd=tmp_path).split():
        assert Path(file).is_relative_to(installed.parent.parent)


@pytest.mark.slow
def test_extension_links_no_libtorch(installed: Path, tmp_path: Path) -> None:
    code = "import lth_sparse._C as extension; print(extension.__file__)"
    library = Path(checked([installed, "-c", code], cwd=tmp_path).strip()).read_bytes()
    assert b"libtorch" not in library
    assert b"libc10" not in library


@pytest.mark.slow
def test_installed_command_answers_help(installed: Path, tmp_path: Path) -> None:
    assert "find" in checked([installed.parent / "lth-sparse", "--help"], cwd=tmp_path)


def test_import_from_a_checkout_that_is_not_installed_says_what_to_do(checkout: Path) -> None:
    # -S leaves .pth files unread, so that an editable installation cannot lend its extension.
    code = f"import sys; sys.path += [{SITE!r}]; import lth_sparse"
    result = run([sys.executable, "-S", "-c", code], cwd=checkout)
    assert result.returncode != 0
    assert "make ticket" in result.stderr
    assert "pip install ." in result.stderr


def test_import_without_torch_says_what_to_do(checkout: Path) -> None:
    result = run([sys.executable, "-S", "-c", "import lth_sparse"], cwd=checkout)
    assert result.returncode != 0
    assert "pip install ." in result.stderr


def test_build_without_a_compiler_says_what_to_install(checkout: Path) -> None:
    result = run([sys.executable, "setup.py", "build_ext"], cwd=checkout, CXX="no-such-compiler", CC="no-such-compiler")
    assert result.returncode != 0
    assert "no C++ compiler" in result.stderr
    assert "apt install g++" in result.stderr


def test_version_has_one_source() -> None:
    assert metadata.version("lth_sparse") == lth_sparse.__version__


@pytest.mark.parametrize("folder", ["kernels", "benchmarks"])
def test_a_folder_of_the_checkout_is_a_package_below_lth_sparse(folder: str) -> None:
    module = importlib.import_module(f"lth_sparse.{folder}")
    assert Path(str(module.__file__)).parent.name == folder


def pins() -> dict[str, str]:
    """Name -> exact version of each line of requirements.txt that concerns this Python."""
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    parsed = [Requirement(line) for line in lines]
    assert all(str(requirement.specifier).startswith("==") for requirement in parsed)
    here = [requirement for requirement in parsed if requirement.marker is None or requirement.marker.evaluate()]
    versions = {canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in here}
    assert len(versions) == len(here), "pinned twice"
    return versions


#: Extras that no test needs: a cluster's engine, and other partitioners.
UNPINNED = ("ray", "partition")


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    for line in metadata.requires("lth_sparse") or ():
        requirement = Requirement(line)
        if requirement.name == "lth_sparse":  # "dev" names "test"
            continue
        if any(requirement.marker and requirement.marker.evaluate({"extra": extra}) for extra in UNPINNED):
            continue
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)], prereleases=True), line


def test_nothing_is_pinned_that_is_not_needed() -> None:
    needed: set[str] = set()
    queue = ["lth_sparse", *BUILD_REQUIREMENTS]
    while queue:
        name = canonicalize_name(queue.pop())
        if name in needed:
            continue
        needed.add(name)
        extras = ("", "test", "dev") if name == "lth-sparse" else ("",)
        for requirement in map(Requirement, metadata.requires(name) or ()):
            wanted = requirement.marker is None or any(
                requirement.marker.evaluate({"extra": extra}) for extra in extras
            )
            if wanted:
                queue.append(requirement.name)
    assert set(pins()) - needed == set()
