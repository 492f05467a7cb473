"""The result of a run in words, key numbers, bars and one table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from tutelage.reports.measures import duration, measure, percent, plain, short_count, words
from tutelage.reports.run_charts import baseline_role
from tutelage.reports.run_folder import Point, RunRecord

Row = Mapping[str, Any]

_COLUMNS = (
    "reward",
    "written_tokens",
    "bits_per_byte",
    "aligned_kl",
    "forward_kl",
    "reverse_kl",
    "top1_agreement",
    "perplexity",
    "num_parameters",
    "tokens_per_second",
    "trained_tokens",
    "generated_tokens",
    "seconds",
)


def finite(value: object) -> float | None:
    """A number from a file, or None for whatever is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def summary_rows(run: RunRecord) -> list[Row]:
    """The rows of the summary; for a run that has none yet, what its evaluations say so far."""
    if run.rows:
        return list(run.rows)
    rows: list[Row] = []
    first, last = _ends(run.evals)
    if first:
        rows.append({**first, "name": "before", "seconds": None})
    for name, baseline in run.baselines.items():
        _, newest = _ends(baseline.evals)
        rows += [{**newest, "name": name}] if newest else []
    if last:
        rows.append({**last, "name": "distilled"})
    return rows


def _ends(evals: Sequence[Point]) -> tuple[Point | None, Point | None]:
    if not evals:
        return None, None
    first = evals[0] if evals[0]["step"] == 0 else None
    last = evals[-1] if evals[-1]["step"] > 0 else None
    return first, last


def _named(rows: Sequence[Row], name: str) -> Row:
    return next((row for row in rows if row["name"] == name), {})


@final
@dataclass(frozen=True, kw_only=True)
class Headline:
    """The result in words."""

    lead: str
    more: Sequence[str]


def headline(run: RunRecord, rows: Sequence[Row]) -> Headline:
    """What the run achieved, said plainly, bad news included."""
    before, after = _named(rows, "before"), _named(rows, "distilled")
    start, end = finite(before.get("forward_kl")), finite(after.get("forward_kl"))
    so_far = "" if run.finished else "So far, "
    if start is not None and end is not None and start > 0:
        numbers = f"from {plain(start)} to {plain(end)} nats a token"
        if end < start:
            lost = percent(1 - end / start, digits=0)
            lead = f"the student lost {lost} of its forward KL to the teacher"
        elif end > start:
            lead = "the student moved away from its teacher"
        else:
            lead = "the student is as far from its teacher as before"
        lead = f"{so_far}{lead}: {numbers}."
    elif end is not None:
        lead = f"{so_far}the student is {plain(end)} nats a token away from its teacher."
    else:
        lead = _headline_without_teacher(before, after, so_far)
    more = [
        *_reward_sentence(before, after),
        *_top1_sentence(before, after),
        *_baseline_sentences(rows, end),
    ]
    if not run.finished:
        more.append("This run has not finished: the numbers are those of its latest evaluation.")
    return Headline(lead=lead[:1].upper() + lead[1:], more=more)


def _headline_without_teacher(before: Row, after: Row, so_far: str) -> str:
    start, end = finite(before.get("perplexity")), finite(after.get("perplexity"))
    if start is not None and end is not None:
        verb = "fell" if end < start else "rose"
        return f"{so_far}held-out perplexity {verb} from {plain(start)} to {plain(end)}."
    return "Nothing has been measured on held-out text yet."


def _reward_sentence(before: Row, after: Row) -> list[str]:
    start, end = finite(before.get("reward")), finite(after.get("reward"))
    if start is None or end is None:
        return []
    change = "rose" if end > start else "fell" if end < start else "stayed"
    ends = f"at {plain(end)}" if end == start else f"from {plain(start)} to {plain(end)}"
    return [f"The reward of its answers to held-out prompts {change} {ends}."]


def _top1_sentence(before: Row, after: Row) -> list[str]:
    start, end = finite(before.get("top1_agreement")), finite(after.get("top1_agreement"))
    if start is None or end is None:
        return []
    sentence = (
        f"It now agrees with the teacher's first choice on {percent(end)} of the tokens; "
        f"before, on {percent(start)}."
    )
    return [sentence]


def _baseline_sentences(rows: Sequence[Row], end: float | None) -> list[str]:
    others = [
        (value, str(row["name"]))
        for row in rows
        if row["name"] not in {"before", "distilled", "teacher"}
        and (value := finite(row.get("forward_kl"))) is not None
    ]
    if not others or end is None:
        return []
    best, name = min(others)
    if best == end:
        verdict = "distillation ends at the same value"
    else:
        gap = percent(abs(best - end) / max(best, end))
        verdict = f"distillation ends {gap} {'lower' if end < best else 'behind'}"
    sentence = (
        f"{words(name)} on the same rows reached {plain(best)} nats; {verdict}. With one seed "
        "each, a small gap may be luck: tutelage compare gives intervals."
    )
    return [sentence]


@final
@dataclass(frozen=True, kw_only=True)
class Tile:
    """One key number, and where it came from."""

    label: str
    value: str
    was: str
    meaning: str


def tiles(rows: Sequence[Row]) -> list[Tile]:
    """The numbers a reader looks for first."""
    before, after, teacher = (_named(rows, name) for name in ("before", "distilled", "teacher"))
    found: list[Tile] = []
    for name in ("reward", "forward_kl", "top1_agreement", "perplexity"):
        now, was = finite(after.get(name)), finite(before.get(name))
        if now is None:
            continue
        about = measure(name)
        notes = [f"was {about.show(was)}"] if was is not None else []
        goal = finite(teacher.get(name)) if name == "perplexity" else None
        notes += [f"teacher {about.show(goal)}"] if goal is not None else []
        found.append(
            Tile(
                label=about.axis, value=about.show(now), was=", ".join(notes), meaning=about.meaning
            )
        )
    size, full = finite(after.get("num_parameters")), finite(teacher.get("num_parameters"))
    if size is not None:
        share = f"{percent(size / full, digits=0)} of the teacher's" if full else ""
        found.append(
            Tile(label="Parameters", value=short_count(size), was=share, meaning="of the student")
        )
    tokens, seconds = finite(after.get("trained_tokens")), finite(after.get("seconds"))
    if seconds is not None:
        spent = f"{short_count(tokens)} trained tokens" if tokens else ""
        found.append(Tile(label="Time", value=duration(seconds), was=spent, meaning="of training"))
    return found


@final
@dataclass(frozen=True, kw_only=True)
class Bar:
    """How far one model is from the teacher, as a length."""

    name: str
    role: str
    width: float
    value: str


def bars(run: RunRecord, rows: Sequence[Row]) -> list[Bar]:
    """Forward KL of every row as a bar; the teacher itself would have no length."""
    values = [
        (str(row["name"]), value)
        for row in rows
        if row["name"] != "teacher" and (value := finite(row.get("forward_kl"))) is not None
    ]
    longest = max((value for _, value in values), default=0.0)
    if len(values) < 2 or longest <= 0:  # noqa: PLR2004 - one bar compares with nothing
        return []
    return [
        Bar(
            name=words(name),
            role=baseline_role(run, name),
            width=100 * value / longest,
            value=plain(value),
        )
        for name, value in values
    ]


@final
@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of the summary table."""

    text: str
    exact: str
    best: bool


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """The summary table."""

    heads: Sequence[tuple[str, str, str]]
    """Label, meaning, and which way is better."""
    rows: Sequence[tuple[str, str, Sequence[Cell]]]
    """Name, role, cells."""


def table(run: RunRecord, rows: Sequence[Row]) -> Table:
    """Every row beside every other; the best student of each column is marked."""
    columns = [name for name in _COLUMNS if any(finite(row.get(name)) is not None for row in rows)]
    best = {name: _best(rows, name) for name in columns}
    body: list[tuple[str, str, Sequence[Cell]]] = []
    for row in rows:
        cells: list[Cell] = []
        for name in columns:
            value = finite(row.get(name))
            mine = value is not None and value == best[name] and row["name"] != "teacher"
            exact = "" if value is None else f"{value:,.6g}" if value < 1e5 else f"{value:,.0f}"  # noqa: PLR2004
            cells.append(Cell(text=measure(name).show(value), exact=exact, best=mine))
        body.append((words(str(row["name"])), baseline_role(run, str(row["name"])), cells))
    return Table(
        heads=[(measure(n).axis, measure(n).meaning, measure(n).better) for n in columns],
        rows=body,
    )


def _best(rows: Sequence[Row], name: str) -> float | None:
    values = [
        value
        for row in rows
        if row["name"] != "teacher" and (value := finite(row.get(name))) is not None
    ]
    better = measure(name).better
    if better == "neither" or len(values) < 2:  # noqa: PLR2004 - one value is best of nothing
        return None
    return min(values) if better == "lower" else max(values)
