"""Where student and teacher disagree: held-out rows token by token, and the worst tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup

from tutelage.reports.charts.drawing import safe_json
from tutelage.reports.run_folder import RunRecord, TokenRow

MOST_ROWS = 60
MOST_TOKENS = 400
"""What a page holds; what is left out is counted on the page."""
_CONTEXT = 12


@final
@dataclass(frozen=True, kw_only=True)
class ShownToken:
    """One token, with how strongly it is coloured: 0 for no divergence, towards 1 for much."""

    text: str
    style: str
    """Custom properties: b before, a after, d the size of the change."""
    worse: bool
    """The divergence grew."""


@final
@dataclass(frozen=True, kw_only=True)
class ShownRow:
    """One row of held-out text, measured before, after, or both."""

    row: int
    prompt: str
    tokens: Sequence[ShownToken]
    num_hidden: int
    """Tokens behind the limit."""
    mean_before: float | None
    mean_after: float | None
    data: Markup
    """JSON for the read-out of a token."""


@final
@dataclass(frozen=True, kw_only=True)
class WorstToken:
    """A place where the distilled student is far from its teacher."""

    row: int
    left: str
    token: str
    right: str
    forward_kl: float
    before: float | None
    student_top: str
    teacher_top: str
    student_label_p: float
    teacher_label_p: float


@final
@dataclass(frozen=True, kw_only=True)
class TokenView:
    """All that the page shows token by token."""

    rows: Sequence[ShownRow]
    num_hidden_rows: int
    whens: Sequence[str]
    """Which of before and after were measured."""
    worst: Sequence[WorstToken]
    worst_share: float | None
    """Share of all divergence that the worst twentieth of the tokens holds."""


def token_view(run: RunRecord, *, num_worst: int = 15) -> TokenView:
    """Join what was measured before and after on the same tokens."""
    pairs: dict[tuple[int, str, tuple[str, ...]], dict[str, TokenRow]] = {}
    for row in run.token_rows:
        pairs.setdefault((row.row, row.prompt, tuple(row.tokens)), {})[row.when] = row
    shown = [_shown(pair) for pair in list(pairs.values())[:MOST_ROWS]]
    seen = {row.when for row in run.token_rows}
    main = "after" if "after" in seen else "before"
    return TokenView(
        rows=shown,
        num_hidden_rows=len(pairs) - len(shown),
        whens=[when for when in ("before", "after") if when in seen],
        worst=_worst(list(pairs.values()), main, num_worst),
        worst_share=_share_of_worst([row for row in run.token_rows if row.when == main]),
    )


def visible(token: str) -> str:
    """A token with its line breaks and tabs made visible, and still breaking the line."""
    return token.replace("\r", "").replace("\t", "⇥\t").replace("\n", "↵\n")


def named(token: str) -> str:
    """A token on its own, as one line, with the spaces at its ends made visible."""
    line = token.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
    core = line.strip(" ")
    if not core:
        return "␣" * len(line) or "(empty)"
    return (
        "␣" * (len(line) - len(line.lstrip(" "))) + core + "␣" * (len(line) - len(line.rstrip(" ")))
    )


def heat(nats: float) -> float:
    """Strength of the colour, from 0 to 1: 1 - exp(-nats)."""
    return 1 - math.exp(-max(nats, 0.0)) if math.isfinite(nats) else 0.0


def _shown(pair: dict[str, TokenRow]) -> ShownRow:
    before, after = pair.get("before"), pair.get("after")
    any_row = after or before or next(iter(pair.values()))
    tokens: list[ShownToken] = []
    for index, token in enumerate(any_row.tokens[:MOST_TOKENS]):
        nats = {
            letter: row.forward_kl[index]
            for letter, row in (("b", before), ("a", after))
            if row is not None and math.isfinite(row.forward_kl[index])
        }
        change = nats["a"] - nats["b"] if len(nats) == 2 else 0.0  # noqa: PLR2004 - both of them
        shades = {letter: heat(value) for letter, value in nats.items()} | {"d": heat(abs(change))}
        style = ";".join(f"--{name}:{shade:.2f}" for name, shade in shades.items() if shade > 0.005)  # noqa: PLR2004 - invisible below
        tokens.append(ShownToken(text=visible(token), style=style, worse=change > 0))
    return ShownRow(
        row=any_row.row,
        prompt=any_row.prompt,
        tokens=tokens,
        num_hidden=max(0, len(any_row.tokens) - MOST_TOKENS),
        mean_before=_mean(before),
        mean_after=_mean(after),
        data=safe_json({w: _columns(row) for w, row in pair.items() if w in {"before", "after"}}),
    )


def _mean(row: TokenRow | None) -> float | None:
    finite = [] if row is None else [kl for kl in row.forward_kl if math.isfinite(kl)]
    return sum(finite) / len(finite) if finite else None


def _columns(row: TokenRow) -> dict[str, object]:
    def rounded(values: Sequence[float]) -> list[float]:
        return [float(f"{value:.3g}") for value in values[:MOST_TOKENS]]

    return {
        "kl": rounded(row.forward_kl),
        "sp": rounded(row.student_label_p),
        "tp": rounded(row.teacher_label_p),
        "st": [named(text) for text in row.student_top[:MOST_TOKENS]],
        "tt": [named(text) for text in row.teacher_top[:MOST_TOKENS]],
    }


def _worst(pairs: Sequence[dict[str, TokenRow]], main: str, most: int) -> list[WorstToken]:
    places = [
        (pair[main].forward_kl[index], pair, index)
        for pair in pairs
        if main in pair
        for index in range(len(pair[main].tokens))
        if math.isfinite(pair[main].forward_kl[index])
    ]
    places.sort(key=lambda place: -place[0])
    found: list[WorstToken] = []
    for nats, pair, index in places[:most]:
        row = pair[main]
        earlier = pair.get("before") if main == "after" else None
        left = "".join(row.tokens[max(0, index - _CONTEXT) : index])
        if index == 0:
            left = row.prompt[-80:]
        found.append(
            WorstToken(
                row=row.row,
                left=_one_line(left).lstrip(),
                token=_one_line(row.tokens[index]),
                right=_one_line("".join(row.tokens[index + 1 : index + 4])),
                forward_kl=nats,
                before=None if earlier is None else earlier.forward_kl[index],
                student_top=named(row.student_top[index]),
                teacher_top=named(row.teacher_top[index]),
                student_label_p=row.student_label_p[index],
                teacher_label_p=row.teacher_label_p[index],
            )
        )
    return found


def _one_line(text: str) -> str:
    return text.replace("\r", "").replace("\n", "↵").replace("\t", " ")


def _share_of_worst(rows: Sequence[TokenRow]) -> float | None:
    nats = sorted((kl for row in rows for kl in row.forward_kl if math.isfinite(kl)), reverse=True)
    total = sum(nats)
    enough = 20
    if len(nats) < enough or total <= 0:
        return None
    return sum(nats[: len(nats) // enough]) / total
