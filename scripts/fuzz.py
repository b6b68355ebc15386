"""Change what readers read, at random, and see that they take it or refuse it, and never fall over.

    python scripts/fuzz.py --cases 10000              every reader
    python scripts/fuzz.py --target csv --seed 7      one of them, other cases

A case that raises anything but a refusal, or takes longer than ten seconds, is written to `--keep`. Cases of
mended bugs lie in tests/fuzz/cases, and are run by the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import TARGETS, WORDS, Edit, Target, changed, is_refusal

LIMIT_S = 10
MEMORY = 6 << 30
"""Bytes of address space that a reader may add."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="per reader")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most so long per reader")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="where found cases go")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, _too_long)
    bad = 0
    for name in arguments.target or TARGETS:
        done, refused, found = fuzz(name, arguments.cases, arguments.seed, arguments.seconds)
        print(f"{name:20s} {done:7,d} cases  {refused:7,d} refused  {len(found):3d} bugs", flush=True)
        for data, told in found.values():
            path = arguments.keep / f"{name}-{hashlib.sha256(data).hexdigest()[:8]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            print(f"  {path}: {told}", flush=True)
        bad += len(found)
    return 1 if bad else 0


def fuzz(name: str, cases: int, seed: int, seconds: float) -> tuple[int, int, dict[str, tuple[bytes, str]]]:
    """Cases done, refused, and one for each kind of bug."""
    target = TARGETS[name]
    draw = random.Random(f"{name} {seed}")
    seeds = target.seeds()
    found: dict[str, tuple[bytes, str]] = {}
    refused = done = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="castiron-fuzz-") as folder:
        target.read(seeds[0], Path(folder))  # what is imported at the first call is not timed
        resource.setrlimit(resource.RLIMIT_AS, (_used() + MEMORY, resource.RLIM_INFINITY))
        while done < cases and time.monotonic() < end:
            edits = [edit(draw) for _ in range(draw.choice((1, 1, 2, 3, 8)))]
            data = changed(draw.choice(seeds), edits) if done >= len(seeds) else seeds[done]
            verdict, told = try_out(target, data, Path(folder))
            done += 1
            refused += verdict == "refused"
            if verdict == "bug":
                found.setdefault(told.rpartition(" | ")[2], (data, told))
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return done, refused, found


def edit(draw: random.Random) -> Edit:
    new = draw.choice(WORDS) if draw.random() < 0.7 else draw.randbytes(draw.choice((1, 2, 4, 8, 40)))
    return draw.choice((0, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6)), draw.randrange(1 << 20), new


def try_out(target: Target, data: bytes, folder: Path) -> tuple[str, str]:
    """taken, refused or bug; and what was raised."""
    if hasattr(signal, "SIGALRM") and signal.getsignal(signal.SIGALRM) is _too_long:
        signal.alarm(LIMIT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(data, folder)
    except Exception as e:
        if is_refusal(e, target):
            return "refused", ""
        last = traceback.extract_tb(e.__traceback__)[-1]
        return "bug", f"{type(e).__name__}: {str(e)[:120]} | {Path(last.filename).name}:{last.lineno}"
    finally:
        signal.alarm(0)
    return "taken", ""


class TooLong(Exception):
    """A reader hangs."""


def _too_long(*arguments: Any) -> None:
    raise TooLong(f"more than {LIMIT_S} seconds")


def _used() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    raise SystemExit(main())
