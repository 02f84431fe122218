"""Describes the machine that a run uses."""

import os
import platform
from collections import Counter
from pathlib import Path

import jax


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
