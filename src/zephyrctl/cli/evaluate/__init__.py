"""`zephyrctl eval`: held-out prompts, a command for each installed benchmark, comparisons."""

from zephyrctl.cli.evaluate.benchmark_command import benchmark_command
from zephyrctl.cli.evaluate.compare import compare
from zephyrctl.cli.evaluate.fetch import fetch
from zephyrctl.cli.evaluate.held_out import app, tiny
from zephyrctl.evaluation.installed import benchmark_classes

BENCHMARKS, OTHERS = "Benchmarks", "More"
"""The panels of --help."""

app.command(rich_help_panel=BENCHMARKS)(tiny)
for benchmark in benchmark_classes():
    app.command(benchmark.name, rich_help_panel=BENCHMARKS)(benchmark_command(benchmark))
app.command(rich_help_panel=OTHERS)(compare)
app.command(rich_help_panel=OTHERS)(fetch)

__all__ = ["app"]
