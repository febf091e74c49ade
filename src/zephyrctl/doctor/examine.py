"""Everything that is looked at, in the order in which it is told; what waits is asked at once."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zephyrctl.doctor.finding import Finding
from zephyrctl.doctor.gpus import ask_torch, gpus, read_driver
from zephyrctl.doctor.machine import machine
from zephyrctl.doctor.network import network
from zephyrctl.doctor.software import software


def examine(folder: Path, environment: Mapping[str, str]) -> list[Finding]:
    """All findings; `folder` is where runs are kept. It takes as long as torch takes to import, a few seconds."""
    with ThreadPoolExecutor() as pool:
        seen = pool.submit(ask_torch)
        online = pool.submit(lambda: list(network(environment)))
        driver = read_driver(environment)
        return [
            *machine(folder, environment),
            *gpus(driver, seen.result()),
            *software(bool(driver.gpus)),
            *online.result(),
        ]
