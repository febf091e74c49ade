"""Read published data sets through the `datasets` library, from the Hub or from a folder."""

from collections.abc import Iterator

from zephyrctl.errors import ZephyrError
from zephyrctl.rows.files import Raw


def load_rows(dataset: str, revision: str | None, split: str) -> Iterator[tuple[str, Raw]]:
    """The rows of one split as (where, row), streamed. Raises ZephyrError if it cannot be loaded."""
    import datasets  # takes 1 s to import, and no other command needs it

    try:
        rows = datasets.load_dataset(dataset, revision=revision, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{dataset}[{split}] row {number}", dict(row)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ZephyrError(
            f"the data set {dataset} cannot be loaded: {reason}",
            "check the name and the network, or download it and give the files with --input",
        ) from None
