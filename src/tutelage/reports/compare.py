"""What `compare.json` holds: variants of a recipe, each run with several seeds on the same work.

`Comparison.save(folder)` writes the file, `Comparison.load(folder)` reads it, and
`write_comparison(folder)` turns it into a page. A number that is not finite is kept as null.
"""

import math
from pathlib import Path
from typing import Annotated, Any, final

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from tutelage.core.errors import DataError, OutputError

FILE_NAME = "compare.json"


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A finite number; a NaN or an infinity becomes None, which pages show as a dash."""

_CLOSED = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@final
class ComparedRun(BaseModel):
    """One variant trained once, with one seed."""

    model_config = _CLOSED

    seed: int
    """Runs of two variants with the same seed saw the same rows in the same order."""
    final: dict[str, Number]
    """Metric name to its value when the run ended, on the held-out rows."""
    curve: list[dict[str, Number]] = Field(default_factory=list[dict[str, float | None]])
    """Held-out metrics on the way; each point has `step`, may have `seconds`, and any metrics."""
    seconds: Number = None
    """How long the run took, evaluation included."""

    @model_validator(mode="after")
    def _points_have_a_step(self) -> "ComparedRun":
        for number, point in enumerate(self.curve):
            if point.get("step") is None:
                raise ValueError(f"curve[{number}] has no step; every point must name one")
        return self


@final
class Variant(BaseModel):
    """One way to run the work, with all of its seeds."""

    model_config = _CLOSED

    name: Annotated[str, Field(min_length=1)]
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    """The resolved recipe, nested or dotted: the page shows only where the variants differ."""
    runs: list[ComparedRun] = Field(default_factory=list[ComparedRun])


@final
class Comparison(BaseModel):
    """Everything that the page of `tutelage compare` shows."""

    model_config = _CLOSED

    title: str
    metric_names: Annotated[list[str], Field(min_length=1)]
    """The metrics to compare, the most important one first."""
    variants: Annotated[list[Variant], Field(min_length=1)]
    notes: list[str] = Field(default_factory=list[str])
    """Sentences shown under the title: what was held equal, what was left out."""
    num_planned_seeds: PositiveInt | None = None
    """Seeds asked for; the page says so where a variant has fewer, as after an interruption."""

    @model_validator(mode="after")
    def _names_and_seeds_are_unique(self) -> "Comparison":
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"variants are named {names}; every name must be unique")
        for variant in self.variants:
            seeds = [run.seed for run in variant.runs]
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{variant.name} has seeds {seeds}; each may appear once")
        return self

    def save(self, folder: Path) -> Path:
        """Write `compare.json` into a folder, whole or not at all."""
        path = folder / FILE_NAME
        partial = path.with_suffix(".json.partial")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written ({error.strerror}); it must be in a folder you may "
                "write to. Choose another output folder."
            ) from error
        return path

    @classmethod
    def load(cls, folder: Path) -> "Comparison":
        """Read `compare.json` from a folder.

        Raises:
            DataError: there is no such file, or it does not hold a comparison.
        """
        path = folder / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise DataError(
                f"{path} is missing; it must be the file that `tutelage compare` writes. "
                "Run `tutelage compare` first, or name its output folder."
            ) from error
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "its content"
            raise DataError(
                f"{path}: {where} is wrong ({first['msg']}); it must be as "
                "`tutelage.reports.Comparison` describes. Run `tutelage compare` again."
            ) from error
