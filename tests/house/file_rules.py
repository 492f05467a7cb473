"""Rules every tracked file keeps: a size below the limit, and one newline at the end.

Run as a module with file names (pre-commit does) or imported by the tests.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 300_000
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".css", ".j2", ".jsonl", ".cfg"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listing.stdout.split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def complaints_about(path: Path) -> list[str]:
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    found: list[str] = []
    if path.stat().st_size > MOST_BYTES:
        found.append(f"{name} has {path.stat().st_size} bytes; at most {MOST_BYTES} are allowed.")
    if path.suffix in TEXT_SUFFIXES and path.stat().st_size:
        text = path.read_text(encoding="utf-8")
        if not text.endswith("\n") or text.endswith("\n\n"):
            found.append(f"{name} must end with exactly one newline.")
    return found


def main(names: list[str]) -> int:
    found = [line for name in names for line in complaints_about(Path(name).resolve())]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
