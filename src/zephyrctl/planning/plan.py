"""What a recipe's training will be on the hardware it names, or that is here: solved, refused, described."""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zephyrctl.contracts import ModelBase
from zephyrctl.disk import write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.planning import hardware, solver
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.solver import Solution
from zephyrctl.recipe.schema import Expected, Recipe, Training
from zephyrctl.training.kinds import training_kind

PROBED = "probe.json"
"""The file of a run that keeps what a probe measured; named here, as a plan looks for it and imports no pyarrow."""

if TYPE_CHECKING:
    from zephyrctl.training.results import RowReport


def settings_of(recipe: Recipe, stage: str) -> Training:
    """The section of a stage."""
    return recipe.training_section(stage)


def machine(recipe: Recipe) -> Machine:
    """The hardware that the recipe names; what it does not name is what this machine has."""
    return hardware.machine(recipe.hardware, recipe.launch)


def solve(
    recipe: Recipe, stage: str, base: ModelBase, expected: Expected | None = None, mfu: float | None = None
) -> Solution:
    """The layout of a stage with what it costs; `mfu` as a probe measured it. Raises ZephyrError where nothing fits."""
    settings, expected = settings_of(recipe, stage), expected or recipe.expected
    return solver.solve(settings, recipe.launch, machine(recipe), base.sizes(), stage, expected, mfu)


def solve_with(recipe: Recipe, stage: str, base: ModelBase, report: "RowReport") -> Solution:
    """The layout of a stage whose rows are prepared, so that their numbers are known."""
    return solve(recipe, stage, base, measured(stage, report))


def measured(stage: str, report: "RowReport") -> Expected:
    """What the recipe could only expect: how many rows there are and how long they are."""
    if training_kind(stage).rows == "dialogues":
        return Expected(dialogues=report.rows_kept, dialogue_tokens=report.tokens_kept / report.rows_kept)
    answers = report.learnt_tokens / 2 / report.rows_kept
    prompts = (report.tokens_kept - report.learnt_tokens) / report.rows_kept
    return Expected(pairs=report.rows_kept, prompt_tokens=prompts, answer_tokens=answers)


def write_launches(recipe: Recipe, solutions: Mapping[str, Solution], folder: Path) -> dict[str, dict[str, str]]:
    """Write DeepSpeed's and accelerate's configurations and a script for every launcher, one folder per stage.

    Returns what to type in each stage's folder, by launcher. The job file that all of them start comes from the stage:
    `runs/NAME/.STAGE.unfinished/.scratch/job.json`.
    """
    from zephyrctl.launching import launchers
    from zephyrctl.launching.deepspeed_config import deepspeed_config

    lines: dict[str, dict[str, str]] = {}
    for stage, solution in solutions.items():
        place = folder / stage
        place.mkdir(parents=True, exist_ok=True)
        written = launchers.launch_scripts(stage, solution.layout, recipe.launch)
        config = deepspeed_config(settings_of(recipe, stage), recipe.launch, solution.layout)
        files = written.files | ({"deepspeed.json": json.dumps(config, indent=2) + "\n"} if config else {})
        for name, text in files.items():
            write_whole(place / name, text)
        lines[stage] = {str(launcher): command for launcher, command in written.commands.items()}
    return lines


def check_here(recipe: Recipe, stage: str, base: ModelBase) -> None:
    """Raise ZephyrError if nothing fits, if no launcher reaches the machines, or if this machine lacks something."""
    from zephyrctl.launching import launchers
    from zephyrctl.launching.processes import gpus

    solution = solve(recipe, stage, base)
    layout = solution.layout
    here = gpus()
    if not layout.on_cpu and not here and not _leads_elsewhere(recipe):
        raise ZephyrError(
            f"{recipe.name} trains {recipe.base.name} on {solution.workload.machine}, "
            f"{solution.peak_gb:.0f} GB on each; this machine has no GPU",
            "run it on such machines, or see the whole recipe work here: zephyrctl run --recipe tiny",
        )
    launcher = launchers.choose_launcher(recipe.launch, layout)
    if launcher in launchers.LOCAL and not layout.on_cpu and here < layout.processes:
        raise ZephyrError(
            f"{recipe.name} trains {recipe.base.name} on {solution.workload.machine}; "
            f"this machine has {here} GPU{'' if here == 1 else 's'}",
            f"plan for what is here: --nodes 1 --gpus {here}",
        )
    if launcher in launchers.LOCAL:
        check_installed(recipe, stage, layout.on_cpu)


def _leads_elsewhere(recipe: Recipe) -> bool:
    """True where something is here that starts processes on other machines."""
    from zephyrctl.launching import slurm

    is_asked = recipe.launch.launcher in ("slurm", "deepspeed") or recipe.launch.hostfile is not None
    return is_asked or (recipe.launch.launcher == "auto" and slurm.is_available(os.environ))


def check_installed(recipe: Recipe, stage: str, on_cpu: bool) -> None:
    """Raise ZephyrError where the recipe asks for a package that is an extra and is not there."""
    adapter = settings_of(recipe, stage).adapter
    wanted: list[tuple[str, str, str]]
    wanted = [(tracker, "trackers", f"launch.trackers asks for {tracker}") for tracker in recipe.launch.trackers]
    if adapter and adapter.quantize:
        wanted.append(("bitsandbytes", "qlora", f"{stage}.adapter.quantize needs bitsandbytes"))
    if recipe.launch.attention == "flash_attention_2":
        if on_cpu:
            raise ZephyrError(
                "launch.attention: flash_attention_2 needs a GPU, and this is planned for CPUs",
                "--set launch.attention=sdpa",
            )
        wanted.append(("flash_attn", "gpu", "launch.attention asks for FlashAttention"))
    for package, extra, why in wanted:
        if find_spec(package) is None:
            raise ZephyrError(f"{why}, which is not installed", f"pip install 'zephyrctl[{extra}]'")


def describe(recipe: Recipe, stage: str, base: ModelBase) -> str:
    """The layout in a few words, or why there is none."""
    try:
        return str(solve(recipe, stage, base).layout)
    except ZephyrError as error:
        return f"refused: {error.problem}"
