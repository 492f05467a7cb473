"""What is measured of a model for the run folder: numbers, positions, token view, samples."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from tutelage.core.records import Rollout, View
from tutelage.core.run_log import RunFolder, read_jsonl, write_json, write_jsonl
from tutelage.core.seeds import seed_for
from tutelage.evaluation import (
    DivergenceReport,
    Writer,
    evaluate_crossed,
    evaluate_divergence,
    evaluate_written,
    generate_samples,
    reward_of,
    token_rows,
    tokens_per_second,
    written_numbers,
)
from tutelage.models import LoadedModel
from tutelage.recipes.assemble import Work, batches, evaluation_options
from tutelage.recipes.config import Recipe
from tutelage.recipes.narrator import Narrator
from tutelage.rewards import make_verifier
from tutelage.rollouts.engines import Sampling
from tutelage.teachers import TranslatingTeacher
from tutelage.text import collate, cut
from tutelage.training import Event, Started, StepDone

_TIMED_TOKENS = 1024
_TIMED_ROUNDS = 2


@final
@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What was measured of one student at one moment."""

    report: DivergenceReport
    written: Mapping[str, float]


@final
class Measurer:
    """Measures one student on the held-out rows, once for each state it is in.

    The trainer asks before the first step and after the last; a run asks too, for more than
    numbers. Whoever comes second hears what the first was told, unless a step lies between.
    """

    def __init__(self, recipe: Recipe, work: Work, student: LoadedModel) -> None:
        self._recipe = recipe
        self._work = work
        self._student = student
        self._report: DivergenceReport | None = None
        self._written: Mapping[str, float] | None = None

    @cached_property
    def _writer(self) -> Writer:
        # Only where something is written: a verifier asks the machine what it grants.
        return _writer(self._recipe, self._work)

    def __call__(self) -> Mapping[str, float]:
        """The numbers, as the trainer logs them."""
        return {**self.report().numbers(), **self.written()}

    def hook(self, event: Event) -> None:
        """Forget what was measured when the weights have moved."""
        match event:
            case StepDone():
                self._report = self._written = None
            case Started(step=step) if step > 0:
                self._report = self._written = None
            case _:
                pass

    def report(self) -> DivergenceReport:
        """Everything measured of the student as it is now."""
        if self._report is None:
            lm, teacher = self._student.lm, self._work.measured_by
            pieces = batches(self._work.rows.held_out, self._recipe, self._work)
            options = evaluation_options(self._recipe)
            if isinstance(teacher, TranslatingTeacher):
                objective = self._recipe.objective
                self._report = evaluate_crossed(
                    lm, teacher, pieces, objective=objective, options=options
                )
            else:
                self._report = evaluate_divergence(lm, teacher, pieces, options=options)
        return self._report

    def snapshot(self) -> "Snapshot":
        """What is known of the student as it is now."""
        return Snapshot(report=self.report(), written=self.written())

    def start_from(self, known: "Snapshot") -> None:
        """Hear what another one was told of the very same student."""
        self._report, self._written = known.report, known.written

    def written(self) -> Mapping[str, float]:
        """What the student writes to held-out prompts as it is now; nothing unless asked for."""
        recipe, work, lm = self._recipe, self._work, self._student.lm
        num_rows = recipe.evaluation.written_rows
        if not num_rows:
            return {}
        if self._written is None:
            options = evaluation_options(recipe)
            rows = self._writer.write(lm, work.rows.held_out[:num_rows], dtype=options.dtype)
            numbers = written_numbers(rows)
            pieces = batches([row for row in rows if row.completion_ids], recipe, work)
            numbers |= evaluate_written(
                lm, work.measured_by, pieces, objective=recipe.objective, options=options
            )
            self._written = numbers
        return self._written


def _writer(recipe: Recipe, work: Work) -> Writer:
    rollouts = recipe.rollouts
    return Writer(
        sampling=Sampling(
            max_completion_tokens=rollouts.max_completion_tokens,
            temperature=0.0,
        ),
        tokenizer=work.tokenizer,
        verifier=None if recipe.reward is None else make_verifier(recipe.reward),
        num_real=work.num_real(recipe),
        seed=seed_for(recipe.seed, "written"),
    )


@final
@dataclass(frozen=True, kw_only=True)
class Scribe:
    """Writes what was measured into a run folder, in place of what an earlier try wrote."""

    recipe: Recipe
    work: Work
    folder: RunFolder
    narrator: Narrator

    def record(self, name: str, student: LoadedModel, measurer: Measurer) -> dict[str, Any]:
        """Measure a student in full as `before`, `after` or a baseline; answers its summary row."""
        report = measurer.report()
        with self.narrator.stage(f"Measuring: {name}"):
            self._positions(name, report)
            self._tokens(name, student)
            self.samples(name, student)
            speed = self._speed(student)
        return {
            "name": {"after": "distilled"}.get(name, name),
            "perplexity": report.perplexity,
            "forward_kl": report.forward_kl,
            "reverse_kl": report.reverse_kl,
            "top1_agreement": report.top1_agreement,
            "student_entropy": report.student_entropy,
            **crossed_of(report),
            **reward_of(measurer.written()),
            "num_parameters": student.lm.num_parameters(),
            "tokens_per_second": speed,
        }

    def teacher_row(self, report: DivergenceReport) -> dict[str, Any] | None:
        """The teacher's own line of the table, and its samples; None without a teacher."""
        model = self.work.teacher_model
        if report.teacher_bits_per_byte is not None:
            return {"name": "teacher", "bits_per_byte": report.teacher_bits_per_byte}
        if model is None:
            # What is known of a teacher that is not loaded is neither how it writes nor how fast.
            kind = None if self.recipe.teacher is None else self.recipe.teacher.kind
            known = kind in ("cached", "several", "remote") and self.work.measured_by is not None
            return _agreeing_teacher(report) if known else None
        with self.narrator.stage("Measuring: teacher"):
            self.samples("teacher", model)
            speed = self._speed(model)
        return {
            **_agreeing_teacher(report),
            "num_parameters": model.lm.num_parameters(),
            "tokens_per_second": speed,
        }

    def samples(self, when: str, model: LoadedModel) -> None:
        """What the model says to the first held-out prompts, into samples.jsonl."""
        rollouts = self.work.rows.held_out[: self.recipe.evaluation.num_samples]
        if not rollouts:
            return
        writer = Writer(
            sampling=Sampling(
                max_completion_tokens=self.recipe.evaluation.max_sample_tokens, temperature=0.0
            ),
            tokenizer=self.work.tokenizer,
            num_real=self.work.num_real(self.recipe),
            seed=seed_for(self.recipe.seed, "samples"),
        )
        lines = generate_samples(model.lm, rollouts, writer=writer, when=when)
        _replace_lines(self.folder.samples, when, lines)

    def _positions(self, when: str, report: DivergenceReport) -> None:
        if report.by_position is None:
            return
        path = self.folder.positions
        write_json(path, {**read_object(path), when: report.by_position.to_json()})

    def _tokens(self, when: str, student: LoadedModel) -> None:
        rows = self.work.rows.held_out[: self.recipe.evaluation.num_token_rows]
        teacher = self.work.measured_by
        # The token view shows the student's tokens, each beside the teacher's favourite.
        if teacher is None or isinstance(teacher, TranslatingTeacher) or not rows:
            return
        pieces = cut(rows, max_tokens=self.recipe.evaluation.max_tokens)
        lines = token_rows(
            student.lm,
            teacher,
            [(collate(piece, device=self.work.device), piece) for piece in pieces],
            tokenizer=self.work.tokenizer,
            when=when,
            options=evaluation_options(self.recipe),
        )
        _replace_lines(self.folder.tokens, when, lines)

    def _speed(self, model: LoadedModel) -> float:
        return tokens_per_second(
            model.lm,
            [self._timed_view()],
            num_rounds=_TIMED_ROUNDS,
            dtype=evaluation_options(self.recipe).dtype,
        )

    def _timed_view(self) -> View:
        chosen: list[Rollout] = []
        for piece in cut(self.work.rows.held_out, max_tokens=_TIMED_TOKENS)[:1]:
            chosen += piece
        return collate(chosen, device=self.work.device).student


def _agreeing_teacher(report: DivergenceReport) -> dict[str, Any]:
    return {
        "name": "teacher",
        "perplexity": report.teacher_perplexity,
        "forward_kl": 0.0,
        "reverse_kl": 0.0,
        "top1_agreement": 1.0,
    }


def crossed_of(report: DivergenceReport) -> dict[str, float]:
    """What the table of results shows where the teacher has another tokenizer."""
    shown = {"bits_per_byte": report.bits_per_byte, "aligned_kl": report.aligned_kl}
    return {name: value for name, value in shown.items() if value is not None}


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of ours; empty where there is none yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _replace_lines(path: Path, when: str, lines: list[dict[str, Any]]) -> None:
    before = read_jsonl(path) if path.is_file() else []
    write_jsonl(path, [line for line in before if line["when"] != when] + lines)
