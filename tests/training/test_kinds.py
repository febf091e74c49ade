"""A kind of training is one description, and an unknown or a third kind is never trained as another one."""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import Field

import zephyrctl
from zephyrctl.cli import run as run_command
from zephyrctl.contracts import ModelBase
from zephyrctl.errors import ZephyrError
from zephyrctl.launching import launchers
from zephyrctl.launching.job import DpoJob, Job, SftJob, job_type
from zephyrctl.launching.weights import model_base
from zephyrctl.planning import plan, probe
from zephyrctl.recipe import loading
from zephyrctl.recipe.schema import Checkpoint, Recipe, Training
from zephyrctl.records import Message, PreferencePair
from zephyrctl.runs.artifacts import Draft
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.parquet import write_parquet
from zephyrctl.runs.run import Run
from zephyrctl.token_contract import PROBES, TokenContract
from zephyrctl.training import diagnostics
from zephyrctl.training.diagnostics import Interpreter
from zephyrctl.training.kinds import KINDS, TrainingKind, training_kind
from zephyrctl.training.launch import training_facts
from zephyrctl.training.prepared_rows import Prepared, PrepareRequest, key_of
from zephyrctl.training.results import RowReport, TrainingResult
from zephyrctl.training.stage import TrainStage

PACKAGE = Path(zephyrctl.__file__).parent


class RankingSettings(Training):
    """A section that is neither dSFT's nor dDPO's."""

    margin: float = Field(default=0.5, description="least difference of two scores")


class RankingJob(Job):
    """Its job."""

    settings: RankingSettings


class RankingRecipe(Recipe):
    """A recipe with one more section."""

    ranking: RankingSettings


RANKING = TrainingKind(
    name="ranking",
    title="a reward model",
    command="zephyrctl run",
    section="ranking",
    rows="pairs",
    data=("pairs",),
    row_settings=(),
    job=f"{__name__}:RankingJob",
    worker="ranking",
    makes="reward model",
    checks_initial_loss=False,
    results=("eval_loss",),
    rules=(),
    loss_rise=0.3,
    charts=(),
)


@pytest.fixture
def ranking(monkeypatch: pytest.MonkeyPatch) -> Iterator[RankingRecipe]:
    """`tiny` with a third kind of training, and a checkpoint of it between the others."""
    monkeypatch.setitem(KINDS, "ranking", RANKING)
    tiny = loading.load("tiny", {"hardware.gpus": 0, "launch.processes": 1}).recipe.model_dump()
    section = {key: value for key, value in tiny["dpo"].items() if key in RankingSettings.model_fields}
    checkpoints = {"scorer": {"stage": "ranking", "start": "sft"}}
    yield RankingRecipe.model_validate(
        tiny | {"ranking": section | {"margin": 0.25}, "checkpoints": tiny["checkpoints"] | checkpoints}
    )


@pytest.fixture
def draft(tmp_path: Path) -> Iterator[Draft]:
    """An open draft."""
    with Run(tmp_path).draft(Plan(name="scorer", stage="ranking", settings={}, inputs={}), {}, {}) as opened:
        yield opened


def prepared(folder: Path) -> Prepared:
    """Forty prepared pairs."""
    contract = TokenContract(
        chat_template="",
        special_tokens={},
        vocabulary=32,
        starts_with_bos=False,
        ends_with_eos=True,
        probes=tuple(None for _ in PROBES),
    )
    report = RowReport(rows_in=40, rows_kept=40, rows=40, tokens_in=4000, tokens_kept=4000, learnt_tokens=2000)
    return Prepared(folder, "key", contract, {"train": report})


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_entry_of_the_table_names_what_is_there(kind: TrainingKind) -> None:
    section = Recipe.model_fields[kind.section].annotation
    assert isinstance(section, type) and issubclass(section, Training)
    assert set(kind.row_settings) <= set(section.model_fields) & set(PrepareRequest.model_fields)
    assert job_type(kind).model_fields["settings"].annotation is section
    assert importlib.util.find_spec(f"zephyrctl.workers.{kind.worker}")
    assert set(kind.results) <= set(TrainingResult.model_fields)
    assert set(kind.rules) <= set(diagnostics.RULES)
    assert len({chart.key for chart in kind.charts}) == len(kind.charts) > 0
    assert kind.default_data in kind.data


def test_the_two_kinds_of_the_paper() -> None:
    assert (job_type(KINDS["sft"]), job_type(KINDS["dpo"])) == (SftJob, DpoJob)
    assert [Checkpoint(stage=name).trains_on for name in ("sft", "dpo")] == ["dialogues", "pairs"]


@pytest.mark.parametrize("name", ["rm", "dop", "SFT", ""])
def test_an_unknown_kind_is_an_error_everywhere(name: str) -> None:
    with pytest.raises(ZephyrError, match=f"no kind of training '{name}'"):
        training_kind(name)
    with pytest.raises(ZephyrError, match=r"checkpoints.mine.stage = .*no such kind of training"):
        loading.load("tiny", {}, [f"checkpoints.mine.stage={json.dumps(name)}"])
    recipe = loading.load("tiny", {}).recipe
    for use in (
        lambda: recipe.training_section(name),
        lambda: plan.settings_of(recipe, name),
        lambda: plan.solve(recipe, name, model_base(recipe)),
        lambda: plan.counted_rows(name, RowReport(rows_in=1, rows_kept=1)),
    ):
        with pytest.raises(ZephyrError, match="no kind of training"):
            use()


def test_a_near_miss_names_the_kind() -> None:
    with pytest.raises(ZephyrError, match="did you mean 'dpo'"):
        loading.load("tiny", {}, ["checkpoints.mine.stage=dop"])


def test_a_kind_without_its_section_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "ranking", RANKING)
    with pytest.raises(ZephyrError, match="no section for ranking"):
        loading.load("tiny", {}, ["checkpoints.mine.stage=ranking"])


def test_a_third_kind_has_settings_data_and_a_plan_of_its_own(ranking: RankingRecipe) -> None:
    changed = ranking.model_copy(
        update={"checkpoints": {"scorer": ranking.checkpoints["scorer"].model_copy(update={"epochs": 7.0})}}
    ).training("scorer")
    assert (changed.training_section("ranking").epochs, changed.dpo, changed.sft) == (7.0, ranking.dpo, ranking.sft)
    layout = plan.solve(ranking, "ranking", model_base(ranking)).layout
    assert (layout.engine, layout.reference) == (None, None)
    assert layout.global_batch == ranking.ranking.global_batch
    report = RowReport(rows_in=4, rows_kept=4, tokens_in=400, tokens_kept=400, learnt_tokens=200)
    assert plan.counted_rows("ranking", report).pairs == 4


def test_a_third_kind_is_a_stage_of_its_own(ranking: RankingRecipe) -> None:
    stage = TrainStage(ranking, "scorer")
    assert (stage.stage, str(stage.reads["rows"]), str(stage.reads["start"])) == ("ranking", "binarize", "sft")
    assert stage.settings["ranking"]["margin"] == 0.25
    assert not {"sft", "dpo"} & set(stage.settings)
    assert stage.settings["data"] == "pairs"
    assert "train scorer from sft on pairs" in stage.does
    other = ranking.model_copy(update={"dpo": ranking.dpo.model_copy(update={"beta": 0.7})})
    assert TrainStage(other, "scorer").settings == stage.settings


def test_a_third_kind_prepares_its_own_rows(ranking: RankingRecipe, tmp_path: Path) -> None:
    """The key of its prepared rows is not that of dDPO's, though both are pairs."""
    rows = tmp_path / "pairs.parquet"
    pair = PreferencePair(
        id="1",
        messages=[Message(role="user", content="Why?")],
        chosen="So.",
        rejected="No.",
        score_chosen=None,
        score_rejected=None,
    )
    write_parquet(rows, [pair], PreferencePair)
    base = model_base(ranking)
    shared = {
        "model": base.location(),
        "revision": None,
        "chat_template": base.chat_template(),
        "rows": {"train": rows},
        "max_length": 64,
        "seed": 0,
    }
    assert key_of({"kind": "ranking", **shared}) != key_of({"kind": "dpo", **shared})


def test_the_job_of_a_third_kind_is_launched_by_its_own_worker(ranking: RankingRecipe, draft: Draft) -> None:
    stage = TrainStage(ranking, "scorer")
    rows = prepared(draft.path.absolute())
    solution = plan.solve_with(ranking, "ranking", stage.base, rows.reports["train"])
    job = stage.make_job(rows, solution, None, draft)
    assert isinstance(job, RankingJob)
    assert (job.kind, job.settings.margin) == ("ranking", 0.25)
    assert RankingJob.model_validate_json(job.model_dump_json()) == job
    for type_ in (SftJob, DpoJob):
        with pytest.raises(ValueError, match="settings"):
            type_.model_validate_json(job.model_dump_json())
    path = job.scratch / "job.json"
    command = launchers.launch_command("single", training_kind(job.kind).worker, path, job.layout, job.launch).command
    assert "zephyrctl.workers.ranking" in command
    facts = training_facts(job)
    assert (facts.kind, facts.is_logistic) == (RANKING, False)
    low = {"learning_rate": 1e-6, "rewards/accuracies": 0.0, "logps/chosen": -1e3, "rewards/chosen": -9.0}
    reader = Interpreter(facts)
    assert [reader.read({"step": step, "loss": 0.5, **low}) for step in range(1, facts.steps + 1)] == [[]] * facts.steps


def test_a_probe_of_a_third_kind_makes_its_rows(ranking: RankingRecipe, tmp_path: Path) -> None:
    base: ModelBase = model_base(ranking)
    job = probe.make_job(ranking, "ranking", base, plan.solve(ranking, "ranking", base), tmp_path)
    assert isinstance(job, RankingJob)
    assert job.settings.margin == 0.25


def test_only_chat_models_are_evaluated(ranking: RankingRecipe) -> None:
    (*_, trained, held_out) = run_command.chain(ranking)
    assert trained.stage == "ranking"
    assert "scorer" not in {str(source) for source in held_out.reads.values()}
    assert {"sft", "dpo"} <= {str(source) for source in held_out.reads.values()}


def test_no_module_but_the_table_compares_with_the_name_of_a_kind() -> None:
    """Neither in a comparison nor in the pattern of a `match`."""
    guilty = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            compared: list[ast.expr] = []
            if isinstance(node, ast.Compare):
                compared = [node.left, *node.comparators]
            elif isinstance(node, ast.MatchValue):
                compared = [node.value]
            names = [part.value for expr in compared for part in ast.walk(expr) if isinstance(part, ast.Constant)]
            if set(names) & set(KINDS):
                guilty.append(f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}")
    assert [place for place in guilty if not place.startswith("publishing/")] == []
