"""Measure honestly: one process for each implementation, interleaved rounds, medians, peak memory.

A benchmark describes its work as JSON requests. Each request is answered by a fresh process
(`python -m MODULE --worker REQUEST`), so one implementation's memory, threads and compiled code
never touch another's. What is compared is always taken from the same interleaved run.
"""

import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "runs" / "benchmarks"
RESULT_MARK = "RESULT "
PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "accelerate")
MIB = 2**20

Answer = dict[str, Any]


@final
@dataclass
class Timing:
    """Wall and CPU seconds of one piece of work; filled in when its `timed` block ends."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextmanager
def timed() -> Generator[Timing]:
    """Measure a block of code; the timing it yields is filled in when the block ends."""
    timing = Timing()
    wall, cpu = time.perf_counter(), time.process_time()
    yield timing
    timing.wall_seconds = time.perf_counter() - wall
    timing.cpu_seconds = time.process_time() - cpu


def resident_bytes() -> int:
    """Memory this process holds now."""
    return _status_bytes("VmRSS")


def reset_peak() -> int:
    """Forget the highest memory use so far; returns what is held now, to be subtracted later."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_bytes()


def peak_bytes() -> int:
    """The most memory this process held since `reset_peak`."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; this benchmark needs Linux.")


def environment(threads: int) -> dict[str, str]:
    """The variables a worker starts with: threads, huge pages for everybody, no hub, no GPU."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "THP_MEM_ALLOC_ENABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(
            part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part
        ),
    }


def machine_line() -> str:
    """One line that says where and with what the numbers were taken."""
    found = ", ".join(f"{name} {at}" for name in PACKAGES if (at := installed(name)) is not None)
    return (
        f"{_processor()}, {os.cpu_count()} cores, {_memory_gib()} GiB; "
        f"Python {platform.python_version()}, {found}"
    )


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    model, flags = "unknown processor", ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            found = set(line.split())
            names = {"avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
            flags = " + ".join(name for flag, name in names.items() if flag in found)
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
    return f"{model} ({flags or 'no AVX-512'})"


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


@final
@dataclass(frozen=True, kw_only=True)
class Job:
    """One implementation at one setting: what a worker process is asked, and how."""

    name: str
    module: str
    request: Mapping[str, Any]
    threads: int = 1
    timeout_seconds: float = 1800.0
    memory_bytes: int | None = None
    """Address space the worker may use: running out of memory is then a result, not a crash."""
    variables: Mapping[str, str] = field(default_factory=dict[str, str])


def ask(job: Job) -> Answer:
    """Run one job in its own process. A failure is an answer too: `{"error": last line}`."""
    request = {**job.request, "threads": job.threads, "memory_bytes": job.memory_bytes}
    command = [sys.executable, "-m", job.module, "--worker", json.dumps(request)]
    try:
        run = subprocess.run(
            command,
            cwd=ROOT,
            env={**environment(job.threads), **job.variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=job.timeout_seconds,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {job.timeout_seconds:g} s"}
    for line in reversed(run.stdout.splitlines()):
        if line.startswith(RESULT_MARK):
            return json.loads(line.removeprefix(RESULT_MARK))
    return {"error": last_line(run.stderr) or f"exit code {run.returncode}"}


def last_line(text: str) -> str:
    """The last line that says something: of a traceback, the error itself."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def serve(work: Callable[[Answer], Answer], request: str) -> None:
    """The worker's side of `ask`: do the work of one request and print the answer."""
    asked = json.loads(request)
    if asked.get("memory_bytes"):
        resource.setrlimit(resource.RLIMIT_AS, (asked["memory_bytes"],) * 2)
    print(RESULT_MARK + json.dumps(work(asked)), flush=True)


def interleaved(jobs: Sequence[Job], *, num_rounds: int) -> dict[str, list[Answer]]:
    """Ask every job once a round (A B C A B C), so that slow minutes fall on all alike.

    A job that failed is not asked again.
    """
    answers: dict[str, list[Answer]] = {job.name: [] for job in jobs}
    for number in range(num_rounds):
        for job in jobs:
            if any("error" in answer for answer in answers[job.name]):
                continue
            answer = ask(job)
            answers[job.name].append(answer)
            said = answer.get("error", "done")
            print(f"  round {number + 1}/{num_rounds}  {job.name}: {said}", file=sys.stderr)
    return answers


def median_of(answers: Sequence[Answer], key: str) -> float:
    """The median of one number over the rounds; nan where no round gave it."""
    values = [float(answer[key]) for answer in answers if key in answer]
    return statistics.median(values) if values else float("nan")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    rule = ["---", *(["---:"] * (len(columns) - 1))]
    lines = [columns, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def in_short(value: float, *, digits: int = 3) -> str:
    """A number with a few significant digits, or a dash where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def write_results(name: str, results: Mapping[str, Any], table: str, *, folder: Path) -> None:
    """Keep a run's numbers as NAME.json, and its table as NAME.md for the docs."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=True)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(table.rstrip() + "\n", encoding="utf-8")
