"""What it costs to guard `model.fit`: castiron.keras.enforce beside plain Keras and enable_check_numerics.

    python scripts/bench.py keras [--models lstm,mlp] [--rounds 8] [--steps 10] [--write]

All contenders train the same model in one process, a few steps of `fit` each in turn, in an order that
changes from round to round. A step is what passes between the ends of two batches. What counts is the median
over the rounds of the ratio to plain `fit` of the same round; `fit again` is plain `fit` against itself:
differences of that size mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from castiron.keras import enforce

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "keras.md"
L = keras.layers
CLOCK = time.process_time
"""With one thread it is the process's own time: what others do on the machine is left out."""


# --- what is trained --------------------------------------------------------------------------------


def lstm() -> tuple[Any, Any, Any]:
    """20,000 words, embedding 128, hidden 128; batch 64 of 64 words."""
    model = keras.Sequential(
        [keras.Input((64,), dtype="int64"), L.Embedding(20_000, 128), L.LSTM(128), L.Dense(2)]
    )
    return model, np.random.randint(0, 20_000, (64, 64)), np.random.randint(0, 2, (64,))


def mlp() -> tuple[Any, Any, Any]:
    """Four layers of 512; batch 256."""
    hidden = [L.Dense(512, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((512,)), *hidden, L.Dense(10)])
    return model, np.random.normal(size=(256, 512)).astype("float32"), np.random.randint(0, 10, (256,))


MODELS: dict[str, Callable[[], tuple[Any, Any, Any]]] = {"lstm": lstm, "mlp": mlp}


# --- contenders -------------------------------------------------------------------------------------


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """TensorFlow's own check of every operation."""
    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


class Contender:
    """One way to train.

    Args:
        policy: what castiron is to enforce; None: plain Keras.
        base: the contender that its ratio is to.
    """

    def __init__(
        self, policy: Any = None, *, jit: bool = False, check: bool = False, base: str = "fit"
    ) -> None:
        self.policy, self.jit, self.check, self.base = policy, jit, check, base

    def prepare(self, name: str) -> Callable[[int], float]:
        """→ steps to seconds per step."""
        keras.utils.set_random_seed(0)
        model, x, y = MODELS[name]()
        if self.policy is not None:
            enforce(model, self.policy)
        model.compile(
            # it must not learn: gradients that fall to subnormal numbers take a CPU many times as long
            keras.optimizers.Adam(1e-7),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=self.jit,
        )
        data = tf.data.Dataset.from_tensors((x, y)).repeat()

        def run(steps: int) -> float:
            stamps = Stamps()
            with checked() if self.check else contextlib.nullcontext():
                model.fit(data, steps_per_epoch=steps + 1, shuffle=False, verbose=0, callbacks=[stamps])
            return statistics.median(b - a for a, b in zip(stamps.times, stamps.times[1:], strict=False))

        return run


class Stamps(keras.callbacks.Callback):
    """When each batch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.times.append(CLOCK())


PARAMETERS_TOO = {"guard": {"watch": ["loss", "gradients", "buffers", "parameters"]}}
CONTENDERS: dict[str, Contender] = {
    "fit": Contender(),
    "fit again": Contender(),
    "castiron": Contender("float32"),
    "castiron, parameters too": Contender({"preset": "float32", **PARAMETERS_TOO}),
    "enable_check_numerics": Contender(check=True),
    "fit, jit_compile": Contender(jit=True),
    "castiron, jit_compile": Contender("float32", jit=True, base="fit, jit_compile"),
    "enable_check_numerics, jit_compile": Contender(jit=True, check=True, base="fit, jit_compile"),
}


# --- measuring --------------------------------------------------------------------------------------


def compare(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Ratios to plain `fit`, and its milliseconds a step; what does not run at all says why."""
    runs: dict[str, Callable[[int], float]] = {}
    failed: dict[str, str] = {}
    for contender, how in CONTENDERS.items():
        run = how.prepare(name)
        try:
            run(2)
        except tf.errors.OpError as e:
            failed[contender] = _reason(str(e))
            continue
        runs[contender] = run
    times: dict[str, list[float]] = {c: [] for c in runs}
    order = list(runs)
    for _ in range(rounds):
        random.shuffle(order)
        for contender in order:
            times[contender].append(runs[contender](steps))
    others = [c for c in runs if c != "fit"]
    base = {c: times[CONTENDERS[c].base] for c in others}
    middle = {c: statistics.median(t / b for t, b in zip(times[c], base[c], strict=True)) for c in others}
    return {
        "model": name,
        "step_ms": round(1e3 * statistics.median(times["fit"]), 3),
        "ratios": {c: round(ratio, 4) for c, ratio in middle.items()},
        "ratios_of_least": {c: round(min(times[c]) / min(base[c]), 4) for c in others},
        "failed": failed,
    }


def _reason(said: str) -> str:
    return "No OpKernel for XLA" if "No registered" in said else said.strip().splitlines()[0][:60]


def machine() -> str:
    """One line."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        name = next(
            (x.partition(":")[2].strip() for x in text.splitlines() if x.startswith("model name")), name
        )
    threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    return f"{name}, {os.cpu_count()} cores, {threads} threads, {versions}"


PAGE_TEXT = """\
# What the guard costs in Keras

`{command}`, {date}: {where}.

Time of a training step of `model.fit` in graph mode relative to plain `fit`: the median over interleaved
rounds in one process, and in brackets the ratio of the least times, which other work on the machine disturbs
less. In the heading the milliseconds of plain `fit`. *fit again* is the control, `fit` against itself:
differences of that size mean nothing. With one thread it is the process's own time. The two last rows are
relative to *fit, jit_compile*.

| | {heads} |
|---|{rule}
{rows}

- *castiron* is `enforce(model, "float32")` and the model's own `fit`: the guard of loss, gradients and
  buffers, and the decision to commit or hold, in the compiled step. With *parameters too* it reads
  parameters after the update, and keeps what is needed to undo it.
- *lstm*: 20,000 words, embedding 128, hidden 128, batch 64, length 64. *mlp*: four layers of 512,
  batch 256. Adam.
- `tf.debugging.enable_check_numerics` looks at every operation. It raises on benign code as well, such as
  `tf.where(x > 0, tf.math.log(x), 0)` and a softmax under a mask of -inf, and does not run under XLA.
"""


def page(where: str, results: list[dict[str, Any]], command: str) -> str:
    """docs/benchmarks/keras.md"""
    rows = []
    for name in (c for c in CONTENDERS if c != "fit"):
        cells = (
            f"{r['ratios'][name]:.3f} ({r['ratios_of_least'][name]:.3f})"
            if name in r["ratios"]
            else f"fails: {r['failed'][name]}"
            for r in results
        )
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return PAGE_TEXT.format(
        command=command,
        date=datetime.date.today(),
        where=where,
        heads=" | ".join(f"{r['model']} ({r['step_ms']:.1f} ms)" for r in results),
        rule="---:|" * len(results),
        rows="\n".join(rows),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="bench.py keras", description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="steps of each contender in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(PAGE.parents[2])}")
    given = parser.parse_args(argv)
    tf.config.threading.set_intra_op_parallelism_threads(given.threads)
    tf.config.threading.set_inter_op_parallelism_threads(given.threads)
    if given.threads > 1:
        global CLOCK
        CLOCK = time.perf_counter
    results = []
    for name in given.models.split(","):
        results.append(compare(name, given.rounds, given.steps))
        print(json.dumps(results[-1], indent=1))
    if given.write:
        command = f"python scripts/bench.py keras --rounds {given.rounds} --steps {given.steps}"
        command += f" --threads {given.threads}"
        PAGE.write_text(page(machine(), results, command), encoding="utf-8")


if __name__ == "__main__":
    main()
