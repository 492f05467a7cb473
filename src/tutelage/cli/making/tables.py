"""What a new model is like, for people: numbers beside the old one's, and who has work."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tutelage.cli.tables import count_in_short

if TYPE_CHECKING:
    # Only for their types: importing them would import torch before `--help` is out.
    from tutelage.recipes.making.prune import PruneOutcome
    from tutelage.recipes.making.reroute import RerouteOutcome
    from tutelage.recipes.making.upcycle import UpcycleOutcome

_BARS = "▁▂▃▄▅▆▇█"
_MOST_SHOWN = 64
_BUSY, _IDLE = 2.0, 0.25
"""Times the fair share: above and below, an expert is coloured."""


def fidelity_table(outcome: "UpcycleOutcome") -> Table:
    """The dense model, then the experts all at work, then as the routers choose."""
    shape, fidelity = outcome.made.shape, outcome.fidelity
    family = outcome.made.lm.config.model_type
    title = f"{family}: {shape.num_experts} experts of {shape.largest} neurons"
    title += f" and {shape.num_shared} shared" if shape.num_shared else ""
    table = Table(title=f"{title}, {shape.num_active} active", title_justify="left")
    table.add_column("")
    for name in ("feed-forward, a token", "parameters", "perplexity", "forward KL", "top-1"):
        table.add_column(name, justify="right")
    whole, routed = fidelity.whole, fidelity.routed.report
    dense, experts = outcome.dense, outcome.experts
    table.add_row(
        "dense model",
        count_in_short(dense.active_feed_forward),
        count_in_short(dense.total),
        _number(routed.teacher_perplexity),
        "0",
        "1.000",
    )
    table.add_row(
        "all experts, equal gates",
        count_in_short(experts.feed_forward),
        count_in_short(experts.total),
        _number(whole.perplexity),
        _small(whole.forward_kl),
        _share(whole.top1_agreement),
    )
    table.add_row(
        "as routed",
        count_in_short(experts.active_feed_forward),
        count_in_short(experts.total),
        _number(routed.perplexity),
        _small(routed.forward_kl),
        _share(routed.top1_agreement),
        style="bold",
    )
    return table


def load_table(outcome: "UpcycleOutcome") -> Table:
    """Who is chosen how often: a line a layer, a bar an expert, a full bar twice the fair share."""
    load = outcome.fidelity.routed.load
    table = Table(title="Load of the experts", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer", justify="right", style="dim")
    table.add_column("experts")
    table.add_column("busiest", justify="right")
    table.add_column("idle", justify="right")
    for layer, shares in enumerate(load.tolist()):
        fair = [share * len(shares) for share in shares]
        num_idle = sum(share == 0 for share in shares)
        table.add_row(str(layer), _bars(fair), f"{max(fair):.2f} x fair", str(num_idle))
    return table


def upcycle_lines(outcome: "UpcycleOutcome") -> Iterator[str]:
    """Whether the experts are the dense model, what the clusters are like, and where it all is."""
    fidelity = outcome.fidelity
    verdict = "equal to the dense model" if fidelity.is_exact else "not the dense model"
    yield (
        f"check    all experts with equal gates: {verdict}; the largest logit difference is "
        f"{fidelity.largest_difference:.1e}, the largest logit {fidelity.largest_logit:.1f}"
    )
    violation = fidelity.routed.max_violation
    yield (
        f"load     MaxVio {sum(violation) / len(violation):.2f} on average, {max(violation):.2f} "
        f"at most; {fidelity.routed.num_idle} experts idle"
    )
    quality = outcome.made.quality
    if quality:
        silhouette = sum(one.silhouette for one in quality) / len(quality)
        between = sum(one.between_share for one in quality) / len(quality)
        yield (
            f"clusters mean silhouette {silhouette:.3f}; {between:.1%} of the variance lies "
            "between them"
        )
    yield f"model    {outcome.folder}"


def reroute_table(outcome: "RerouteOutcome") -> Table:
    """The mixture of experts with the routers it had, then with those of the teacher."""
    table = Table(title_justify="left")
    table.add_column("")
    for name in ("perplexity", "forward KL", "top-1", "MaxVio", "idle experts"):
        table.add_column(name, justify="right")
    after = outcome.after
    table.add_row("teacher", _number(after.report.teacher_perplexity), "0", "1.000", "", "")
    for name, one in (("old routers", outcome.before), ("new routers", after)):
        violation = one.max_violation
        table.add_row(
            name,
            _number(one.report.perplexity),
            _small(one.report.forward_kl),
            _share(one.report.top1_agreement),
            f"{sum(violation) / len(violation):.2f}",
            str(one.num_idle),
            style="bold" if one is after else "",
        )
    return table


def reroute_lines(outcome: "RerouteOutcome") -> Iterator[str]:
    """How much of the teacher the student's hidden states hold, and where it all is."""
    explained = [layer.explained for layer in outcome.layers]
    yield (
        f"map      {sum(explained) / len(explained):.1%} of the teacher's hidden states follow "
        f"from the student's, {min(explained):.1%} in the poorest layer"
    )
    yield f"model    {outcome.folder}"


def prune_table(outcome: "PruneOutcome") -> Table:
    """The whole model, then what is left of it."""
    table = Table(title_justify="left")
    table.add_column("")
    for name in ("parameters", "layers", "perplexity", "forward KL", "top-1"):
        table.add_column(name, justify="right")
    report, whole, pruned = outcome.report, outcome.whole, outcome.pruned
    table.add_row(
        "whole",
        count_in_short(whole.total),
        str(whole.num_layers),
        _number(report.teacher_perplexity),
        "0",
        "1.000",
    )
    table.add_row(
        "pruned",
        count_in_short(pruned.total),
        str(pruned.num_layers),
        _number(report.perplexity),
        _small(report.forward_kl),
        _share(report.top1_agreement),
        style="bold",
    )
    return table


def _bars(fair: list[float]) -> Text:
    text = Text(overflow="ellipsis", no_wrap=True)
    for share in fair[:_MOST_SHOWN]:
        height = min(len(_BARS) - 1, int(share / _BUSY * len(_BARS)))
        style = "red" if share >= _BUSY else "yellow" if share <= _IDLE else "green"
        text.append(_BARS[height] if share else "·", style=style)
    if len(fair) > _MOST_SHOWN:
        text.append(f" and {len(fair) - _MOST_SHOWN} more", style="dim")
    return text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _small(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) >= 1e-3 else f"{value:.1e}"  # noqa: PLR2004
