"""Near misses: what a misspelt key or word was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SYNONYMS = {
    # what other tools call it: the last part of our dotted key
    "learning_rate": "lr",
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "steps": "max_steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "gradient_clip_val": "clip_norm",
    "clip_grad_norm": "clip_norm",
    "max_grad_norm": "clip_norm",
    "accumulate_grad_batches": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "accelerator": "device",
    "callbacks": "early_stopping",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "sep": "delimiter",
    "torch_compile": "compile",
    "log_every_n_steps": "log_every",
    "val_check_interval": "validate_every",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "random_seed": "seed",
    "policy": "precision",
    "dtype": "precision",
    "framework": "backend",
}


def near(word: str, words: Iterable[str], most: int = 3) -> list[str]:
    """The words most like this one, best first; case and the choice of `-`, `_` or a blank do not count."""
    wanted = _plain(word)
    likeness = {w: difflib.SequenceMatcher(None, wanted, _plain(w)).ratio() for w in words}
    best = max(likeness.values(), default=0.0)
    if best < 0.6:
        return []
    # Only those about as like as the best: a list of everything helps nobody.
    close = [w for w, ratio in likeness.items() if ratio >= max(0.6, best - 0.1) and (ratio == 1 or best < 1)]
    return sorted(close, key=lambda w: -likeness[w])[:most]


def did_you_mean(words: Iterable[str]) -> str:
    """`Did you mean 'a' or 'b'?`, or nothing."""
    quoted = [f"'{w}'" for w in words]
    return f"Did you mean {' or '.join(quoted)}?" if quoted else ""


def near_key(key: str, siblings: Iterable[str], everywhere: Iterable[str]) -> list[str]:
    """What an unknown key was meant to be.

    Args:
        key: the dotted key as written.
        siblings: the keys that exist at its place (last parts only).
        everywhere: every dotted key of the config; asked when no sibling is like it.
    """
    parent, _, name = key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    siblings, everywhere = list(siblings), list(everywhere)
    ours = SYNONYMS.get(name.lower())
    if ours in siblings:
        return [f"{prefix}{ours}"]
    if close := near(name, siblings):
        return [f"{prefix}{s}" for s in close]
    by_name: dict[str, list[str]] = {}
    for k in everywhere:
        by_name.setdefault(k.rpartition(".")[2], []).append(k)
    if elsewhere := [*by_name.get(name, []), *by_name.get(ours or "", [])]:
        return elsewhere[:3]
    return [k for n in near(name, by_name) for k in by_name[n]][:3]


def _plain(word: str) -> str:
    return word.lower().replace("_", "-").replace(" ", "-")
