"""Run all checks; those that wait for a process or the network run at the same time."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zephyrctl.doctor.finding import Finding
from zephyrctl.doctor.gpus import ask_torch, gpus, read_driver
from zephyrctl.doctor.machine import machine
from zephyrctl.doctor.network import network
from zephyrctl.doctor.software import software


def examine(folder: Path, environment: Mapping[str, str]) -> list[Finding]:
    """All findings, in the order in which they are printed. `folder` contains the runs.

    Importing torch takes longest: a few seconds.
    """
    with ThreadPoolExecutor() as pool:
        torch = pool.submit(ask_torch)
        online = pool.submit(lambda: list(network(environment)))
        driver = read_driver(environment)
        return [
            *machine(folder, environment),
            *gpus(driver, torch.result()),
            *software(bool(driver.gpus)),
            *online.result(),
        ]
