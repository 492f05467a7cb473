"""From one seed, an independent stream of random numbers for each name.

Whoever needs randomness asks for a stream by name and keeps to it, so that a new user of
randomness somewhere else shifts nobody's numbers. States are plain trees of numbers, strings and
tensors, so that a checkpoint can hold them without pickle.
"""

import hashlib
import random
from collections.abc import Mapping
from typing import Any, Literal, final

import numpy as np
import torch

from tutelage.core.errors import CheckpointError

Family = Literal["torch", "numpy", "python"]


def seed_for(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for these names: the same everywhere, unrelated for other names."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@final
class Seeds:
    """All the named streams of one run: asking twice for a name gives the same generator."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._torch: dict[str, torch.Generator] = {}
        self._numpy: dict[str, np.random.Generator] = {}
        self._python: dict[str, random.Random] = {}

    def number(self, *names: str | int) -> int:
        """A fixed number for these names, to seed something that keeps its own state."""
        return seed_for(self.seed, *names)

    def torch(self, name: str) -> torch.Generator:
        """The torch stream of this name, on the CPU so that devices do not change the numbers."""
        if name not in self._torch:
            self._torch[name] = torch.Generator().manual_seed(self.number("torch", name))
        return self._torch[name]

    def numpy(self, name: str) -> np.random.Generator:
        """The numpy stream of this name."""
        if name not in self._numpy:
            self._numpy[name] = np.random.Generator(np.random.PCG64(self.number("numpy", name)))
        return self._numpy[name]

    def python(self, name: str) -> random.Random:
        """The `random` stream of this name."""
        if name not in self._python:
            # Not for secrets: a stream that repeats is the purpose.
            self._python[name] = random.Random(self.number("python", name))  # noqa: S311
        return self._python[name]

    def state_dict(self) -> dict[str, Any]:
        """Where every stream that was asked for stands."""
        return {
            "seed": self.seed,
            "torch": {name: stream.get_state() for name, stream in self._torch.items()},
            "numpy": {name: stream.bit_generator.state for name, stream in self._numpy.items()},
            "python": {name: stream.getstate() for name, stream in self._python.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put every stream back; a generator that was handed out before goes on from there.

        Raises:
            CheckpointError: the state was written under another seed.
        """
        if state["seed"] != self.seed:
            message = (
                f"seed is {self.seed}; it must be {state['seed']} to continue this run. "
                "Restore the seed, or start a new run in another folder."
            )
            raise CheckpointError(message)
        for name, value in state["torch"].items():
            self.torch(name).set_state(value)
        for name, value in state["numpy"].items():
            self.numpy(name).bit_generator.state = value
        for name, value in state["python"].items():
            self.python(name).setstate(value)


def seed_globals(seed: int) -> None:
    """Seed the generators nobody owns: `random`, `numpy.random`, torch on every device.

    Dropout and library code draw from them.
    """
    random.seed(seed_for(seed, "global", "python"))
    # The legacy global stream is what libraries draw from; it takes 32 bits.
    np.random.seed(seed_for(seed, "global", "numpy") % 2**32)
    torch.manual_seed(seed_for(seed, "global", "torch"))


def capture_globals() -> dict[str, Any]:
    """Where the generators nobody owns stand now."""
    legacy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_globals(state: Mapping[str, Any]) -> None:
    """Put the generators nobody owns back to where `capture_globals` saw them."""
    random.setstate(state["python"])
    legacy = dict(state["numpy"])
    key = np.array(legacy["state"]["key"], dtype=np.uint32)
    legacy["state"] = {**legacy["state"], "key": key}
    np.random.set_state(legacy)
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(list(state["cuda"]))
