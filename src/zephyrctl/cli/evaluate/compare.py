"""`zephyrctl eval compare`: whether B is worse than A beyond chance. A gate for CI: exit 3 if it is."""

from typing import Annotated

import typer

from zephyrctl.cli.completion import benchmarks
from zephyrctl.cli.evaluate.benchmark_tables import comparison_tables
from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import GateError
from zephyrctl.evaluation import score_sources
from zephyrctl.evaluation.compare import compare_all


@with_session
def compare(
    session: Session,
    a: Annotated[str, typer.Argument(metavar="A", help="The first model: a model of this run, PATH or PATH:MODEL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The model to compare with A, in the same form.")],
    benchmark: Annotated[
        str | None,
        typer.Option(
            "--benchmark", help="eval, or a benchmark. Default: all that scored both.", autocompletion=benchmarks
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0, help="Largest allowed difference of B below A, in points.")
    ] = 0.0,
) -> None:
    """Compare two models question by question: difference, interval, p value, and how many questions are needed.

    A and B are models that this run scored, other runs, or files that a benchmark can read:
    judgments, annotations, results of lm-eval. Exits with 3 if B is worse beyond chance, that is,
    if the whole 95 % interval of B minus A is below minus the tolerance.
    """
    run = session.open(session.load())
    comparisons = compare_all(score_sources.find(run, a), score_sources.find(run, b), benchmark, tolerance)
    worse = [compared for compared in comparisons if compared.is_worse]
    printed = {"is_worse": bool(worse), "comparisons": [compared.model_dump() for compared in comparisons]}
    session.screen.show(printed, *comparison_tables(comparisons))
    for compared in worse:
        difference = compared.difference
        raise GateError(
            f"{compared.b} is worse than {compared.a} on {compared.benchmark}: {difference.mean:+.4g} "
            f"[{difference.low:+.4g}, {difference.high:+.4g}], p = {difference.p:.2g}",
            "keep A, or give --tolerance if that much is accepted",
        )
