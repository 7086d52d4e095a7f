"""What `lth-sparse doctor` says of GPUs: the devices, their driver, and which kernels run on them."""

from __future__ import annotations

import importlib.metadata
import subprocess

import torch

from lth_sparse.formats import LAYOUTS
from lth_sparse.ops import backend_of

__all__ = ["devices", "driver", "facts", "kernels"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OPERATORS = {"linear": 2, "conv2d": 4}


def facts() -> dict[str, str]:
    """Everything, and on a machine without a GPU what would run on one."""
    return {**devices(), "Triton": _triton(), **kernels()}


def devices() -> dict[str, str]:
    """Name, compute capability and memory of each device; driver and toolkit."""
    if not torch.cuda.is_available():
        return {"CUDA": "none (torch sees no device, or was built without CUDA)"}
    found: dict[str, str] = {}
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        size = f"{about.total_memory / 2**30:.0f} GiB, {about.multi_processor_count} multiprocessors"
        found[f"cuda:{index}"] = f"{about.name}, compute capability {about.major}.{about.minor}, {size}"
    toolkit = f"CUDA {torch.version.cuda}" if torch.version.hip is None else f"ROCm {torch.version.hip}"
    return {**found, "driver": f"{driver()}; torch was built with {toolkit}"}


def driver() -> str:
    """The NVIDIA driver's version, or that it is unknown: torch works without nvidia-smi."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        answer = []
    return answer[0] if answer else "unknown (no nvidia-smi)"


def kernels() -> dict[str, str]:
    """What runs each sparse layout on a GPU: "cuda-triton: float32, ...; reference: float64" and the like."""
    found = {}
    for kind in LAYOUTS:
        for operator, dims in OPERATORS.items():
            if kind != "dense":
                found[f"{kind} {operator}"] = _by_backend(kind, dims)
    return found


def _by_backend(kind: str, dims: int) -> str:
    dtypes: dict[str, list[str]] = {}
    for dtype in DTYPES:
        forward, backward = (backend_of(kind, "cuda", dtype, dims, gradients) for gradients in (False, True))
        name = forward if forward == backward else f"{forward}, its gradients {backward}"
        dtypes.setdefault(name, []).append(str(dtype).removeprefix("torch."))
    return "; ".join(f"{name}: {', '.join(names)}" for name, names in dtypes.items())


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: layers on a GPU run the reference"
