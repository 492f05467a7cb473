"""A run folder as records, whatever of it there is.

A run may be young, interrupted or without a teacher: a missing file gives an empty record, and a
line that cannot be read is counted in `problems`, which the page shows.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, cast, final

import yaml

from tutelage.core.errors import DataError

Point = Mapping[str, float]
"""The numbers of one line of metrics.jsonl, `step` among them; a NaN stays a NaN."""


@final
@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion of one prompt."""

    when: str
    prompt: str
    completion: str
    reference: str | None


@final
@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One held-out row, token by token, as measured at one time."""

    row: int
    when: str
    prompt: str
    tokens: Sequence[str]
    forward_kl: Sequence[float]
    student_top: Sequence[str]
    teacher_top: Sequence[str]
    student_label_p: Sequence[float]
    teacher_label_p: Sequence[float]


@final
@dataclass(frozen=True, kw_only=True)
class PositionCurve:
    """Mean forward KL at each place in the completion, and how many tokens stood there."""

    position: Sequence[float]
    forward_kl: Sequence[float]
    count: Sequence[float]


@final
@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All that a run folder says."""

    folder: Path
    title: str
    recipe: Mapping[str, Any]
    recipe_text: str
    versions: Mapping[str, Any]
    train: Sequence[Point]
    evals: Sequence[Point]
    samples: Sequence[Sample]
    token_rows: Sequence[TokenRow]
    positions: Mapping[str, PositionCurve]
    rows: Sequence[Mapping[str, Any]]
    """The rows of summary.json: a name, and numbers where they are known."""
    notes: Sequence[str]
    finished: bool
    """There is a summary, which is written last."""
    baselines: Mapping[str, "RunRecord"]
    problems: Sequence[str]


def read_run(folder: Path) -> RunRecord:
    """Read a run folder and the baselines inside it.

    Raises:
        DataError: nothing in there was written by a run.
    """
    known = ("recipe.yaml", "metrics.jsonl", "summary.json")
    if not any((folder / name).is_file() for name in known):
        raise DataError(
            f"{folder} is not a run folder; it must hold recipe.yaml, metrics.jsonl or "
            "summary.json. Name the folder that `tutelage train` wrote to."
        )
    return _read(folder, with_baselines=True)


def _read(folder: Path, *, with_baselines: bool) -> RunRecord:
    problems: list[str] = []
    recipe_text = _text(folder / "recipe.yaml", problems)
    summary = _object(folder / "summary.json", problems)
    baselines: dict[str, RunRecord] = {}
    if with_baselines and (folder / "baselines").is_dir():
        for inner in sorted(path for path in (folder / "baselines").iterdir() if path.is_dir()):
            baselines[inner.name] = _read(inner, with_baselines=False)
            problems.extend(f"baseline {inner.name}: {p}" for p in baselines[inner.name].problems)
    lines = list(_lines(folder / "metrics.jsonl", problems))
    positions = _object(folder / "positions.json", problems)
    rows = [cast("dict[str, Any]", row) for row in _list(summary.get("rows")) if _is_row(row)]
    return RunRecord(
        folder=folder,
        title=str(summary.get("title") or folder.resolve().name),
        recipe=_recipe(recipe_text, problems),
        recipe_text=recipe_text,
        versions=_object(folder / "versions.json", problems),
        train=_points(lines, "train"),
        evals=_points(lines, "eval"),
        samples=[_sample(line) for line in _lines(folder / "samples.jsonl", problems)],
        token_rows=list(_token_rows(folder / "tokens.jsonl", problems)),
        positions={name: curve for name in positions if (curve := _curve(positions[name]))},
        rows=rows,
        notes=[str(note) for note in _list(summary.get("notes"))],
        finished=bool(rows),
        baselines=baselines,
        problems=problems,
    )


def _text(path: Path, problems: list[str]) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return ""


def _object(path: Path, problems: list[str]) -> dict[str, Any]:
    text = _text(path, problems)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problems.append(f"{path.name} is not whole: {error}")
        return {}
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    problems.append(f"{path.name} does not hold an object; it is left out.")
    return {}


def _recipe(text: str, problems: list[str]) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as error:
        problems.append(f"recipe.yaml is not YAML: {error}")
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _lines(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file; a run that was killed leaves half a line, which counts."""
    num_bad = 0
    for line in _text(path, problems).split("\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            num_bad += 1
            continue
        if isinstance(value, dict):
            yield cast("dict[str, Any]", value)
        else:
            num_bad += 1
    if num_bad:
        problems.append(f"{path.name}: {num_bad} unreadable line(s) left out.")


def _points(lines: Sequence[Mapping[str, Any]], phase: str) -> list[Point]:
    """One point a step, in order; a step that a resumed run did again counts once, as redone."""
    points: dict[float, Point] = {}
    for line in lines:
        step = line.get("step")
        if line.get("phase") == phase and _is_number(step):
            points[float(step)] = {
                name: float(value) for name, value in line.items() if _is_number(value)
            }
    return [points[step] for step in sorted(points)]


def _sample(line: Mapping[str, Any]) -> Sample:
    reference = line.get("reference")
    return Sample(
        when=str(line.get("when", "after")),
        prompt=str(line.get("prompt", "")),
        completion=str(line.get("completion") or ""),
        reference=None if reference is None else str(reference),
    )


def _token_rows(path: Path, problems: list[str]) -> Iterator[TokenRow]:
    num_bad = 0
    for line in _lines(path, problems):
        tokens = [str(token) for token in _list(line.get("tokens"))]
        texts = {
            name: [str(value) for value in _list(line.get(name))] or [""] * len(tokens)
            for name in ("student_top", "teacher_top")
        }
        numbers = {
            name: [_number(value) for value in _list(line.get(name))]
            or [float("nan")] * len(tokens)
            for name in ("forward_kl", "student_label_p", "teacher_label_p")
        }
        if any(len(column) != len(tokens) for column in (*texts.values(), *numbers.values())):
            num_bad += 1
            continue
        yield TokenRow(
            row=int(line["row"]) if _is_number(line.get("row")) else 0,
            when=str(line.get("when", "after")),
            prompt=str(line.get("prompt", "")),
            tokens=tokens,
            forward_kl=numbers["forward_kl"],
            student_top=texts["student_top"],
            teacher_top=texts["teacher_top"],
            student_label_p=numbers["student_label_p"],
            teacher_label_p=numbers["teacher_label_p"],
        )
    if num_bad:
        problems.append(f"{path.name}: {num_bad} row(s) with columns of unequal length left out.")


def _curve(value: object) -> PositionCurve | None:
    if not isinstance(value, dict):
        return None
    columns = cast("dict[str, Any]", value)
    kl = [_number(each) for each in _list(columns.get("forward_kl"))]
    position = [_number(each) for each in _list(columns.get("position"))] or list(
        map(float, range(len(kl)))
    )
    count = [_number(each) for each in _list(columns.get("count"))] or [1.0] * len(kl)
    if not kl or not len(kl) == len(position) == len(count):
        return None
    return PositionCurve(position=position, forward_kl=kl, count=count)


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and "name" in value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object) -> float:
    return float(value) if _is_number(value) else float("nan")


NOT_SET = "not set"


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted path to text."""
    found: dict[str, str] = {}
    for key, each in value.items():
        path = f"{prefix}{key}"
        if isinstance(each, Mapping) and each:
            found |= flat(cast("Mapping[str, Any]", each), f"{path}.")
        elif isinstance(each, list):
            found[path] = ", ".join(str(item) for item in cast("list[Any]", each))
        else:
            found[path] = NOT_SET if each is None or each == {} else str(each)
    return found
