"""What the data contract costs: castiron's load beside pyarrow's own bare read of the same file.

    python scripts/bench_data.py [--rows 1000000] [--rounds 7] [--folder DIR] [--json]

Both are timed in this process, in turns, after one warm-up each; the medians are compared. A table of
float64 text, the worst case, is read into float32 columns, so that every value is cast and compared. Peak
memory is that of a fresh process each, above what it has after its imports (Linux).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COLUMNS = 10
KINDS = (
    "csv",
    "csv, one bad cell a block",
    "csv, text of integers",
    "jsonl",
    "parquet, float32 columns",
    "parquet, float64 columns",
    "parquet, float64 columns, read and cast",
)


def make_files(folder: Path, rows: int) -> dict[str, Path]:
    """One table in every format, made once per folder and size."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import csv, parquet

    random = np.random.default_rng(17)
    names = [f"x{i}" for i in range(COLUMNS)]
    floats = pa.table({n: np.round(random.standard_normal(rows), 6) for n in names})
    integers = pa.table({n: random.integers(0, 100_000, rows) for n in names})
    files = {
        k: folder / f"{rows}-{k}"
        for k in (
            "floats.csv",
            "gaps.csv",
            "integers.csv",
            "floats.jsonl",
            "float32.parquet",
            "float64.parquet",
        )
    }
    if not files["floats.csv"].exists():
        csv.write_csv(floats, files["floats.csv"])
        csv.write_csv(integers, files["integers.csv"])
        parquet.write_table(floats, files["float64.parquet"])
        parquet.write_table(floats.cast(narrow_schema()), files["float32.parquet"])
        lines = files["floats.csv"].read_text().splitlines(keepends=True)
        with files["floats.jsonl"].open("w") as out:
            for line in lines[1:]:
                cells = zip(names, line.rstrip().split(","), strict=True)
                out.write("{" + ", ".join(f'"{n}": {c}' for n, c in cells) + "}\n")
        for i in range(1000, len(lines), 50_000):
            lines[i] = "N/A" + lines[i][lines[i].index(",") :]
        files["gaps.csv"].write_text("".join(lines))
    return files


def narrow_schema() -> Any:
    """Of the table in float32."""
    import pyarrow as pa

    return pa.schema([(f"x{i}", pa.float32()) for i in range(COLUMNS)])


def contenders(kind: str, files: dict[str, Path]) -> tuple[Callable[[], object], Callable[[], object]]:
    """(castiron's load, pyarrow's bare read) of one kind of file."""
    from pyarrow import csv, parquet
    from pyarrow import json as arrow_json

    from castiron.data import Field, Schema, load

    bad = "drop" if "bad cell" in kind else "error"
    schema = Schema(fields=tuple(Field(name=f"x{i}", bad=bad) for i in range(COLUMNS)))
    path, bare = {
        "csv": (files["floats.csv"], csv.read_csv),
        "csv, one bad cell a block": (files["gaps.csv"], csv.read_csv),
        "csv, text of integers": (files["integers.csv"], csv.read_csv),
        "jsonl": (files["floats.jsonl"], arrow_json.read_json),
        "parquet, float32 columns": (files["float32.parquet"], parquet.read_table),
        "parquet, float64 columns": (files["float64.parquet"], parquet.read_table),
        # What castiron hands over, as pyarrow makes it: columns of float32, unexamined.
        "parquet, float64 columns, read and cast": (
            files["float64.parquet"],
            lambda file: parquet.read_table(file).cast(narrow_schema()),
        ),
    }[kind]
    return lambda: load(path, schema), lambda: bare(path)


def compare(ours: Callable[[], object], bare: Callable[[], object], rounds: int) -> dict[str, float]:
    """Medians in seconds, and the median of the ratios of each round."""
    times: dict[str, list[float]] = {"castiron": [], "pyarrow": []}
    for number in range(rounds + 1):
        for name, run in (("castiron", ours), ("pyarrow", bare)):
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["castiron"], times["pyarrow"], strict=True)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **medians,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def peak(kind: str, who: str, folder: Path, rows: int) -> float:
    """Peak memory in MiB of one read in a fresh process, above what its imports take."""
    command = [sys.executable, __file__, "--peak", kind, who, "--folder", str(folder), "--rows", str(rows)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_peak(kind: str, who: str, folder: Path, rows: int) -> None:
    """In the fresh process: read once, print the growth of the resident set."""
    ours, bare = contenders(kind, make_files(folder, rows))
    before = resident("VmRSS")
    kept = (ours if who == "castiron" else bare)()
    print(resident("VmHWM") - before)
    del kept


def resident(which: str) -> float:
    """VmRSS, now, or VmHWM, at its peak, of this process in MiB. (ru_maxrss begins at the parent's.)"""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(which))
    return int(line.split()[1]) / 1024


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.py data", description=str(__doc__).splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, at least 5")
    parser.add_argument(
        "--folder", type=Path, help="where the files are made and kept; default: a temporary one"
    )
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--peak", nargs=2, metavar=("KIND", "WHO"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.peak:
        measure_peak(args.peak[0], args.peak[1], args.folder, args.rows)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = make_files(folder, args.rows)
        results = {}
        for kind in args.kinds:
            result = compare(*contenders(kind, files), max(5, args.rounds))
            for who in ("castiron", "pyarrow"):
                result[f"{who}_peak_mib"] = peak(kind, who, folder, args.rows)
            results[kind] = result
            if not args.json:
                print(
                    f"{kind:40} castiron {result['castiron']:6.2f} s  pyarrow {result['pyarrow']:6.2f} s  "
                    f"ratio {result['ratio']:5.2f} "
                    f"({result['ratio_low']:.2f} to {result['ratio_high']:.2f})  "
                    f"peak {result['castiron_peak_mib']:5.0f} / {result['pyarrow_peak_mib']:5.0f} MiB",
                    flush=True,
                )
    if args.json:
        print(json.dumps({"rows": args.rows, "columns": COLUMNS, "results": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
