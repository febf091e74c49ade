"""`zephyrctl eval mt-bench`: two-turn questions, answers rated from 1 to 10; or the score of judgments that exist."""

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.evaluate import candidates as who
from zephyrctl.cli.evaluate.benchmark_tables import benchmark_tables
from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import UsageError
from zephyrctl.evaluation import comparability, judge_quality
from zephyrctl.evaluation.assets import protocols
from zephyrctl.evaluation.benchmark_stage import mt_bench_contest
from zephyrctl.evaluation.benchmarks import fastchat_files
from zephyrctl.evaluation.benchmarks import mt_bench as benchmark
from zephyrctl.evaluation.results import MtBenchResult


@with_session
def mt_bench(
    session: Session,
    checkpoint: who.Checkpoints = None,
    model: who.Models = None,
    server: who.Server = None,
    answers: who.AnswerFiles = None,
    judge: who.Judge = None,
    judge_url: who.JudgeUrl = None,
    assets: who.AssetsFolder = None,
    references: Annotated[
        str | None,
        typer.Option(
            "--references", help="original (GPT-4's, as published) or corrected.", rich_help_panel=who.JUDGING
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option("--repeats", min=1, help="Judgments of each answer.", rich_help_panel=who.JUDGING),
    ] = None,
    max_usd: who.MaxUsd = None,
    judgments: Annotated[
        list[Path] | None,
        typer.Option("--judgments", metavar="FILE", help="Score FastChat's judgments instead; may be given again."),
    ] = None,
    against: who.Against = None,
) -> None:
    """Answer MT-Bench's 80 questions of two turns and have a judge rate the answers.

    --judgments only reads: it gives the score of judgments that others made.
    """
    if judgments:
        result = read(judgments, against or [])
        session.screen.show(result.as_json(), *benchmark_tables(result))
        return
    if against:
        raise UsageError("--against compares judgments that exist", "give them too: --judgments FILE")
    loaded = who.load(
        session,
        judge,
        judge_url,
        eval__mt_bench__references=references,
        eval__mt_bench__repeats=repeats,
    )
    run = session.open(loaded)
    models = who.contestants(run, loaded.recipe, checkpoint, model, answers, server)
    contest = mt_bench_contest(loaded.recipe, who.assets(benchmark.NAME, assets))
    who.perform(session, loaded, run, contest, models, max_usd)


def read(paths: list[Path], against: list[Path]) -> MtBenchResult:
    """The scores of FastChat's judgments, with what makes them not comparable with the published ones."""
    found = fastchat_files.read_judgments(paths)
    judged = [
        row if row.category else row.model_copy(update={"category": benchmark.category_of(row.question)})
        for row in found.judged
    ]
    protocol = protocols()[benchmark.NAME]
    asked = protocol.questions if all(benchmark.category_of(row.question) for row in judged) else None
    others = [row for path in against for row in fastchat_files.read_any(path)] if against else None
    quality = judge_quality.measure(judged, [], others)
    questions = len({row.question for row in judged})
    result = MtBenchResult(
        benchmark=benchmark.NAME,
        models=benchmark.summarize(judged, found.duplicates, asked),
        comparability=[
            *comparability.of_judges({row.judge for row in judged}, protocol),
            *comparability.of_questions(questions, protocol),
        ],
    )
    return result.model_copy(update={"judge_quality": quality}) if quality.figures() else result
