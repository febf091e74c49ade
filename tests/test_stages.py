"""Whether a step is done once for one plan, again for another, and not at all where it cannot be."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.runs.artifacts import Artifact, Draft
from zephyrctl.runs.run import Run
from zephyrctl.stages import COMMANDS, Inputs, Source, Stage, forecast, perform


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


Work = Callable[[Draft, Inputs, Progress], None]


class Written(Stage):
    """A stage that writes one file, or does what a test says."""

    def __init__(
        self,
        name: str = "build",
        reads: dict[str, Source] | None = None,
        check: Callable[[], None] = lambda: None,
        text: str = "text",
        work: Work | None = None,
        helpers: AbstractContextManager[Any] | None = None,
        **settings: Any,
    ) -> None:
        self.name = self.stage = name
        self.does, self.settings, self.reads = f"write {text}", settings, reads or {}
        self.text, self.checked, self.worked, self.helped = text, check, work, helpers

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write the text, or do what the test says."""
        if self.worked:
            self.worked(draft, inputs, progress)
        else:
            (draft.path / "file.txt").write_text(self.text)

    def check(self) -> None:
        """What the test says."""
        self.checked()

    def helpers(self) -> AbstractContextManager[Any]:
        """The test's own, if it gives some."""
        return self.helped or super().helpers()


def refuse() -> None:
    """What a machine says that cannot do the work."""
    raise ZephyrError("no GPU", "find one")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """An empty run."""
    return Run(tmp_path / "run")


def test_the_same_plan_is_done_once(run: Run) -> None:
    first = perform(run, Written(seed=1))
    again = perform(run, Written(seed=1, text="other"))
    assert (first.is_new, again.is_new) == (True, False)
    assert again.artifact.manifest == first.artifact.manifest
    assert (again.artifact.path / "file.txt").read_text() == "text"


def test_fresh_does_the_same_plan_again(run: Run) -> None:
    perform(run, Written(seed=1))
    assert perform(run, Written(seed=1), fresh=True).is_new


def test_a_changed_setting_is_said_and_done(run: Run) -> None:
    perform(run, Written(seed=1, share=0.5))
    heard = Heard()
    assert perform(run, Written(seed=2, share=0.5), heard).is_new
    assert heard.lines == ["rebuilding build: seed: 1 -> 2"]


class Helpers(AbstractContextManager[None]):
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

    def one(seed: int, check: Callable[[], None] = lambda: None) -> Stage:
        def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
            assert helpers.run

        return Written(seed=seed, check=check, work=work, helpers=helpers)

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
        assert perform(run, Written(reads=source)).is_new
        assert not perform(run, Written(reads=source)).is_new
        (folder / "rows.txt").write_text("2")
        heard = Heard()
        assert perform(run, Written(reads=source), heard).is_new
        assert "input rows" in heard.lines[0]


def test_a_step_is_done_again_when_the_step_before_gave_something_else(run: Run) -> None:
    after = Written("sft", reads={"rows": Source(artifact="build", stage="build")})
    perform(run, Written(text="one"))
    perform(run, after)
    assert not perform(run, after).is_new
    perform(run, Written(text="one"), fresh=True)
    assert not perform(run, after).is_new, "the same content made again is no change"
    perform(run, Written(text="two"), fresh=True)
    assert perform(run, after).is_new


@pytest.mark.parametrize("stage", COMMANDS)
def test_a_missing_artifact_names_the_command_that_makes_it(run: Run, stage: str) -> None:
    with pytest.raises(ZephyrError) as caught:
        perform(run, Written("last", reads={"rows": Source(artifact=stage, stage=stage)}))
    assert caught.value.problem == f"{run.path} has no finished {stage!r}"
    assert caught.value.remedy == f"{COMMANDS[stage]} --run {run.path}"


def test_a_refusal_of_the_machine_starts_nothing_but_leaves_what_is_done_in_reach(run: Run) -> None:
    def refuse() -> None:
        raise ZephyrError("too large", "a larger machine")

    with pytest.raises(ZephyrError, match="too large"):
        perform(run, Written(check=refuse))
    assert not run.path.exists()
    perform(run, Written())
    assert not perform(run, Written(check=refuse)).is_new


def test_a_step_that_was_interrupted_goes_on(run: Run) -> None:
    seen: list[list[str]] = []

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        seen.append(sorted(path.name for path in draft.scratch.iterdir()))
        (draft.scratch / "rows.journal").write_text("paid for")
        if len(seen) == 1:
            raise KeyboardInterrupt

    cut = Written(work=work)
    with pytest.raises(KeyboardInterrupt):
        perform(run, cut)
    heard = Heard()
    perform(run, cut, heard)
    assert seen == [[], ["rows.journal"]]
    assert heard.lines == ["resuming build"]


def test_a_forecast_touches_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    reads = {"rows": Source(artifact="build", stage="build"), "file": Source(path=file)}
    told = forecast(run, Written("sft", reads=reads))
    assert told["missing"] == ["build", str(file)]
    assert told["writes"] == str(run.path / "sft")
    assert not told["unchanged"]
    assert not run.path.exists()
    file.write_text("1")
    perform(run, Written())
    assert forecast(run, Written("sft", reads=reads))["missing"] == []
    assert not forecast(run, Written("sft", reads=reads))["unchanged"]
    perform(run, Written("sft", reads=reads))
    assert forecast(run, Written("sft", reads=reads))["unchanged"]
    assert not forecast(run, Written("sft", reads=reads, seed=1))["unchanged"]


def test_a_forecast_knows_what_an_earlier_step_would_make_anew(run: Run) -> None:
    after = Written("sft", reads={"rows": Source(artifact="build", stage="build")})
    perform(run, Written())
    perform(run, after)
    assert forecast(run, after, rebuilt={"feedback"})["unchanged"]
    assert not forecast(run, after, rebuilt={"build"})["unchanged"]


def test_a_manifest_names_where_its_inputs_lay_and_a_moved_run_still_stands(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("1")
    perform(run, Written())
    reads = {"rows": Source(artifact="build", stage="build"), "file": Source(path=file)}
    made: Artifact = perform(run, Written("sft", reads=reads)).artifact
    assert made.manifest.input_paths == {"rows": "build", "file": str(file)}
    moved = Run(run.path.rename(tmp_path / "moved"))
    assert not perform(moved, Written("sft", reads=reads)).is_new
