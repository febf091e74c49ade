"""`zephyrctl eval`: held-out prompts, published benchmarks, an arena, and what a difference is worth."""

from zephyrctl.cli.evaluate.alpaca_eval import alpaca_eval
from zephyrctl.cli.evaluate.arena import arena
from zephyrctl.cli.evaluate.compare import compare
from zephyrctl.cli.evaluate.fetch import fetch
from zephyrctl.cli.evaluate.held_out import app, tiny
from zephyrctl.cli.evaluate.mt_bench import mt_bench
from zephyrctl.cli.evaluate.open_llm import open_llm

BENCHMARKS = "Benchmarks"
app.command(rich_help_panel=BENCHMARKS)(tiny)
app.command("mt-bench", rich_help_panel=BENCHMARKS)(mt_bench)
app.command("alpaca-eval", rich_help_panel=BENCHMARKS)(alpaca_eval)
app.command("open-llm", rich_help_panel=BENCHMARKS)(open_llm)
app.command(rich_help_panel=BENCHMARKS)(arena)
app.command(rich_help_panel="Beside them")(compare)
app.command(rich_help_panel="Beside them")(fetch)

__all__ = ["app"]
