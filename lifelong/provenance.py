"""What the last digits of a run depend on beyond its spec: device, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Device, processor, number of threads and version of torch, for the record of a run."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {"device": device.type, "processor": name, "threads": torch.get_num_threads(),
            "torch": str(torch.__version__)}


def commit() -> str | None:
    """The commit of the checkout that this package runs from, with `+` where files differ; None where installed."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        def git(*words: str) -> str:
            return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
