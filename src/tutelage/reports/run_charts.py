"""Which charts a run gets: the same lines over steps and over seconds, baselines beside them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Literal

from tutelage.reports.charts.chart import Chart, Line, bins, other_role, smoothed, thinned
from tutelage.reports.measures import measure, words
from tutelage.reports.run_folder import Point, RunRecord

Axis = Literal["step", "seconds"]

_OF_ROUTERS = (
    "probed_shift",
    "routing_shift",
    "max_violation",
    "dead_experts",
    "router_entropy",
    "router_bias",
    "expert_advantage",
    "expert_alignment",
    "router_loss",
)
_NOISY = 100
"""From this many training points on, a mean is drawn over the raw line."""


def axes(run: RunRecord) -> list[Axis]:
    """What the curves can be drawn over: steps always, seconds where they were written down."""
    points = [*run.train, *run.evals]
    return ["step", "seconds"] if any("seconds" in point for point in points) else ["step"]


def run_charts(run: RunRecord, axis: Axis) -> list[Chart]:
    """All charts with something to show, the held-out ones first."""
    every = [
        _held_out(run, axis, "reward"),
        _held_out(run, axis, "forward_kl", from_zero=True),
        _held_out(run, axis, "top1_agreement"),
        _held_out(run, axis, "perplexity"),
        _held_out(run, axis, "written_forward_kl"),
        _held_out(run, axis, "written_reverse_kl"),
        _held_out(run, axis, "written_tokens"),
        _loss(run, axis),
        _entropies(run, axis),
        _training(run, axis, "learning_rate", own=True),
        _training(run, axis, "grad_norm"),
        _training(run, axis, "t", own=True),
        _training(run, axis, "completion_tokens"),
        _training(run, axis, "truncated_share"),
        *(_training(run, axis, name) for name in _OF_ROUTERS),
        _training(run, axis, "tokens_per_second"),
    ]
    return [chart for chart in every if not chart.is_empty]


def position_chart(run: RunRecord) -> Chart:
    """Forward KL along the completion, before, after and for each baseline."""
    curves = dict(run.positions)
    for name, baseline in run.baselines.items():
        after = baseline.positions.get(name) or baseline.positions.get("after")
        if name not in curves and after is not None:
            curves[name] = after
    # The student comes last, so that its line lies on top.
    order = sorted(curves, key=lambda name: (name == "after", name != "before", name))
    lines: list[Line] = []
    for name in order:
        curve = curves[name]
        x, y = bins(curve.position, curve.forward_kl, curve.count)
        label = "Distilled" if name == "after" else words(name)
        lines.append(Line(name=label, role=_role(run, name), x=x, y=y))
    return Chart(
        key="forward_kl_by_position",
        title="Forward KL by position in the completion",
        x_label="token of the completion",
        y_label="nats",
        lines=lines,
        from_zero=True,
        note="Neighbouring positions are joined: each point stands for about as many tokens.",
    )


def _role(run: RunRecord, name: str) -> str:
    if name in {"before", "teacher"}:
        return name
    others = sorted({*run.baselines, *run.positions} - {"before", "after", "teacher"})
    return other_role(others.index(name)) if name in others else "distilled"


def baseline_role(run: RunRecord, name: str) -> str:
    """The colour of a row, column or line with this name, the same all over the page."""
    return _role(run, "after" if name == "distilled" else name)


def _line(points: Sequence[Point], axis: Axis, name: str, *, label: str, role: str) -> Line:
    kept = [point for point in points if name in point and math.isfinite(point.get(axis, math.nan))]
    kept.sort(key=lambda point: point[axis])
    return Line(
        name=label,
        role=role,
        x=[point[axis] for point in kept],
        y=[point[name] if math.isfinite(point[name]) else math.nan for point in kept],
    )


def _lines(
    run: RunRecord, axis: Axis, name: str, phase: Literal["train", "eval"], *, own: bool = False
) -> list[Line]:
    lines: list[Line] = []
    for other, baseline in {} if own else run.baselines.items():
        points = baseline.train if phase == "train" else baseline.evals
        lines.append(_line(points, axis, name, label=words(other), role=baseline_role(run, other)))
    points = run.train if phase == "train" else run.evals
    lines.append(_line(points, axis, name, label="Distilled", role="distilled"))
    return [line for line in lines if line.x]


def _chart(name: str, axis: Axis, lines: Sequence[Line], *, title: str, note: str = "") -> Chart:
    about = measure(name)
    return Chart(
        key=f"{name}_by_{axis}",
        title=title,
        x_label="step" if axis == "step" else "seconds",
        y_label=about.unit,
        lines=lines,
        unit="percent" if about.is_share else "plain",
        note=note,
    )


def _held_out(run: RunRecord, axis: Axis, name: str, *, from_zero: bool = False) -> Chart:
    lines = _lines(run, axis, name, "eval")
    teacher = next((row for row in run.rows if row["name"] == "teacher"), {}).get(name)
    if lines and name == "perplexity" and isinstance(teacher, int | float):
        ends = [min(line.x[0] for line in lines), max(line.x[-1] for line in lines)]
        level = [float(teacher), float(teacher)]
        lines.insert(0, Line(name="Teacher", role="teacher", x=ends, y=level, level=True))
    values = [y for line in lines for y in line.y if math.isfinite(y) and y > 0]
    chart = _chart(name, axis, lines, title=f"Held-out {_low(measure(name).label)}")
    wide = name == "perplexity" and bool(values) and max(values) > 10 * min(values)
    return replace(chart, from_zero=from_zero, log_y=wide)


def _low(label: str) -> str:
    return label[:1].lower() + label[1:]


def _loss(run: RunRecord, axis: Axis) -> Chart:
    lines = _with_means(_lines(run, axis, "loss", "train"))
    note = "Each line is the mean of its own objective: heights of two objectives do not compare."
    return _chart("loss", axis, lines, title="Training loss", note=note if run.baselines else "")


def _with_means(lines: Sequence[Line]) -> list[Line]:
    drawn: list[Line] = []
    for line in lines:
        if len(line.x) < _NOISY:
            drawn.append(line)
            continue
        raw = Line(name=line.name, role=line.role, x=line.x, y=line.y, faint=True)
        mean = smoothed(line, width=min(200, max(4, len(line.x) // 40)))
        drawn += [thinned(raw), mean]
    return drawn


def _entropies(run: RunRecord, axis: Axis) -> Chart:
    lines = [
        _line(run.evals, axis, name, label=label, role=role)
        for name, label, role in (
            ("teacher_entropy", "Teacher", "teacher"),
            ("student_entropy", "Distilled", "distilled"),
        )
    ]
    chart = _chart(
        "student_entropy",
        axis,
        [line for line in lines if line.x],
        title="Held-out entropy",
        note="Below the teacher's line the student is surer than its teacher.",
    )
    return replace(chart, key=f"entropy_by_{axis}")


def _training(run: RunRecord, axis: Axis, name: str, *, own: bool = False) -> Chart:
    lines = _lines(run, axis, name, "train", own=own)
    smooth = name in {"grad_norm", "tokens_per_second"}
    values = [y for line in lines for y in line.y if math.isfinite(y) and y > 0]
    wide = name == "grad_norm" and bool(values) and max(values) > 20 * median(values)
    drawn = _with_means(lines) if smooth else [thinned(line) for line in lines]
    chart = _chart(name, axis, drawn, title=measure(name).label)
    return replace(chart, log_y=wide, from_zero=not wide and name != "t")
