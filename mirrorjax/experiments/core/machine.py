"""Describes the machine and the commit that a run uses."""

import os
import platform
import subprocess
from collections import Counter
from pathlib import Path

import jax

HERE = Path(__file__)


def machine() -> dict[str, str]:
    """Names the processor, the number of cores, the operating system, Python, and the devices of jax."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    devices = Counter(f"{device.platform} ({device.device_kind})" for device in jax.devices())
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "jax devices": ", ".join(f"{count} x {kind}" for kind, count in devices.items()),
    }


def commit() -> str:
    """The commit of the package's source tree, with "-dirty" where files differ from it; "-" outside of a repository.

    A package that is installed inside of another repository has none: only a tracked file belongs to a commit.
    """
    try:
        _git("ls-files", "--error-unmatch", HERE.name)
        return _git("describe", "--always", "--dirty", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "-"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(HERE.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
