"""`zephyrctl eval arena`: models against each other before a judge, and a rating for each."""

from pathlib import Path
from typing import Annotated

import typer

from zephyrctl.cli.evaluate import candidates as who
from zephyrctl.cli.evaluate.benchmark_tables import benchmark_tables
from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import UsageError, ZephyrError, did_you_mean
from zephyrctl.evaluation import judge_quality
from zephyrctl.evaluation.benchmark_stage import Contest, alpaca_contest, arena_contest, mt_bench_contest
from zephyrctl.evaluation.benchmarks import alpaca_eval, fastchat_files, mt_bench
from zephyrctl.evaluation.benchmarks import arena as benchmark
from zephyrctl.evaluation.results import ArenaResult
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run

HELD_OUT = "held-out"
QUESTIONS = {mt_bench.NAME: mt_bench_contest, alpaca_eval.NAME: alpaca_contest}


@with_session
def arena(
    session: Session,
    checkpoint: who.Checkpoints = None,
    model: who.Models = None,
    server: who.Server = None,
    answers: who.AnswerFiles = None,
    questions: Annotated[
        str, typer.Option("--questions", help="held-out (the run's prompts), mt-bench or alpaca-eval.")
    ] = HELD_OUT,
    judge: who.Judge = None,
    judge_url: who.JudgeUrl = None,
    assets: who.AssetsFolder = None,
    max_usd: who.MaxUsd = None,
    judgments: Annotated[
        list[Path] | None,
        typer.Option(
            "--judgments", metavar="FILE", help="Rate by FastChat's pairwise judgments or votes instead; repeatable."
        ),
    ] = None,
    against: who.Against = None,
) -> None:
    """Lay every two models' answers before a judge, in both orders, and rate the models (Bradley-Terry).

    --judgments only reads: it rates by verdicts that others gave.
    """
    if judgments:
        result = read(judgments, against or [])
        session.screen.show(result.as_json(), *benchmark_tables(result))
        return
    if against:
        raise UsageError("--against compares judgments that exist", "give them too: --judgments FILE")
    loaded = who.load(session, judge, judge_url)
    run = session.open(loaded)
    models = who.contestants(run, loaded.recipe, checkpoint, model, answers, server)
    if len(models) < 2:
        raise ZephyrError(
            f"an arena needs two models, and there is only {models[0].name}", "give another --checkpoint or --answers"
        )
    asking = _asking(questions, loaded.recipe, assets, run)
    contest = arena_contest(loaded.recipe, [one.name for one in models], asking, run)
    who.perform(session, loaded, run, contest, models, max_usd)


def read(paths: list[Path], against: list[Path]) -> ArenaResult:
    """Ratings by verdicts of files, and how reliable their judge is."""
    judged = [row for path in paths for row in fastchat_files.read_pairs(path)]
    others = [row for path in against for row in fastchat_files.read_pairs(path)] if against else None
    quality = judge_quality.measure(judged, [], others)
    unparsed = sum(row.score is None for row in judged)
    parts = {"unparsed": unparsed, **({"judge_quality": quality} if quality.figures() else {})}
    return benchmark.summarize(judged).model_copy(update=parts)


def _asking(questions: str, recipe: Recipe, assets: Path | None, run: Run) -> Contest | None:
    if questions == HELD_OUT:
        if not run.artifact("build"):
            raise ZephyrError(
                f"{run.path} has no held-out prompts",
                f"ask a benchmark's: --questions {mt_bench.NAME}; or build some first",
            )
        return None
    if questions not in QUESTIONS:
        known = [HELD_OUT, *QUESTIONS]
        remedy = did_you_mean(questions, known, f"one of: {', '.join(known)}")
        raise UsageError(f"--questions {questions!r} is no set of questions", remedy)
    return QUESTIONS[questions](recipe, who.assets(questions, assets))
