"""The installed benchmarks: their classes in the order of registration, and the one that made a result."""

from collections.abc import Mapping

from zephyrctl import plugins
from zephyrctl.errors import ZephyrError
from zephyrctl.evaluation.benchmarks.contract import Benchmark
from zephyrctl.recipe.schema import Eval
from zephyrctl.runs.manifest import Manifest


def benchmark_classes() -> list[type[Benchmark]]:
    """Every installed benchmark, built-in ones first; a name that two plugins use is left to neither."""
    offers = plugins.load().offers_of_kind(plugins.BENCHMARK.name)
    names = [offer.name for offer in offers]
    return [offer.offered for offer in offers if names.count(offer.name) == 1 and issubclass(offer.offered, Benchmark)]


def find_benchmark(name: str) -> type[Benchmark]:
    """The benchmark of that name. Raises ZephyrError if there is none, or if two plugins use the name."""
    offered = plugins.load().find(plugins.BENCHMARK.name, name).offered
    assert issubclass(offered, Benchmark)
    return offered


def make_benchmark(name: str, settings: Eval) -> Benchmark:
    """The benchmark of that name with the options that the recipe states. Raises ZephyrError if they are wrong."""
    benchmark = find_benchmark(name)
    for stated in settings.benchmarks:
        find_benchmark(stated)
    return plugins.load().benchmark(name, benchmark.stated_options(settings))


def paper_heading(key: str) -> str:
    """The heading of a score that the paper prints, by its key in the paper's tables: `MT-Bench, paper`."""
    for benchmark in benchmark_classes():
        stated = [figure for figure in benchmark.figures if figure.paper]
        for figure in stated:
            if figure.paper == key:
                title = benchmark.title if len(stated) == 1 else figure.title
                return f"{' '.join(filter(None, (title, figure.unit)))}, paper"
    return key


def benchmark_of(manifest: Manifest) -> Benchmark | None:
    """The benchmark that made a result, with default options; None for the held-out evaluation.

    Raises ZephyrError if the benchmark is not installed.
    """
    return benchmark_named(manifest.metrics, manifest.plan.name)


def benchmark_named(metrics: Mapping[str, object], artifact: str) -> Benchmark | None:
    """The same for the metrics of an artifact."""
    name = metrics.get("benchmark")
    if name is None:
        return None
    try:
        return plugins.load().benchmark(str(name), {})
    except ZephyrError as error:
        raise ZephyrError(
            f"{artifact} is the result of a benchmark {name!r} that is not installed", error.remedy
        ) from None
