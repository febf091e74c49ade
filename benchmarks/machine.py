"""What a benchmark ran on: every committed result carries it."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zephyrctl import __version__
from zephyrctl.runs.manifest import library_versions


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions and day."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory),
        "python": platform.python_version(),
        "zephyrctl": __version__,
        "libraries": library_versions(),
        "day": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
