"""Benchmarks against what a user would else run: `python scripts/bench.py {loop,data,guard} [options]`."""

from __future__ import annotations

import sys


def main() -> None:
    name, *rest = sys.argv[1:] or ["--help"]
    if name == "loop":
        from bench_loop import main as run
    elif name == "data":
        from bench_data import main as run
    elif name == "guard":
        from bench_guard import main as run
    else:
        sys.exit(__doc__ if name in ("-h", "--help") else f"Expected loop, data or guard. Received {name!r}.")
    run(rest)


if __name__ == "__main__":
    main()
