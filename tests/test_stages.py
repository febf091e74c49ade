"""Whether a step is done once for one plan, again for another, and not at all where it cannot be."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.runs import Artifact, Draft, Run
from zephyrctl.stages import COMMANDS, Inputs, Source, Step, forecast, perform


class Heard:
    """A watcher that remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """Remember the sentence."""
        self.lines.append(line)

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Forget the count."""

    def measure(self, values: Mapping[str, float]) -> None:
        """Forget the figures."""


def step(
    name: str = "build",
    reads: dict[str, Source] | None = None,
    check: Callable[[], None] = lambda: None,
    text: str = "text",
    **settings: Any,
) -> Step:
    """A step that writes one file."""

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        (draft.path / "file.txt").write_text(text)

    return Step(name, name, f"write {text}", settings, reads or {}, work, check)


def refuse() -> None:
    """What a machine says that cannot do the work."""
    raise ZephyrError("no GPU", "find one")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An empty run."""
    return Run(tmp_path / "run")


def test_the_same_plan_is_done_once(run: Run) -> None:
    first = perform(run, step(seed=1))
    again = perform(run, step(seed=1, text="other"))
    assert (first.is_new, again.is_new) == (True, False)
    assert again.artifact.manifest == first.artifact.manifest
    assert (again.artifact.path / "file.txt").read_text() == "text"


def test_fresh_does_the_same_plan_again(run: Run) -> None:
    perform(run, step(seed=1))
    assert perform(run, step(seed=1), fresh=True).is_new


def test_a_changed_setting_is_said_and_done(run: Run) -> None:
    perform(run, step(seed=1, share=0.5))
    heard = Heard()
    assert perform(run, step(seed=2, share=0.5), heard).is_new
    assert heard.lines == ["build is made again: seed: 1 -> 2"]


class Helpers:
    """Processes that could be started, and whether they run; they run at most once at a time."""

    def __init__(self) -> None:
        self.starts = 0
        self.run = False

    def __enter__(self) -> None:
        assert not self.run
        self.starts, self.run = self.starts + 1, True

    def __exit__(self, *_: object) -> None:
        self.run = False


def test_helpers_start_where_there_is_work_and_end_with_it(run: Run) -> None:
    helpers = Helpers()

    def one(seed: int, check: Callable[[], None] = lambda: None) -> Step:
        def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
            assert helpers.run

        return replace(step(seed=seed, check=check), work=work, helpers=helpers)

    for seed, fresh, starts in ((1, False, 1), (1, False, 1), (1, True, 2), (2, False, 3)):
        perform(run, one(seed), fresh=fresh)
        assert (helpers.starts, helpers.run) == (starts, False)
    with pytest.raises(ZephyrError):
        perform(run, one(3, refuse))
    with pytest.raises(ZephyrError):
        perform(Run(run.path / "other"), one(3, refuse))
    assert not helpers.run


def test_a_changed_input_file_or_folder_is_done_again(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "inputs"
    folder.mkdir()
    (folder / "rows.txt").write_text("1")
    for path in (folder / "rows.txt", folder):
        source = {"rows": Source(path=path)}
        (folder / "rows.txt").write_text("1")
        assert perform(run, step(reads=source)).is_new
        assert not perform(run, step(reads=source)).is_new
        (folder / "rows.txt").write_text("2")
        heard = Heard()
        assert perform(run, step(reads=source), heard).is_new
        assert "input rows" in heard.lines[0]


def test_a_step_is_done_again_when_the_step_before_gave_something_else(run: Run) -> None:
    after = step("sft", reads={"rows": Source(artifact="build", stage="build")})
    perform(run, step(text="one"))
    perform(run, after)
    assert not perform(run, after).is_new
    perform(run, step(text="one"), fresh=True)
    assert not perform(run, after).is_new, "the same content made again is no change"
    perform(run, step(text="two"), fresh=True)
    assert perform(run, after).is_new


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_missing_artifact_names_the_command_that_makes_it(run: Run, stage: str) -> None:
    with pytest.raises(ZephyrError) as caught:
        perform(run, step("last", reads={"rows": Source(artifact=stage, stage=stage)}))
    assert caught.value.problem == f"{run.path} has no finished {stage!r}"
    assert caught.value.remedy == f"{COMMANDS[stage]} --run {run.path}"


def test_a_refusal_of_the_machine_starts_nothing_but_leaves_what_is_done_in_reach(run: Run) -> None:
    def refuse() -> None:
        raise ZephyrError("too large", "a larger machine")

    with pytest.raises(ZephyrError, match="too large"):
        perform(run, step(check=refuse))
    assert not run.path.exists()
    perform(run, step())
    assert not perform(run, step(check=refuse)).is_new


def test_a_step_that_was_interrupted_goes_on(run: Run) -> None:
    seen: list[list[str]] = []

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        seen.append(sorted(path.name for path in draft.scratch.iterdir()))
        (draft.scratch / "rows.journal").write_text("paid for")
        if len(seen) == 1:
            raise KeyboardInterrupt

    cut = Step("build", "build", "", {}, {}, work)
    with pytest.raises(KeyboardInterrupt):
        perform(run, cut)
    heard = Heard()
    perform(run, cut, heard)
    assert seen == [[], ["rows.journal"]]
    assert heard.lines == ["build goes on from where it was interrupted"]


def test_a_forecast_touches_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    reads = {"rows": Source(artifact="build", stage="build"), "file": Source(path=file)}
    told = forecast(run, step("sft", reads=reads))
    assert told["missing"] == ["build", str(file)]
    assert told["writes"] == str(run.path / "sft")
    assert not told["unchanged"]
    assert not run.path.exists()
    file.write_text("1")
    perform(run, step())
    assert forecast(run, step("sft", reads=reads))["missing"] == []
    assert not forecast(run, step("sft", reads=reads))["unchanged"]
    perform(run, step("sft", reads=reads))
    assert forecast(run, step("sft", reads=reads))["unchanged"]
    assert not forecast(run, step("sft", reads=reads, seed=1))["unchanged"]


def test_a_forecast_knows_what_an_earlier_step_would_make_anew(run: Run) -> None:
    after = step("sft", reads={"rows": Source(artifact="build", stage="build")})
    perform(run, step())
    perform(run, after)
    assert forecast(run, after, made_again={"feedback"})["unchanged"]
    assert not forecast(run, after, made_again={"build"})["unchanged"]


def test_a_manifest_names_where_its_inputs_lay_and_a_moved_run_still_stands(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("1")
    perform(run, step())
    reads = {"rows": Source(artifact="build", stage="build"), "file": Source(path=file)}
    made: Artifact = perform(run, step("sft", reads=reads)).artifact
    assert made.manifest.input_paths == {"rows": "build", "file": str(file)}
    moved = Run(run.path.rename(tmp_path / "moved"))
    assert not perform(moved, step("sft", reads=reads)).is_new
