"""X83x: several processes that train together."""

from __future__ import annotations

from castiron.diagnostics.rules.rule import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        code="X830",
        name="ranks-differ",
        severity="error",
        what="A process of a training has another config, other code, data or library versions than rank 0.",
        why="Each would compute its share of another training, and their mean is none at all.",
        remedy="Give all processes the same command, files and environment.",
        bad="a machine of two with another version of torch",
        good="the same container on all machines",
    ),
    Rule(
        code="X831",
        name="rank-lost",
        severity="error",
        what="A process of a training ended unexpectedly, or gave no answer within trainer.timeout.",
        why="The others would wait for it for ever; so they are ended too.",
        remedy="Look at what ended it (memory, the machine); go on with castiron train --resume RUN.",
        bad="one of four processes is killed for lack of memory",
        good="a smaller data.batch_size",
    ),
)
