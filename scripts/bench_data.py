"""What the data contract costs: castiron's load beside pyarrow's own bare read of the same file.

    python scripts/bench_data.py [--rows 1000000] [--rounds 7] [--folder DIR] [--json]

Both are timed in this process, in turns, after one warm-up each, so that each finds the memory of its read
before; the medians are compared. Then both are timed in fresh processes, in turns as well: the first read of
a process, as a run has it, whose memory is new. A table of float64 text, the worst case, is read into float32
columns, so that every value is cast and compared. A third contender is castiron's load as a run does it: it
takes the digest of the file as well. Peak memory is that of the fresh processes, above what they have after
their imports (Linux).
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


def contenders(kind: str, files: dict[str, Path]) -> dict[str, Callable[[], object]]:
    """castiron's load, pyarrow's bare read, and castiron's load with a digest, of one kind of file."""
    from pyarrow import csv, parquet
    from pyarrow import json as arrow_json

    from castiron.data import Field, ReadOptions, Schema, load

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
    return {
        "castiron": lambda: load(path, schema),
        "pyarrow": lambda: bare(path),
        "digest": lambda: load(path, schema, options=ReadOptions(digest=True)),
    }


def compare(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians in seconds, and the median of the ratios of each round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)

    def ratios_of(name: str) -> list[float]:
        return [a / b for a, b in zip(times[name], times["pyarrow"], strict=True)]

    ratios = ratios_of("castiron")
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        **medians,
        "digest_ratio": statistics.median(ratios_of("digest")),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def compare_first(kind: str, folder: Path, rows: int, rounds: int) -> dict[str, float]:
    """The first read of fresh processes: medians of the ratios of each round, and of the peak memory."""
    found: dict[str, list[tuple[float, float]]] = {"castiron": [], "pyarrow": [], "digest": []}
    for _ in range(rounds):
        for who, measured in found.items():
            where = ["--folder", str(folder), "--rows", str(rows)]
            command = [sys.executable, __file__, "--first", kind, who, *where]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, mib = map(float, told.split())
            measured.append((seconds, mib))
    peaks = {f"{who}_peak_mib": statistics.median(m for _, m in measured) for who, measured in found.items()}

    def ratio_of(name: str) -> float:
        return statistics.median(a[0] / b[0] for a, b in zip(found[name], found["pyarrow"], strict=True))

    return {"first_ratio": ratio_of("castiron"), "first_digest_ratio": ratio_of("digest"), **peaks}


def measure_first(kind: str, who: str, folder: Path, rows: int) -> None:
    """In the fresh process: read once, print the seconds and the growth of the resident set in MiB."""
    run = contenders(kind, make_files(folder, rows))[who]
    small = contenders(kind, make_files(folder, 10))[who]
    small()  # what is imported and made once is not the read's
    before = resident("VmRSS")
    start = time.perf_counter()
    kept = run()
    seconds = time.perf_counter() - start
    print(seconds, resident("VmHWM") - before)
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
    parser.add_argument("--first", nargs=2, metavar=("KIND", "WHO"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.first:
        measure_first(args.first[0], args.first[1], args.folder, args.rows)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        files = make_files(folder, args.rows)
        results = {}
        for kind in args.kinds:
            result = compare(contenders(kind, files), max(5, args.rounds))
            result |= compare_first(kind, folder, args.rows, max(5, args.rounds))
            results[kind] = result
            if not args.json:
                print(
                    f"{kind:40} castiron {result['castiron']:6.2f} s  pyarrow {result['pyarrow']:6.2f} s  "
                    f"ratio {result['ratio']:5.2f} "
                    f"({result['ratio_low']:.2f} to {result['ratio_high']:.2f})  "
                    f"first read {result['first_ratio']:5.2f}  "
                    f"with digest {result['digest_ratio']:5.2f}, first {result['first_digest_ratio']:5.2f}  "
                    f"peak {result['castiron_peak_mib']:5.0f} / {result['pyarrow_peak_mib']:5.0f} MiB",
                    flush=True,
                )
    if args.json:
        print(json.dumps({"rows": args.rows, "columns": COLUMNS, "results": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
