"""Device and versions, without which no figure means anything."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess

import torch

from lth_sparse._version import __version__

__all__ = ["facts", "load"]

#: Columns of ``measuring.FACTS`` and the fields of nvidia-smi that they come from.
LOAD = {
    "sm_mhz": "clocks.sm",
    "memory_mhz": "clocks.mem",
    "power_w": "power.draw",
    "temperature_c": "temperature.gpu",
}


def facts(device: str) -> dict[str, str]:
    """What holds for a whole run: date, device, driver, versions."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    found = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": platform.machine(),
        "torch": torch.__version__,
        "triton": triton,
        "lth_sparse": __version__,
        "python": platform.python_version(),
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        found |= {
            "device": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "driver": query("driver_version").get("driver_version", ""),
            "cuda": str(torch.version.cuda),
        }
    return found


def load(device: str) -> dict[str, str]:
    """Clocks, power and temperature of now: whether the device was held back while it was measured."""
    if device != "cuda":
        return {}
    found = query(*LOAD.values())
    return {name: found.get(field, "") for name, field in LOAD.items()}


def query(*fields: str) -> dict[str, str]:
    """Fields of nvidia-smi for the first device; empty where there is no nvidia-smi, or it does not answer."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (word.strip() for word in lines[0].split(",")), strict=False)) if lines else {}
