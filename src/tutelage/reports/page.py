"""One run as one self-contained HTML file."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast, final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tutelage.core.errors import OutputError
from tutelage.reports.charts.chart import COLOURS
from tutelage.reports.charts.drawing import draw
from tutelage.reports.charts.figures import save_figures, save_heat_maps
from tutelage.reports.heat_map import SCALE, read_heat_maps
from tutelage.reports.measures import percent, plain, short_count, words
from tutelage.reports.run_charts import axes, baseline_role, position_chart, run_charts
from tutelage.reports.run_folder import RunRecord, Sample, flat, read_run
from tutelage.reports.summary import bars, headline, summary_rows, table, tiles
from tutelage.reports.token_view import token_view, visible


def write_report(run_folder: Path) -> Path:
    """Write `report.html` and `plots/` into a run folder, from whatever the run left there.

    Returns:
        The path of the page.

    Raises:
        DataError: the folder holds no run.
        OutputError: the folder cannot be written.
    """
    run = read_run(run_folder)
    path = run_folder / "report.html"
    write_page(path, report_text(run))
    charts = [chart for axis in axes(run) for chart in run_charts(run, axis)]
    positions = position_chart(run)
    plots = run_folder / "plots"
    save_figures(charts if positions.is_empty else [*charts, positions], plots)
    save_heat_maps(read_heat_maps(run_folder), plots)
    return path


def report_text(run: RunRecord) -> str:
    """The page itself."""
    rows = summary_rows(run)
    positions = position_chart(run)
    return render(
        "report.html.j2",
        title=run.title,
        run=run,
        headline=headline(run, rows),
        facts=facts(run),
        tiles=tiles(rows),
        bars=bars(run, rows),
        table=table(run, rows),
        panels={axis: [draw(chart) for chart in run_charts(run, axis)] for axis in axes(run)},
        positions=None if positions.is_empty else draw(positions),
        heat_maps=read_heat_maps(run.folder),
        heat_scale=SCALE,
        tokens=token_view(run),
        completions=completions(run),
        versions=flat(run.versions),
    )


def write_page(path: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); it must be in a folder you may "
            "write to. Free the folder, or copy the run to another one and report from there."
        ) from error


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tutelage.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = words
    environment.filters["plain"] = plain
    environment.filters["percent"] = percent
    environment.filters["visible"] = visible
    return environment


def render(template: str, **context: object) -> str:
    """Fill a template, with the style, the script and a policy that lets nothing else in."""
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template(template)
        .render(
            style=_trusted(_asset("page.css")),
            script=_trusted(script),
            allowed=allowed,
            colours=COLOURS,
            **context,
        )
    )


def _asset(name: str) -> str:
    return (files("tutelage.reports") / "templates" / name).read_text(encoding="utf-8")


def _trusted(text: str) -> Markup:
    return Markup(text)  # noqa: S704 - our own style and script, shipped with the package


@final
@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model said to a prompt."""

    name: str
    role: str
    text: str


def completions(run: RunRecord) -> list[tuple[str, list[Answer]]]:
    """Prompts, each with what every model said: before, baselines, distilled, teacher, data."""
    samples: list[Sample] = [*run.samples]
    for name, baseline in run.baselines.items():
        if any(sample.when == name for sample in samples):
            continue
        samples += [
            Sample(when=name, prompt=s.prompt, completion=s.completion, reference=s.reference)
            for s in baseline.samples
            if s.when in {"after", name}
        ]
    prompts: dict[str, dict[str, str]] = {}
    references: dict[str, str] = {}
    for sample in samples:
        prompts.setdefault(sample.prompt, {})[sample.when] = sample.completion
        if sample.reference is not None:
            references[sample.prompt] = sample.reference
    found: list[tuple[str, list[Answer]]] = []
    for prompt, said in prompts.items():
        others = [name for name in said if name not in {"before", "after", "teacher"}]
        order = [name for name in ("before", *others, "after", "teacher") if name in said]
        answers = [
            Answer(
                name="Distilled" if name == "after" else words(name),
                role=baseline_role(run, name),
                text=said[name],
            )
            for name in order
        ]
        reference = references.get(prompt)
        # The data's own answers often are the teacher's: once is enough.
        if reference is not None and reference != said.get("teacher"):
            answers.append(Answer(name="Reference", role="none", text=reference))
        found.append((prompt, answers))
    return found


_FACTS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("teacher", "Teacher", ("kind", "model")),
    ("student", "Student", ("kind", "model", "keep_layers")),
    ("objective", "Objective", ()),
    ("move", "Moved target", ()),
    ("rollouts", "Text", ("kind", "data", "source")),
)
"""Section of the recipe, its name, and which of its settings tell it apart (none named: all)."""


def facts(run: RunRecord) -> list[tuple[str, str]]:
    """What was distilled into what, from the recipe."""
    found = [
        (label, said)
        for key, label, names in _FACTS
        if (said := _in_short(run.recipe.get(key), names))
    ]
    if run.train:
        steps = short_count(run.train[-1]["step"])
        planned = flat(run.recipe).get("training.num_steps")
        whole = run.finished or planned is None
        found.append(("Steps", steps if whole else f"{steps} of {planned}"))
    return found


def _in_short(value: object, names: Sequence[str]) -> str:
    """The telling settings of a section; what is off, unset or as it always is says nothing."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    mapping = cast("Mapping[str, Any]", value)
    if mapping.get("kind") == "none":
        return ""
    told: list[str] = []
    for name in names or sorted(mapping, key=lambda name: name != "kind"):
        setting = mapping.get(name)
        # An equality would also drop a zero, which is a choice.
        if setting is None or setting is False or setting in ("", {}, []):
            continue
        if (name, setting) == ("temperature", 1):
            continue
        bare = name in {"kind", "model", "data", "source"}
        text = ", ".join(flat({name: setting}).values())
        told.append(text if bare else f"{words(name).lower()} {text}")
    return ", ".join(told)
