"""One decision for the processes of a recipe's training, in the graph of a step.

Each process has the whole model, in variables of its own. Keras's `fit` does not train under TensorFlow's
`MultiWorkerMirroredStrategy` (3.15: it fails before the first step, where it takes the mean over the workers'
first batches), so of the strategy only its collective operations are used: a step runs within
`strategy.run`, sums gradients over all processes, and agrees on one verdict. All processes run the same
collectives in the same order, whatever else differs in their graphs (rank 0 measures).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from castiron.keras.modules import walk
from castiron.keras.peers import ClusterPeers
from castiron.keras.replicas import Alone
from castiron.training.stopping import Reason

_CODES: tuple[Reason | None, ...] = (None, "stopped", "interrupted")
_SEED_STEP = 0x9E3779B9


class Workers(Alone):
    """The processes, in the function that `run` wraps."""

    def __init__(self, peers: ClusterPeers) -> None:
        self.count, self._rank, self._strategy = peers.world, peers.rank, peers.strategy
        # Plain variables: the host writes the first and reads the second, once a step.
        self._asks = tf.Variable(0.0, trainable=False, name="asks_to_stop")
        self._asked = tf.Variable(0.0, trainable=False, name="was_asked_to_stop")
        self._shared: list[Any] = []
        self._common: set[int] = set()

    def run(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """A function of one argument, to be compiled, whose steps exchange with those of the others."""
        return lambda given: self._strategy.run(function, args=(given,))

    # --- in the graph ------------------------------------------------------------------------------

    def gradients(self, gradients: Sequence[Any]) -> list[Any]:
        """The mean over all processes: each has as many rows in a step, and takes its loss as their mean."""
        present = [g for g in gradients if g is not None]
        summed = iter(_sums(present))
        return [None if g is None else next(summed) / self.count for g in gradients]

    def agree(self, good: Any, loss: Any) -> tuple[Any, Any]:
        wide = tf.float64 if loss.dtype == tf.float64 else tf.float32
        bad = tf.cast(tf.logical_not(good), wide)
        of_all = _sums([tf.stack([bad, tf.cast(self._asks, wide), tf.cast(loss, wide)])])[0]
        self._asked.assign(tf.cast(of_all[1], tf.float32))
        return tf.equal(of_all[0], 0.0), tf.cast(of_all[2] / self.count, loss.dtype)

    def settle(self) -> None:
        """Give all processes rank 0's buffers: each has taken statistics of rows of its own."""
        self._from_first(self._shared)

    # --- on the host -------------------------------------------------------------------------------

    def share(self, model: Any) -> None:
        """The model whose buffers are rank 0's after each step; recurrent states are each process's own."""
        buffers = [v._value for _, layer in walk(model) for v in layer._non_trainable_variables]
        self._shared = [v for v in {id(v): v for v in buffers}.values() if v.dtype.is_floating]
        self._common = {id(v) for v in (*self._shared, *(v._value for v in model.trainable_variables))}

    def own(self, volatile: Sequence[Any]) -> list[Any]:
        """Of the tf.Variables that a step changes before its optimizer does, those of this process alone."""
        return [v for v in volatile if id(v) not in self._common]

    def asked(self, own: Reason | None) -> Reason | None:
        """Whether all stop now: one of them was asked to before the step that was taken last.

        Args:
            own: what this process was asked; the others learn of it with the next step.
        """
        found = int(self._asked.numpy())
        self._asks.assign(_CODES.index(own))
        # Of two that were asked, the codes add up.
        return _CODES[min(found, len(_CODES) - 1)]

    def begin(self, parameters: Sequence[Any], seeds: Sequence[Any]) -> None:
        """Before the first step of a new run: rank 0's parameters for all, random numbers of its own for
        each.

        Args:
            parameters: tf.Variables.
            seeds: states of seed generators, as tf.Variables: a seed, and how much was drawn.
        """
        start = [v for v in parameters if v.dtype.is_floating]
        tf.function(self.run(lambda _: self._from_first(start)), autograph=False)(tf.constant(0))
        self.draw_apart(seeds)

    def draw_apart(self, seeds: Sequence[Any]) -> None:
        """Let the generators of each process draw other random numbers."""
        for state in seeds:
            value = state.numpy()
            value[0] = (int(value[0]) + self._rank * _SEED_STEP) % 2**31
            state.assign(value)

    def _from_first(self, variables: Sequence[Any]) -> None:
        if not variables:
            return
        values = [tf.convert_to_tensor(v) for v in variables]
        given = values if self._rank == 0 else [tf.zeros_like(v) for v in values]
        for variable, value in zip(variables, _sums(given), strict=True):
            variable.assign(value)


def _sums(tensors: Sequence[Any]) -> list[Any]:
    """Sums over all processes; a format at a time, as TensorFlow packs them into one."""
    context = tf.distribute.get_replica_context()
    found: list[Any] = [None] * len(tensors)
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
        # What is read from a variable has no device of its own, which TensorFlow takes for nowhere to go.
        given = [tf.identity(tensors[i]) for i in places]
        summed = context.all_reduce(tf.distribute.ReduceOp.SUM, given)
        for place, value in zip(places, summed, strict=True):
            value.set_shape(tensors[place].shape)
            found[place] = value
    return found


def seed_states(model: Any) -> list[Any]:
    """tf.Variables: the states of the generators that layers draw from (dropout)."""
    found = [
        generator.state._value
        for layer in model._flatten_layers()
        for generator in getattr(layer, "_seed_generators", ())
    ]
    return list({id(v): v for v in found}.values())
