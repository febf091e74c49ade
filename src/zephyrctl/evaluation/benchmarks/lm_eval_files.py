"""Read raw result files of lm-eval, old and new: one measurement per task, and how it was made.

Old files are from lm-eval up to 0.3 and from the leaderboard (`hendrycksTest-anatomy`, `harness|arc:challenge|25`), new
ones from 0.4 (`acc_norm,none`, groups, `n-samples`). A file that is not valid JSON is read if nothing must be guessed.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import HARNESS, SUBJECTS, TASKS

CUT_PROMPTS = "cut_prompts"
"""Our own entry in a result file: {task: number of questions whose prompt was too long for the model}."""
GROUP = ""
"""The category of MMLU as a whole, if lm-eval states a score of the group."""
INTEGRAL = 1e-5
"""How close to an integer a computed number of questions must be: doubles give 1e-9 for 10,042 questions."""
SIXTEEN_BITS = {"float16", "bfloat16", "half", "auto"}
HARMLESS = {
    *("pretrained", "model", "revision", "dtype", "trust_remote_code", "use_accelerate", "parallelize", "tokenizer"),
    *("subfolder", "device", "device_map", "device_map_option", "low_cpu_mem_usage", "attn_implementation"),
    *("batch_size", "max_batch_size", "max_memory_per_gpu", "max_cpu_memory", "use_fast_tokenizer"),
}
"""Arguments of a model in lm-eval that do not change its scores, or that are checked separately."""
METRICS = {
    **dict.fromkeys(("arc_challenge", "arc:challenge"), ("arc", "acc_norm")),
    "hellaswag": ("hellaswag", "acc_norm"),
    **dict.fromkeys(("truthfulqa_mc", "truthfulqa:mc"), ("truthfulqa", "mc2")),
    "truthfulqa_mc2": ("truthfulqa", "acc"),
}
"""lm-eval's name of a task: the benchmark, and the name of its metric. 0.4 calls mc2 of `truthfulqa_mc2` acc."""

_TASK = re.compile(r"(?:harness\|)?(?P<name>[^|]+)(?:\|(?P<shots>\d+))?")
_SUBJECT = re.compile(rf"(?:hendrycksTest-|mmlu_)({'|'.join(SUBJECTS)})")
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d[-:]\d\d[-:]\d\d")
_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])')
_NAME = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*')
_AFTER = re.compile(r"\s*([,}])")

Document = Mapping[str, object]
"""A JSON object, of which nothing is known but that its names are text."""


@dataclass(frozen=True)
class Measurement:
    """The score of one task, from 0 to 1. `remarks` say what differs from the leaderboard."""

    benchmark: str
    category: str
    """A subject of MMLU, or `GROUP` for all subjects together; for other benchmarks the benchmark's name."""
    value: float | None
    standard_error: float | None
    questions: int | None
    shots: int | None
    remarks: tuple[str, ...]
    path: Path
    date: float
    """Seconds since 1970; minus infinity if it is not known."""


@dataclass(frozen=True)
class ResultFile:
    """The measurements of the leaderboard's benchmarks in one file; empty if it has other tasks only."""

    path: Path
    model: str | None
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]
    """What was wrong with the file itself, for example that it is not JSON."""


def read_folder(folder: Path) -> Iterator[ResultFile]:
    """Each result file in a folder and its subfolders; other JSON files are left out."""
    for path in sorted(folder.rglob("*.json")):
        if (results := _read(path)) is not None:
            yield results


def read_file(path: Path) -> ResultFile:
    """One result file. Raises ZephyrError if it contains no results, or if they are incomplete."""
    if (results := _read(path)) is None:
        raise ZephyrError(
            f"{path} contains no results of lm-eval",
            "give what lm-eval wrote to its --output_path: a JSON object with 'results'",
        )
    return results


def _read(path: Path) -> ResultFile | None:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ZephyrError(f"{path} cannot be read: {error}", "give raw JSON result files of lm-eval") from None
    if '"results"' not in text:
        return None
    document, notes = parse(text, path)
    if not isinstance(document.get("results"), dict):
        return None
    measurements = tuple(_measurements(document, path))
    return ResultFile(path, _model(document), measurements, tuple(notes))


def parse(text: str, path: Path) -> tuple[Document, list[str]]:
    """The JSON object in a text, and what was wrong with it. Raises ZephyrError if its results are incomplete.

    Commas before a closing bracket are ignored. If the text breaks off, its complete members are read.
    """
    notes: list[str] = []

    def read_constant(name: str) -> float:
        notes.append(f"{path.name} is not strict JSON ({name}): such scores count as missing")
        return math.nan

    decoder = json.JSONDecoder(
        object_pairs_hook=lambda pairs: _without_conflicts(pairs, path), parse_constant=read_constant
    )
    try:
        document = decoder.decode(text)
    except json.JSONDecodeError as error:
        notes.clear()
        document = _repaired(text, path, error, decoder, notes)
    return (document if isinstance(document, dict) else {}), list(dict.fromkeys(notes))


def _repaired(
    text: str, path: Path, error: json.JSONDecodeError, decoder: json.JSONDecoder, notes: list[str]
) -> object:
    """The document in a text that is not JSON, with a note about it. Raises ZephyrError if results are incomplete."""
    problem = f"{path.name} is not JSON (line {error.lineno}: {error.msg})"
    without_commas = _COMMA.sub(lambda match: match[0] if match[0] != "," else "", text)
    try:
        document: object = decoder.decode(without_commas)
        notes.append(f"{problem}: read without the commas before closing brackets")
        return document
    except json.JSONDecodeError:
        notes.clear()  # notes of the failed attempt
    start = re.match(r"\s*{", without_commas)
    members, broken = _complete_members(without_commas, start.end(), decoder) if start else ({}, "")
    if "results" not in members or broken == "results":
        raise ZephyrError(f"{path} is not JSON, and its results are incomplete: {error}", "get the file again")
    notes.append(f"{problem}: its results are complete and were read, with every other complete part")
    return members


def _complete_members(text: str, position: int, decoder: json.JSONDecoder) -> tuple[dict[str, object], str]:
    """The complete members of an object that breaks off, and the name of the incomplete one.

    If the incomplete member is an object, it is included with its own complete members.
    """
    members: dict[str, object] = {}
    while name := _NAME.match(text, position):
        key = json.loads(name[1])
        try:
            value, end = decoder.raw_decode(text, name.end())
        except json.JSONDecodeError:
            if text[name.end() : name.end() + 1] == "{":
                members[key], _ = _complete_members(text, name.end() + 1, decoder)
            return members, key
        after = _AFTER.match(text, end)
        if not after:  # 0.5 at the end of the text may be the beginning of 0.57: it is not read
            return members, key
        members[key] = value
        if after[1] == "}":
            break
        position = after.end()
    return members, ""


def _without_conflicts(pairs: Sequence[tuple[str, object]], path: Path) -> dict[str, object]:
    """A JSON object. Raises ZephyrError if a name has two different values: it is not known which one is right."""
    members: dict[str, object] = {}
    for name, value in pairs:
        if name in members and members[name] != value:
            raise ZephyrError(f"{path} names {name!r} twice, with different values", "remove the wrong one")
        members[name] = value
    return members


def _measurements(document: Document, path: Path) -> Iterator[Measurement]:
    date = _date(document, path)
    general = tuple(_run_remarks(document))
    for task, entry in _object(document.get("results")).items():
        named = _TASK.fullmatch(task)
        known = _known(named["name"]) if named else None
        if not named or not known or not isinstance(entry, dict):
            continue
        benchmark, category, metric = known
        value, error, remarks = _score(entry, metric, f"{path}: {task}")
        stated, limited = _stated_questions(document, task)
        shots = int(named["shots"]) if named["shots"] else _shots(document, task)
        if category != GROUP:
            remarks += [*limited, *_shot_remarks(shots, TASKS[benchmark].shots), *_version_remarks(document, task)]
        if _object(document.get(CUT_PROMPTS)).get(task):
            remarks.append("some prompts are longer than the model's context, and their beginning was cut off")
        # mc2 is a mean of probabilities: its standard error does not determine the number of questions.
        questions = stated or (questions_of(value, error) if benchmark != "truthfulqa" else None)
        yield Measurement(benchmark, category, value, error, questions, shots, (*remarks, *general), path, date)


def _known(name: str) -> tuple[str, str, str] | None:
    """The benchmark, the category and the metric of a task of lm-eval; None if the leaderboard has no such task."""
    if subject := _SUBJECT.fullmatch(name):
        return "mmlu", subject[1], "acc"
    if name == "mmlu":
        return "mmlu", GROUP, "acc"
    if name in METRICS:
        benchmark, metric = METRICS[name]
        return benchmark, benchmark, metric
    return None


def _score(entry: Document, metric: str, location: str) -> tuple[float | None, float | None, list[str]]:
    """The value of a metric and its standard error, or a remark why there is no value."""
    named = {key.removesuffix(",none"): value for key, value in entry.items()}
    if metric not in named:
        others = ", ".join(key for key in named if _number(named[key]) is not None and "stderr" not in key)
        return None, None, [f"{metric} was not measured, and {others or 'nothing else'} cannot replace it: left out"]
    value, error = _number(named[metric]), _number(named.get(f"{metric}_stderr"))
    if value is None:
        return None, None, [f"{metric} is {named[metric]}, and counts as missing"]
    if not 0 <= value <= 1 or (error is not None and error < 0):
        raise ZephyrError(
            f"{location}: {metric} is {value:g} with a standard error of {error}, but scores are between 0 and 1",
            "give the file as lm-eval wrote it",
        )
    return value, error, []


def _number(value: object) -> float | None:
    """A finite number; None for anything else, also for true and NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def questions_of(accuracy: float | None, standard_error: float | None) -> int | None:
    """The number of questions n of an accuracy p, from lm-eval's standard error sqrt(p (1 - p) / (n - 1)).

    None if n or the number of right answers n p is not an integer, as for rounded values.
    """
    if accuracy is None or not standard_error:
        return None
    questions = 1 + accuracy * (1 - accuracy) / standard_error**2
    nearest = round(questions)
    right = accuracy * nearest
    is_exact = abs(questions - nearest) < INTEGRAL and abs(right - round(right)) < INTEGRAL
    return nearest if is_exact else None


def _stated_questions(document: Document, task: str) -> tuple[int | None, list[str]]:
    """The number of questions that the file states, and a remark if not all questions were asked."""
    sizes = _object(_object(document.get("n-samples")).get(task))
    effective, original = sizes.get("effective"), sizes.get("original")
    if isinstance(effective, int) and isinstance(original, int):
        return effective, ["only a part of the questions was asked (--limit)"] if effective < original else []
    config = _config(document)
    limits = [limit for name in ("limit", "max_samples") if (limit := _number(config.get(name))) is not None]
    return None, [f"a limit of {limit:g} questions per task" for limit in limits[:1]]


def _shots(document: Document, task: str) -> int | None:
    """The number of shots; lm-eval 0.4 states it by task, older versions once for all tasks."""
    for stated in (
        _object(document.get("n-shot")).get(task),
        _object(_object(document.get("configs")).get(task)).get("num_fewshot"),
        _config(document).get("num_fewshot"),
    ):
        if isinstance(stated, int):
            return stated
    return None


def _shot_remarks(shots: int | None, published: int) -> list[str]:
    if shots is None:
        return [f"the number of shots is not stated; the leaderboard's is {published}"]
    return [f"{shots} shots; the leaderboard has {published}"] if shots != published else []


def _version_remarks(document: Document, task: str) -> list[str]:
    """A remark for version 0 of hendrycksTest, which scored answers differently."""
    is_first = "hendrycksTest" in task and _object(document.get("versions")).get(task) == 0
    return ["version 0 of hendrycksTest, which the leaderboard does not accept"] if is_first else []


def _run_remarks(document: Document) -> Iterator[str]:
    """How the model was run otherwise than on the leaderboard."""
    config, arguments = _config(document), _arguments(document)
    backend = config.get("model")
    if arguments and isinstance(backend, str) and not backend.startswith(("hf", "huggingface")):
        yield f"run by {backend!r} and not by transformers"
    for dtype in dict.fromkeys(str(value) for value in (arguments.get("dtype"), config.get("model_dtype")) if value):
        name = dtype.strip("\"'").removeprefix("torch.")
        if name not in SIXTEEN_BITS:
            yield f"weights in {name}; the leaderboard uses 16 bits"
    for name, value in arguments.items():
        if name not in HARMLESS and value not in (None, False, "", "None", "False"):
            yield f"the model was run with {name}={value}"
    # Some releases of 0.4 state these at the top of the document, others in `config`.
    if any(part.get(name) for part in (document, config) for name in ("chat_template", "apply_chat_template")):
        has_turns = any(part.get("fewshot_as_multiturn") for part in (document, config))
        yield f"a chat template was applied{' and each shot was a turn' if has_turns else ''}"
    if any(part.get("system_instruction") for part in (document, config)):
        yield "a system instruction was given"
    yield from _harness_remarks(document)


def _harness_remarks(document: Document) -> Iterator[str]:
    """Say so if the file was not computed by the leaderboard's commit of lm-eval."""
    version, commit = document.get("lm_eval_version"), document.get("git_hash")
    if "config_general" in document or (isinstance(commit, str) and HARNESS[:7] in commit):
        return
    if version:
        yield f"computed by lm-eval {version}; the leaderboard ran commit {HARNESS[:7]}"
    else:
        yield f"the version of lm-eval is not stated; the leaderboard ran commit {HARNESS[:7]}"


def _model(document: Document) -> str | None:
    """The model that was measured: its name, its revision if it is not main, and its adapters."""
    arguments, config = _arguments(document), _config(document)
    named = (arguments.get("pretrained"), arguments.get("model"), config.get("model_name"), document.get("model_name"))
    name = next((str(value) for value in named if value), None)
    if name is None:
        return None
    revision = arguments.get("revision")
    adapters = [f"+{arguments[part]}" for part in ("peft", "delta") if arguments.get(part)]
    return name + (f"@{revision}" if revision and revision != "main" else "") + "".join(adapters)


def _arguments(document: Document) -> dict[str, object]:
    """The arguments of the model, which the file has as an object or as text: `name=value,name=value`."""
    given = _config(document).get("model_args")
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(",") if part.strip())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return dict(_object(given))


def _config(document: Document) -> Document:
    return _object(document.get("config")) or _object(document.get("config_general"))


def _object(value: object) -> Document:
    return value if isinstance(value, dict) else {}


def _date(document: Document, path: Path) -> float:
    """When it was measured, by the file's name or by lm-eval, in seconds since 1970; minus infinity if not known."""
    if stamp := _STAMP.search(path.name):  # results_2023-10-26T15-32-01.123.json
        day, _, time = stamp[0].partition("T")
        return datetime.fromisoformat(f"{day}T{time.replace('-', ':')}").replace(tzinfo=UTC).timestamp()
    date = _number(document.get("date"))
    return -math.inf if date is None else date
