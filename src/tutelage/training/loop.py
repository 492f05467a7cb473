"""The loop: collect, score, step, move the clocks, log, evaluate, save.

From Python:

    Trainer(student=lm, teacher=teacher, objective=ForwardKL(), rollouts=rows).train()
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from tutelage.core.errors import ConfigError, NumericsError
from tutelage.core.records import Rollout
from tutelage.core.run_log import RunFolder, RunLog
from tutelage.models.causal_lm import CausalLM
from tutelage.objectives import Move, NoMove, Objective
from tutelage.objectives.policies import Policy
from tutelage.rollouts.source import RolloutSource
from tutelage.teachers.teacher import Teacher
from tutelage.text.collate import num_tokens
from tutelage.training.checkpoint import Checkpoints, Identity, Keeper
from tutelage.training.clocks import Clock, learning_rate_at, taid_clock
from tutelage.training.collect import Collector, Judge
from tutelage.training.hooks import (
    Ended,
    Evaluated,
    Event,
    Hook,
    Interrupts,
    Saved,
    Started,
    StepDone,
    Stopping,
    events_of,
)
from tutelage.training.losses import Drawing, LossModule, Wanted, refuse_contradictions
from tutelage.training.metrics import (
    StepRecord,
    StepTotals,
    Stopwatch,
    TrainingResult,
    advice_after,
    undisturbed,
)
from tutelage.training.optimizer import build_optimizer, set_learning_rate
from tutelage.training.policy import WatchRouters
from tutelage.training.ranks import Ranks
from tutelage.training.reuse import Groups, Reuse, Supply
from tutelage.training.routers import RouterOwner
from tutelage.training.settings import TrainingSettings
from tutelage.training.state_tree import Stateful
from tutelage.training.step import Stepper

Evaluate = Callable[[], Mapping[str, float]]
"""Measures the student on held-out rows. It may look at everything and move nothing."""


@final
@dataclass(kw_only=True)
class Trainer:
    """A student, who teaches it, what it reads and how its steps are taken.

    The student is trained in place.
    """

    student: CausalLM
    objective: Objective
    rollouts: RolloutSource
    teacher: Teacher | None = None
    """Only an objective that looks at the completions' own tokens can do without."""
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    move: Move = field(default_factory=NoMove)
    """How the target travels on its way to the teacher; TAID brings its clock."""
    evaluate: Evaluate | None = None
    output: Path | None = None
    """Where the log and the checkpoints go; None keeps nothing on disk."""
    seed: int = 0
    """Dropout follows from it. The rollouts have their own."""
    hooks: Sequence[Hook] = ()
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More that a resumed run must agree on, plain values by dotted name: `teacher.model`, say."""
    judge: Judge | None = None
    """Gives completions their rewards and advantages, before they are trained on."""
    sampled_at: float = 1.0
    """The temperature that the rollouts are drawn at, for ratios and importance weights."""
    policy: Policy | None = None
    """How rewards are learned from, beside the objective, or alone with `policy_gradient`."""
    groups: Groups = field(default_factory=Groups)
    """How completions of one prompt lie in what `rollouts` gives."""
    watch_routers: WatchRouters | None = None
    """Listens to the routers of a student that has any, for its policy."""
    special_ids: Collection[int] = ()
    """The tokenizer's special tokens, for `weighting.skip_special`."""
    parts: Mapping[str, Stateful] = field(default_factory=dict[str, Stateful])
    """More that changes, saved and restored with the rest, by name."""
    clocks: Mapping[str, Clock] = field(default_factory=dict[str, Clock])
    """Parts that the trainer also moves, once after each optimiser step: an averaged teacher."""
    routers: RouterOwner | None = None
    """Hears the routers of a student with experts, and moves their biases."""
    ranks: Ranks | None = None
    """Give the one that the rollouts were divided by; None makes one."""

    def train(self, *, resume: bool = False) -> TrainingResult:
        """Train to the last step.

        Args:
            resume: go on from the newest checkpoint in `output`, bit for bit as if the run had
                never stopped; from the start where there is none yet.

        Raises:
            ConfigError: settings that contradict each other.
            CheckpointError: a damaged checkpoint, one of another run, or one that is in the way.
            NumericsError: a loss or gradient that is not finite; the last checkpoint stands.
            OutputError: the folder cannot be written.
        """
        self._check()
        if resume and self.output is None:
            message = (
                "resume is asked for and output is missing; it must be the folder of the run. "
                "Name it."
            )
            raise ConfigError(message)
        return _Run(self, resume=resume).go()

    def loss_on(self, rollouts: Sequence[Rollout], *, t: float | None = None) -> float:
        """The mean loss on these rows, normalised as a step's is; moves nothing.

        Args:
            t: where the moved target stands; None is where its clock starts.
        """
        self._check()
        run = _Run(self, resume=False, read_only=True)
        return run.loss_on(rollouts, t)

    def _check(self) -> None:
        refuse_contradictions(self.wanted, has_teacher=self.teacher is not None)

    @property
    def wanted(self) -> Wanted:
        """What a step is asked to do."""
        return Wanted(
            objective=self.objective,
            move=self.move,
            policy=self.policy,
            settings=self.settings,
            has_routers=self.watch_routers is not None,
        )


@final
class _Run:
    """One call of `train`: everything that moves, and where it is kept."""

    def __init__(self, trainer: Trainer, *, resume: bool, read_only: bool = False) -> None:
        self._trainer = trainer
        settings = self._settings = trainer.settings
        tracked = () if read_only else settings.track_with
        self._ranks = trainer.ranks or Ranks(track_with=tracked, folder=trainer.output)
        self._clock = taid_clock(trainer.move, settings)
        # Where the objective reads labels alone, a teacher would be asked in vain.
        teacher = trainer.teacher if trainer.objective.needs_teacher else None
        drawing = Drawing(
            sampled_at=trainer.sampled_at, policy=trainer.policy, routers=trainer.watch_routers
        )
        module = LossModule(
            trainer.student, trainer.objective, settings, move=trainer.move, drawing=drawing
        )
        routers = {} if trainer.routers is None else {"routers": trainer.routers}
        self._parts = {**trainer.parts, **trainer.clocks, **routers}
        self._optimizer = build_optimizer(trainer.student, settings)
        self._stepper = Stepper(
            module, teacher, self._optimizer, settings, self._ranks, trainer.routers
        )
        collector = Collector(
            trainer.rollouts,
            settings,
            self._ranks,
            judge=trainer.judge,
            special_ids=trainer.special_ids,
            length=num_tokens if teacher is None else teacher.length,
        )
        reuse = Reuse(
            seed=trainer.seed,
            groups=trainer.groups,
            policy=trainer.policy,
            distils=teacher is not None,
            remember=None if trainer.policy is None else self._stepper.read,
        )
        self._supply = Supply(collector, trainer.rollouts, settings, self._ranks, reuse)
        self._watch = Stopwatch()
        self._step = 0
        self._trained_tokens = 0
        self._last_evaluated = -1
        self._last_saved: int | None = None
        self._last: StepRecord | None = None
        self._evaluations: list[Mapping[str, int | float]] = []
        self._log: RunLog | None = None
        self._keeper: Keeper | None = None
        if not read_only:
            self._begin(resume=resume)
        self._resumed_from = self._last_saved

    def go(self) -> TrainingResult:
        interrupted = False
        self._ranks.start_tracking(self._settings.track_as, self._identity())
        self._tell(Started(step=self._step, num_steps=self._settings.num_steps))
        try:
            with Interrupts(lambda: self._tell(Stopping())) as interrupts:
                if self._settings.evaluate_first:
                    self._evaluate_if(due=self._step == 0)
                while self._step < self._settings.num_steps and not interrupted:
                    interrupted = self._take_step(lambda: interrupts.requested)
                if not interrupted:
                    self._evaluate_if(due=True)
                self._save_if(due=True)
        finally:
            self._tell(Ended(step=self._step))
            self._ranks.stop_tracking()
            if self._log is not None:
                self._log.close()
        return self._result(interrupted=interrupted)

    def loss_on(self, rollouts: Sequence[Rollout], t: float | None) -> float:
        if t is None and self._clock is not None:
            t = self._clock.t
        return self._stepper.loss(self._supply.window(rollouts), t=t)

    def _take_step(self, stop_requested: Callable[[], bool]) -> bool:
        """One page of training; answers whether any rank wants to stop."""
        settings = self._settings
        self._watch.start_step()
        learning_rate = learning_rate_at(self._step, settings)
        t = None if self._clock is None else self._clock.t
        set_learning_rate(self._optimizer, learning_rate)
        try:
            window = self._supply.collect()
            for event in events_of(window, step=self._step + 1):
                self._tell(event)
            totals = self._stepper.step(window, t=t, stop_requested=stop_requested)
        except NumericsError as error:
            message = f"Step {self._step + 1}: {error}"
            raise NumericsError(message) from error
        if self._clock is not None:
            heard = totals.moved_cross_entropy
            self._clock.move(loss=totals.loss if heard is None else heard, step=self._step)
        for clock in self._trainer.clocks.values():
            clock.move(loss=totals.loss, step=self._step)
        self._step += 1
        for clock in self._trainer.rollouts.clocks:
            clock.move(done=self._step / settings.num_steps)
        self._trained_tokens += totals.num_tokens
        self._record(totals, learning_rate, t, window.numbers)
        self._evaluate_if(due=_divides(settings.evaluate_every, self._step))
        self._save_if(due=_divides(settings.save_every, self._step))
        return totals.stop_requested and self._step < settings.num_steps

    def _record(
        self,
        totals: StepTotals,
        learning_rate: float,
        t: float | None,
        rollouts: Mapping[str, float],
    ) -> None:
        num_steps = self._settings.num_steps
        tokens_per_second = totals.num_tokens / self._watch.end_step()
        record = StepRecord(
            step=self._step,
            num_steps=num_steps,
            totals=totals,
            learning_rate=learning_rate,
            t=t,
            seconds=self._watch.seconds,
            tokens_per_second=tokens_per_second,
            eta_seconds=self._watch.eta_seconds(num_steps - self._step),
            rollouts=rollouts,
        )
        self._last = record
        if self._log is not None:
            self._log.write(
                step=self._step, phase="train", seconds=record.seconds, numbers=record.numbers()
            )
        self._ranks.track(
            {f"train/{name}": value for name, value in record.numbers().items()}, step=self._step
        )
        self._tell(StepDone(record=record))

    def _evaluate_if(self, *, due: bool) -> None:
        evaluate = self._trainer.evaluate
        if evaluate is None or not due or self._last_evaluated == self._step:
            return
        numbers = undisturbed(evaluate, self._trainer.student)
        self._last_evaluated = self._step
        self._evaluations.append({"step": self._step, **numbers})
        if self._log is not None:
            self._log.write(
                step=self._step, phase="eval", seconds=self._watch.seconds, numbers=numbers
            )
        self._ranks.track(
            {f"eval/{name}": value for name, value in numbers.items()}, step=self._step
        )
        self._tell(Evaluated(step=self._step, numbers=numbers))

    def _save_if(self, *, due: bool) -> None:
        if self._keeper is None or not due or self._last_saved == self._step:
            return
        if self._log is not None:
            self._log.sync()
        folder = self._keeper.save(self._step)
        self._last_saved = self._step
        self._tell(Saved(step=self._step, folder=folder))

    def _open_folder(self, output: Path) -> Keeper:
        folder = RunFolder(output)
        self._ranks.together_on_main(folder.create)
        identity = Identity(
            seed=self._trainer.seed, num_ranks=self._ranks.num_ranks, settings=self._identity()
        )
        checkpoints = Checkpoints(
            folder.checkpoints, identity=identity, keep=self._settings.keep_checkpoints
        )
        return Keeper(
            checkpoints=checkpoints,
            ranks=self._ranks,
            student=self._trainer.student,
            shared=self,
            rollouts=self._supply,
        )

    def _begin(self, *, resume: bool) -> None:
        self._ranks.seed(self._trainer.seed)
        output = self._trainer.output
        if output is None:
            return
        self._keeper = self._open_folder(output)
        steps = self._keeper.checkpoints.steps()
        if not resume:
            self._keeper.checkpoints.refuse_any()
        elif steps:
            self._keeper.load(steps[-1])
            self._step = self._last_saved = steps[-1]
        if self._ranks.is_main:
            kept = -1 if self._last_saved is None else self._last_saved
            self._log = RunLog(RunFolder(output).metrics, keep_up_to=kept)

    def state_dict(self) -> dict[str, Any]:
        """What moves, and is the same on every rank."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "clock": None if self._clock is None else self._clock.state_dict(),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "seconds": self._watch.seconds,
            "trained_tokens": self._trained_tokens,
            "last_evaluated": self._last_evaluated,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        if self._clock is not None:
            self._clock.load_state_dict(state["clock"])
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self._watch.go_on_from(state["seconds"])
        self._trained_tokens = state["trained_tokens"]
        self._last_evaluated = state["last_evaluated"]

    def _identity(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            **trainer.wanted.identity(),
            **trainer.identity,
            "parts": sorted(self._parts),
        }

    def _tell(self, event: Event) -> None:
        if self._ranks.is_main:
            for hook in self._trainer.hooks:
                hook(event)

    def _result(self, *, interrupted: bool) -> TrainingResult:
        newest = None
        if self._keeper is not None and self._last_saved is not None:
            newest = self._keeper.checkpoints.path(self._last_saved)
        return TrainingResult(
            step=self._step,
            interrupted=interrupted,
            resumed_from=self._resumed_from,
            last=self._last,
            evaluations=tuple(self._evaluations),
            trained_tokens=self._trained_tokens,
            seconds=self._watch.seconds,
            checkpoint=newest,
            advice=advice_after(self._step, self._settings.num_steps, newest)
            if interrupted
            else "",
        )


def _divides(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
