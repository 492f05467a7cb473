"""Checkpoints that are whole or not there: written aside, synced, summed, then renamed.

`checkpoints/step-N/` holds the student's weights, what rank 0 knows for all (optimizer, clocks),
a file for each rank (its random generators, its place in the data) and a manifest with the
checksum of every file. A kill at any moment leaves the last complete checkpoint as it was.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.core.errors import CheckpointError, OutputError
from tutelage.core.files import file_hash, sync
from tutelage.core.seeds import capture_globals, restore_globals
from tutelage.training.ranks import Ranks
from tutelage.training.state_tree import Stateful, Tree, load_tree, save_tensors, save_tree

_FORMAT = 1
_MANIFEST = "manifest.json"
_WEIGHTS = "student.safetensors"


@final
@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a checkpoint must agree on with the run that wants to go on from it."""

    seed: int
    num_ranks: int
    settings: Mapping[str, Any]
    """Dotted names of everything that decides where the weights go."""


@final
class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, identity: Identity, keep: int) -> None:
        self._folder = folder
        self._identity = identity
        self._keep = keep

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        names = (re.fullmatch(r"step-(\d+)", path.name) for path in self._folder.glob("step-*"))
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self._folder / f"step-{step}"

    def begin(self, step: int) -> "Draft":
        """A folder aside to write into; nothing is visible until `finish`."""
        return Draft(self._folder / f".writing-step-{step}", step)

    def clear(self) -> None:
        """Remove what killed runs left half written or half deleted.

        Raises:
            OutputError: it cannot be removed.
        """
        try:
            for path in self._folder.glob(".*-step-*"):
                shutil.rmtree(path)
        except OSError as error:
            raise _cannot_write(self._folder, error) from error

    def refuse_any(self) -> None:
        """For a new run.

        Raises:
            CheckpointError: the folder holds an earlier one.
        """
        if self.steps():
            message = (
                f"{self._folder} already holds step {self.steps()[-1]}; a new run must have an "
                "empty folder. Resume that run, or choose another output folder."
            )
            raise CheckpointError(message)

    def finish(self, draft: "Draft") -> None:
        """Sum, sync and rename the draft, then delete what is too old. The main rank calls it.

        Raises:
            OutputError: the disk is full or gone; the older checkpoints are as they were.
        """
        try:
            self._publish(draft)
            for step in self.steps()[: -self._keep]:
                _remove(self.path(step))
        except OSError as error:
            raise _cannot_write(draft.folder, error) from error

    def _publish(self, draft: "Draft") -> None:
        files = sorted(path for path in draft.folder.iterdir() if path.name != _MANIFEST)
        manifest = {
            "format": _FORMAT,
            "step": draft.step,
            "seed": self._identity.seed,
            "num_ranks": self._identity.num_ranks,
            "settings": dict(self._identity.settings),
            "files": {path.name: file_hash(path) for path in files},
        }
        (draft.folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        for path in draft.folder.iterdir():
            sync(path)
        sync(draft.folder)
        final_path = self.path(draft.step)
        if final_path.exists():
            _remove(final_path)
        draft.folder.rename(final_path)
        sync(self._folder)

    def open(self, step: int) -> "SavedState":
        """A checkpoint, proved to be whole and to belong to this run.

        Raises:
            CheckpointError: it is damaged or of another run; says which file or setting.
        """
        folder = self.path(step)
        manifest = self._manifest(step)
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise self._damaged(step, f"{path} is missing")
            if file_hash(path) != expected:
                raise self._damaged(step, f"{path} is damaged: its checksum has changed")
        self._compare(step, manifest)
        return SavedState(folder, step)

    def _manifest(self, step: int) -> dict[str, Any]:
        path = self.path(step) / _MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise self._damaged(step, f"{path} is missing") from error
        except ValueError as error:
            raise self._damaged(step, f"{path} is damaged: it is not JSON") from error
        if manifest.get("format") != _FORMAT:
            raise self._damaged(step, f"{path} has format {manifest.get('format')}, not {_FORMAT}")
        return manifest

    def _damaged(self, step: int, what: str) -> CheckpointError:
        older = [other for other in self.steps() if other < step]
        then = f"go on from step {older[-1]}" if older else "start again from the first step"
        return CheckpointError(
            f"{what}; every file of a checkpoint must be as it was written. "
            f"Delete {self.path(step)} and resume to {then}."
        )

    def _compare(self, step: int, manifest: Mapping[str, Any]) -> None:
        ours = {
            **self._identity.settings,
            "seed": self._identity.seed,
            "number of processes": self._identity.num_ranks,
        }
        theirs = {
            **manifest["settings"],
            "seed": manifest["seed"],
            "number of processes": manifest["num_ranks"],
        }
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                message = (
                    f"{name} is {ours.get(name)}; it must be {theirs.get(name)}, as in "
                    f"{self.path(step)}, to continue that run. "
                    "Restore it, or start a new run in another folder."
                )
                raise CheckpointError(message)


@final
@dataclass(frozen=True)
class Draft:
    """A checkpoint being written, out of sight."""

    folder: Path
    step: int

    def write_shared(self, student: nn.Module, state: Tree) -> None:
        """The student's weights and what is the same on every rank. The main rank calls it.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            save_tensors(_weights(student), self.folder / _WEIGHTS)
            save_tree(state, self.folder / "run")
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def write_rank(self, rank: int, state: Tree) -> None:
        """What only this rank knows.

        Raises:
            OutputError: the folder cannot be written.
        """
        try:
            save_tree(state, self.folder / f"rank-{rank}")
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def create(self) -> None:
        """Make the folder, empty. The main rank calls it, before any rank writes.

        Raises:
            OutputError: it cannot be made.
        """
        try:
            if self.folder.exists():
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error


@final
@dataclass(frozen=True)
class SavedState:
    """A checkpoint to go on from."""

    folder: Path
    step: int

    def load_student(self, student: nn.Module) -> None:
        """Put the weights back, in place.

        Raises:
            CheckpointError: the student is built differently from the one that was saved.
        """
        saved, current = load_file(self.folder / _WEIGHTS), _weights(student, copy=False)
        for name in sorted(saved.keys() | current.keys()):
            ours, theirs = current.get(name), saved.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                message = (
                    f"The student's {name} is {_shape(ours)}; it must be {_shape(theirs)}, as in "
                    f"{self.folder}. Build the student as that run did."
                )
                raise CheckpointError(message)
            ours.copy_(theirs)

    def shared(self) -> Tree:
        """What `write_shared` was given besides the student."""
        return load_tree(self.folder / "run")

    def rank(self, rank: int) -> Tree:
        """What this rank gave to `write_rank`."""
        return load_tree(self.folder / f"rank-{rank}")


@final
@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Saves and restores a run: the student, what all ranks share, and what each has for itself.

    All ranks call it alike.
    """

    checkpoints: Checkpoints
    ranks: Ranks
    student: nn.Module
    shared: Stateful
    """The same on every rank."""
    rollouts: Stateful
    """Each rank's place in the data."""

    def save(self, step: int) -> Path:
        """Write the checkpoint of this step.

        Raises:
            OutputError: some rank could not; the older checkpoints are as they were.
        """
        draft = self.checkpoints.begin(step)
        self.ranks.together_on_main(self.checkpoints.clear)
        self.ranks.together_on_main(draft.create)
        self.ranks.together_on_main(
            lambda: draft.write_shared(self.student, self.shared.state_dict())
        )
        own = {"rollouts": self.rollouts.state_dict(), "randomness": capture_globals()}
        self.ranks.together(lambda: draft.write_rank(self.ranks.rank, own))
        self.ranks.together_on_main(lambda: self.checkpoints.finish(draft))
        return self.checkpoints.path(step)

    def load(self, step: int) -> None:
        """Put everything back as it was after this step.

        Raises:
            CheckpointError: the checkpoint is damaged or of another run.
        """
        saved = self.checkpoints.open(step)
        shared, own = saved.shared(), saved.rank(self.ranks.rank)
        saved.load_student(self.student)
        self.shared.load_state_dict(shared)
        self.rollouts.load_state_dict(own["rollouts"])
        # Last, in case anything above drew a number.
        restore_globals(own["randomness"])


def _weights(student: nn.Module, *, copy: bool = True) -> dict[str, Tensor]:
    # Parameters by name come once even where two layers share one, and safetensors wants that.
    persistent = student.state_dict().keys()
    buffers = {name: b for name, b in student.named_buffers() if name in persistent}
    tensors = {**dict(student.named_parameters()), **buffers}
    detached = {name: tensor.detach() for name, tensor in tensors.items()}
    if not copy:
        return detached
    return {name: tensor.to("cpu").contiguous() for name, tensor in detached.items()}


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"


def _remove(path: Path) -> None:
    # A kill while deleting must not leave a checkpoint that looks whole but is not.
    aside = path.with_name(f".removing-{path.name}")
    path.rename(aside)
    shutil.rmtree(aside)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} is not writable ({error.strerror or error}); a checkpoint needs a disk with room. "
        "Older checkpoints are untouched: make room, then resume."
    )
