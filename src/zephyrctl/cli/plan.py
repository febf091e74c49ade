"""`zephyrctl plan`: the layout of each training on some hardware, its memory and time, and why; nothing is started."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from zephyrctl import plugins
from zephyrctl.cli.session import Gpus, GpuType, Nodes, Session, with_session
from zephyrctl.planning import plan as planning
from zephyrctl.planning.candidates import memory_limit
from zephyrctl.planning.solver import Solution
from zephyrctl.recipe.loading import Loaded
from zephyrctl.recipe.schema import Recipe

Profile = Annotated[str | None, typer.Option("--profile", help="'fast', or 'paper' to train as published.")]


@with_session
def plan(
    session: Session,
    nodes: Nodes = None,
    gpus: Gpus = None,
    gpu_type: GpuType = None,
    profile: Profile = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Train 20 steps on random rows here, and plan with the measured speed.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option("--write", help="Write DeepSpeed and accelerate configurations and launch scripts here."),
    ] = None,
) -> None:
    """Find batch size, ZeRO stage and memory for the given hardware, or for this machine, and explain the choice."""
    loaded = session.load(
        hardware__nodes=nodes, hardware__gpus=gpus, hardware__gpu_type=gpu_type, launch__profile=profile
    )
    recipe = loaded.recipe
    machine = str(planning.machine(recipe))
    solutions = {stage: _solve(session, loaded, stage, probe) for stage in _stages(recipe)}
    result: dict[str, object] = {}
    for stage, solution in solutions.items():
        result[stage] = {key: value for key, value in solution.as_json().items() if key != "why"}
    reasons = [f"{stage}: {sentence}" for stage, solution in solutions.items() for sentence in solution.why]
    result |= {"why": reasons, "machine": machine}
    lines = list(_closing_lines(solutions, reasons))
    if write:
        commands = planning.write_launches(recipe, solutions, write)
        result["written"] = commands
        for stage, by_launcher in commands.items():
            lines += [f"{stage}, {launcher}: {command}" for launcher, command in by_launcher.items()]
    session.screen.show(result, _table(machine, solutions), *lines)


def _stages(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(checkpoint.stage for checkpoint in recipe.checkpoints.values()))


def _solve(session: Session, loaded: Loaded, stage: str, runs_probe: bool) -> Solution:
    """The plan of a stage, with the speed that a probe measured for the same layout on the same machine, if any."""
    recipe = loaded.recipe
    base = plugins.load().model_base(recipe.base.name, recipe.base.options)
    solution = planning.solve(recipe, stage, base)
    if not runs_probe and not (session.folder(loaded) / planning.PROBE_FILE).is_file():
        return solution
    from zephyrctl.planning import probe as probes

    run = session.open(loaded)
    if runs_probe:
        with session.screen.watch(stage) as watcher:
            measured = probes.measure(run, recipe, stage, base, watcher)
        predicted = solution.peak_gb if solution.layout.on_cpu else solution.allocated_gb
        session.screen.say(
            f"{stage}: measured {measured.tokens_per_second:,.0f} tokens per second and {measured.memory_gb:.2f} GB; "
            f"predicted {solution.tokens_per_second:,.0f} and {predicted:.2f} GB"
        )
    known = probes.known(run, stage, solution)
    return planning.solve(recipe, stage, base, mfu=known.mfu) if known else solution


def _table(machine: str, solutions: Mapping[str, Solution]) -> Table:
    """One column per stage."""
    table = Table("", *solutions, title=f"on {machine}", title_justify="left", pad_edge=False)
    columns = [dict(_figures(solution)) for solution in solutions.values()]
    names = dict.fromkeys(name for column in sorted(columns, key=len, reverse=True) for name in column)
    for name in names:
        table.add_row(name, *(column.get(name, "") for column in columns))
    return table


def _figures(solution: Solution) -> Iterator[tuple[str, str]]:
    layout, step = solution.layout, solution.chosen.step
    backend = "plain torch" if layout.zero_stage is None else f"DeepSpeed ZeRO-{layout.zero_stage}"
    yield "rows per step", f"{layout.micro_batch} x {layout.accumulation} x {layout.world} = {layout.global_batch}"
    yield "backend", backend + (", optimizer off-loaded" if layout.offload else "")
    yield "checkpointing", "yes" if layout.gradient_checkpointing else "no"
    if layout.engine:
        yield "pairs", f"{layout.engine}, {layout.reference or 'no'} reference"
    yield "peak memory", f"{solution.peak_gb:.1f} of {memory_limit(solution.workload.machine) / 1e9:.1f} GB"
    for part, size in solution.memory.items():
        yield f"  {part}", f"{size / 1e9:.1f} GB"
    yield "steps", "unknown" if solution.steps is None else f"{solution.steps:,}"
    yield "time per step", f"{solution.step_seconds:.2f} s"
    yield "exchanged per step", f"{step.traffic / 1e9:.1f} GB"
    yield "tokens per second", f"{solution.tokens_per_second:,.0f}"
    yield "MFU", f"{solution.mfu:.2f} ({'measured by a probe' if solution.is_probed else 'estimated'})"
    if solution.hours is not None and solution.hours_range is not None:
        best, worst = solution.hours_range
        yield "hours", f"{solution.hours:.2f} ({best:.2f} to {worst:.2f})"


def _closing_lines(solutions: Mapping[str, Solution], reasons: list[str]) -> Iterator[str]:
    yield "why:"
    yield from (f"  {reason}" for reason in reasons)
    yield "next best:"
    for stage, solution in solutions.items():
        yield from (f"  {stage}: {alternative.what}" for alternative in solution.alternatives)
