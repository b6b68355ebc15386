"""From what was recorded to what is to blame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from castiron.torch.replay.backward import NodeRun
from castiron.torch.replay.explain import remedy, sentence
from castiron.torch.replay.names import moves, node_name
from castiron.torch.replay.recorder import Recorder
from castiron.torch.replay.rows import batch_rows
from castiron.torch.replay.step import ReplayStep
from castiron.torch.replay.tracker import Call, Origin, Value, ancestors, ancestry, path_from
from castiron.torch.replay.values import State, bad_along, named_tensors, statistics
from castiron.training.event_words import CODES, bad_field, rows_text
from castiron.training.incident import Attribution, Event, Link, Phase, Producer
from castiron.training.source_lines import source

_LINKS = 10


@dataclass(slots=True)
class Blame:
    """What is to blame, and which rows look so."""

    attribution: Attribution
    rows: list[int] | None
    """Rows that look bad; empty where rows are not to blame; None: unknown."""
    certain: bool = False
    """Whether those rows need no trial."""


def find(
    recorder: Recorder,
    loss: Tensor | None,
    seen: Mapping[str, Sequence[str]],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    step: ReplayStep,
) -> Blame:
    """What made a micro-batch bad.

    Args:
        seen: which of loss, gradients and buffers are bad after it.
    """
    value = recorder.tracker.value
    ends: list[Value] = []
    tail: list[Link] = []
    if "loss" in seen and loss is not None:
        ends = [value(loss)]
        tail = [Link(what="loss", phase="loss")]
    elif recorder.bad_roots:
        ends = recorder.bad_roots
        tail = [Link(what="loss", phase="loss")]
    elif "gradients" in seen:
        found = recorder.backward.producer({id(parameters[n]) for n in seen["gradients"]})
        if found is None:
            return _sum_overflowed(recorder, seen["gradients"], parameters, step)
        run, way = found
        owner = recorder.backward.owner(run.node)
        last = Link(what=f"gradient of {_end(way, parameters) or seen['gradients'][0]}", phase="backward")
        tail = [*_nodes(recorder, [run, *way]), last]
        spoiled = [*owner.bad_operands, *(r for r in owner.results if _is_bad(r))] if owner else []
        if not spoiled:
            return _in_backward(recorder, run, owner, tail, step)
        ends = spoiled
    else:
        ends = [value(buffers[n]) for n in seen["buffers"]]
        tail = [Link(what=f"buffer {n}", phase="forward") for n in seen["buffers"]]
    calls, origins = ancestry(ends)
    if origins:
        return _was_there(origins, ends, calls, recorder, tail, parameters, buffers, step)
    producer = next((c for c in reversed(calls) if c.produces), None)
    if producer is None:
        return Blame(not_reproduced(step, compiled=False), [])
    return _in_forward(recorder, producer, ends, tail, seen, step)


# --- where it began --------------------------------------------------------------------------------------


def _in_forward(
    recorder: Recorder,
    call: Call,
    ends: Sequence[Value],
    tail: list[Link],
    seen: Mapping[str, Sequence[str]],
    step: ReplayStep,
) -> Blame:
    evidence = call.evidence
    event: Event = evidence.event if evidence else "overflow"
    op = evidence.op if evidence else call.op
    operands, results = (evidence.operands, evidence.results) if evidence else ((), ())
    phase = phase_of(recorder, call)
    dtype = results[0].dtype if results else None
    code = CODES[event]
    message = sentence(op, event, operands, results)
    rows = evidence.rows if evidence else None
    if event == "zero-over-zero" and phase == "loss" and "loss" in seen and "gradients" not in seen:
        code = "N511"
        message += "; every gradient is finite, so the weights were never in danger"
    if event == "inherited" or (operands and operands[0].shape[:1] == (0,)):
        rows = []
    return Blame(
        Attribution(
            code=code,
            phase=phase,
            event=event,
            message=message,
            producer=Producer(
                op=op,
                module=call.module,
                source=source(call.lines),
                time_index=evidence.time_index if evidence and evidence.time_index is not None
                else loop_index(recorder, call),
            ),
            operands=operands,
            results=results,
            chain=tuple(_shortened([*_links(recorder, path_from(call, list(ends))[1:]), *tail])),
            remedy=remedy(op, event, call.module, dtype, step.scale, phase),
        ),
        rows,
    )  # fmt: skip


def _in_backward(
    recorder: Recorder, run: NodeRun, owner: Call | None, tail: list[Link], step: ReplayStep
) -> Blame:
    evidence, op = run.evidence, node_name(run.node)
    event: Event = evidence.event if evidence else "overflow"
    operands, results = (evidence.operands, evidence.results) if evidence else ((), ())
    if run.got_bad:  # finite gradients whose sum is not
        event = "overflow"
    message = sentence(op, event, operands, results)
    if step.scale > 1 and event == "overflow":
        message += f"; the loss is scaled by {step.scale:g}"
    dtype = results[0].dtype if results else None
    module = owner.module if owner else None
    return Blame(
        Attribution(
            code=CODES[event],
            phase="backward",
            event=event,
            message=message,
            producer=Producer(
                op=op,
                module=module,
                source=source(owner.lines) if owner else None,
                time_index=loop_index(recorder, owner) if owner else None,
            ),
            operands=operands,
            results=results,
            chain=tuple(_shortened(tail[1:])),
            remedy=remedy(op, event, module, dtype, step.scale, "backward"),
        ),
        None,
    )


def _sum_overflowed(
    recorder: Recorder, names: Sequence[str], parameters: Mapping[str, Tensor], step: ReplayStep
) -> Blame:
    name = names[0]
    gradient = parameters[name].grad
    watched = any(
        getattr(run.node, "variable", None) is parameters[name] for run in recorder.backward.runs.values()
    )
    message = f"The gradient of {name} overflows where its parts are added up"
    if not watched:
        message = (
            f"The gradient of {name} is made by a backward inside of backward, which replay does not see"
        )
    results = (statistics("gradient", gradient),) if gradient is not None else ()
    return Blame(
        Attribution(
            code=CODES["overflow"],
            phase="backward",
            event="overflow",
            message=message,
            producer=Producer(op="AccumulateGrad", module=name.rpartition(".")[0], parameter=name),
            results=results,
            remedy=remedy("sum", "overflow", None, None, step.scale, "backward")
            if watched
            else "Use `torch.utils.checkpoint.checkpoint(…, use_reentrant=False)`: replay sees into that.",
        ),
        None,
    )


def _was_there(
    origins: Sequence[Value],
    ends: Sequence[Value],
    calls: Sequence[Call],
    recorder: Recorder,
    tail: list[Link],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    step: ReplayStep,
) -> Blame:
    """A bad value was there before the first operation: in the data, in a parameter or a buffer."""
    known = [v.origin for v in origins if v.origin is not None]
    origin = min(known, key=lambda o: ("batch", "parameter", "buffer").index(o.kind)) if known else None
    first = calls[-1] if calls else None
    chain = tuple(_shortened([*_links(recorder, sorted(calls, key=lambda c: c.index)), *tail]))
    line = source(first.lines) if first else None
    if origin is None:
        op = first.op if first else None
        return Blame(
            Attribution(
                code=CODES["inherited"],
                phase="forward",
                event="inherited",
                message=f"{op or 'An operation'} was given a tensor that was bad before the step began",
                producer=Producer(op=op, module=first.module if first else None, source=line),
                chain=chain,
                remedy="It is neither a parameter, nor a buffer, nor of the batch: look where it is made.",
            ),
            None,
        )
    if origin.kind == "batch":
        return _data_fault(origin, chain, step)
    tensor = parameters[origin.name] if origin.kind == "parameter" else buffers[origin.name]
    where = bad_along(tensor, 0, infinities=True) if tensor.dim() else []
    some = 0 < len(where) < tensor.shape[0] if tensor.dim() else False
    places = f", in {rows_text(where)} of {tensor.shape[0]:,}" if some and tensor.dim() > 1 else ""
    came = _came_from(origin.name, tensor, step)
    return Blame(
        Attribution(
            code=CODES["inherited"],
            phase="forward",
            event="inherited",
            message=f"{origin.kind.capitalize()} '{origin.name}' was not finite before the step"
            f"{places}{came}",
            producer=Producer(
                op=first.op if first else None,
                module=origin.name.rpartition(".")[0],
                parameter=origin.name,
                source=line,
            ),
            operands=(statistics(origin.name, tensor),),
            chain=chain,
            remedy=f"Go back to a checkpoint in which '{origin.name}' is finite. `guard: {{watch: [loss, "
            "gradients, buffers, parameters]}` stops at the step that spoils a parameter.",
        ),
        None,
    )


def _came_from(name: str, tensor: Tensor, step: ReplayStep) -> str:
    """Whether an optimizer's state is bad as well: then its step wrote the parameter."""
    for optimizer in step.optimizers:
        for key, value in optimizer.state.get(tensor, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                return f"; so is '{key}' of {type(optimizer).__name__}: an earlier step of it wrote both"
    return ""


def _data_fault(origin: Origin, chain: tuple[Link, ...], step: ReplayStep) -> Blame:
    for batch in step.batches:
        for name, tensor in named_tensors(batch):
            if (name or "batch") != origin.name or not bad_along(tensor, 0, infinities=True):
                continue
            of = batch_rows(batch)
            rows = None
            if of is not None and tensor.shape[0] == of:
                rows = bad_along(tensor, 0, infinities=True)
            found = bad_field(origin.name, rows, of, statistics(origin.name, tensor), chain)
            return Blame(found, rows, certain=rows is not None)
    raise AssertionError(origin)


def not_reproduced(step: ReplayStep, compiled: bool) -> Attribution:
    """The replay was clean."""
    seen = ", ".join(step.verdict.seen) or "the step"
    if compiled:
        message = (
            f"The guard saw NaN or infinity in {seen}; run eagerly, with nothing compiled, the step is finite"
        )
        todo = (
            "Where the model was compiled, the compiled code and the written one disagree: train with "
            "`trainer.compile=false`, and report the incident's folder to PyTorch."
        )
    else:
        message = f"The guard saw NaN or infinity in {seen}; run again the step is finite"
        todo = (
            "The model is not to blame for what does not come back: look at operations that are not "
            "deterministic, at memory that another stream writes, at the device (`rank` says which)."
        )
    return Attribution(
        code=CODES["not-reproduced"],
        phase="forward" if "loss" in step.verdict.seen else "backward",
        event="not-reproduced",
        message=message,
        remedy=todo,
        reproduced=False,
    )


# --- places ----------------------------------------------------------------------------------------------


def phase_of(recorder: Recorder, call: Call) -> Phase:
    """`loss` for what runs in a loss module, or outside of the model after its last layer."""
    if call.in_loss:
        return "loss"
    if call.module is not None:
        return "forward"
    return "loss" if all(m.end is not None and m.end <= call.index for m in recorder.modules) else "forward"


def loop_index(recorder: Recorder, call: Call) -> int | None:
    """Which time round a recurrent loop a call ran, from 0; None where it ran once, or in no recurrence."""
    keys = {c.index: (c.op, c.module, c.lines) for c in recorder.tracker.calls}
    mine = keys[call.index]
    same = [i for i, key in keys.items() if key == mine]
    if len(same) < 2:
        return None
    before = Counter(keys[i] for i in ancestors(call) if i in keys)
    before[mine] += 1
    recurrent = any(n > 1 for n in before.values())
    return sorted(same).index(call.index) if recurrent or call.index == min(same) else None


def _links(recorder: Recorder, calls: Sequence[Call]) -> list[Link]:
    return [
        Link(what=c.op, module=c.module, phase=phase_of(recorder, c), source=source(c.lines))
        for c in calls
        if not moves(c.op)
    ]


def _nodes(recorder: Recorder, runs: Sequence[NodeRun]) -> list[Link]:
    found = []
    for run in runs:
        if hasattr(run.node, "variable"):
            continue
        owner = recorder.backward.owner(run.node)
        found.append(
            Link(
                what=node_name(run.node),
                module=owner.module if owner else None,
                phase="backward",
                source=source(owner.lines) if owner else None,
            )
        )
    return found


def _end(way: Sequence[NodeRun], parameters: Mapping[str, Tensor]) -> str | None:
    last = getattr(way[-1].node, "variable", None) if way else None
    return next((n for n, p in parameters.items() if p is last), None)


def _shortened(links: list[Link]) -> list[Link]:
    return links if len(links) <= _LINKS else [*links[: _LINKS // 2], *links[-_LINKS // 2 :]]


def _is_bad(value: Value) -> bool:
    return value.state is State.BAD
