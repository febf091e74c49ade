"""Recipes: one validated section per stage."""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zephyrctl.records import ASPECTS

DATA = {"sft": (None, "dialogues", "chosen"), "dpo": (None, "pairs")}
"""What each stage can train on; None is the first that is named."""


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Choice(Section):
    """A plugin chosen by name, with its options."""

    name: str = Field(description="name of the plugin, as `zephyrctl plugins` lists it")
    options: dict[str, Any] = Field(default_factory=dict, description="its options")


class Limits(Section):
    """How hard a teacher may be asked, and when to give up."""

    concurrency: int = Field(default=64, ge=1, le=4096, description="calls in flight")
    requests_per_minute: int | None = Field(default=None, ge=1, description="calls begun in any minute")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="prompt and reply tokens of any minute")
    attempts: int = Field(default=6, ge=1, le=50, description="tries before a call fails for good")
    breaker: int = Field(default=10, ge=1, description="calls that fail for good, one after another, before all stops")


class TeacherChoice(Choice):
    """A teacher chosen by name, with its options and limits."""

    limits: Limits = Field(default_factory=Limits, description="how hard it may be asked")


class Novelty(Section):
    """Which instructions of a teacher are taken: each rule has its own count."""

    rouge_l: float | None = Field(
        default=0.7,
        gt=0,
        le=1,
        description="ROUGE-L F1 with every instruction of the pool, seeds and all, stays below this; none does not ask",
    )
    shortest: int = Field(default=3, ge=1, description="fewest words")
    longest: int = Field(default=150, ge=1, description="most words")
    keywords: list[str] = Field(
        default_factory=lambda: ["image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map"],
        description="words that a text model cannot serve; an instruction with one is left out",
    )


class SelfInstruct(Section):
    """Dialogues from a teacher: it answers seed prompts, refines them given the answer, and again (paper section 3)."""

    kind: Literal["self-instruct"] = "self-instruct"
    teacher: TeacherChoice = Field(description="answers, refines and plays the user")
    seeds: str = Field(description="'tiny-world', or a file of seed prompts")
    dialogues: int = Field(ge=1, description="dialogues to build")
    prompts: int = Field(ge=0, description="further prompts for AI feedback and evaluation")
    rounds: int = Field(default=1, ge=0, le=20, description="refinements of a seed, each given the answer before it")
    refined_share: float = Field(default=1.0, ge=0, le=1, description="share of seeds that are refined at all")
    two_turn_share: float = Field(default=0.0, ge=0, le=1, description="share that goes on for a second user turn")
    novelty: Novelty | None = Field(default_factory=Novelty, description="which instructions are taken; none takes all")
    waves: int = Field(
        default=10, ge=1, le=1000, description="times that what is missing is begun again from the seeds, at most"
    )
    longest_reply: int = Field(
        default=1024, ge=1, description="longest answer, in tokens; a dialogue with an answer cut there is left out"
    )


class Simulated(Section):
    """Dialogues between two teachers, one playing the user, over a tree of topics (as UltraChat)."""

    kind: Literal["dialogues"]
    assistant: TeacherChoice = Field(description="answers")
    user: TeacherChoice | None = Field(default=None, description="plays the user; none is the assistant's teacher")
    topics: str = Field(default="shipped", description="'shipped' for the project's 30, or a file with a topic a line")
    subtopics: int = Field(default=30, ge=1, description="subtopics asked for, for each topic")
    dialogues: int = Field(ge=1, description="dialogues to build, spread over the tree")
    prompts: int = Field(default=0, ge=0, description="further opening prompts for AI feedback and evaluation")
    least_rounds: int = Field(default=3, ge=1, description="fewest rounds of user and assistant")
    most_rounds: int = Field(default=7, ge=1, description="most rounds of user and assistant")
    longest_reply: int = Field(
        default=1024, ge=1, description="longest answer, in tokens; a dialogue ends before an answer cut there"
    )

    @model_validator(mode="after")
    def _rounds_are_in_order(self) -> Self:
        if self.least_rounds > self.most_rounds:
            raise ValueError(f"least_rounds: {self.least_rounds} is more than most_rounds, {self.most_rounds}")
        return self


class Files(Section):
    """Dialogues from local files; the user turns of the test side are kept as prompts."""

    kind: Literal["files"]
    paths: list[str] = Field(min_length=1, description="JSON, JSONL or Parquet files")


class Hub(Section):
    """Dialogues from a data set on the Hub, or in a folder that `datasets` can load."""

    kind: Literal["hub"]
    dataset: str = Field(description="id or folder of the data set of dialogues")
    revision: str | None = Field(default=None, description="its revision")
    splits: dict[Literal["train", "test"], str] = Field(
        description="our side: the published split; with one of them only, rows are split by hash"
    )


class Clean(Section):
    """What is mended and what is left out; every change is in the artifact's ledger and can be undone."""

    truecase: bool = Field(default=False, description="capitals for turns that were lower-cased (paper section 4)")
    openings: dict[str, str] = Field(
        default_factory=dict,
        description="name of a rule: opening words of a sentence that no assistant turn may hold",
    )


class Duplicates(Section):
    """Dialogues that say the same; the first of them is kept."""

    exact: bool = Field(default=True, description="leave out dialogues whose turns are all the same")
    near: float | None = Field(
        default=None, gt=0, le=1, description="leave out those whose word shingles are so alike (Jaccard); none keeps"
    )


class Build(Section):
    """`data build`: dialogues for dSFT and prompts for AI feedback."""

    source: SelfInstruct | Simulated | Files | Hub = Field(
        discriminator="kind", description="where dialogues come from"
    )
    clean: Clean = Field(default_factory=Clean, description="what is mended and left out")
    duplicates: Duplicates = Field(default_factory=Duplicates, description="what is left out as said before")
    test_share: float = Field(default=0.05, ge=0, le=0.5, description="share of prompts kept out of all training")
    processes: int = Field(default=0, ge=0, le=256, description="processes that clean; 0 takes one a core")


class Decontaminate(Section):
    """Rows that hold what `eval` asks: found by exact text, normalised text and n-grams of words."""

    against: list[str] = Field(default_factory=list, description="files of benchmark prompts, beside the held-out ones")
    held_out: bool = Field(
        default=True, description="search for our held-out prompts too, by n-grams for those that eval asks"
    )
    ngram: int = Field(
        default=8, ge=0, description="words of an n-gram that counts as a hit; 0 searches whole texts only"
    )
    on_hit: Literal["drop", "refuse", "keep"] = Field(
        default="drop", description="leave the row out and count it, stop, or train on it all the same"
    )


class Feedback(Section):
    """`data feedback`: answers of several models to each prompt, and their ratings."""

    completers: list[TeacherChoice] = Field(default_factory=list, description="pool of teachers that answer")
    answers: int = Field(default=4, ge=1, le=26, description="answers a prompt, each of another teacher of the pool")
    principles: str | None = Field(
        default=None, description="'shipped', or a YAML file: system prompts of which each answer draws one"
    )
    rater: TeacherChoice | None = Field(default=None, description="teacher that rates the answers")
    aspects: list[str] = Field(default_factory=lambda: list(ASPECTS), min_length=1, description="what is rated")
    repeats: int = Field(default=1, ge=1, le=100, description="ratings of each aspect, each in another order")
    asks: int = Field(default=2, ge=1, le=10, description="times a rating is asked for until it can be read")
    critique: bool = Field(default=False, description="ask for a critique and an overall score of each answer")
    temperature: float = Field(default=1.0, ge=0, le=2, description="of the completers")
    max_tokens: int = Field(default=1024, ge=1, description="longest answer, in tokens")
    concurrency: int = Field(default=64, ge=1, le=4096, description="prompts under way")
    failed_share: float = Field(
        default=0.01, ge=0, le=1, description="share of prompts that may fail, each listed with its cause"
    )
    published: str | None = Field(
        default=None, description="data set of rated prompts in UltraFeedback's form, instead of asking"
    )
    published_revision: str | None = Field(default=None, description="its revision")


class Binarize(Section):
    """`data binarize`: preference pairs from rated answers."""

    strategy: str = Field(default="random-rejected", description="name of the binarizer")
    options: dict[str, Any] = Field(default_factory=dict, description="its options")
    score: Literal["mean", "overall", "overall-as-published", "weights"] = Field(
        default="mean",
        description="mean of the aspects, overall score with its known defect mended or as it is, or weighted mean",
    )
    weights: dict[str, float] = Field(default_factory=dict, description="aspect: weight, for `score: weights`")
    ties: Literal["random", "first", "drop"] = Field(
        default="random", description="answers that tie for chosen: by the prompt's seed, the first, or no pair"
    )
    missing: Literal["skip", "drop-answer", "drop-prompt"] = Field(
        default="skip", description="a missing rating: leave it out of the mean, or leave out the answer or the prompt"
    )
    identical: Literal["drop", "keep"] = Field(default="drop", description="pairs whose texts are the same")
    empty: Literal["drop", "keep"] = Field(default="drop", description="pairs with an empty text")
    compat: Literal["zephyr-v1", "zephyr-fixed"] | None = Field(
        default=None,
        description="the rules of the published set, with or without its defects: sets strategy, score and policies",
    )


class Audit(Section):
    """`data audit`: gates."""

    gates: dict[str, float] = Field(
        default_factory=dict, description="figure of the audit: the most that it may be; exit 3 where it is more"
    )


class Training(Section):
    """What dSFT and dDPO share."""

    learning_rate: float = Field(gt=0, lt=1, description="peak rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(description="how the rate falls after warm-up")
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="share of the steps spent warming up")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient clipping")
    epochs: float = Field(gt=0, le=100, description="passes over the data")
    max_steps: int | None = Field(default=None, ge=1, description="stop after so many steps, whatever the epochs")
    global_batch: int = Field(ge=1, description="rows an optimizer step, over all processes")
    micro_batch: int = Field(ge=1, description="rows a process works on at once, at most; the global batch stays exact")
    max_length: int = Field(ge=8, description="longest row, in tokens")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations to save memory")
    save_every: int = Field(
        default=0, ge=0, description="steps between resumable checkpoints; 0 picks a quarter of the run"
    )
    log_every: int = Field(default=10, ge=1, description="steps between metrics")


class Sft(Training):
    """`sft`: distilled supervised fine-tuning."""

    packing: Literal["none", "wrapped", "bfd_split"] = Field(
        default="none", description="'wrapped' cuts one stream as in 2023; 'bfd_split' keeps documents apart"
    )
    assistant_only_loss: bool = Field(default=True, description="only what the assistant says carries loss")


class Dpo(Training):
    """`dpo`: distilled direct preference optimization (paper equation 1)."""

    beta: float = Field(gt=0, description="strength of the tie to the reference")
    loss: str = Field(default="sigmoid", description="TRL's loss_type; the paper's is 'sigmoid'")
    ties: Literal["drop", "keep"] = Field(default="drop", description="what to do with pairs of equal score")


class Checkpoint(Section):
    """One model that a run trains: which stage makes it and what it starts from."""

    stage: Literal["sft", "dpo"] = Field(description="how it is trained")
    start: str = Field(default="base", description="'base', or an earlier checkpoint of this recipe")
    data: Literal["dialogues", "chosen", "pairs"] | None = Field(
        default=None, description="for sft: 'dialogues', or 'chosen' for the chosen answers of the pairs"
    )
    label: str | None = Field(default=None, description="how tables name it")
    published: dict[str, float] = Field(default_factory=dict, description="figures of the paper to print beside it")


class Launch(Section):
    """How training starts."""

    processes: int = Field(default=1, ge=1, le=4096, description="worker processes; more than one runs DeepSpeed")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=3, description="DeepSpeed ZeRO stage with more than one process")
    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="of the arithmetic; masters are fp32")
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(default="sdpa", description="attention kernel")
    threads: int | None = Field(default=None, ge=1, description="OpenMP threads a process; none divides the cores")


class Hardware(Section):
    """What the recipe was written for."""

    nodes: int = Field(default=1, ge=1, description="machines")
    gpus: int = Field(default=0, ge=0, description="GPUs a machine; 0 runs on the CPU")
    gpu_type: str | None = Field(default=None, description="for instance a100-80gb")


class Eval(Section):
    """`eval`: held-out prompts, answered by every checkpoint and judged."""

    judge: TeacherChoice = Field(description="teacher that scores and compares")
    prompts: int = Field(default=200, ge=2, description="held-out prompts to ask, at most")
    max_new_tokens: int = Field(default=64, ge=1, description="longest answer, in tokens")
    batch: int = Field(default=64, ge=1, description="answers generated at once")
    base: bool = Field(default=True, description="ask the untrained base too")


class Push(Section):
    """`push`: publication on the Hub."""

    checkpoint: str = Field(default="dpo", description="checkpoint to publish")
    private: bool = Field(default=True, description="visible to the owner only")


class Recipe(Section):
    """A whole recipe: from a base to an aligned, judged and published model."""

    name: str = Field(pattern=r"^\w[\w.-]*$", description="also the name of the run's folder")
    description: str = Field(default="", description="one sentence")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="every random choice hangs on it and on the row's id")
    skip_bad_rows: bool = Field(
        default=False, description="leave out rows of files and data sets that cannot be used, counted by cause"
    )
    base: Choice = Field(description="the model base")
    build: Build
    decontaminate: Decontaminate = Field(default_factory=Decontaminate)
    feedback: Feedback
    binarize: Binarize = Field(default_factory=Binarize)
    audit: Audit = Field(default_factory=Audit)
    prices: str | None = Field(default=None, description="price file; else prices.yaml here, else the shipped one")
    sft: Sft
    dpo: Dpo
    checkpoints: dict[str, Checkpoint] = Field(min_length=1, description="what a run trains, in order")
    launch: Launch = Field(default_factory=Launch)
    hardware: Hardware = Field(default_factory=Hardware)
    eval: Eval
    push: Push = Field(default_factory=Push)
    sources: dict[str, str] = Field(default_factory=dict, description="key: where its value was published")

    @model_validator(mode="after")
    def _checkpoints_follow_each_other(self) -> Self:
        known = ["base"]
        for name, checkpoint in self.checkpoints.items():
            if not re.fullmatch(r"[A-Za-z0-9_][\w-]*", name):  # a folder, and a part of dotted keys
                raise ValueError(f"checkpoints.{name}: a name is made of letters, digits, _ and -")
            if checkpoint.data not in DATA[checkpoint.stage]:
                raise ValueError(f"checkpoints.{name}.data: {checkpoint.stage} does not train on {checkpoint.data!r}")
            if name in {*known, "build", "feedback", "binarize", "eval", "push"}:
                raise ValueError(f"checkpoints.{name}: this name is taken")
            if checkpoint.start not in known:
                raise ValueError(f"checkpoints.{name}.start: {checkpoint.start!r} is none of {', '.join(known)}")
            known.append(name)
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        for name, training in (("sft", self.sft), ("dpo", self.dpo)):
            if training.global_batch % self.launch.processes:
                raise ValueError(
                    f"{name}.global_batch: {training.global_batch} rows cannot be shared by {self.launch.processes} "
                    f"processes (launch.processes)"
                )
        return self
