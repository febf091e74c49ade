"""`data binarize`: at most one preference pair a prompt; every prompt without one is counted by cause."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

from zephyrctl import plugins
from zephyrctl.contracts import Binarizer, NoPair
from zephyrctl.data import shapes
from zephyrctl.data.files import read_rows
from zephyrctl.errors import ZephyrError
from zephyrctl.progress import Progress
from zephyrctl.recipe import Recipe
from zephyrctl.records import PreferencePair, RatedPrompt, Split, split_of
from zephyrctl.runs import SPLITS, Artifact, Draft
from zephyrctl.stages import Inputs, Source, Step


def step(recipe: Recipe, input_file: Path | None = None) -> Step:
    """The binarize step: over the rated prompts of `feedback`, or over a file in UltraFeedback's form."""

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        strategy = plugins.load().binarizer(recipe.binarize.strategy, recipe.binarize.options)
        rated = _rated(inputs["rated"], recipe, draft)
        lost: Counter[str] = Counter()
        for split, prompts in rated.items():
            draft.write("pairs", split, binarize(prompts, strategy, recipe.seed, lost), PreferencePair)
        prompts = [prompt for side in rated.values() for prompt in side]
        _close(draft, len(prompts), _missing(prompts), lost)

    return Step(
        name="binarize",
        stage="binarize",
        does=f"pair the answers of each prompt by the strategy {recipe.binarize.strategy!r}",
        settings={"seed": recipe.seed, **recipe.binarize.model_dump(mode="json")}
        | ({"test_share": recipe.build.test_share, "skip_bad_rows": recipe.skip_bad_rows} if input_file else {}),
        reads={"rated": Source(path=input_file) if input_file else Source(artifact="feedback", stage="feedback")},
        work=work,
        check=lambda: _check(recipe),
    )


def binarize(
    rated: Iterable[RatedPrompt], strategy: Binarizer, seed: int, lost: "Counter[str]"
) -> Iterator[PreferencePair]:
    """Pair the answers of each prompt. The seed hangs on the prompt's id: order, workers and shards change no pair.

    Pairs whose two texts are the same, or one of them empty, teach nothing and are counted in `lost` with the rest.
    """
    for prompt in rated:
        picked = strategy.pick(prompt, Random(f"{seed}:{prompt.id}"))
        if isinstance(picked, PreferencePair):
            cause = unusable(picked)
            if not cause:
                yield picked
                continue
        else:
            cause = picked.cause if isinstance(picked, NoPair) else "no preference"
        lost[cause] += 1


def unusable(pair: PreferencePair) -> str | None:
    """Why a pair's texts cannot teach a preference, or None."""
    if not pair.chosen.strip():
        return "empty chosen answer"
    if not pair.rejected.strip():
        return "empty rejected answer"
    if pair.chosen == pair.rejected:
        return "identical answers"
    return None


def _check(recipe: Recipe) -> None:
    plugins.load().binarizer(recipe.binarize.strategy, recipe.binarize.options)


def _rated(source: "Artifact | Path", recipe: Recipe, draft: Draft) -> dict[Split, list[RatedPrompt]]:
    """The rated prompts of either side; those of a file are split by the hash of their id."""
    if isinstance(source, Artifact):
        return {split: list(source.read("rated", split, RatedPrompt)) for split in SPLITS}
    sides: dict[Split, list[RatedPrompt]] = {split: [] for split in SPLITS}
    for rated in shapes.each(read_rows(source), shapes.rated_prompt, recipe.skip_bad_rows, draft.lose):
        sides[split_of(rated.id, recipe.build.test_share)].append(rated)
    return sides


def _missing(rated: Iterable[RatedPrompt]) -> int:
    return sum(rating.value is None for row in rated for answer in row.completions for rating in answer.ratings)


def _close(draft: Draft, read: int, missing: int, lost: "Counter[str]") -> None:
    """Every prompt is a pair or a loss; ratings that are missing are left out of their answer's mean."""
    for cause, rows in lost.items():
        draft.lose(cause, rows)
    paired = read - lost.total()
    if not paired:
        causes = ", ".join(f"{rows} x {cause}" for cause, rows in draft.losses.items())
        causes += f"; {missing} ratings missing" if missing else ""
        raise ZephyrError(
            f"no prompt of {read} shows a preference ({causes})", "rate the answers: zephyrctl data feedback"
        )
    draft.metrics |= {"prompts": read, "pairs": paired, "ratings_missing": missing}
