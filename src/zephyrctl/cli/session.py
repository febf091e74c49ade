"""What all stage commands share: the options for the run and the recipe, and how results are shown.

Stages and runs are imported inside functions: `plan` needs neither, and they import pyarrow.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zephyrctl import plugin_files
from zephyrctl.cli.completion import recipes, runs
from zephyrctl.cli.screen import Screen
from zephyrctl.recipe import loading
from zephyrctl.recipe.loading import Loaded

if TYPE_CHECKING:
    from zephyrctl.runs.run import Run
    from zephyrctl.stages import Done, Stage, StageForecast

HARDWARE = "Hardware (default: the recipe's, or this machine)"
"""The panel of the help page that shows these options."""
Nodes = Annotated[int | None, typer.Option("--nodes", help="Number of machines.", rich_help_panel=HARDWARE)]
Gpus = Annotated[int | None, typer.Option("--gpus", help="GPUs per machine; 0 means CPU.", rich_help_panel=HARDWARE)]
GpuType = Annotated[
    str | None,
    typer.Option("--gpu-type", help="Type of GPU, such as a100-80gb.", rich_help_panel=HARDWARE),
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Drop unusable rows and count them by cause, instead of stopping.")
]


@dataclass
class Session:
    """The common options of a command."""

    run: str | None
    recipe: str | None
    assignments: list[str]
    dry_run: bool
    json: bool
    quiet: bool
    fresh: bool

    def __post_init__(self) -> None:
        self.screen = Screen(self.json, self.quiet)

    def load(self, **overrides: Any) -> Loaded:
        """The recipe; `sft__epochs=2` is the option for `sft.epochs`, and None leaves the recipe's value.

        From here on the plugin files that it lists are in use.
        """
        options = {key.replace("__", "."): value for key, value in overrides.items()}
        loaded = loading.load(self.recipe, options, self.assignments)
        for note in loaded.notes:
            self.screen.say(f"note: {note}")
        plugin_files.use(loaded.plugin_files)
        return loaded

    def folder(self, loaded: Loaded) -> Path:
        """The run's folder: `--run` as a path, or by name below `runs/`; the recipe's name without it."""
        name = self.run or loaded.recipe.name
        is_path = "/" in name or Path(name).is_dir()
        return Path(name) if is_path else Path("runs") / name

    def open(self, loaded: Loaded) -> "Run":
        """The run in that folder."""
        from zephyrctl.runs.run import Run

        return Run(self.folder(loaded))

    def perform(self, run: "Run", stage: "Stage") -> "Done":
        """Perform a stage, with its progress on the screen."""
        from zephyrctl.stages import perform

        with self.screen.watch(stage.name) as watcher:
            done = perform(run, stage, watcher, self.fresh)
        self.screen.say(summary(done))
        return done

    def run_stage(self, run: "Run", stage: "Stage") -> None:
        """A whole command with a single stage: perform it, or forecast it with --dry-run, and show the result."""
        from zephyrctl.stages import forecast

        if self.dry_run:
            stated = forecast(run, stage)
            self.screen.show({"dry_run": [stated]}, *forecast_lines([stated]))
            return
        done = self.perform(run, stage)
        self.screen.show(facts(done), str(done.artifact.path))


def with_session(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the common options in place of its first parameter, `session`."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def with_common_options(**values: Any) -> None:
        common = {name: values.pop(name) for name in COMMON}
        assignments = common.pop("set_")
        command(Session(assignments=assignments or [], **common), **values)

    parameters = [*own, *COMMON.values()]
    with_common_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_common_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del with_common_options.__wrapped__
    return with_common_options


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_PANEL = "All stages"
COMMON = {
    parameter.name: parameter
    for parameter in (
        _option(
            "run",
            Annotated[
                str | None,
                typer.Option(
                    "--run",
                    help="Run folder, or its name in runs/.",
                    rich_help_panel=_PANEL,
                    autocompletion=runs,
                ),
            ],
            None,
        ),
        _option(
            "recipe",
            Annotated[
                str | None,
                typer.Option(
                    "--recipe",
                    help="Name of a shipped recipe, or a YAML file. Default: zephyrctl.yaml, else tiny.",
                    rich_help_panel=_PANEL,
                    autocompletion=recipes,
                ),
            ],
            None,
        ),
        _option(
            "set_",
            Annotated[
                list[str] | None,
                typer.Option(
                    "--set",
                    help="Set a value, as in --set dpo.beta=0.05. Repeatable.",
                    rich_help_panel=_PANEL,
                ),
            ],
            None,
        ),
        _option(
            "dry_run",
            Annotated[
                bool,
                typer.Option("--dry-run", help="Print what would happen and write nothing.", rich_help_panel=_PANEL),
            ],
            False,
        ),
        _option(
            "json",
            Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_PANEL)],
            False,
        ),
        _option(
            "quiet",
            Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.", rich_help_panel=_PANEL)],
            False,
        ),
        _option(
            "fresh",
            Annotated[
                bool,
                typer.Option(
                    "--fresh",
                    help="Discard unfinished work and rebuild finished stages.",
                    rich_help_panel=_PANEL,
                ),
            ],
            False,
        ),
    )
}


def summary(done: "Done") -> str:
    """One line on a finished stage: time, counts and dropped rows."""
    manifest = done.artifact.manifest
    name = manifest.plan.name
    if not done.is_new:
        return f"{name}: unchanged since {manifest.finished_at}"
    numbers = [f"{key} {_number(value)}" for key, value in manifest.metrics.items() if isinstance(value, int | float)]
    dropped = [f"{rows} {cause}" for cause, rows in manifest.dropped.items()]
    parts = [f"done in {manifest.seconds:.1f} s", *numbers, *([f"dropped: {'; '.join(dropped)}"] if dropped else [])]
    return f"{name}: {', '.join(parts)}"


def facts(done: "Done") -> dict[str, Any]:
    """A finished stage as JSON."""
    artifact = done.artifact
    manifest = artifact.manifest
    return {
        "name": manifest.plan.name,
        "path": str(artifact.path),
        "unchanged": not done.is_new,
        "seconds": manifest.seconds,
        "metrics": manifest.metrics,
        "dropped": manifest.dropped,
        "rows": {name: entry.rows for name, entry in manifest.files.items() if entry.rows is not None},
    }


def forecast_lines(forecasts: "Sequence[StageForecast]") -> list[str]:
    """A dry run for people."""
    from zephyrctl.teachers import costs

    lines = []
    for stage in forecasts:
        state = "unchanged" if stage["unchanged"] else stage["does"]
        lines.append(f"{stage['name']}: {state}")
        reads = ", ".join(stage["reads"].values()) or "nothing"
        lines.append(f"  reads {reads}; writes {stage['writes']}")
        if stage["missing"]:
            lines.append(f"  missing: {', '.join(stage['missing'])}")
        if stage_costs := stage.get("costs"):
            lines += costs.lines(stage_costs)
        if problem := stage.get("would_fail"):
            lines.append(f"  would fail: {problem}")
    return lines


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
