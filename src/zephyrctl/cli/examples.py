"""Examples of each command, shown at the end of its help page."""

EXAMPLES: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("run --recipe tiny", "plan --recipe zephyr-7b-beta --nodes 2 --gpus 8 --gpu-type a100-80gb", "doctor"),
    ("run",): (
        "run --recipe tiny",
        "run --recipe zephyr-7b-beta --dry-run",
        "run --run runs/mine --set dpo.beta=0.05",
    ),
    ("data",): ("data build", "data feedback --pilot 20", "data binarize --strategy random-rejected"),
    ("data", "build"): ("data build", "data build --input dialogues.jsonl --skip-bad-rows"),
    ("data", "feedback"): (
        "data feedback --dry-run",
        "data feedback --pilot 20 --max-usd 5",
        "data feedback --answers one.json --answers other.json",
    ),
    ("data", "binarize"): (
        "data binarize --strategy random-rejected",
        "data binarize --input ultrafeedback.jsonl --compat zephyr-fixed",
        "data binarize --weights helpfulness=2 --weights honesty=1",
    ),
    ("data", "audit"): ("data audit dialogues.jsonl", "data audit pairs.parquet --json"),
    ("data", "explain"): ("data explain 3f2a", "data explain --text 'capital of France' --full"),
    ("data", "undo"): ("data undo --rule all", "data undo --rule truecase --split train --out before.jsonl"),
    ("data", "calls"): ("data calls", "data calls --run runs/mine --json"),
    ("sft",): ("sft", "sft --epochs 1 --learning-rate 2e-5", "sft --nodes 2 --gpus 8 --launcher slurm --dry-run"),
    ("dpo",): ("dpo --beta 0.1 --epochs 3", "dpo --pairs pairs.parquet", "dpo --engine trl --dry-run"),
    ("eval",): ("eval", "eval --checkpoint sft --checkpoint dpo", "eval compare sft dpo"),
    ("eval", "tiny"): ("eval tiny", "eval tiny --checkpoint dpo"),
    ("eval", "compare"): ("eval compare sft dpo", "eval compare sft dpo --json"),
    ("eval", "fetch"): ("eval fetch --dry-run",),
    ("push",): ("push --hub ORG/NAME --dry-run", "push --hub ORG/NAME"),
    ("plan",): (
        "plan",
        "plan --recipe zephyr-7b-beta --nodes 2 --gpus 8 --gpu-type a100-80gb",
        "plan --recipe zephyr-7b-beta --gpus 1 --gpu-type h200 --write launches",
    ),
    ("chat",): ("chat", "chat sft --temperature 0.7", "chat dpo --prompt 'What is the capital of France?' --json"),
    ("doctor",): ("doctor", "doctor --json"),
    ("report",): ("report", "report --run runs/mine"),
    ("verify",): ("verify ORG/NAME", "verify runs/mine/dpo/model --json"),
    ("plugins",): ("plugins", "plugins --json"),
    ("plugins", "new"): ("plugins new teacher my-teacher", "plugins new binarizer longest-first --dry-run"),
    ("recipe",): ("recipe show zephyr-7b-beta", "recipe diff zephyr-7b-beta zephyr-7b-handbook"),
    ("recipe", "show"): ("recipe show", "recipe show zephyr-7b-beta --set dpo.beta=0.01 --json"),
    ("recipe", "diff"): ("recipe diff zephyr-7b-beta zephyr-7b-handbook",),
    ("recipe", "schema"): ("recipe schema",),
    ("recipe", "init"): ("recipe init tiny", "recipe init zephyr-7b-beta --force"),
}
"""The words that call a command, and example lines without `zephyrctl`."""


def examples_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """The examples of a command. Those of a benchmark's command come from the benchmark."""
    if words in EXAMPLES or words[:1] != ("eval",):
        return EXAMPLES.get(words, ())
    from zephyrctl.evaluation.installed import benchmark_classes

    by_name = {benchmark.name: benchmark.examples for benchmark in benchmark_classes()}
    return tuple(f"eval {words[-1]} {options}" for options in by_name.get(words[-1], ()))


def epilog(words: tuple[str, ...]) -> str | None:
    """The examples of a command as text for its help page; None if it has none."""
    lines = [f"$ zephyrctl {line}" for line in examples_of(words)]
    return "\n".join(["Examples:", *lines]) if lines else None
