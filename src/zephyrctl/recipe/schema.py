"""Recipes: one validated section per stage."""

import re
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.records import ASPECTS
from zephyrctl.training.kinds import KINDS, DataName, training_kind

ARTIFACTS = ("build", "feedback", "binarize", "eval", "mt-bench", "alpaca-eval", "open-llm", "arena", "push")
"""What other stages call their folders in a run: no checkpoint can have such a name."""


Packing = Literal["none", "wrapped", "bfd_split"]


class Section(BaseModel):
    """A part of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


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


class Adapter(Section):
    """LoRA: low-rank matrices beside frozen weights are all that is trained."""

    rank: int = Field(default=16, ge=1, le=1024, description="inner width of each pair of matrices")
    alpha: int = Field(default=32, ge=1, description="their product is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of their input that is dropped in training")
    targets: Literal["all-linear"] | list[str] = Field(
        default="all-linear", description="names of the layers that get them; 'all-linear' is every one but the head"
    )
    quantize: bool = Field(default=False, description="hold the frozen weights in 4 bits (QLoRA); needs bitsandbytes")
    merge: bool = Field(default=True, description="write whole weights at the end, and not the adapters beside a base")


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
    micro_batch: int | None = Field(
        default=None, ge=1, description="rows a process works on at once, at most; none leaves it to the plan"
    )
    max_length: int = Field(ge=8, description="longest row, in tokens")
    gradient_checkpointing: bool | None = Field(
        default=None, description="recompute activations to save memory; none leaves it to the plan"
    )
    loss_budget: float = Field(
        default=0.01, ge=0, le=1, description="share of the rows, or of the tokens, that may be lost before training"
    )
    adapter: Adapter | None = Field(default=None, description="train LoRA adapters only; none trains every weight")
    save_every: int = Field(
        default=0, ge=0, description="steps between resumable checkpoints; 0 picks a quarter of the run"
    )
    log_every: int = Field(default=10, ge=1, description="steps between metrics")


class Sft(Training):
    """`sft`: distilled supervised fine-tuning."""

    packing: Packing = Field(
        default="none", description="'wrapped' cuts one stream as in 2023; 'bfd_split' keeps documents apart"
    )
    assistant_only_loss: bool = Field(default=True, description="only what the assistant says carries loss")


class Dpo(Training):
    """`dpo`: distilled direct preference optimization (paper equation 1)."""

    beta: float = Field(gt=0, description="strength of the tie to the reference")
    loss: str = Field(
        default="sigmoid", description="preference loss, as `zephyrctl plugins` lists it; the paper's is 'sigmoid'"
    )
    loss_options: dict[str, object] = Field(default_factory=dict, description="options of the loss")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="share of the pairs that may be the wrong way round, for losses that ask"
    )
    engine: Literal["prefix-shared", "trl"] | None = Field(
        default=None,
        description="compute the prompt of a pair once for both answers, or as TRL does; none leaves it to the profile",
    )
    reference: Literal["precomputed", "live"] | None = Field(
        default=None,
        description="log-probabilities of the reference: once before training, or at every step; none: the profile's",
    )
    ties: Literal["drop", "keep"] = Field(default="drop", description="what to do with pairs of equal score")


class Checkpoint(Section):
    """One model that a run trains: which stage makes it and what it starts from."""

    stage: str = Field(description="the kind of training that makes it", json_schema_extra={"enum": [*KINDS]})
    start: str = Field(default="base", description="'base', or an earlier checkpoint of this recipe")
    data: DataName | None = Field(
        default=None, description="for sft: 'dialogues', or 'chosen' for the chosen answers of the pairs"
    )
    epochs: float | None = Field(
        default=None, gt=0, le=100, description="passes over the data, where they are not those of its stage"
    )
    label: str | None = Field(default=None, description="how tables name it")
    published: dict[str, float] = Field(default_factory=dict, description="figures of the paper to print beside it")

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
    """How training starts. What is none is solved for the hardware: see `zephyrctl plan`."""

    profile: Literal["fast", "paper"] = Field(
        default="fast",
        description="'paper' trains as published: ZeRO-3, checkpointing, TRL's own dDPO with a live reference",
    )
    launcher: Literal["auto", "single", "accelerate", "torchrun", "deepspeed", "slurm"] = Field(
        default="auto",
        description="what starts the workers; auto: 'single' or 'accelerate' here, elsewhere SLURM or a hostfile",
    )
    processes: int | None = Field(
        default=None, ge=1, le=4096, description="worker processes on a machine without GPUs; with GPUs it is one each"
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(default=None, description="DeepSpeed ZeRO stage; none is solved")
    offload: bool | None = Field(
        default=None, description="keep the optimizer's states in the machine's memory; none is solved"
    )
    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="of the arithmetic; masters are fp32")
    attention: Literal["sdpa", "flash_attention_2", "flex_attention", "eager"] = Field(
        default="sdpa", description="attention kernel"
    )
    threads: int | None = Field(default=None, ge=1, description="OpenMP threads a process; none divides the cores")
    hostfile: str | None = Field(default=None, description="DeepSpeed's list of machines, for `launcher: deepspeed`")
    slurm: dict[str, bool | int | str] = Field(
        default_factory=dict, description="sbatch options for `launcher: slurm`, such as partition, account and time"
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="who else gets the metrics; nothing is sent anywhere unless named here"
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_door(cls, values: object) -> object:
        """Read `door`, the name of `launcher` in recipes and job files of the version before."""
        if isinstance(values, dict) and "door" in values and "launcher" not in values:
            return {"launcher" if key == "door" else key: value for key, value in values.items()}
        return values


class Hardware(Section):
    """What training runs on; what is not stated is what this machine has."""

    nodes: int = Field(default=1, ge=1, le=1024, description="machines")
    gpus: int | None = Field(default=None, ge=0, le=64, description="GPUs a machine; 0 runs on the CPU")
    gpu_type: str | None = Field(default=None, description="a name of the hardware table, for instance a100-80gb")


class Expected(Section):
    """How much data there will be, for plans that are made before it is there."""

    dialogues: int | None = Field(default=None, ge=1, description="dialogues of dSFT")
    dialogue_tokens: float | None = Field(default=None, gt=0, description="tokens of a dialogue, on average")
    pairs: int | None = Field(default=None, ge=1, description="preference pairs of dDPO")
    prompt_tokens: float | None = Field(default=None, gt=0, description="tokens of a pair's prompt, on average")
    answer_tokens: float | None = Field(default=None, gt=0, description="tokens of one of its answers, on average")


class MtBench(Section):
    """`eval mt-bench`; temperatures and the judge's prompts are the published ones."""

    max_new_tokens: int = Field(default=1024, ge=1, description="longest answer, in tokens")
    repeats: int = Field(default=1, ge=1, le=100, description="judgments of each answer")
    references: Literal["original", "corrected"] = Field(
        default="original", description="reference answers that the judge sees: GPT-4's own, or a mended set"
    )


class AlpacaEval(Section):
    """`eval alpaca-eval`; the judge's prompt and the reference answers are the published ones."""

    max_new_tokens: int = Field(default=2048, ge=1, description="longest answer, in tokens")
    temperature: float = Field(default=0.7, ge=0, le=2, description="of the answers; Zephyr's own entry has 0.7")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus share of the answers")


class Eval(Section):
    """`eval`: held-out prompts, answered by every checkpoint and judged; and what published benchmarks leave open."""

    judge: TeacherChoice = Field(description="teacher that scores and compares")
    prompts: int = Field(default=200, ge=2, description="held-out prompts to ask, at most")
    max_new_tokens: int = Field(default=64, ge=1, description="longest answer, in tokens")
    batch: int = Field(default=64, ge=1, description="answers generated at once")
    base: bool = Field(default=True, description="ask the untrained base too")
    engine: Literal["auto", "transformers", "vllm"] = Field(
        default="auto", description="what generates for benchmarks; auto: vLLM where it is installed and there is a GPU"
    )
    unparsed_share: float = Field(
        default=0.02, ge=0, le=1, description="share of a benchmark's judgments that may have no score"
    )
    mt_bench: MtBench = Field(default_factory=MtBench, description="MT-Bench")
    alpaca_eval: AlpacaEval = Field(default_factory=AlpacaEval, description="AlpacaEval 1.0")
    benchmarks: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="options of other benchmarks, by the benchmark's name"
    )


HELD_OUT = {"judge", "prompts", "max_new_tokens", "batch", "base"}
"""The settings of `eval` that the evaluation on held-out prompts depends on."""


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
    prices: str | None = Field(default=None, description="price file; else prices.yaml here, else the shipped one")
    sft: Sft
    dpo: Dpo
    checkpoints: dict[str, Checkpoint] = Field(min_length=1, description="what a run trains, in order")
    launch: Launch = Field(default_factory=Launch)
    hardware: Hardware = Field(default_factory=Hardware)
    expected: Expected = Field(default_factory=Expected)
    eval: Eval
    push: Push = Field(default_factory=Push)
    sources: dict[str, str] = Field(default_factory=dict, description="key: where its value was published")

    @field_validator("plugins", mode="before")
    @classmethod
    def _one_file_is_a_list(cls, value: object) -> object:
        """`--set plugins=./mine.py` needs no brackets."""
        return [value] if isinstance(value, str) else value

    def training(self, name: str) -> "Recipe":
        """This recipe as it trains one of its checkpoints: with the epochs that the checkpoint states."""
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
