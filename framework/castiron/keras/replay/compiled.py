"""A gradient's formula as XLA has it."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def under_xla(run: Any) -> Any:
    """What a function gives under XLA; None where it gives None."""
    given: list[bool] = []
    single: list[bool] = []

    @tf.function(jit_compile=True, autograph=False)
    def compiled() -> list[Any]:
        results = run()
        single[:] = [tf.is_tensor(results)]
        results = [results] if single[0] else results
        given[:] = [r is not None for r in results]
        return [tf.convert_to_tensor(r) for r in results if r is not None]

    tf.config.run_functions_eagerly(False)
    try:
        found = iter(compiled())
    finally:
        tf.config.run_functions_eagerly(True)
    gave = [next(found) if there else None for there in given]
    return gave[0] if single[0] else gave
