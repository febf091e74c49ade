"""README and docs are true: commands run, generated pages are those of the program, YAML blocks are recipes."""

import json
import re
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cli.test_app import HELP_PAGES
from tests.conftest import Command, shell
from zephyrctl.recipe import loading
from zephyrctl.recipe.schema import Recipe, Section

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITHOUT_DRY_RUN = (
    *("recipe ", "plugins", "--version", "--help", "data calls", "data explain", "data feedback --pilot"),
    *("verify", "doctor", "chat"),
)
"""Commands that do nothing to be afraid of, and one that an empty folder gives nothing to do."""

NOT_HERE = ("not on this machine", "there is no file", "there is no folder", "no scores of", "no connection to")
"""What a command says of files and scores that an empty folder has not."""


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            found.append((page.name, match[1]))
    return found


def commands() -> list[str]:
    """Every `$ zephyrctl` line of the console blocks."""
    lines = [line for _, block in blocks("console") for line in block.splitlines()]
    return [line.removeprefix("$ zephyrctl ") for line in lines if line.startswith("$ zephyrctl ")]


def replace_block(path: Path, mark: str, text: str, update: bool) -> None:
    """Compare what stands between two marks of a page with a text, or write it."""
    page = path.read_text()
    pattern = re.compile(rf"(<!-- {mark} -->\n)(.*?)(<!-- /{mark} -->)", re.DOTALL)
    if update:
        page = pattern.sub(lambda match: match[1] + text + match[3], page)
        path.write_text(page)
    found = pattern.search(page)
    assert found, f"{path.name} has no marks {mark!r}"
    assert found[2] == text, f"{path.name} is not what the program says: run `make golden`"


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 15


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_in_the_docs_is_one(
    command: str, zephyrctl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Run with `--dry-run` and no Hub; a missing input is a fine answer, a wrong option or an unknown recipe is not."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    arguments = shlex.split(command, comments=True)
    if not command.startswith(WITHOUT_DRY_RUN) and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    outcome = zephyrctl(*arguments)
    refusals = ("has no finished", "nothing to report", "has no call log", "has no data", *NOT_HERE)
    assert outcome.code == 0 or any(refusal in outcome.err for refusal in refusals), outcome.err


@pytest.mark.parametrize(("page", "text"), [block for block in blocks("yaml") if "extends:" in block[1]])
def test_every_recipe_in_the_docs_is_valid(page: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert loading.load(str(path), {}).recipe.name == yaml.safe_load(text)["name"]


def test_the_command_reference_is_the_help(
    zephyrctl: Command, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    parts = []
    for page in HELP_PAGES:
        lines = "\n".join(line.rstrip() for line in zephyrctl(*page, "--help").out.splitlines()).strip("\n")
        parts.append(f"## zephyrctl {' '.join(page)}".rstrip() + f"\n\n```text\n{lines}\n```\n\n")
    replace_block(ROOT / "docs" / "commands.md", "help", "".join(parts), request.config.getoption("--update-golden"))


def test_the_recipe_reference_names_every_key(request: pytest.FixtureRequest) -> None:
    table = "| key | what it is | default |\n|---|---|---|\n" + "".join(rows(Recipe))
    replace_block(ROOT / "docs" / "recipes.md", "keys", table, request.config.getoption("--update-golden"))


def test_the_scores_in_the_readme_are_the_measured_ones(request: pytest.FixtureRequest) -> None:
    """They come from the committed result of `benchmarks/seeds.py`, at the recipes' own seed."""
    measured = json.loads((ROOT / "benchmarks" / "seeds.json").read_text())
    tiny, ablation = (measured[recipe]["0"] for recipe in ("tiny", "ablation-tiny"))
    labels = {"base": "base", "sft": "dSFT", "dpo": "dDPO + dSFT", "dpo_minus_sft": "dDPO minus dSFT, paired"}
    text = "| `tiny`, held-out prompts | judge's score, 1-10 | 95 % interval |\n|---|---|---|\n"
    text += "".join(score_row(label, tiny["scores"][name]) for name, label in labels.items())
    text += "\n| `ablation-tiny` | judge's score, 1-10 | MT-Bench of the paper's 7B |\n|---|---|---|\n"
    for name, checkpoint in loading.load("ablation-tiny", {}).recipe.checkpoints.items():
        mean = ablation["scores"][name]["mean"]
        text += f"| {checkpoint.label} | {mean:.2f} | {checkpoint.published['mt_bench']:.2f} |\n"
    accuracy, cores = tiny["dpo"]["reward_accuracy"], measured["machine"]["cores"]
    text += (
        f"\nFirst dDPO loss {tiny['dpo']['first_loss']:.6f} (ln 2 is 0.693147), reward accuracy on held-out pairs "
        f"{accuracy:.3f}; {tiny['seconds']:.0f} s and {ablation['seconds']:.0f} s on {cores} cores. All seeds: "
        "[benchmarks/seeds.json](benchmarks/seeds.json).\n"
    )
    replace_block(ROOT / "README.md", "scores", text, request.config.getoption("--update-golden"))


def score_row(label: str, score: dict[str, float]) -> str:
    """One line of the table."""
    sign = "+" if "minus" in label else ""
    return f"| {label} | {score['mean']:{sign}.2f} | {score['low']:.2f} to {score['high']:.2f} |\n"


def rows(section: type[Section], prefix: str = "") -> Iterator[str]:
    """A table row for every field that holds a value, with its sentence and default."""
    for name, field in section.model_fields.items():
        parts = list(dict.fromkeys(loading.section_types(field.annotation)))
        if parts:
            for part in parts:
                kind = part.model_fields.get("kind")
                label = f" ({typing.get_args(kind.annotation)[0]})" if kind and len(parts) > 1 else ""
                yield f"| **{prefix}{name}**{label} | {first_line(part)} | |\n"
                yield from rows(part, f"{prefix}{name}.")
        else:
            default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
            described = (field.description or "").replace("|", "\\|")
            yield f"| `{prefix}{name}` | {described} | {default} |\n"


def first_line(section: type[Section]) -> str:
    """The sentence that a section opens with."""
    return (section.__doc__ or "").split("\n")[0].rstrip(".")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "commands" / "index.html").is_file()


@pytest.mark.slow
def test_the_command_starts_as_a_module_and_as_a_script(tmp_path: Path) -> None:
    assert shell(["--version"], tmp_path).out.startswith("zephyrctl ")
    script = Path(sys.executable).with_name("zephyrctl")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("zephyrctl ")


def test_what_troubleshooting_quotes_is_what_the_program_says() -> None:
    """Words of an error that nobody says any more help nobody."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) >= 15
    sources = [path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))]
    said = " ".join(re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*f?"', "", text)) for text in sources)
    assert [words for words in quoted if words not in said] == []


def test_every_measurement_is_named_where_it_is_told_how_things_were_measured() -> None:
    page = (ROOT / "docs" / "measured.md").read_text()
    results = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.json"))
    assert len(results) >= 8
    assert [name for name in results if f"benchmarks/{name}.py" not in page] == []


def test_settings_that_newcomers_are_told_of_exist() -> None:
    """Dotted keys of our own column are keys of the recipe."""
    known = set(loading.known_keys())
    page = (ROOT / "docs" / "coming-from.md").read_text()
    ours = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    named = {key for cell in ours for key in re.findall(r"`((?:sft|dpo|build|launch|base)\.[a-z_.]+)", cell)}
    assert len(named) >= 15
    assert {key for key in named if key not in known and not key.startswith(("build.source", "base.options"))} == set()
