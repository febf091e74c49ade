"""Read the settings in a manifest that the report and the card speak about, by attribute."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from zephyrctl.runs.manifest import Plan
from zephyrctl.training.kinds import KINDS


class _Settings(BaseModel):
    """Settings of a stage. Every one may be missing: each stage records only those that its result depends on."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _empty_if_none(value: object) -> object:
    return {} if value is None else value


class TeacherSettings(_Settings):
    """A teacher that a stage asked."""

    name: str = ""
    options: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model behind the teacher if its options name one, else the teacher's own name."""
        return str(self.options.get("model") or self.name)


class SourceSettings(_Settings):
    """Where the rows of `data build` come from."""

    kind: str = ""
    dataset: str | None = None
    revision: str | None = None
    teacher: TeacherSettings | None = None
    assistant: TeacherSettings | None = None
    user: TeacherSettings | None = None


class CleanSettings(_Settings):
    """The cleaning rules of `data build`."""

    truecase: bool = False
    openings: dict[str, str] = Field(default_factory=dict)


class DecontaminationSettings(_Settings):
    """The benchmark files that were searched for, and what happens to a row that contains one of their prompts."""

    against: list[str] = Field(default_factory=list)
    on_hit: str = ""


class TrainingSettings(_Settings):
    """The length of a training."""

    epochs: float | None = None
    max_steps: int | None = None


class LaunchSettings(_Settings):
    """How a training was launched."""

    precision: str = ""


class StageSettings(_Settings):
    """The settings of any stage."""

    source: Annotated[SourceSettings, BeforeValidator(_empty_if_none)] = SourceSettings()
    published: str | None = Field(default=None, description="a published set of ratings, on the Hub")
    published_revision: str | None = None
    completers: Annotated[list[TeacherSettings], BeforeValidator(lambda value: value or [])] = []
    rater: TeacherSettings | None = None
    clean: Annotated[CleanSettings, BeforeValidator(_empty_if_none)] = CleanSettings()
    decontaminate: Annotated[DecontaminationSettings, BeforeValidator(_empty_if_none)] = DecontaminationSettings()
    start: str | None = Field(default=None, description="the checkpoint that a training started from")
    launch: Annotated[LaunchSettings, BeforeValidator(_empty_if_none)] = LaunchSettings()
    training: TrainingSettings = Field(default=TrainingSettings(), description="the section of the training's kind")

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """The settings of a plan; `training` is the section that its kind of training has in the recipe."""
        kind = KINDS.get(plan.stage)
        training = plan.settings.get(kind.section, {}) if kind else {}
        return cls.model_validate({**plan.settings, "training": training})

    def data_sets(self) -> Iterator[tuple[str, str | None]]:
        """The Hub's data sets that the stage read, each with its revision if one was pinned."""
        if self.source.kind == "hub" and self.source.dataset:
            yield self.source.dataset, self.source.revision
        if self.published:
            yield self.published, self.published_revision

    def teachers(self) -> list[str]:
        """The models that the stage asked, without repeats."""
        asked = [self.source.teacher, self.source.assistant, self.source.user, *self.completers, self.rater]
        return list(dict.fromkeys(teacher.model for teacher in asked if teacher and teacher.model))
