"""The schema of recipes: one validated section per stage."""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.records import ASPECTS
from zephyrctl.training.kinds import KINDS, DataName, training_kind

ARTIFACTS = ("build", "feedback", "binarize", "eval", "mt-bench", "alpaca-eval", "open-llm", "arena", "push")
"""The artifacts of other stages: no checkpoint can have one of these names."""


Packing = Literal["none", "wrapped", "bfd_split"]


class Section(BaseModel):
    """A section of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class Choice(Section):
    """A plugin chosen by name, with its options."""

    name: str = Field(description="name of the plugin, as `zephyrctl plugins` lists it")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the plugin")


class Limits(Section):
    """Rate limits of a teacher, and when to give up."""

    concurrency: int = Field(default=64, ge=1, le=4096, description="concurrent calls")
    requests_per_minute: int | None = Field(default=None, ge=1, description="most calls per minute")
    tokens_per_minute: int | None = Field(default=None, ge=1, description="most prompt and reply tokens per minute")
    attempts: int = Field(default=6, ge=1, le=50, description="attempts before a call fails")
    breaker: int = Field(default=10, ge=1, description="failed calls in a row before the command stops")


class TeacherChoice(Choice):
    """A teacher chosen by name, with its options and limits."""

    limits: Limits = Field(default_factory=Limits, description="its rate limits")


class Novelty(Section):
    """Which instructions of a teacher are accepted. Rejected ones are counted for each rule."""

    rouge_l: float | None = Field(
        default=0.7,
        gt=0,
        le=1,
        description="largest ROUGE-L F1 with any instruction so far, seeds included; none: no check",
    )
    shortest: int = Field(default=3, ge=1, description="fewest words")
    longest: int = Field(default=150, ge=1, description="most words")
    keywords: list[str] = Field(
        default_factory=lambda: ["image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map"],
        description="an instruction with one of these words is dropped: a text model cannot follow it",
    )


class SelfInstruct(Section):
    """Dialogues from a teacher, which answers seed prompts and refines them, given the answer (paper section 3)."""

    kind: Literal["self-instruct"] = Field(default="self-instruct", description="kind of source")
    teacher: TeacherChoice = Field(description="teacher that answers, refines and plays the user")
    seeds: str = Field(description="'tiny-world', or a file of seed prompts")
    dialogues: int = Field(ge=1, description="dialogues to build")
    prompts: int = Field(ge=0, description="further prompts for AI feedback and evaluation")
    rounds: int = Field(default=1, ge=0, le=20, description="refinements of a seed, each given the previous answer")
    refined_share: float = Field(default=1.0, ge=0, le=1, description="share of seeds that are refined")
    two_turn_share: float = Field(default=0.0, ge=0, le=1, description="share of dialogues with a second user turn")
    novelty: Novelty | None = Field(default_factory=Novelty, description="which instructions are accepted; none: all")
    waves: int = Field(
        default=10, ge=1, le=1000, description="most passes over the seeds until there are enough dialogues"
    )
    longest_reply: int = Field(
        default=1024, ge=1, description="longest answer, in tokens; a dialogue with a longer one is dropped"
    )


class Simulated(Section):
    """Dialogues between two teachers, of which one plays the user, about a tree of topics (as UltraChat)."""

    kind: Literal["dialogues"] = Field(description="kind of source")
    assistant: TeacherChoice = Field(description="teacher that answers")
    user: TeacherChoice | None = Field(default=None, description="teacher that plays the user; none: the assistant's")
    topics: str = Field(default="shipped", description="'shipped': our 30 topics; or a file with one topic per line")
    subtopics: int = Field(default=30, ge=1, description="subtopics per topic")
    dialogues: int = Field(ge=1, description="dialogues to build, spread over the topics")
    prompts: int = Field(default=0, ge=0, description="further opening prompts for AI feedback and evaluation")
    least_rounds: int = Field(default=3, ge=1, description="fewest rounds of user and assistant")
    most_rounds: int = Field(default=7, ge=1, description="most rounds of user and assistant")
    longest_reply: int = Field(
        default=1024, ge=1, description="longest answer, in tokens; a dialogue ends before a longer one"
    )

    @model_validator(mode="after")
    def _rounds_are_in_order(self) -> Self:
        if self.least_rounds > self.most_rounds:
            raise ValueError(f"least_rounds: {self.least_rounds} is more than most_rounds, {self.most_rounds}")
        return self


class Files(Section):
    """Dialogues from local files; the user turns of the test split become prompts."""

    kind: Literal["files"] = Field(description="kind of source")
    paths: list[str] = Field(min_length=1, description="JSON, JSONL or Parquet files")


class Hub(Section):
    """Dialogues from a data set on the Hub, or in a folder that `datasets` can load."""

    kind: Literal["hub"] = Field(description="kind of source")
    dataset: str = Field(description="id or folder of the data set of dialogues")
    revision: str | None = Field(default=None, description="revision of the data set")
    splits: dict[Literal["train", "test"], str] = Field(
        description="published split for train and for test; if only one is given, rows are split by hash"
    )


class Clean(Section):
    """What is fixed and what is dropped; the artifact records every change, and each can be undone."""

    truecase: bool = Field(default=False, description="restore capital letters in lower-case turns (paper section 4)")
    openings: dict[str, str] = Field(
        default_factory=dict,
        description="name of a rule: first words of a sentence; dialogues with such an assistant turn are dropped",
    )


class Duplicates(Section):
    """Duplicate dialogues; the first one is kept."""

    exact: bool = Field(default=True, description="drop dialogues with the same turns")
    near: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="drop dialogues whose word shingles have at least this Jaccard similarity; none: keep",
    )


class Build(Section):
    """`data build`: dialogues for dSFT and prompts for AI feedback."""

    source: SelfInstruct | Simulated | Files | Hub = Field(discriminator="kind", description="source of the dialogues")
    clean: Clean = Field(default_factory=Clean, description="what is fixed and dropped")
    duplicates: Duplicates = Field(default_factory=Duplicates, description="which duplicates are dropped")
    test_share: float = Field(default=0.05, ge=0, le=0.5, description="share of prompts that no training uses")
    processes: int = Field(default=0, ge=0, le=256, description="worker processes; 0: one per core")


class Decontaminate(Section):
    """Training rows that contain evaluation prompts: found by exact text, normalized text and word n-grams."""

    against: list[str] = Field(
        default_factory=list, description="files of benchmark prompts to search for, besides the held-out ones"
    )
    held_out: bool = Field(
        default=True, description="search for the held-out prompts too; by n-grams for those that eval uses"
    )
    ngram: int = Field(default=8, ge=0, description="words in a matching n-gram; 0: match whole texts only")
    on_hit: Literal["drop", "refuse", "keep"] = Field(
        default="drop", description="drop the row and count it, stop, or keep it"
    )


class Feedback(Section):
    """`data feedback`: answers of several models to each prompt, and their ratings."""

    completers: list[TeacherChoice] = Field(default_factory=list, description="pool of teachers that answer")
    answers: int = Field(default=4, ge=1, le=26, description="answers per prompt, each from another teacher")
    principles: str | None = Field(
        default=None, description="'shipped', or a YAML file of system prompts; each answer gets a random one"
    )
    rater: TeacherChoice | None = Field(default=None, description="teacher that rates the answers")
    aspects: list[str] = Field(default_factory=lambda: list(ASPECTS), min_length=1, description="aspects to rate")
    repeats: int = Field(
        default=1, ge=1, le=100, description="ratings per aspect, each with the answers in another order"
    )
    asks: int = Field(default=2, ge=1, le=10, description="most calls for a rating until it can be parsed")
    critique: bool = Field(default=False, description="request a critique and an overall score for each answer")
    temperature: float = Field(default=1.0, ge=0, le=2, description="sampling temperature of the completers")
    max_tokens: int = Field(default=1024, ge=1, description="longest answer, in tokens")
    concurrency: int = Field(default=64, ge=1, le=4096, description="concurrent prompts")
    failed_share: float = Field(
        default=0.01, ge=0, le=1, description="largest share of prompts that may fail; each is listed with its cause"
    )
    published: str | None = Field(
        default=None, description="published data set of rated prompts in UltraFeedback's form, to use instead of calls"
    )
    published_revision: str | None = Field(default=None, description="revision of the data set")


class Binarize(Section):
    """`data binarize`: preference pairs from rated answers."""

    strategy: str = Field(default="random-rejected", description="name of the binarizer")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the plugin")
    score: Literal["mean", "overall", "overall-as-published", "weights"] = Field(
        default="mean",
        description="mean of the aspects, overall score with its known defect fixed or as published, or weighted mean",
    )
    weights: dict[str, float] = Field(default_factory=dict, description="aspect: weight, for `score: weights`")
    ties: Literal["random", "first", "drop"] = Field(
        default="random", description="if answers tie for chosen: a random one, the first, or no pair"
    )
    missing: Literal["skip", "drop-answer", "drop-prompt"] = Field(
        default="skip", description="if a rating is missing: ignore it in the mean, drop the answer, or drop the prompt"
    )
    identical: Literal["drop", "keep"] = Field(default="drop", description="what to do with pairs of equal texts")
    empty: Literal["drop", "keep"] = Field(default="drop", description="what to do with pairs with an empty text")
    compat: Literal["zephyr-v1", "zephyr-fixed"] | None = Field(
        default=None,
        description="rules of the published data set, with or without its defects: sets strategy, score and policies",
    )


class Audit(Section):
    """`data audit`: quality gates."""

    gates: dict[str, float] = Field(
        default_factory=dict, description="figure of the audit: its largest allowed value; exit 3 if it is larger"
    )


class Adapter(Section):
    """LoRA: train low-rank matrices beside frozen weights."""

    rank: int = Field(default=16, ge=1, le=1024, description="rank of the matrices")
    alpha: int = Field(default=32, ge=1, description="the product of the matrices is multiplied by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the input of the adapters")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear",
        description="names of the adapted layers; 'all-linear': every linear layer except the head",
    )
    quantize: bool = Field(default=False, description="keep the frozen weights in 4 bits (QLoRA); needs bitsandbytes")
    merge: bool = Field(default=True, description="merge the adapters into the weights at the end")


class Training(Section):
    """Settings that all kinds of training share."""

    learning_rate: float = Field(gt=0, lt=1, description="peak learning rate")
    schedule: Literal["cosine", "linear", "constant"] = Field(description="learning rate schedule after warm-up")
    warmup_share: float = Field(default=0.1, ge=0, lt=1, description="share of the steps used for warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0, description="largest gradient norm; larger gradients are clipped")
    epochs: float = Field(gt=0, le=100, description="passes over the data")
    max_steps: int | None = Field(default=None, ge=1, description="stop after this many steps; it overrides epochs")
    global_batch: int = Field(ge=1, description="rows per optimizer step, over all processes")
    micro_batch: int | None = Field(
        default=None, ge=1, description="most rows per process and forward pass; none: the plan decides"
    )
    max_length: int = Field(ge=8, description="longest row, in tokens")
    gradient_checkpointing: bool | None = Field(
        default=None, description="recompute activations to save memory; none: the plan decides"
    )
    loss_budget: float = Field(
        default=0.01, ge=0, le=1, description="largest share of rows, or of tokens, that may be dropped before training"
    )
    adapter: Adapter | None = Field(default=None, description="train LoRA adapters only; none: train all weights")
    save_every: int = Field(default=0, ge=0, description="steps between resumable checkpoints; 0: a quarter of the run")
    log_every: int = Field(default=10, ge=1, description="steps between metrics")


class Sft(Training):
    """`sft`: distilled supervised fine-tuning."""

    packing: Packing = Field(
        default="none",
        description="'wrapped': cut one token stream, as in 2023; 'bfd_split': no attention between dialogues",
    )
    assistant_only_loss: bool = Field(default=True, description="compute the loss on assistant turns only")


class Dpo(Training):
    """`dpo`: distilled direct preference optimization (paper equation 1)."""

    beta: float = Field(gt=0, description="strength of the pull towards the reference")
    loss: str = Field(
        default="sigmoid", description="preference loss, as `zephyrctl plugins` lists it; the paper's is 'sigmoid'"
    )
    loss_options: dict[str, object] = Field(default_factory=dict, description="options of the loss")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="assumed share of pairs with swapped labels, for losses that use it"
    )
    engine: Literal["prefix-shared", "trl"] | None = Field(
        default=None,
        description="compute the prompt of a pair once for both answers, or as TRL does; none: the profile decides",
    )
    reference: Literal["precomputed", "live"] | None = Field(
        default=None,
        description="compute the reference's log-probabilities before training or at each step; none: profile decides",
    )
    ties: Literal["drop", "keep"] = Field(default="drop", description="what to do with pairs of equal score")


class Checkpoint(Section):
    """A model that a run trains: its kind of training and the model that it starts from."""

    stage: str = Field(description="the kind of training that makes it", json_schema_extra={"enum": [*KINDS]})
    start: str = Field(default="base", description="'base', or an earlier checkpoint of this recipe")
    data: DataName | None = Field(
        default=None, description="for sft: 'dialogues', or 'chosen' for the chosen answers of the pairs"
    )
    epochs: float | None = Field(
        default=None, gt=0, le=100, description="passes over the data, if different from its stage's"
    )
    label: str | None = Field(default=None, description="its name in tables")
    published: dict[str, float] = Field(default_factory=dict, description="published figures to print beside its own")

    @field_validator("stage")
    @classmethod
    def _is_a_kind_of_training(cls, stage: str) -> str:
        if stage in KINDS:
            return stage
        listed = f"it is one of {', '.join(KINDS)}"
        raise ValueError(f"there is no such kind of training; {did_you_mean(stage, KINDS, otherwise=listed)}")

    @property
    def trains_on(self) -> DataName:
        """The data that the checkpoint states, or the first that its kind of training takes."""
        return self.data or training_kind(self.stage).default_data


class Launch(Section):
    """How training is launched. What is not set is chosen for the hardware: see `zephyrctl plan`."""

    profile: Literal["fast", "paper"] = Field(
        default="fast",
        description="'fast': the fastest layout; 'paper': ZeRO-3, checkpointing and TRL's dDPO with a live reference",
    )
    launcher: Literal["auto", "single", "accelerate", "torchrun", "deepspeed", "slurm"] = Field(
        default="auto",
        description="what starts the workers; auto: 'single' or 'accelerate' here, elsewhere SLURM or a hostfile",
    )
    processes: int | None = Field(
        default=None, ge=1, le=4096, description="worker processes on a machine without GPUs; with GPUs, one per GPU"
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(
        default=None, description="DeepSpeed ZeRO stage; none: the plan decides"
    )
    offload: bool | None = Field(
        default=None, description="keep optimizer states in CPU memory; none: the plan decides"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="precision of the computation; master weights are fp32"
    )
    attention: Literal["sdpa", "flash_attention_2", "flex_attention", "eager"] = Field(
        default="sdpa", description="attention kernel"
    )
    threads: int | None = Field(default=None, ge=1, description="OpenMP threads per process; none: divide the cores")
    hostfile: str | None = Field(default=None, description="DeepSpeed's list of machines, for `launcher: deepspeed`")
    slurm: dict[str, bool | int | str] = Field(
        default_factory=dict, description="sbatch options for `launcher: slurm`, such as partition, account and time"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="trackers that get the metrics; nothing is sent anywhere else"
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_door(cls, values: object) -> object:
        """Read `door`, the name of `launcher` in recipes and job files of the version before."""
        if isinstance(values, dict) and "door" in values and "launcher" not in values:
            return {"launcher" if key == "door" else key: value for key, value in values.items()}
        return values


class Hardware(Section):
    """The hardware to train on; what is not set is this machine's."""

    nodes: int = Field(default=1, ge=1, le=1024, description="number of machines")
    gpus: int | None = Field(default=None, ge=0, le=64, description="GPUs per machine; 0: train on the CPU")
    gpu_type: str | None = Field(default=None, description="type of GPU, such as a100-80gb")


class Expected(Section):
    """The expected amount of data, for plans that are made before the data exists."""

    dialogues: int | None = Field(default=None, ge=1, description="dialogues of dSFT")
    dialogue_tokens: float | None = Field(default=None, gt=0, description="mean tokens per dialogue")
    pairs: int | None = Field(default=None, ge=1, description="preference pairs of dDPO")
    prompt_tokens: float | None = Field(default=None, gt=0, description="mean tokens per prompt of a pair")
    answer_tokens: float | None = Field(default=None, gt=0, description="mean tokens per answer of a pair")


class MtBenchSettings(Section):
    """`eval mt-bench`; temperatures and the judge's prompts are the published ones."""

    max_new_tokens: int = Field(default=1024, ge=1, description="longest answer, in tokens")
    repeats: int = Field(default=1, ge=1, le=100, description="judgments per answer")
    references: Literal["original", "corrected"] = Field(
        default="original", description="reference answers that the judge sees: GPT-4's, or a corrected set"
    )


class AlpacaEvalSettings(Section):
    """`eval alpaca-eval`; the judge's prompt and the reference answers are the published ones."""

    max_new_tokens: int = Field(default=2048, ge=1, description="longest answer, in tokens")
    temperature: float = Field(
        default=0.7, ge=0, le=2, description="sampling temperature of the answers; 0.7 in Zephyr's published entry"
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling")


class Eval(Section):
    """`eval`: held-out prompts that every checkpoint answers, the judge, and settings of benchmarks."""

    judge: TeacherChoice = Field(description="teacher that scores and compares")
    prompts: int = Field(default=200, ge=2, description="most held-out prompts to use")
    max_new_tokens: int = Field(default=64, ge=1, description="longest answer, in tokens")
    batch: int = Field(default=64, ge=1, description="answers per generation batch")
    base: bool = Field(default=True, description="evaluate the untrained base too")
    engine: Literal["auto", "transformers", "vllm"] = Field(
        default="auto",
        description="engine that generates answers for benchmarks; auto: vLLM if it is installed and there is a GPU",
    )
    unparsed_share: float = Field(
        default=0.02, ge=0, le=1, description="largest share of a benchmark's judgments that may lack a score"
    )
    mt_bench: MtBenchSettings = Field(default_factory=MtBenchSettings, description="MT-Bench")
    alpaca_eval: AlpacaEvalSettings = Field(default_factory=AlpacaEvalSettings, description="AlpacaEval 1.0")
    benchmarks: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of other benchmarks, by the benchmark's name"
    )


HELD_OUT = {"judge", "prompts", "max_new_tokens", "batch", "base"}
"""The settings of `eval` that the evaluation on held-out prompts depends on."""


class Push(Section):
    """`push`: publication on the Hub."""

    checkpoint: str = Field(default="dpo", description="checkpoint to publish")
    private: bool = Field(default=True, description="make the repository private")


class Recipe(Section):
    """A recipe: from a base model to an aligned, evaluated and published model."""

    name: str = Field(pattern=r"^\w[\w.-]*$", description="name of the recipe and of the run's folder")
    description: str = Field(default="", description="one sentence")
    seed: int = Field(
        default=0, ge=0, le=2**31 - 1, description="random seed; each random choice depends on it and on the row's id"
    )
    skip_bad_rows: bool = Field(
        default=False,
        description="drop unusable rows of files and data sets and count them by cause, instead of stopping",
    )
    plugins: list[str] = Field(
        default_factory=list,
        description="Python files with plugins of your own, relative to the recipe file that lists them",
    )
    base: Choice = Field(description="the model base")
    build: Build
    decontaminate: Decontaminate = Field(default_factory=Decontaminate)
    feedback: Feedback
    binarize: Binarize = Field(default_factory=Binarize)
    audit: Audit = Field(default_factory=Audit)
    prices: str | None = Field(
        default=None, description="price file; none: prices.yaml in the working folder, or else the shipped one"
    )
    sft: Sft
    dpo: Dpo
    checkpoints: dict[str, Checkpoint] = Field(min_length=1, description="the models that a run trains, in order")
    launch: Launch = Field(default_factory=Launch)
    hardware: Hardware = Field(default_factory=Hardware)
    expected: Expected = Field(default_factory=Expected)
    eval: Eval
    push: Push = Field(default_factory=Push)
    sources: dict[str, str] = Field(
        default_factory=dict, description="key: source of its value, such as a section of the paper"
    )

    @field_validator("plugins", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: object) -> object:
        """`--set plugins=./mine.py` needs no brackets."""
        return [value] if isinstance(value, str) else value

    def training(self, name: str) -> "Recipe":
        """This recipe with the epochs of one of its checkpoints."""
        checkpoint = self.checkpoints[name]
        if checkpoint.epochs is None:
            return self
        changed = self.training_section(checkpoint.stage).model_copy(update={"epochs": checkpoint.epochs})
        return self.model_copy(update={training_kind(checkpoint.stage).section: changed})

    def training_section(self, kind: str) -> Training:
        """The settings of a kind of training. Raises ZephyrError if there is no such kind, or no section for it."""
        section = getattr(self, training_kind(kind).section, None)
        if isinstance(section, Training):
            return section
        raise ZephyrError(f"the recipe has no section for {kind}", f"add {training_kind(kind).section}: to the recipe")

    @model_validator(mode="after")
    def _checkpoints_follow_each_other(self) -> Self:
        known = ["base"]
        for name, checkpoint in self.checkpoints.items():
            self.training_section(checkpoint.stage)
            if not re.fullmatch(r"[A-Za-z0-9_][\w-]*", name):  # a folder, and a part of dotted keys
                raise ValueError(f"checkpoints.{name}: a name is made of letters, digits, _ and -")
            if checkpoint.trains_on not in training_kind(checkpoint.stage).data:
                raise ValueError(f"checkpoints.{name}.data: {checkpoint.stage} does not train on {checkpoint.data!r}")
            if name in {*known, *ARTIFACTS}:
                raise ValueError(f"checkpoints.{name}: this name is taken")
            if checkpoint.start not in known:
                raise ValueError(f"checkpoints.{name}.start: {checkpoint.start!r} is none of {', '.join(known)}")
            if checkpoint.start != "base":
                start = self.checkpoints[checkpoint.start].stage
                adapter = self.training_section(start).adapter
                if adapter and not adapter.merge:
                    section = training_kind(start).section
                    raise ValueError(f"{section}.adapter.merge: {name} starts from {checkpoint.start}, so give true")
            known.append(name)
        return self
