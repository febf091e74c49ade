"""What every stage command has in common: the run, the recipe with its layers, and how results are shown.

Stages and runs are imported where they are used: `plan` needs neither, and they bring pyarrow.
"""

import inspect
from collections.abc import Callable
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
    from zephyrctl.stages import Done, Stage

HARDWARE = "Hardware, where it is not the recipe's or this machine's"
"""The panel of help that these options stand in."""
Nodes = Annotated[int | None, typer.Option("--nodes", help="Machines.", rich_help_panel=HARDWARE)]
Gpus = Annotated[int | None, typer.Option("--gpus", help="GPUs a machine; 0 is the CPU.", rich_help_panel=HARDWARE)]
GpuType = Annotated[
    str | None,
    typer.Option("--gpu-type", help="A name of the hardware table, such as a100-80gb.", rich_help_panel=HARDWARE),
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, counted by cause.")
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

    def perform(self, run: "Run", step: "Stage") -> "Done":
        """Do a step under the eyes of the user."""
        from zephyrctl.stages import perform

        with self.screen.watch(step.name) as watcher:
            done = perform(run, step, watcher, self.fresh)
        self.screen.say(summary(done))
        return done

    def one(self, run: "Run", step: "Stage") -> None:
        """A command that is one step: forecast it or do it, and show the result."""
        from zephyrctl.stages import forecast

        if self.dry_run:
            told = forecast(run, step)
            self.screen.show({"dry_run": [told]}, *forecast_lines([told]))
            return
        done = self.perform(run, step)
        self.screen.show(facts(done), str(done.artifact.path))


def with_session(command: Callable[..., None]) -> Callable[..., None]:
    """A command function that takes `session` first gets the common options in its place."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def door(**values: Any) -> None:
        common = {name: values.pop(name) for name in COMMON}
        assignments = common.pop("set_")
        command(Session(assignments=assignments or [], **common), **values)

    parameters = [*own, *COMMON.values()]
    door.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    door.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del door.__wrapped__
    return door


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_PANEL = "Every stage"
COMMON = {
    parameter.name: parameter
    for parameter in (
        _option(
            "run",
            Annotated[
                str | None,
                typer.Option(
                    "--run",
                    help="Folder of the run, or its name below runs/.",
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
                    help="Shipped recipe or YAML file; else zephyrctl.yaml, else tiny.",
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
                typer.Option("--set", help="Set a value of the recipe: --set dpo.beta=0.05.", rich_help_panel=_PANEL),
            ],
            None,
        ),
        _option(
            "dry_run",
            Annotated[
                bool,
                typer.Option("--dry-run", help="Say what would happen, and touch nothing.", rich_help_panel=_PANEL),
            ],
            False,
        ),
        _option(
            "json",
            Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_PANEL)],
            False,
        ),
        _option(
            "quiet",
            Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=_PANEL)],
            False,
        ),
        _option(
            "fresh",
            Annotated[
                bool,
                typer.Option(
                    "--fresh",
                    help="Discard what was begun, and do finished stages again.",
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
        return f"{name}: unchanged since {manifest.finished_at}, not run again"
    numbers = [f"{key} {_number(value)}" for key, value in manifest.metrics.items() if isinstance(value, int | float)]
    lost = [f"{rows} {cause}" for cause, rows in manifest.dropped.items()]
    parts = [f"done in {manifest.seconds:.1f} s", *numbers, *([f"lost: {'; '.join(lost)}"] if lost else [])]
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


def forecast_lines(told: list[dict[str, Any]]) -> list[str]:
    """A dry run for people."""
    from zephyrctl.teachers import costs as costs

    lines = []
    for step in told:
        state = "unchanged, would not run again" if step["unchanged"] else step["does"]
        lines.append(f"{step['name']}: {state}")
        reads = ", ".join(step["reads"].values()) or "nothing"
        lines.append(f"  reads {reads}; writes {step['writes']}")
        if step["missing"]:
            lines.append(f"  not there yet: {', '.join(step['missing'])}")
        if step.get("costs"):
            lines += costs.lines(step["costs"])
        if step.get("refused"):
            lines.append(f"  refused here: {step['refused']}")
    return lines


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
