"""Run every benchmark, one after another, each in a process of its own: `python -m benchmarks`.

A benchmark is a module of this folder with a `main`; it prints one Markdown table. Name some to
run only those: `python -m benchmarks plan loader`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
#: Those that take half an hour or more, or a GPU: run where they are named.
LONG = ("dry_run", "features", "gpu", "health", "kill", "soak")


def names() -> list[str]:
    """Return the benchmarks of this folder, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def main(wanted: list[str]) -> int:
    """Run the wanted benchmarks (none named: all but `LONG`); return how many did not end well."""
    unknown = set(wanted) - set(names())
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(names())}")
        return 2
    failed = 0
    for name in wanted or [name for name in names() if name not in LONG]:
        print(f"\n## {name}\n", flush=True)
        ended = subprocess.run([sys.executable, str(FOLDER / f"{name}.py")], check=False)
        failed += ended.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
