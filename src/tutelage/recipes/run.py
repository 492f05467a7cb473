"""A whole run: measure, train, measure again, the baselines, the student, the report."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from tutelage.core.errors import ConfigError, OutputError
from tutelage.core.run_log import RunFolder, read_metrics, write_json
from tutelage.models import LoadedModel, load_model, save_lora, save_model
from tutelage.recipes.assemble import (
    Work,
    assemble,
    batches,
    make_student,
    make_trainer,
    taught,
)
from tutelage.recipes.card import versions, write_card
from tutelage.recipes.check import check_output, check_recipe
from tutelage.recipes.config import Recipe, baseline, from_tree, load, to_tree, to_yaml
from tutelage.recipes.measure import Measurer, Scribe, read_object
from tutelage.recipes.narrator import Narrator, Silence
from tutelage.recipes.routing import student_to_save
from tutelage.recipes.rows import described, writes
from tutelage.reports.compare import FILE_NAME as COMPARISON
from tutelage.reports.comparison import write_comparison
from tutelage.reports.page import write_report
from tutelage.students import lora_of
from tutelage.training import Event, Hook, Noted, StepDone

_DONE = "measured.json"
"""Rows of the table that are finished, so that a resumed run does not measure them again."""
_NUM_FOLD_ROWS = 64
"""On which router biases are folded into weights, where that is asked for."""


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended, and where everything is."""

    folder: Path
    student: Path
    summary: Mapping[str, Any]
    """What summary.json holds."""
    report: Path | None
    step: int
    interrupted: bool


@final
@dataclass(frozen=True, kw_only=True)
class _Part:
    """One training of the run: the recipe itself, or one of its baselines."""

    recipe: Recipe
    work: Work
    folder: RunFolder
    narrator: Narrator
    name: str
    """`after` for the recipe itself, or the baseline's name."""


def run_recipe(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    work: Work | None = None,
    narrator: Narrator | None = None,
) -> Outcome:
    """Carry a recipe out, from its rows to a saved student and a page to open.

    Args:
        resume: go on where an earlier run in the same folder stopped; what is finished stays.
        overwrite: delete an earlier run in the same folder.
        work: rows and teacher of an earlier run of the same recipe, to spare loading them.

    Raises:
        TutelageError: anything a user can mend; see `core.errors` for the family.
    """
    narrator = narrator or Silence()
    check_recipe(recipe)
    folder = check_output(recipe, resume=resume, overwrite=overwrite)
    if overwrite:
        _empty(folder)
    work = work or assemble(recipe, folder.root, narrator)
    _write_settings(folder, recipe)
    part = _Part(recipe=recipe, work=work, folder=folder, narrator=narrator, name="after")
    step, interrupted = _train(part, resume=resume)
    for name in () if interrupted else recipe.baselines:
        inner = baseline(recipe, name)
        inner_folder = folder.baseline(name)
        inner_folder.create()
        _write_settings(inner_folder, inner)
        one = replace(part, recipe=inner, folder=inner_folder, name=name)
        step, interrupted = _train(one, resume=resume)
        if interrupted:
            break
    summary = _summarise(part)
    write_card(folder.student, recipe, summary)
    report = None
    if recipe.report.enabled:
        with narrator.stage("Writing the report"):
            report = write_report(folder.root)
    return Outcome(
        folder=folder.root,
        student=folder.student,
        summary=summary,
        report=report,
        step=step,
        interrupted=interrupted,
    )


def _train(part: _Part, *, resume: bool) -> tuple[int, bool]:
    """Train one student and measure it before and after, but for what is done already."""
    recipe, work, folder, name = part.recipe, part.work, part.folder, part.name
    done = read_object(folder.root / _DONE)
    if name in done:
        return recipe.training.num_steps, False
    with part.narrator.stage("Making the student"):
        student = make_student(recipe, work)
        work = taught(recipe, work, student)
    scribe = Scribe(recipe=recipe, work=work, folder=folder, narrator=part.narrator)
    measurer = Measurer(recipe, work, student) if work.rows.held_out else None
    if measurer is not None and "before" not in done:
        done |= _before(part, scribe, measurer, student)
        write_json(folder.root / _DONE, done)
    title = "Training" if name == "after" else f"Training: {name}"
    with part.narrator.stage(title, total=recipe.training.num_steps) as advance:

        def show(event: Event) -> None:
            if isinstance(event, StepDone):
                record = event.record
                pace = f"{record.tokens_per_second:,.0f} tokens/s"
                advance(record.step, f"loss {record.totals.loss:.4f}  {pace}")
            elif isinstance(event, Noted):
                part.narrator.say(f"note: step {event.step}: {event.text}")

        hooks: Iterable[Hook] = (show, measurer.hook) if measurer else (show,)
        trainer = make_trainer(
            recipe, work, student, output=folder.root, evaluate=measurer, hooks=tuple(hooks)
        )
        result = trainer.train(resume=resume)
    _save(part, student)
    if result.interrupted:
        return result.step, True
    row = scribe.record(name, student, measurer) if measurer else {"name": name}
    row |= {"trained_tokens": result.trained_tokens, "seconds": result.seconds}
    row |= _generated(folder)
    row["name"] = "distilled" if name == "after" else name
    write_json(folder.root / _DONE, {**done, name: row})
    if not recipe.keep_checkpoints:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return result.step, False


def _generated(folder: RunFolder) -> dict[str, float]:
    """How many tokens models have written for the training, interruptions included."""
    lines = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    written = [line["generated_tokens"] for line in lines if "generated_tokens" in line]
    return {"generated_tokens": sum(written)} if written else {}


def _before(
    part: _Part, scribe: Scribe, measurer: Measurer, student: LoadedModel
) -> dict[str, Any]:
    """The rows of the table that are there before training; a start is measured only once."""
    parts = {"student", "teacher", "evaluation", "reward", "seed"}
    # What a student writes is looked at through the objective.
    parts |= {"objective"} if part.recipe.evaluation.written_rows else set()
    start = part.recipe.model_dump_json(include=parts) + part.recipe.training.precision
    known = part.work.starts.get(start)
    if known is not None:
        earlier, row = known
        measurer.start_from(earlier)
        return {"before": row}
    found = {"before": scribe.record("before", student, measurer)}
    teacher = scribe.teacher_row(measurer.report()) if part.name == "after" else None
    part.work.starts[start] = measurer.snapshot(), found["before"]
    return found | ({"teacher": teacher} if teacher else {})


def _save(part: _Part, student: LoadedModel) -> None:
    if not part.work.ranks.is_main:
        return
    with part.narrator.stage("Saving the student"):
        lora, folder = lora_of(part.recipe.student), part.folder.student
        if lora is None or lora.save != "adapter":
            pieces = batches(part.work.rows.training[:_NUM_FOLD_ROWS], part.recipe, part.work)
            lm, told = student_to_save(part.recipe, student.lm, [p.student for p in pieces])
            save_model(lm, part.work.tokenizer, folder)
            if told:
                part.narrator.say(f"note: {told}")
                part.work.rows.notes.append(told)
        if lora is not None and lora.save != "merged":
            save_lora(student.lm, folder / "adapter", source=student.source)


def _summarise(part: _Part) -> dict[str, Any]:
    """summary.json from what each part measured; written only once the run itself is finished."""
    recipe, folder = part.recipe, part.folder
    done = read_object(folder.root / _DONE)
    rows = [done["before"]] if "before" in done else []
    positions = read_object(folder.positions)
    for name in recipe.baselines:
        inner = folder.baseline(name)
        measured = read_object(inner.root / _DONE)
        rows += [measured[name]] if name in measured else []
        positions |= {n: curve for n, curve in read_object(inner.positions).items() if n == name}
    rows += [done[name] for name in ("after", "teacher") if name in done]
    if positions:
        write_json(folder.positions, positions)
    summary = {"title": recipe.name, "rows": rows, "notes": _notes(part)}
    if "after" in done:
        write_json(folder.summary, summary)
    return summary


def _notes(part: _Part) -> list[str]:
    recipe, rows = part.recipe, part.work.rows
    notes = [recipe.description] if recipe.description else []
    notes.append(
        f"{len(rows.training)} training rows and {len(rows.held_out)} held-out rows from "
        f"{recipe.rollouts.data}; {recipe.training.num_steps} steps, seed {recipe.seed}."
    )
    if writes(recipe.rollouts):
        notes.append(f"Rollouts: {described(recipe.rollouts)}.")
    if recipe.baselines:
        notes.append("Baselines start from the same student and see the same rows in order.")
    return notes + rows.notes


def _write_settings(folder: RunFolder, recipe: Recipe) -> None:
    try:
        folder.recipe.write_text(to_yaml(recipe), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"{folder.recipe} cannot be written ({error.strerror}); it must be in a folder you may "
            "write to. Choose another output."
        ) from error
    write_json(folder.versions, versions())


def _empty(folder: RunFolder) -> None:
    """Delete an earlier run: only what runs write, so that a mistaken output loses nothing else."""
    names = (
        "recipe", "versions", "metrics", "rollouts", "routers", "samples", "tokens", "positions",
        "summary", "checkpoints", "student", "plots", "report", "answers",
    )  # fmt: skip
    paths = [getattr(folder, name) for name in names]
    for path in (*paths, folder.root / _DONE, folder.root / "baselines"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def rebuild_page(folder: Path) -> Path:
    """Write the page of a run or of a comparison again, from what its folder holds.

    Raises:
        DataError: the folder holds neither.
    """
    if (folder / COMPARISON).is_file():
        return write_comparison(folder)
    return write_report(folder)


def evaluate_folder(
    student: Path,
    source: str | None = None,
    *,
    overrides: Iterable[str] = (),
    teacher: str | None = None,
    narrator: Narrator | None = None,
) -> dict[str, Any]:
    """Measure a saved student on a recipe's held-out rows; answers the rows of a table.

    Args:
        student: folder of a saved student, or of a run.
        source: preset or file that names the rows and the teacher; by default the run's own.
        teacher: another teacher's model, or `none`.

    Raises:
        ConfigError: no recipe was named and none lies beside the student.
    """
    narrator = narrator or Silence()
    model_folder = student / "student" if (student / "student").is_dir() else student
    beside = model_folder.parent / "recipe.yaml"
    if source is None and not beside.is_file():
        raise ConfigError(
            f"{student} has no recipe.yaml beside it; it must be the folder of a run, or a recipe "
            "must be named. Run: tutelage eval FOLDER RECIPE."
        )
    tree = to_tree(load(source or str(beside), overrides))
    if teacher is not None:
        tree["teacher"] = None if teacher == "none" else {"kind": "live", "model": teacher}
    tree["student"] = {"kind": "loaded", "model": str(model_folder)}
    if (tree.get("teacher") or {}).get("kind") == "self":
        # What it was taught by went with its run; what it is now would be another teacher.
        tree["teacher"] = None
    if tree.get("teacher") is None:
        tree |= {"objective": {"kind": "cross_entropy"}, "move": {"kind": "none"}, "baselines": {}}
    recipe = from_tree(tree)
    if recipe.evaluation.num_rows == 0:
        raise ConfigError(
            "evaluation.num_rows is 0; it must be 1 or more to measure anything. Raise it."
        )
    work = assemble(recipe, None, narrator)
    with narrator.stage("Loading the student"):
        loaded = load_model(str(model_folder), device=work.device)
    measurer = Measurer(recipe, work, loaded)
    report = measurer.report()
    row: dict[str, Any] = {
        **report.numbers(),
        **measurer.written(),
        "name": "student",
        "num_parameters": loaded.lm.num_parameters(),
    }
    rows = [row]
    if work.teacher_model is not None:
        rows.append(
            {
                "name": "teacher",
                "perplexity": report.teacher_perplexity,
                "forward_kl": 0.0,
                "top1_agreement": 1.0,
                "num_parameters": work.teacher_model.lm.num_parameters(),
            }
        )
    return {"title": str(student), "rows": rows, "notes": work.rows.notes}
