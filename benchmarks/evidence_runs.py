"""One process, one teacher, one student at the start: what every run of the evidence shares.

The teacher reads each row once and is remembered; before every run the student's weights are put
back to where they were.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from benchmarks.evidence_plan import METRICS, VARIANTS, Budget, PlannedRun

from tutelage.core.records import Rollout
from tutelage.core.seeds import seed_for
from tutelage.evaluation import evaluate_divergence
from tutelage.models import CausalLM
from tutelage.recipes import Recipe, load, varied
from tutelage.recipes.assemble import Work, assemble, batches, evaluation_options, make_student
from tutelage.recipes.narrator import Silence
from tutelage.rollouts import DatasetRollouts
from tutelage.teachers import LiveTeacher, Teacher
from tutelage.training import Event, StepDone, Trainer, TrainingResult

Weights = Mapping[str, torch.Tensor]


@final
class Workbench:
    """Everything loaded once; `run` trains the student from its start, as often as asked."""

    def __init__(self, source: str, budget: Budget) -> None:
        self.budget = budget
        self.recipe = self._settings(load(source))
        self.work = assemble(self.recipe, None, Silence())
        assert self.work.teacher is not None, f"{source} has no teacher to learn from"
        self.teacher: Teacher = self.work.teacher
        rows = self.work.rows.training
        assert len(rows) > 2 * budget.num_tuning_rows, (
            f"{source} has too few rows to set some apart"
        )
        self.training, self.tuning = (
            rows[: -budget.num_tuning_rows],
            rows[-budget.num_tuning_rows :],
        )
        self.student = make_student(self.recipe, self.work)
        self._start = {name: w.clone() for name, w in self.student.lm.state_dict().items()}

    def _settings(self, recipe: Recipe) -> Recipe:
        """The recipe at this budget: what it does not name stays as the demo has it."""
        budget = self.budget
        training = {
            "num_steps": budget.num_steps,
            "rows_per_step": budget.rows_per_step,
            "warmup_steps": budget.num_steps // 20,
            "precision": budget.precision,
            "evaluate_first": False,
            "evaluate_every": None,
            "save_every": None,
        }
        student = {"kind": "pruned", "keep_layers": budget.keep_layers}
        return varied(recipe, {"student": student, "training": training, "baselines": {}})

    def recipe_of(self, run: PlannedRun) -> Recipe:
        """The settings of one run: they differ in objective, move, learning rate and seed."""
        own = {"training": {"learning_rate": run.learning_rate}, "seed": run.seed}
        return varied(self.recipe, {"move": {"kind": "none"}, **VARIANTS[run.variant], **own})

    def measured(self, rows: Sequence[Rollout]) -> dict[str, float]:
        """Every metric of the student as it is now."""
        report = evaluate_divergence(
            self.student.lm,
            self.teacher,
            batches(rows, self.recipe, self.work),
            options=evaluation_options(self.recipe),
        )
        numbers = report.numbers()
        return {name: numbers[name] for name in METRICS}

    def before(self) -> dict[str, float]:
        """The metrics of the student that every run starts from, on the held-out rows."""
        self._restore()
        return self.measured(self.work.rows.held_out)

    def run(self, run: PlannedRun, *, judge: Sequence[Rollout]) -> dict[str, Any]:
        """Train once from the start; the metrics on `judge` when it ended."""
        self._restore()
        losses: list[float] = []
        result = train(self.recipe_of(run), self.work, self.training, losses=losses, to=self.ends())
        return {
            "final": self.measured(judge),
            "losses": losses,
            "trained_tokens": result.trained_tokens,
            "seconds": result.seconds,
        }

    def ends(self) -> "Ends":
        """The two models, as they are."""
        return Ends(student=self.student.lm, teacher=self.teacher)

    def _restore(self) -> None:
        self.student.lm.load_state_dict(self._start)

    def coincidence(self, *, num_steps: int, learning_rate: float) -> dict[str, Any]:
        """CSD (student, student) beside reverse KL: same seed, same rate, in double precision.

        Forward KL from the same start says how large a real difference would be.
        """
        left: dict[str, Weights] = {}
        losses: dict[str, list[float]] = {}
        teacher = _wide_teacher(self.work)
        seed = self.budget.tuning_seed
        for variant in ("reverse_kl", "concrete_score_ss", "forward_kl"):
            self._restore()
            student = copy.deepcopy(self.student.lm).double()
            run = PlannedRun(variant=variant, learning_rate=learning_rate, seed=seed)
            short = {"num_steps": num_steps, "warmup_steps": 0, "precision": "fp32"}
            recipe = varied(self.recipe_of(run), {"training": short})
            losses[variant] = []
            ends = Ends(student=student, teacher=teacher)
            train(recipe, self.work, self.training, losses=losses[variant], to=ends)
            left[variant] = student.state_dict()
        return {
            "num_steps": num_steps,
            "learning_rate": learning_rate,
            "precision": "fp64",
            **{
                f"{name}_against_reverse_kl": {
                    "largest_weight_difference": weight_gap(left[name], left["reverse_kl"]),
                    "relative_weight_difference": relative_gap(left[name], left["reverse_kl"]),
                }
                for name in ("concrete_score_ss", "forward_kl")
            },
            "losses": losses,
        }


@final
class Ends:
    """A student and who teaches it."""

    def __init__(self, *, student: CausalLM, teacher: Teacher) -> None:
        self.student = student
        self.teacher = teacher


def train(
    recipe: Recipe, work: Work, rows: Sequence[Rollout], *, losses: list[float], to: Ends
) -> TrainingResult:
    """One training that leaves nothing on disk; the loss of every step is added to `losses`."""

    def note(event: Event) -> None:
        if isinstance(event, StepDone):
            losses.append(event.record.totals.loss)

    trainer = Trainer(
        student=to.student,
        teacher=to.teacher,
        objective=recipe.objective,
        rollouts=DatasetRollouts(rows, seed=seed_for(recipe.seed, "rollouts")),
        settings=recipe.training,
        move=recipe.move,
        seed=recipe.seed,
        hooks=[note],
        ranks=work.ranks,
    )
    result = trainer.train()
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _wide_teacher(work: Work) -> LiveTeacher:
    assert work.teacher_model is not None
    return LiveTeacher(copy.deepcopy(work.teacher_model.lm).double(), remember_bytes=2**30)


def weight_gap(one: Weights, other: Weights) -> float:
    """The largest difference of any weight."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def relative_gap(one: Weights, other: Weights) -> float:
    """Norm of the difference over norm of the weights, all of them together."""
    gap = sum(float((one[name] - other[name]).double().square().sum()) for name in one)
    size = sum(float(weight.double().square().sum()) for weight in other.values())
    return (gap / size) ** 0.5


def work_folder(folder: Path) -> Path:
    """Where single runs leave their results."""
    return folder / "runs"
