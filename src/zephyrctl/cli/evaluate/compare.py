"""`zephyrctl eval compare`: is B worse than A, or is it chance? A gate for CI: exit 3 where it is worse."""

from typing import Annotated

import typer

from zephyrctl.cli.evaluate.benchmark_tables import comparison_tables
from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import GateError
from zephyrctl.evaluation import question_scores
from zephyrctl.evaluation.compare import compare_all


@with_session
def compare(
    session: Session,
    a: Annotated[str, typer.Argument(metavar="A", help="What was: a model of this run, or PATH, or PATH:MODEL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What is now, in the same words.")],
    benchmark: Annotated[
        str | None, typer.Option("--benchmark", help="eval, mt-bench, alpaca-eval or open-llm; else all of both.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="How far B may be below A, in points of the score.")
    ] = 0.0,
) -> None:
    """Compare two models question by question: difference, interval, p value, and how many questions would tell.

    A and B are models that this run scored, other runs, or files of judgments, annotations or lm-eval's results. Exit 3
    where B is worse beyond chance: where the whole 95 % interval of B minus A lies below minus the tolerance.
    """
    run = session.open(session.load())
    found = compare_all(question_scores.find(run, a), question_scores.find(run, b), benchmark, tolerance)
    worse = [one for one in found if one.is_worse]
    told = {"is_worse": bool(worse), "comparisons": [one.model_dump() for one in found]}
    session.screen.show(told, *comparison_tables(found))
    for one in worse:
        difference = one.difference
        raise GateError(
            f"{one.b} is worse than {one.a} on {one.benchmark}: {difference.mean:+.4g} "
            f"[{difference.low:+.4g}, {difference.high:+.4g}], p = {difference.p:.2g}",
            "keep A, or give --tolerance where that much is accepted",
        )
