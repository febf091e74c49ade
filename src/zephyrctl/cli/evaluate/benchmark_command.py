"""`zephyrctl eval NAME`: the command of a benchmark, made from what its class says of itself."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zephyrctl.cli.evaluate import candidates as shared
from zephyrctl.cli.evaluate.benchmark_tables import benchmark_tables
from zephyrctl.cli.session import Session, facts, forecast_lines, with_session
from zephyrctl.evaluation.benchmarks.contract import Benchmark, CommandOption, EvaluationRequest
from zephyrctl.evaluation.installed import make_benchmark
from zephyrctl.evaluation.results import read_result
from zephyrctl.plugins import load as load_plugins
from zephyrctl.stages import forecast

ALL_OPTIONS: dict[str, Any] = {
    "checkpoint": shared.Checkpoints,
    "model": shared.Models,
    "server": shared.Server,
    "answers": shared.AnswerFiles,
    "judge": shared.Judge,
    "judge_url": shared.JudgeUrl,
    "assets": shared.AssetsFolder,
    "max_usd": shared.MaxUsd,
}
"""The options that the commands of benchmarks share."""


def benchmark_command(benchmark: type[Benchmark]) -> Callable[..., None]:
    """The function of the command, with the shared options and the benchmark's own, as Typer takes it."""

    def command(session: Session, **values: Any) -> None:
        _run(session, benchmark, values)

    session_parameter = inspect.Parameter("session", inspect.Parameter.KEYWORD_ONLY, annotation=Session)
    parameters = [session_parameter, *_parameters(benchmark)]
    command.__name__ = benchmark.name.replace("-", "_")
    command.__doc__ = benchmark.about
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_session(command)


def _parameters(benchmark: type[Benchmark]) -> Iterator[inspect.Parameter]:
    """The shared options that apply, then the benchmark's own in their panels."""
    names = ["checkpoint"] if benchmark.takes_only_checkpoints else list(ALL_OPTIONS)
    for name in names:
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ALL_OPTIONS[name])
    for option in benchmark.command_options:
        yield _parameter(option)


def _parameter(option: CommandOption) -> inspect.Parameter:
    details: dict[str, Any] = {"help": option.help, "rich_help_panel": option.panel}
    if option.metavar:
        details["metavar"] = option.metavar
    if option.least is not None:
        details["min"] = option.least
    kind: Any = list[option.type] if option.is_repeatable else option.type  # type: ignore[name-defined]
    annotation = Annotated[kind | None, typer.Option(option.flag, **details)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _run(session: Session, benchmark: type[Benchmark], values: Mapping[str, Any]) -> None:
    """Read a result from files that were given; else forecast the evaluation, or do it and show the result."""
    own = {option.name: values[option.name] for option in benchmark.command_options}
    given = {name: value for name, value in own.items() if value not in (None, [])}
    assets: Path | None = values.get("assets")
    reader = load_plugins().benchmark(benchmark.name, {})
    if result := reader.read_given(given, assets):
        session.screen.show(reader.printed(result), *benchmark_tables(result))
        return
    loaded = shared.load(session, values.get("judge"), values.get("judge_url"), **_overrides(benchmark, given))
    run = session.open(loaded)
    request = EvaluationRequest(
        recipe=loaded.recipe,
        run=run,
        candidates=shared.candidates(run, loaded.recipe, benchmark.takes_only_checkpoints, values),
        assets=shared.assets_folder(assets),
        max_usd=values.get("max_usd"),
        given=given,
    )
    stage = make_benchmark(benchmark.name, loaded.recipe.eval).stage(request)
    if session.dry_run:
        expected = forecast(run, stage)
        session.screen.show({"dry_run": [expected]}, *forecast_lines([expected]))
        return
    done = session.perform(run, stage)
    session.screen.show(facts(done), *benchmark_tables(read_result(done.artifact.manifest)))


def _overrides(benchmark: type[Benchmark], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the benchmark that the command line sets, as values of the recipe."""
    path = benchmark.settings_path().replace(".", "__")
    return {
        f"{path}__{option.sets}": given[option.name]
        for option in benchmark.command_options
        if option.sets and option.name in given
    }
