"""Draw the curves of a training as SVG files for the model card."""

from collections.abc import Iterator

from zephyrctl import templates
from zephyrctl.publishing.curves import training_charts
from zephyrctl.publishing.reported_run import TRAINING
from zephyrctl.publishing.uploads import FOLDER
from zephyrctl.runs.artifacts import Artifact

COLOURS = {"sft": "#3a5fbf", "dpo": "#0f7d6c", "held-out": "#b3560f", "rejected": "#a02c6d"}
"""The colours of lines on the pictures' own white background, which suits light and dark pages alike."""


def curve_files(artifact: Artifact) -> Iterator[tuple[str, str]]:
    """(path in the repository, SVG) of every curve; nothing for other stages and for trainings without a log."""
    if artifact.manifest.plan.stage not in TRAINING:
        return
    for chart in training_charts(artifact, artifact.manifest.plan.name):
        name = chart.title.casefold().replace(" ", "-")
        text = templates.render("card/curve.svg.jinja", chart=chart, colours=COLOURS)
        yield f"{FOLDER}/{artifact.manifest.plan.name}/{name}.svg", text
