"""The curves of a training as pictures that a model card shows: one SVG file each, drawn from its metric log."""

from collections.abc import Iterator

from zephyrctl import templates
from zephyrctl.publishing.curves import drawn
from zephyrctl.publishing.subject import TRAINING
from zephyrctl.publishing.uploads import FOLDER
from zephyrctl.runs.artifacts import Artifact

COLOURS = {"sft": "#3a5fbf", "dpo": "#0f7d6c", "held-out": "#b3560f", "rejected": "#a02c6d"}
"""On a white ground of their own, whatever the scheme of the page around them."""


def of_artifact(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """(path in the repository, SVG) of every curve; nothing for what was not trained or logged nothing."""
    if artifact.manifest.plan.stage not in TRAINING:
        return
    for chart in drawn(artifact):
        name = chart.title.casefold().replace(" ", "-")
        text = templates.render("card/curve.svg.jinja", chart=chart, colours=COLOURS)
        yield f"{FOLDER}/{artifact.manifest.plan.name}/{name}.svg", text
