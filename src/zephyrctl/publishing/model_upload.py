"""What is published of a checkpoint: its weights and tokenizer, the manifests behind it, curves, and its card."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from zephyrctl import token_contract
from zephyrctl.contracts import ModelBase
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing import curve_files
from zephyrctl.publishing.card import render_card
from zephyrctl.publishing.publish_checks import objections
from zephyrctl.publishing.uploads import (
    FOLDER,
    MODEL,
    Upload,
    UploadFile,
    looks_pickled,
    model_entries,
    rendered,
    secrets_of,
)
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import hash_file
from zephyrctl.runs.run import Run


def plan_push(run: Run, checkpoint: Artifact, recipe: Recipe, base: ModelBase, waived: Sequence[str] = ()) -> Upload:
    """Everything that publishing the checkpoint would send, and what speaks against it; reaches no network.

    What is waived is said in the card. Raises ZephyrError for a checkpoint without weights, for files that are not
    those of its manifest any more, and for a template that the model was not trained with.
    """
    weights, strays = _model_files(run, checkpoint)
    chain, left = chain_behind(run, checkpoint)
    evaluations, outdated = _evaluations(run, checkpoint)
    texts = {_manifest_path(part): _text(part.path / "manifest.json") for part in [*chain, *evaluations]}
    texts[f"{FOLDER}/recipe.yaml"] = _recipe_text(recipe)
    curves = {name: text for part in chain for name, text in curve_files.of_artifact(part)}
    template = _text(checkpoint.path / MODEL / "chat_template.jinja") or base.chat_template()
    _check_contract(checkpoint, template)
    against = objections(recipe, base, chain, evaluations, sorted(_files_in(checkpoint)))
    card = render_card(
        recipe.name,
        [part.manifest for part in chain],
        [part.manifest for part in evaluations],
        base,
        template,
        _end_of_turn(checkpoint.path / MODEL / "tokenizer_config.json"),
        curves=list(curves),
        waived=[one.problem for one in against if one.name in waived],
    )
    made = [rendered(name, text) for name, text in {**texts, **curves, "README.md": card}.items()]
    files = tuple(sorted([*weights, *made], key=lambda file: file.path))
    return Upload(
        title=f"{recipe.name}-{checkpoint.manifest.plan.name}",
        files=files,
        notes=(*strays, *left, *outdated),
        objections=(*against, *secrets_of(files)),
        card=card,
    )


def _check_contract(checkpoint: Artifact, template: str) -> None:
    """Raise ZephyrError where the template that would be published is not the one that the model was trained with."""
    contract = token_contract.read(checkpoint.path / MODEL)
    if contract is None:
        return
    said = checkpoint.manifest.metrics.get("token_contract")
    if said != contract.fingerprint or not contract.renders(template):
        raise ZephyrError(
            f"the template and tokens in {checkpoint.path / MODEL} are not those that the model was trained with",
            f"train it again: zephyrctl {checkpoint.manifest.plan.stage} --fresh",
        )


def chain_behind(run: Run, checkpoint: Artifact) -> tuple[list[Artifact], list[str]]:
    """The artifacts behind the checkpoint, earliest first and itself last, and why any is left out."""
    chain: dict[str, Artifact] = {}
    notes: list[str] = []

    def visit(artifact: Artifact) -> None:
        manifest = artifact.manifest
        for name, place in manifest.input_paths.items():
            source = run.artifact(place) if re.fullmatch(r"[\w-][\w.-]*", place) else None
            if source is None or place in chain:
                continue
            if source.content_hash == manifest.plan.inputs.get(name):
                visit(source)
            else:
                again = f"{place!r} was made again after {manifest.plan.name!r} had read it"
                notes.append(f"{again}; its manifest is left out")
        chain[manifest.plan.name] = artifact

    visit(checkpoint)
    return list(chain.values()), list(dict.fromkeys(notes))


def _files_in(checkpoint: Artifact) -> set[str]:
    """Every file in the model's folder, those that the manifest does not list too."""
    folder = checkpoint.path / MODEL
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _model_files(run: Run, checkpoint: Artifact) -> tuple[list[UploadFile], list[str]]:
    """The files that the manifest lists under `model/`, checked against it, and notes on the others."""
    folder = checkpoint.path / MODEL
    listed = model_entries(checkpoint.manifest)
    found = _files_in(checkpoint)
    again = f"{_command(checkpoint)} --fresh --run {run.path}"
    if not any(name.endswith(".safetensors") or looks_pickled(name) for name in listed):
        raise ZephyrError(f"{checkpoint.path} holds no weights to publish", again)
    files = []
    for name, entry in listed.items():
        path = folder / name
        if name not in found or path.stat().st_size != entry.bytes or hash_file(path) != entry.sha256:
            raise ZephyrError(f"{path} is not the file that its manifest describes", again)
        files.append(UploadFile(name, path, entry.bytes, entry.sha256))
    strays = [f"{folder / name} is not in the manifest and stays here" for name in sorted(found - set(listed))]
    return [file for file in files if file.path != "README.md"], strays


def _evaluations(run: Run, checkpoint: Artifact) -> tuple[list[Artifact], list[str]]:
    """The evaluations of this very checkpoint, and notes on those of an earlier one of its name."""
    name = checkpoint.manifest.plan.name
    of_it, notes = [], []
    for artifact in run.artifacts():
        manifest = artifact.manifest
        if manifest.plan.stage != "eval":
            continue
        if checkpoint.content_hash in manifest.plan.inputs.values():
            of_it.append(artifact)
        elif name in manifest.input_paths.values():
            notes.append(f"{manifest.plan.name!r} judged an earlier {name!r}; its scores are left out")
    return of_it, notes


def _command(checkpoint: Artifact) -> str:
    plan = checkpoint.manifest.plan
    return f"zephyrctl {plan.stage}" if plan.stage == plan.name else "zephyrctl run"


def _manifest_path(artifact: Artifact) -> str:
    return f"{FOLDER}/{artifact.manifest.plan.name}/manifest.json"


def _recipe_text(recipe: Recipe) -> str:
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# The recipe as it stood at publication; what a step really used is in its manifest.\n{text}"


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _end_of_turn(tokenizer_config: Path) -> str | None:
    """The end token's text, which tokenizers store bare or in an object."""
    token = json.loads(_text(tokenizer_config) or "{}").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
