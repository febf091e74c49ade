"""`zephyrctl eval alpaca-eval`: win rate against a reference; or that of annotations that exist."""

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.evaluate import candidates as who
from zephyrctl.cli.evaluate.benchmark_tables import benchmark_tables
from zephyrctl.cli.session import Session, with_session
from zephyrctl.evaluation import comparability
from zephyrctl.evaluation.assets import protocols
from zephyrctl.evaluation.benchmark_stage import alpaca_contest
from zephyrctl.evaluation.benchmarks import alpaca_eval as benchmark
from zephyrctl.evaluation.benchmarks.length_control import GAMED_FILE, read_gamed
from zephyrctl.evaluation.results import AlpacaEvalResult


@with_session
def alpaca_eval(
    session: Session,
    checkpoint: who.Checkpoints = None,
    model: who.Models = None,
    server: who.Server = None,
    answers: who.AnswerFiles = None,
    judge: who.Judge = None,
    judge_url: who.JudgeUrl = None,
    assets: who.AssetsFolder = None,
    max_usd: who.MaxUsd = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", metavar="FILE", help="Score AlpacaEval's annotations instead."),
    ] = None,
) -> None:
    """Answer AlpacaEval's 805 instructions and have a judge lay the answers beside a reference.

    --annotations only reads: it gives the win rate of judgments that others made.
    """
    if annotations:
        result = read(annotations, assets)
        printed = result.as_json()
        if len(result.models) == 1:
            name, scores = next(iter(printed.pop("models").items()))
            printed = {"model": name, **scores, **printed}
        session.screen.show(printed, *benchmark_tables(result))
        return
    loaded = who.load(session, judge, judge_url)
    run = session.open(loaded)
    models = who.contestants(run, loaded.recipe, checkpoint, model, answers, server)
    contest = alpaca_contest(loaded.recipe, who.assets(benchmark.NAME, assets))
    who.perform(session, loaded, run, contest, models, max_usd)


def read(path: Path, assets: Path | None) -> AlpacaEvalResult:
    """The win rates of AlpacaEval's annotations, with what makes them not comparable with the published ones."""
    found = benchmark.read_annotations(path)
    protocol = protocols()[benchmark.NAME]
    gamed = assets / GAMED_FILE if assets else None
    known = read_gamed(gamed) if gamed and gamed.is_file() else None
    return AlpacaEvalResult(
        benchmark=benchmark.NAME,
        models=benchmark.summarize(found.judged, found.beside, found.duplicates, gamed=known),
        reference=found.reference,
        comparability=[
            *comparability.of_judges(filter(None, found.annotators), protocol),
            *comparability.of_questions(len({row.question for row in found.judged}), protocol),
        ],
    )
