"""`zephyrctl eval open-llm`: the Open LLM Leaderboard (v1) through lm-eval; or the scores of its result files."""

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.evaluate.benchmark_tables import benchmark_tables
from zephyrctl.cli.evaluate.candidates import Checkpoints
from zephyrctl.cli.evaluate.held_out import chosen
from zephyrctl.cli.session import Session, facts, forecast_lines, with_session
from zephyrctl.data.decontaminate.benchmark_overlap import trained_on
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks import open_llm as benchmark
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import BENCHMARKS
from zephyrctl.evaluation.results import LeaderboardResult, read_result
from zephyrctl.stages import forecast


@with_session
def open_llm(
    session: Session,
    checkpoint: Checkpoints = None,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="arc, hellaswag, mmlu or truthfulqa; may be given again. Else all four."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Local files of the benchmarks, for machines without a network."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Questions of each task, at most: for a try only.")
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            "--results", metavar="PATH", help="Score lm-eval's result files of one model instead; may be given again."
        ),
    ] = None,
) -> None:
    """Ask ARC, HellaSwag, MMLU and TruthfulQA with the leaderboard's shots and metrics.

    --results only reads: it gives the scores of result files, old and new, of one model.
    """
    if results:
        if missing := [path for path in results if not path.exists()]:
            raise ZephyrError(f"there is no file or folder {missing[0]}", "check the path of --results")
        scores = benchmark.read_results(results)
        rounded = scores.rounded()
        name = scores.model or str(results[0])
        shown = LeaderboardResult(benchmark=benchmark.NAME, models={name: rounded}, comparability=rounded.warnings)
        session.screen.show(rounded.as_json(), *benchmark_tables(shown))
        return
    loaded = session.load()
    run = session.open(loaded)
    names = chosen(run, loaded.recipe, checkpoint)
    step = benchmark.step(
        loaded.recipe, names, tasks=task or tuple(BENCHMARKS), data=data, limit=limit, trained_on=trained_on(run)
    )
    if session.dry_run:
        told = forecast(run, step)
        session.screen.show({"dry_run": [told]}, *forecast_lines([told]))
        return
    done = session.perform(run, step)
    session.screen.show(facts(done), *benchmark_tables(read_result(done.artifact.manifest)))
