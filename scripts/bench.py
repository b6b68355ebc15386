"""Benchmarks against what a user would else run: `python scripts/bench.py NAME [options]`.

Names: loop, data, guard, keras, audit, health.
"""

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
    elif name == "keras":
        from bench_keras import main as run
    elif name == "audit":
        from bench_audit import main as run
    elif name == "health":
        from bench_health import main as run
    else:
        sys.exit(__doc__ if name in ("-h", "--help") else f"{name!r} is none of the benchmarks.\n\n{__doc__}")
    run(rest)


if __name__ == "__main__":
    main()
