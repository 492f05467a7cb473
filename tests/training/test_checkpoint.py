"""A checkpoint is whole or not there; a damaged one is named, with the way out."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.tiny_runs import student, weights
from tutelage.core.errors import CheckpointError, OutputError
from tutelage.training import Ranks
from tutelage.training.checkpoint import Checkpoints, Identity, Keeper
from tutelage.training.state_tree import load_tree, save_tree


class Counter:
    """The smallest thing that moves."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"count": 0}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def checkpoints(folder: Path, *, keep: int = 2, seed: int = 0, **settings: Any) -> Checkpoints:
    identity = Identity(seed=seed, num_ranks=1, settings=settings)
    return Checkpoints(folder, identity=identity, keep=keep)


def keeper(folder: Path, lm: nn.Module | None = None, **identity: Any) -> Keeper:
    return Keeper(
        checkpoints=checkpoints(folder, **identity),
        ranks=Ranks(),
        student=lm or student(),
        shared=Counter(),
        rollouts=Counter(),
    )


def test_a_tree_of_states_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    tree = {
        "plain": [None, True, 3, 0.1 + 0.2, "où", float("inf"), 2**100],
        "nested": {"tuple": (1, (2.5, "x")), 7: {"int key": torch.tensor(3, dtype=torch.int64)}},
        "half": torch.randn(3).to(torch.bfloat16),
        "bytes": torch.get_rng_state(),
        "views": [shared[0], shared[1], shared.T],
        "empty": torch.zeros(0),
        "looks like ours": {"__kind__": "tensor"},
    }
    save_tree(tree, tmp_path / "tree")
    back = load_tree(tmp_path / "tree")
    assert back["plain"] == tree["plain"]
    assert back["nested"]["tuple"] == (1, (2.5, "x"))
    assert back["nested"][7]["int key"].dtype == torch.int64
    assert back["looks like ours"] == {"__kind__": "tensor"}
    for name in ("half", "bytes", "empty"):
        torch.testing.assert_close(back[name], tree[name], rtol=0, atol=0)
    for ours, theirs in zip(back["views"], tree["views"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_a_checkpoint_cannot_hold_is_a_bug_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="holds a set"):
        save_tree({"a": {1, 2}}, tmp_path / "tree")


def test_everything_that_moves_comes_back(tmp_path: Path) -> None:
    saver = keeper(tmp_path)
    saver.shared.load_state_dict({"count": 7})
    saver.rollouts.load_state_dict({"num_taken": 96})
    trained = weights(saver.student)
    path = saver.save(5)
    # Python's own stream is compared in test_resume.py: the type checks of the test run draw from
    # it, between any two calls.
    expected = (np.random.random(), torch.rand(3))

    other = keeper(tmp_path, student(hidden_act="gelu"))
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter.zero_()
    other.load(5)

    assert path.name == "step-5"
    assert other.shared.state_dict() == {"count": 7}
    assert other.rollouts.state_dict() == {"num_taken": 96}
    for name, parameter in other.student.named_parameters():
        torch.testing.assert_close(parameter, trained[name], rtol=0, atol=0)
    assert np.random.random() == expected[0]
    torch.testing.assert_close(torch.rand(3), expected[1], rtol=0, atol=0)


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    lm = student(tie_word_embeddings=True)
    keeper(tmp_path, lm).save(1)
    again = student(tie_word_embeddings=True)
    with torch.no_grad():
        again.head.weight.zero_()
    keeper(tmp_path, again).load(1)
    torch.testing.assert_close(again.head.weight, lm.head.weight, rtol=0, atol=0)
    assert again.head.weight is again.model.get_input_embeddings().weight


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    saver = keeper(tmp_path, keep=2)
    for step in (2, 4, 10):
        saver.save(step)
    assert saver.checkpoints.steps() == [4, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-4"]


def files() -> list[str]:
    return ["student.safetensors", "run.json", "run.safetensors", "rank-0.json",
            "rank-0.safetensors", "manifest.json"]  # fmt: skip


@pytest.mark.parametrize("name", files())
def test_one_changed_byte_is_found_and_named(tmp_path: Path, name: str) -> None:
    saver = keeper(tmp_path)
    saver.save(1)
    saver.save(2)
    path = tmp_path / "step-2" / name
    content = bytearray(path.read_bytes())
    # In the manifest a changed digit would be another checksum: break its JSON, or any file's.
    content[-1 if name == "manifest.json" else len(content) // 2] ^= 0x11
    path.write_bytes(bytes(content))
    before = weights(saver.student)

    with pytest.raises(CheckpointError) as caught:
        saver.load(2)

    said = str(caught.value)
    assert str(path) in said
    assert f"Delete {tmp_path / 'step-2'} and resume to go on from step 1" in said
    assert all(torch.equal(p, before[n]) for n, p in saver.student.named_parameters())
    shutil.rmtree(tmp_path / "step-2")
    saver.load(saver.checkpoints.steps()[-1])


@pytest.mark.parametrize("name", files())
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    saver = keeper(tmp_path)
    saver.save(3)
    (tmp_path / "step-3" / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing.*start again from the first"):
        saver.load(3)


def test_what_a_kill_left_half_written_is_no_checkpoint_and_is_swept_up(tmp_path: Path) -> None:
    saver = keeper(tmp_path)
    saver.save(1)
    shutil.copytree(tmp_path / "step-1", tmp_path / ".writing-step-2")
    shutil.copytree(tmp_path / "step-1", tmp_path / ".removing-step-0")
    assert saver.checkpoints.steps() == [1]
    saver.save(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 2.0}, r"rate is 2\.0; it must be 1\.0"),
        ({"seed": 4}, "seed is 4; it must be 0"),
        ({"new": 1}, "new is 1; it must be None"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_setting_that_differs(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    keeper(tmp_path, rate=1.0).save(1)
    with pytest.raises(CheckpointError, match=message):
        keeper(tmp_path, **{"rate": 1.0, **change}).load(1)


def test_another_student_is_refused_by_the_weight_that_differs(tmp_path: Path) -> None:
    keeper(tmp_path).save(1)
    with pytest.raises(CheckpointError, match=r"of shape \(32, 40\); it must be of shape \(32, 48"):
        keeper(tmp_path, student(intermediate_size=40)).load(1)
    with pytest.raises(CheckpointError, match="is missing; it must be of shape"):
        keeper(tmp_path, student(num_hidden_layers=1)).load(1)


def test_a_place_that_cannot_be_written_is_named_and_older_checkpoints_stay(
    tmp_path: Path,
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="Older checkpoints are untouched"):
        keeper(blocked / "checkpoints").save(1)


def test_the_format_of_another_version_is_refused(tmp_path: Path) -> None:
    saver = keeper(tmp_path)
    saver.save(1)
    manifest = tmp_path / "step-1" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="has format 99, not 1"):
        saver.load(1)
