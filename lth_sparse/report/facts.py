"""What a figure must be read with: versions, machine, kernels. Used by the report and by `lth-sparse doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from lth_sparse.ops.plan_cache import cpu_generation, cpu_name

__all__ = ["PACKAGES", "cores", "cpu_generation", "cpu_name", "environment", "kernels", "machine", "versions"]

PACKAGES = ("torch", "numpy", "safetensors", "rich", "typer", "jinja2", "matplotlib", "scikit-learn", "triton")

#: Every environment variable that changes what runs.
VARIABLES = (
    "LTH_SPARSE_BACKEND",
    "LTH_SPARSE_ISA",
    "LTH_SPARSE_CACHE",
    "LTH_SPARSE_CACHE_DIR",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "CUDA_VISIBLE_DEVICES",
)


def versions(more: tuple[str, ...] = ()) -> dict[str, str]:
    """Package -> version, of `more` too, "not installed" where absent, lth_sparse and Python first."""
    import torch

    from lth_sparse._version import __version__

    found = {"lth_sparse": __version__, "python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"torch": torch.__version__}  # which build it is as well


def machine() -> dict[str, str]:
    """Processor, cores this process may use, torch's threads, memory, system."""
    import torch

    return {
        "processor": cpu_name(),
        "cores": str(cores()),
        "threads": str(torch.get_num_threads()),
        "memory": _memory(),
        "system": platform.platform(terse=True),
    }


def kernels() -> dict[str, str]:
    """The instruction set in use, all that can run here, and how the extension was built."""
    from lth_sparse import _C

    build = _C.build_info()
    return {
        "instruction set": _C.isa(),
        "runnable here": ", ".join(_C.isas()),
        **{name: str(value) for name, value in build.items()},
    }


def environment() -> dict[str, str]:
    """The variables of `VARIABLES` that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def cores() -> int:
    """Processor cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{size / 2**30:.0f} GiB"
