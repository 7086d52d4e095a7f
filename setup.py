"""Builds the C++ extension and maps ``kernels/`` and ``benchmarks/`` into the package; the rest is in pyproject.toml.

``csrc/*.cpp`` becomes ``lth_sparse._C``. It links the C++ and OpenMP run-times and nothing else, in particular no
libtorch, and is compiled without ``-march``: each instruction set has its own region inside the sources and is chosen
at run time, so one wheel runs on every processor of its architecture.
"""

from __future__ import annotations

import os
import shutil
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError
from setuptools.modified import newer_group

SOURCES = sorted(glob("csrc/**/*.cpp", recursive=True))
# Whatever a source may include. setup.py counts as a header: who changes the flags wants them used.
HEADERS = [
    "setup.py",
    *(path for end in ("h", "hpp", "def", "inc") for path in sorted(glob(f"csrc/**/*.{end}", recursive=True))),
]
# Folders of the checkout that are imported as lth_sparse.<folder>.
MAPPED = ("kernels", "benchmarks")


def packages() -> list[str]:
    """The packages of ``lth_sparse/``, and those of ``kernels/`` and ``benchmarks/`` under ``lth_sparse.<folder>``."""
    below = find_packages(include=["lth_sparse", "lth_sparse.*"])
    mapped = [pattern for folder in MAPPED for pattern in (folder, f"{folder}.*")]
    return below + [f"lth_sparse.{name}" for name in find_packages(include=mapped)]


def flags() -> tuple[list[str], list[str]]:
    """Compiler and linker flags of this platform."""
    if sys.platform == "win32":
        return ["/O2", "/openmp:experimental"], []
    compile_flags = ["-fvisibility=hidden", "-Wall"]
    # What is added here comes last on the command line, so -O3 would overrule the level of whoever asks for one.
    asked = os.environ.get("CFLAGS", "") + " " + os.environ.get("CXXFLAGS", "")
    if not any(flag.startswith("-O") for flag in asked.split()):
        compile_flags.insert(0, "-O3")
    if sys.platform == "darwin":
        # Apple's clang has the OpenMP front end but ships no run-time for it: csrc/team.h has threads for that case.
        return compile_flags, []
    return [*compile_flags, "-fopenmp"], ["-fopenmp"]


def stale(target: str, source: str) -> bool:
    """Whether an object file is older than its source or any header; objects then compile only when they must."""
    return newer_group([source, *HEADERS], target)


class BuildExtension(build_ext):
    """pybind11's build_ext, with one clear line when there is no C++ compiler."""

    def build_extensions(self) -> None:
        command = getattr(self.compiler, "compiler_cxx", None) or getattr(self.compiler, "compiler", None)
        if command and shutil.which(command[0]) is None:
            raise CompileError(
                f"lth_sparse: no C++ compiler: '{command[0]}' is not on PATH. Install one (Debian, Ubuntu: "
                "apt install g++; Fedora: dnf install gcc-c++), or name yours in the environment variable CXX."
            )
        super().build_extensions()


class BuildPython(build_py):
    """build_py without the pytest files that lie in ``benchmarks/``: they are for a checkout."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [one for one in found if one[1] != "conftest" and not one[1].startswith("test_")]


if not SOURCES:
    raise SystemExit("lth_sparse: csrc/*.cpp is missing: build from a complete checkout or sdist, in its root folder.")

version: dict[str, str] = {}
exec(Path("lth_sparse/_version.py").read_text(), version)  # importing the package would need what is being built
compile_flags, link_flags = flags()
ParallelCompile("LTH_SPARSE_BUILD_JOBS", default=os.cpu_count() or 1, needs_recompile=stale).install()
setup(
    packages=packages(),
    package_dir={"lth_sparse": "lth_sparse", **{f"lth_sparse.{folder}": folder for folder in MAPPED}},
    package_data={
        "lth_sparse": ["py.typed", "*.pyi"],
        "lth_sparse.kernels": ["tables/*.json"],
        "lth_sparse.report": ["templates/*.j2"],
    },
    ext_modules=[
        Pybind11Extension(
            "lth_sparse._C",
            SOURCES,
            depends=HEADERS,
            define_macros=[("LTH_SPARSE_VERSION", f'"{version["__version__"]}"')],
            cxx_std=17,
            extra_compile_args=compile_flags,
            extra_link_args=link_flags,
        )
    ],
    cmdclass={"build_ext": BuildExtension, "build_py": BuildPython},
)
