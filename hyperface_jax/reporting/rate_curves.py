"""Curves of error rates: ROC, DET, EDC and CMC, one line a test set, as SVG text."""

from collections.abc import Iterator, Sequence

import numpy as np

from hyperface_jax.evaluation import roc
from hyperface_jax.evaluation.results import ProtocolResult
from hyperface_jax.reporting.plots import CYCLE, svg


def roc_curves(results: Sequence[ProtocolResult]) -> str:
    """TAR over FAR on a logarithmic axis, one line for each result with pairs.

    Each line starts at 1/impostors, the smallest FAR that its pairs can show; points
    are joined as stairs, because no threshold lies between two of them. Bars are 95 %
    intervals.
    """

    def draw(figure):
        axes = figure.add_subplot(
            title="ROC: genuine pairs accepted over impostor pairs accepted",
            xlabel="FAR (share, logarithmic)",
            ylabel="TAR (%)",
            xscale="log",
        )
        lowest, floor = 1.0, 99.0  # a perfect curve still needs an axis
        for colour, (name, far, tar) in zip(
            CYCLE * len(results), roc_lines(results), strict=False
        ):
            axes.step(far, 100 * tar, where="post", color=colour, label=name)
            lowest, floor = min(lowest, far[0]), min(floor, 100 * tar[0])
        for colour, result in zip(CYCLE * len(results), results, strict=False):
            _bars(axes, result, "tar@far=", colour)
        if lowest < 1:
            axes.set_xlim(lowest, 1)
        axes.set_ylim(max(0, floor - 0.08 * (100 - floor)), 100 + 0.02 * (100 - floor))
        axes.legend(loc="lower right")

    return svg((6.4, 3.8), draw)


def _bars(axes, result: ProtocolResult, prefix: str, colour: str) -> None:
    """95 % intervals at the points of a curve for which there are any."""
    for name, found in result.intervals.items():
        at = name.removeprefix(prefix)
        if name.startswith(prefix):
            axes.vlines(float(at), 100 * found.low, 100 * found.high, color=colour)


def roc_lines(
    results: Sequence[ProtocolResult],
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, FAR [600] and the strict TAR [600] at it, of each result with pairs."""
    for result in results:
        if not len(result.scores):
            continue
        far, tar, _ = roc.roc(result.scores, result.is_genuine)
        smallest = 1 / np.count_nonzero(~result.is_genuine)
        # A point at each of 600 rates looks the same as one at each of 8 million.
        grid = np.geomspace(smallest, 1, 600)
        best = tar[np.searchsorted(far, grid * (1 + 1e-12), side="right") - 1]
        yield result.key, grid, best


def det_curves(results: Sequence[ProtocolResult]) -> str:
    """FNMR over FMR, both logarithmic (ISO/IEC 19795-1's DET curve).

    Empty text where no result ever rejects a genuine pair: there is nothing to draw.
    """
    lines = [(name, far, 1 - tar) for name, far, tar in roc_lines(results)]
    if not any((miss > 0).any() for _, _, miss in lines):
        return ""

    def draw(figure):
        axes = figure.add_subplot(
            title="DET: genuine pairs rejected over impostor pairs accepted",
            xlabel="FMR = FAR (share, logarithmic)",
            ylabel="FNMR (%, logarithmic)",
            xscale="log",
            yscale="log",
        )
        for colour, (name, far, miss) in zip(CYCLE * len(lines), lines, strict=False):
            shown = np.where(miss > 0, 100 * miss, np.nan)  # no logarithm of 0
            axes.step(far, shown, where="post", color=colour, label=name)
        axes.legend(loc="lower left")

    return svg((6.4, 3.8), draw)


def edc_curves(results: Sequence[ProtocolResult]) -> str:
    """FNMR over the share of pairs discarded (ISO/IEC 29794-1's EDC curve).

    The dotted line is an ideal quality: it discards nothing but rejected pairs.
    """

    def draw(figure):
        axes = figure.add_subplot(
            title="EDC: genuine pairs rejected as the shortest embeddings go",
            xlabel="genuine pairs discarded (%)",
            ylabel="FNMR of the others (%)",
        )
        for colour, result in zip(CYCLE * len(results), results, strict=False):
            if (found := result.discard) is not None:
                name = result.key.removesuffix("/error_versus_discard")
                share = found.share
                axes.plot(100 * share, 100 * found.fnmr, color=colour, label=name)
                ideal = np.maximum(found.fnmr[0] - share, 0) / (1 - share)
                axes.plot(100 * share, 100 * ideal, color=colour, linestyle=":")
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")

    return svg((6.4, 3.4), draw)


def cmc_curves(results: Sequence[ProtocolResult]) -> str:
    """Share of searches whose mate is among the k best, over k (logarithmic)."""

    def draw(figure):
        axes = figure.add_subplot(
            title="CMC: probes whose mate is among the k best",
            xlabel="rank k (logarithmic)",
            ylabel="identified (%)",
            xscale="log",
        )
        for colour, result in zip(CYCLE * len(results), results, strict=False):
            if result.cmc is not None:
                ranks = np.arange(1, len(result.cmc) + 1)
                axes.step(
                    *(ranks, 100 * result.cmc),
                    where="post",
                    color=colour,
                    label=result.key,
                )
                _bars(axes, result, "rank", colour)
        axes.set_ylim(top=101)
        axes.legend(loc="lower right")

    return svg((6.4, 3.4), draw)
