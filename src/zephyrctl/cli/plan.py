"""`zephyrctl plan`: how training will be laid out on some hardware, what it takes, and why; nothing is started."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zephyrctl import plugins
from zephyrctl.cli.session import Gpus, GpuType, Nodes, Session, with_session
from zephyrctl.planning import plan as planning
from zephyrctl.planning.solver import Solution
from zephyrctl.recipe.loading import Loaded
from zephyrctl.recipe.schema import Recipe

Profile = Annotated[str | None, typer.Option("--profile", help="'fast', or 'paper': as published.")]


@with_session
def plan(
    session: Session,
    nodes: Nodes = None,
    gpus: Gpus = None,
    gpu_type: GpuType = None,
    profile: Profile = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Train 20 steps on made-up rows here, and plan with what they took.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option("--write", help="Write DeepSpeed's and accelerate's files and a script for each launcher."),
    ] = None,
) -> None:
    """Solve for batch, ZeRO stage and memory on the hardware you name, or on this; say why and what is next best."""
    loaded = session.load(
        hardware__nodes=nodes, hardware__gpus=gpus, hardware__gpu_type=gpu_type, launch__profile=profile
    )
    recipe = loaded.recipe
    solutions = {stage: _solve(session, loaded, stage, probe) for stage in _stages(recipe)}
    told = {stage: solution.as_json() for stage, solution in solutions.items()}
    why = [f"{stage}: {sentence}" for stage, part in told.items() for sentence in part.pop("why")]
    result: dict[str, Any] = {**told, "why": why, "machine": str(planning.machine(recipe))}
    lines = list(_closing(told, why))
    if write:
        result["written"] = planning.write_launches(recipe, solutions, write)
        lines += [
            f"{stage}, {launcher}: {line}"
            for stage, launchers in result["written"].items()
            for launcher, line in launchers.items()
        ]
    session.screen.show(result, _table(str(planning.machine(recipe)), told), *lines)


def _stages(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(point.stage for point in recipe.checkpoints.values()))


def _solve(session: Session, loaded: Loaded, stage: str, is_asked: bool) -> Solution:
    """The plan of a stage, with what a probe has measured of the same layout on the same machine."""
    recipe = loaded.recipe
    base = plugins.load().model_base(recipe.base.name, recipe.base.options)
    solution = planning.solve(recipe, stage, base)
    if not is_asked and not (session.folder(loaded) / planning.PROBED).is_file():
        return solution
    from zephyrctl.planning import probe as probes

    run = session.open(loaded)
    if is_asked:
        with session.screen.watch(stage) as watcher:
            measured = probes.measure(run, recipe, stage, base, watcher)
        predicted = solution.peak_gb if solution.layout.on_cpu else solution.allocated_gb
        session.screen.say(
            f"{stage}: {measured.tokens_per_second:,.0f} tokens a second, {measured.memory_gb:.2f} GB measured; "
            f"{solution.tokens_per_second:,.0f} and {predicted:.2f} GB were predicted"
        )
    found = probes.known(run, stage, solution)
    return planning.solve(recipe, stage, base, mfu=found.mfu) if found else solution


def _table(machine: str, told: Mapping[str, Mapping[str, Any]]) -> Table:
    """One column a stage."""
    table = Table("", *told, title=f"on {machine}", title_justify="left", pad_edge=False)
    rows = [dict(_facts(part)) for part in told.values()]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "") for row in rows))
    return table


def _facts(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    stage = "plain torch" if part["zero_stage"] is None else f"DeepSpeed ZeRO-{part['zero_stage']}"
    yield "rows a step", f"{part['micro_batch']} x {part['accumulation']} x {part['world']} = {part['global_batch']}"
    yield "states", stage + (", optimizer off-loaded" if part["offload"] else "")
    yield "checkpointing", "yes" if part["gradient_checkpointing"] else "no"
    if part["engine"]:
        yield "pairs", f"{part['engine']}, {part['reference']} reference"
    yield "peak memory", f"{part['peak_gb']:.1f} of {part['limit_gb']:.1f} GB"
    for name, size in part["memory_gb"].items():
        yield f"  {name}", f"{size:.1f} GB"
    yield "steps", "not known yet" if part["steps"] is None else f"{part['steps']:,}"
    yield "a step", f"{part['seconds_a_step']:.2f} s, {part['communication_gb_a_step']:.1f} GB travel"
    yield "tokens a second", f"{part['tokens_per_second']:,.0f}"
    yield "MFU", f"{part['mfu']:.2f} ({part['mfu_from']})"
    if part["hours"] is not None:
        low, high = part["hours_range"]
        yield "hours", f"{part['hours']:.2f} ({low:.2f} to {high:.2f})"


def _closing(told: Mapping[str, Mapping[str, Any]], why: list[str]) -> Iterator[str]:
    yield "why:"
    yield from (f"  {sentence}" for sentence in why)
    yield "next best:"
    for stage, part in told.items():
        yield from (f"  {stage}: {other['what']}" for other in part["next_best"])
