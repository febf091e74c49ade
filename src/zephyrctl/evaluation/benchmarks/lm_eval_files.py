"""What raw result files of lm-eval say, old and new: one measurement a task, and how it came about.

Old is a harness up to 0.3 and the leaderboard's own files (`hendrycksTest-anatomy`, `harness|arc:challenge|25`), new is
0.4 (`acc_norm,none`, groups, `n-samples`). A file that is not JSON is read as far as nothing has to be guessed.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import HARNESS, SUBJECTS, TASKS

CUT_PROMPTS = "cut_prompts"
"""Our own entry in a result file: task: questions whose prompt was too long for the model."""
GROUP = ""
"""The category of MMLU as a whole, as a harness stated it."""
INTEGRAL = 1e-5
"""How near to a whole number a number of questions must come out: doubles bring it to 1e-9 at 10,042 questions."""
SIXTEEN_BITS = {"float16", "bfloat16", "half", "auto"}
HARMLESS = {
    *("pretrained", "model", "revision", "dtype", "trust_remote_code", "use_accelerate", "parallelize", "tokenizer"),
    *("subfolder", "device", "device_map", "device_map_option", "low_cpu_mem_usage", "attn_implementation"),
    *("batch_size", "max_batch_size", "max_memory_per_gpu", "max_cpu_memory", "use_fast_tokenizer"),
}
"""Arguments of a model in lm-eval that leave its scores as they are, or that are looked at by themselves."""
METRICS = {
    **dict.fromkeys(("arc_challenge", "arc:challenge"), ("arc", "acc_norm")),
    "hellaswag": ("hellaswag", "acc_norm"),
    **dict.fromkeys(("truthfulqa_mc", "truthfulqa:mc"), ("truthfulqa", "mc2")),
    "truthfulqa_mc2": ("truthfulqa", "acc"),
}
"""lm-eval's name of a task: the benchmark, and what its metric is called there."""

_TASK = re.compile(r"(?:harness\|)?(?P<name>[^|]+)(?:\|(?P<shots>\d+))?")
_SUBJECT = re.compile(rf"(?:hendrycksTest-|mmlu_)({'|'.join(SUBJECTS)})")
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d[-:]\d\d[-:]\d\d")
_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])')
_NAME = re.compile(r'\s*("(?:[^"\\]|\\.)*")\s*:\s*')
_AFTER = re.compile(r"\s*([,}])")


@dataclass(frozen=True)
class Measurement:
    """One task's figure, a share from 0 to 1; `remarks` say what is not as on the leaderboard."""

    benchmark: str
    category: str
    """A subject of MMLU, `GROUP` for all of it, else the benchmark's name."""
    value: float | None
    standard_error: float | None
    questions: int | None
    shots: int | None
    remarks: tuple[str, ...]
    path: Path
    date: float
    """Seconds since 1970; minus infinity where nothing says."""


@dataclass(frozen=True)
class ResultFile:
    """What one file holds of the leaderboard's benchmarks; none where it is of others."""

    path: Path
    model: str | None
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...]
    """What a reader must know of the file itself, as that it is not JSON."""


def read_folder(folder: Path) -> Iterator[ResultFile]:
    """Every result file below a folder; JSON files that are something else are left out."""
    for path in sorted(folder.rglob("*.json")):
        if (found := _read(path)) is not None:
            yield found


def read_file(path: Path) -> ResultFile:
    """One result file. Raises ZephyrError where it is none, or where its results are cut."""
    if (found := _read(path)) is None:
        raise ZephyrError(
            f"{path} holds no results of lm-eval",
            "give what lm-eval wrote to its --output_path: a JSON object with 'results'",
        )
    return found


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


def parse(text: str, path: Path) -> tuple[dict[str, Any], list[str]]:
    """The JSON object of a text, and what was wrong with it. Raises ZephyrError where its results are not whole.

    Commas before a closing bracket are left out, and of a text that breaks off every member is read that is whole.
    """
    notes: list[str] = []

    def constant(name: str) -> float:
        notes.append(f"{path.name} is not strict JSON ({name}): such figures count as missing")
        return math.nan

    decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: _distinct(pairs, path), parse_constant=constant)
    try:
        document = decoder.decode(text)
    except json.JSONDecodeError as error:
        notes.clear()
        document = _mended(text, path, error, decoder, notes)
    return (document if isinstance(document, dict) else {}), list(dict.fromkeys(notes))


def _mended(text: str, path: Path, error: json.JSONDecodeError, decoder: json.JSONDecoder, notes: list[str]) -> Any:
    where = f"{path.name} is not JSON (line {error.lineno}: {error.msg})"
    mended = _COMMA.sub(lambda match: match[0] if match[0] != "," else "", text)
    try:
        document = decoder.decode(mended)
        notes.append(f"{where}: read without the commas before closing brackets")
        return document
    except json.JSONDecodeError:
        notes.clear()
    start = re.match(r"\s*{", mended)
    document, broken = _whole_members(mended, start.end(), decoder) if start else ({}, "")
    if "results" not in document or broken == "results":
        raise ZephyrError(f"{path} is not JSON, and its results are not whole: {error}", "get the file again")
    notes.append(f"{where}: its results are whole and were read, and what else of it is whole")
    return document


def _whole_members(text: str, position: int, decoder: json.JSONDecoder) -> tuple[dict[str, Any], str]:
    """The members of an object that are there to their end, and the name of the one that is not.

    That one is here with the members that it has itself. A number that nothing follows may go on, and is not read.
    """
    members: dict[str, Any] = {}
    while name := _NAME.match(text, position):
        key = json.loads(name[1])
        try:
            value, end = decoder.raw_decode(text, name.end())
        except json.JSONDecodeError:
            if text[name.end() : name.end() + 1] == "{":
                members[key], _ = _whole_members(text, name.end() + 1, decoder)
            return members, key
        after = _AFTER.match(text, end)
        if not after:
            return members, key
        members[key] = value
        if after[1] == "}":
            break
        position = after.end()
    return members, ""


def _distinct(pairs: Sequence[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """An object. Raises ZephyrError where a name stands twice with different values: nobody knows which one counts."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ZephyrError(f"{path} names {name!r} twice, with different values", "remove the wrong one")
        found[name] = value
    return found


def _measurements(document: Mapping[str, Any], path: Path) -> Iterator[Measurement]:
    date = _date(document, path)
    general = tuple(_circumstances(document))
    for task, entry in document["results"].items():
        named = _TASK.fullmatch(task)
        known = _known(named["name"]) if named else None
        if not named or not known or not isinstance(entry, dict):
            continue
        benchmark, category, metric = known
        value, error, remarks = _figure(entry, metric, f"{path}: {task}")
        stated, limited = _stated(document, task)
        shots = int(named["shots"]) if named["shots"] else _shots(document, task)
        if category != GROUP:
            remarks += [*limited, *_shot_remarks(shots, TASKS[benchmark].shots), *_version(document, task)]
        if _object(document.get(CUT_PROMPTS)).get(task):
            remarks.append("some prompts are longer than the model's context, and lost their beginning")
        questions = stated or (questions_of(value, error) if benchmark != "truthfulqa" else None)
        yield Measurement(benchmark, category, value, error, questions, shots, (*remarks, *general), path, date)


def _known(name: str) -> tuple[str, str, str] | None:
    """The benchmark, the category and the metric's name of a task of lm-eval; none where it is of no interest."""
    if subject := _SUBJECT.fullmatch(name):
        return "mmlu", subject[1], "acc"
    if name == "mmlu":
        return "mmlu", GROUP, "acc"
    if name in METRICS:
        benchmark, metric = METRICS[name]
        return benchmark, benchmark, metric
    return None


def _figure(entry: Mapping[str, Any], metric: str, where: str) -> tuple[float | None, float | None, list[str]]:
    """A metric and its standard error; a remark where there is none to be had."""
    named = {key.removesuffix(",none"): value for key, value in entry.items()}
    if metric not in named:
        others = ", ".join(key for key in named if _number(named[key]) is not None and "stderr" not in key)
        return None, None, [f"{metric} was not measured, and {others or 'nothing else'} is no substitute: left out"]
    value, error = _number(named[metric]), _number(named.get(f"{metric}_stderr"))
    if value is None:
        return None, None, [f"{metric} is {named[metric]}, and counts as missing"]
    if not 0 <= value <= 1 or (error is not None and error < 0):
        raise ZephyrError(
            f"{where}: {metric} is {value:g} with a standard error of {error}, and shares lie between 0 and 1",
            "give the file as lm-eval wrote it",
        )
    return value, error, []


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def questions_of(accuracy: float | None, standard_error: float | None) -> int | None:
    """How many questions lie behind an accuracy: lm-eval's standard error is sqrt(p (1 - p) / (n - 1)).

    None where that gives no whole number of questions and of right answers, as for figures that were rounded.
    """
    if accuracy is None or not standard_error:
        return None
    questions = 1 + accuracy * (1 - accuracy) / standard_error**2
    whole = round(questions)
    right = accuracy * whole
    is_exact = abs(questions - whole) < INTEGRAL and abs(right - round(right)) < INTEGRAL
    return whole if is_exact else None


def _stated(document: Mapping[str, Any], task: str) -> tuple[int | None, list[str]]:
    """The number of questions that the file states, and a remark where that is not all there were."""
    sizes = _object(_object(document.get("n-samples")).get(task))
    effective, original = sizes.get("effective"), sizes.get("original")
    if isinstance(effective, int) and isinstance(original, int):
        return effective, ["only a part of the questions was asked (a limit)"] if effective < original else []
    config = _config(document)
    limits = [limit for name in ("limit", "max_samples") if (limit := _number(config.get(name))) is not None]
    return None, [f"a limit of {limit:g} questions a task" for limit in limits[:1]]


def _shots(document: Mapping[str, Any], task: str) -> int | None:
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
    return [f"{shots} shots where the leaderboard has {published}"] if shots != published else []


def _version(document: Mapping[str, Any], task: str) -> list[str]:
    """A remark for the first version of hendrycksTest, which scored answers otherwise; the leaderboard refused it."""
    is_first = "hendrycksTest" in task and _object(document.get("versions")).get(task) == 0
    return ["version 0 of hendrycksTest, which the leaderboard refused"] if is_first else []


def _circumstances(document: Mapping[str, Any]) -> Iterator[str]:
    """What in the way that a model was run is not as on the leaderboard."""
    config, arguments = _config(document), _arguments(document)
    backend = config.get("model")
    if arguments and isinstance(backend, str) and not backend.startswith(("hf", "huggingface")):
        yield f"run through {backend!r} and not transformers"
    for dtype in dict.fromkeys(str(value) for value in (arguments.get("dtype"), config.get("model_dtype")) if value):
        name = dtype.strip("\"'").removeprefix("torch.")
        if name not in SIXTEEN_BITS:
            yield f"weights in {name}; the leaderboard's are in 16 bits"
    for name, value in arguments.items():
        if name not in HARMLESS and value not in (None, False, "", "None", "False"):
            yield f"the model was run with {name}={value}"
    if any(place.get(name) for place in (document, config) for name in ("chat_template", "apply_chat_template")):
        is_cut = any(place.get("fewshot_as_multiturn") for place in (document, config))
        yield f"a chat template was applied{' and every shot was a turn' if is_cut else ''}"
    if any(place.get("system_instruction") for place in (document, config)):
        yield "a system instruction was given"
    yield from _harness(document)


def _harness(document: Mapping[str, Any]) -> Iterator[str]:
    version, commit = document.get("lm_eval_version"), document.get("git_hash")
    if "config_general" in document or (isinstance(commit, str) and HARNESS[:7] in commit):
        return
    if version:
        yield f"computed by lm-eval {version}, where the leaderboard ran commit {HARNESS[:7]}"
    else:
        yield f"the version of lm-eval is not stated; the leaderboard ran commit {HARNESS[:7]}"


def _model(document: Mapping[str, Any]) -> str | None:
    """Who was measured: name, revision where it is not the main one, adapters."""
    arguments, config = _arguments(document), _config(document)
    named = (arguments.get("pretrained"), arguments.get("model"), config.get("model_name"), document.get("model_name"))
    name = next((str(value) for value in named if value), None)
    if name is None:
        return None
    revision = arguments.get("revision")
    adapters = [f"+{arguments[part]}" for part in ("peft", "delta") if arguments.get(part)]
    return name + (f"@{revision}" if revision and revision != "main" else "") + "".join(adapters)


def _arguments(document: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the model: an object, or `name=value` between commas."""
    given = _config(document).get("model_args")
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(",") if part.strip())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return dict(_object(given))


def _config(document: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(document.get("config")) or _object(document.get("config_general"))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _date(document: Mapping[str, Any], path: Path) -> float:
    """When it was measured: by the file's name, else by the harness; minus infinity where neither says."""
    if stamp := _STAMP.search(path.name):
        day, _, time = stamp[0].partition("T")
        return datetime.fromisoformat(f"{day}T{time.replace('-', ':')}").replace(tzinfo=UTC).timestamp()
    date = _number(document.get("date"))
    return -math.inf if date is None else date
