"""Collect what is published of a checkpoint: weights, tokenizer, manifests, curves and the model card."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel

from zephyrctl import token_contract
from zephyrctl.contracts import ModelBase
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.card import render_card
from zephyrctl.publishing.curve_files import curve_files
from zephyrctl.publishing.publish_checks import failed_checks
from zephyrctl.publishing.uploads import (
    FOLDER,
    MODEL,
    Upload,
    UploadFile,
    check_secrets,
    looks_pickled,
    model_entries,
    rendered,
)
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import hash_file
from zephyrctl.runs.run import Run
from zephyrctl.training.results import TrainingResult


class AddedToken(BaseModel):
    """A special token as tokenizer_config.json may state it."""

    content: str


class TokenizerConfig(BaseModel):
    """The end token of tokenizer_config.json."""

    eos_token: AddedToken | str | None = None


def plan_push(run: Run, checkpoint: Artifact, recipe: Recipe, base: ModelBase, waived: Sequence[str] = ()) -> Upload:
    """Everything that publishing the checkpoint would send, and the checks that failed; uses no network.

    The card lists the waived checks. Raises ZephyrError for a checkpoint without weights, for files that changed since
    their manifest was written, and for a chat template that the model was not trained with.
    """
    weights, unlisted = _model_files(run, checkpoint)
    chain, left_out = chain_behind(run, checkpoint)
    evaluations, outdated = _evaluations(run, checkpoint)
    texts = {_manifest_path(part): _text(part.path / "manifest.json") for part in [*chain, *evaluations]}
    texts[f"{FOLDER}/recipe.yaml"] = _recipe_text(recipe)
    curves = {name: text for part in chain for name, text in curve_files(part)}
    template = _text(checkpoint.path / MODEL / "chat_template.jinja") or base.chat_template()
    _check_contract(checkpoint, template)
    failed = failed_checks(recipe, base, chain, evaluations, sorted(_files_in(checkpoint)))
    card = render_card(
        recipe.name,
        [part.manifest for part in chain],
        [part.manifest for part in evaluations],
        base,
        template,
        _end_of_turn(checkpoint.path / MODEL / "tokenizer_config.json"),
        curves=list(curves),
        waived=[check.problem for check in failed if check.name in waived],
    )
    documents = [rendered(name, text) for name, text in {**texts, **curves, "README.md": card}.items()]
    files = tuple(sorted([*weights, *documents], key=lambda file: file.path))
    return Upload(
        title=f"{recipe.name}-{checkpoint.manifest.plan.name}",
        files=files,
        notes=(*unlisted, *left_out, *outdated),
        failed_checks=(*failed, *check_secrets(files)),
        card=card,
    )


def _check_contract(checkpoint: Artifact, template: str) -> None:
    """Raise ZephyrError if the chat template to publish is not the one that the model was trained with."""
    contract = token_contract.read(checkpoint.path / MODEL)
    if contract is None:
        return
    if TrainingResult.of(checkpoint).token_contract != contract.fingerprint or not contract.renders(template):
        raise ZephyrError(
            f"the template and tokens in {checkpoint.path / MODEL} are not those that the model was trained with",
            f"train it again: zephyrctl {checkpoint.manifest.plan.stage} --fresh",
        )


def chain_behind(run: Run, checkpoint: Artifact) -> tuple[list[Artifact], list[str]]:
    """The artifacts behind the checkpoint, earliest first and itself last, and a note for each that is left out."""
    chain: dict[str, Artifact] = {}
    notes: list[str] = []

    def visit(artifact: Artifact) -> None:
        manifest = artifact.manifest
        for name, path in manifest.input_paths.items():
            source = run.artifact(path) if re.fullmatch(r"[\w-][\w.-]*", path) else None
            if source is None or path in chain:
                continue
            if source.content_hash == manifest.plan.inputs.get(name):
                visit(source)
            else:
                rebuilt = f"{path!r} was rebuilt after {manifest.plan.name!r} had read it"
                notes.append(f"{rebuilt}; its manifest is left out")
        chain[manifest.plan.name] = artifact

    visit(checkpoint)
    return list(chain.values()), list(dict.fromkeys(notes))


def _files_in(checkpoint: Artifact) -> set[str]:
    """Every file in the model's folder, also those that the manifest does not list."""
    folder = checkpoint.path / MODEL
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _model_files(run: Run, checkpoint: Artifact) -> tuple[list[UploadFile], list[str]]:
    """The files that the manifest lists under `model/`, checked against it, and notes on the others."""
    folder = checkpoint.path / MODEL
    listed = model_entries(checkpoint.manifest)
    present = _files_in(checkpoint)
    remedy = f"{_command(checkpoint)} --fresh --run {run.path}"
    if not any(name.endswith(".safetensors") or looks_pickled(name) for name in listed):
        raise ZephyrError(f"{checkpoint.path} contains no weights to publish", remedy)
    files = []
    for name, entry in listed.items():
        path = folder / name
        if name not in present or path.stat().st_size != entry.bytes or hash_file(path) != entry.sha256:
            raise ZephyrError(f"{path} is not the file that its manifest describes", remedy)
        files.append(UploadFile(name, path, entry.bytes, entry.sha256))
    notes = [f"{folder / name} is not in the manifest and is not published" for name in sorted(present - set(listed))]
    return [file for file in files if file.path != "README.md"], notes


def _evaluations(run: Run, checkpoint: Artifact) -> tuple[list[Artifact], list[str]]:
    """The evaluations of this checkpoint, and notes on those of an earlier checkpoint of its name."""
    name = checkpoint.manifest.plan.name
    evaluations, notes = [], []
    for artifact in run.artifacts():
        manifest = artifact.manifest
        if manifest.plan.stage != "eval":
            continue
        if checkpoint.content_hash in manifest.plan.inputs.values():
            evaluations.append(artifact)
        elif name in manifest.input_paths.values():
            notes.append(f"{manifest.plan.name!r} judged an earlier {name!r}; its scores are left out")
    return evaluations, notes


def _command(checkpoint: Artifact) -> str:
    plan = checkpoint.manifest.plan
    return f"zephyrctl {plan.stage}" if plan.stage == plan.name else "zephyrctl run"


def _manifest_path(artifact: Artifact) -> str:
    return f"{FOLDER}/{artifact.manifest.plan.name}/manifest.json"


def _recipe_text(recipe: Recipe) -> str:
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# The recipe as it was at publication; the manifests say what each stage used.\n{text}"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _end_of_turn(tokenizer_config: Path) -> str | None:
    """The text of the end token, which tokenizers store as a text or as an object with `content`."""
    config = TokenizerConfig.model_validate_json(_text(tokenizer_config) or "{}")
    return config.eos_token.content if isinstance(config.eos_token, AddedToken) else config.eos_token
