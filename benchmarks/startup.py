"""Time from a saved bundle to the first answer, in fresh processes.

usage: python benchmarks/startup.py FOLDER [FOLDER ...] [--repeat 9] [--json FILE]

FOLDER is what `cortado compile` or `Model.save` wrote, for this machine. Each measurement is a new process, which reads:

- import: of all modules that opening and running need;
- read: the bytes of the bundle's files, which are in the system's cache of files;
- open and first: `cortado.open`, then the first `run`;
- again: the fastest of some further runs;
- start: open + first - again - read: what the start costs besides reading the files and computing the answer.

Minimum and median over the processes, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

COLUMNS = ("import", "read", "open", "first", "again", "start")
CHILD = """
import sys, time
begin = time.perf_counter()
import numpy as np
import cortado, cortado.api, cortado.model, cortado.runtime.bundle, cortado.runtime.loader
imported = time.perf_counter()
from pathlib import Path
folder = Path(sys.argv[1])
from_files = time.perf_counter()
sizes = [len(path.read_bytes()) for path in folder.iterdir()]
read = time.perf_counter()
model = cortado.open(folder)
opened = time.perf_counter()
feeds = {name: np.zeros(info.shape, info.dtype) for name, info in model.inputs.items()}
prepared = time.perf_counter()
model.run(feeds)
first = time.perf_counter()
again = []
for _ in range(5):
    start = time.perf_counter()
    model.run(feeds)
    again.append(time.perf_counter() - start)
times = [imported - begin, read - from_files, opened - read, first - prepared, min(again)]
print(*(1e3 * t for t in [*times, times[2] + times[3] - times[4] - times[1]]))
"""


def measure(folder: Path, repeat: int) -> dict[str, dict[str, float]]:
    """Milliseconds by column."""
    rows = []
    for _ in range(repeat):
        done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{folder}: {done.stderr.strip()}")
        rows.append([float(word) for word in done.stdout.split()])
    columns = zip(*rows, strict=True)
    return {name: {"min": min(c), "median": statistics.median(c)} for name, c in zip(COLUMNS, columns, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {str(folder): measure(folder, arguments.repeat) for folder in arguments.folders}
    width = max(map(len, found))
    print(f"{'minimum ms':{width}}" + "".join(f"{name:>9}" for name in COLUMNS))
    for folder, times in found.items():
        print(f"{folder:{width}}" + "".join(f"{times[name]['min']:9.2f}" for name in COLUMNS))
    if arguments.json:
        document = {"schema": 1, "machine": platform.processor() or platform.machine(), "unit": "ms", "bundles": found}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
