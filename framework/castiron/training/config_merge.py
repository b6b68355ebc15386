"""Layers of a config laid over each other: the recipe's default config, the file, the arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from castiron.diagnostics import Place
from castiron.policy.short_form import parse_short_form
from castiron.training.config import SHORT_FORMS, RunConfig
from castiron.training.config_errors import models_at
from castiron.training.yaml_reader import Document, KeyPath, dotted

IsOpen = Callable[[KeyPath], bool]


class Merged:
    """The merged tree, and where each of its keys and values was stated last."""

    def __init__(self, layers: Sequence[Document] = (), *, is_open: IsOpen | None = None) -> None:
        self._is_open = is_open or _is_open
        self.tree: dict[str, Any] = {}
        self._keys: dict[KeyPath, Place] = {}
        self._values: dict[KeyPath, Place] = {}
        for layer in layers:
            self.lay(layer)

    def lay(self, layer: Document) -> None:
        """Lay a document over what is there.

        Sections are merged key by key, all else is replaced. Mappings whose keys the user chooses (columns,
        layer rules) are merged by an argument and replaced by a file: what a file states there is all of it.
        """
        self._lay(self.tree, layer.tree, (), layer)
        if () in layer.values:
            self._values[()] = layer.values[()]

    def locate(self, path: KeyPath, of_key: bool = False) -> Place:
        """The place of a key or of its value; of the nearest mapping around it where it is not stated."""
        key = dotted(path) or None
        for n in range(len(path), -1, -1):
            places = (self._keys, self._values) if of_key and n == len(path) else (self._values, self._keys)
            for known in places:
                if found := known.get(path[:n]):
                    return dataclasses.replace(found, key=key)
        return Place(key=key)

    def states(self, path: KeyPath) -> bool:
        """Whether any layer states this key."""
        return path in self._keys

    def _lay(self, below: dict[str, Any], above: Mapping[str, Any], path: KeyPath, layer: Document) -> None:
        for key, value in above.items():
            here = (*path, key)
            if key in below and isinstance(value, Mapping):
                self._spell_out(below, key, here)
            under = below.get(key)
            replaced = () in layer.values and self._is_open(here)
            mappings = isinstance(under, dict) and isinstance(value, Mapping) and not replaced
            if isinstance(under, dict) and mappings and not _other_kind(under, value):
                self._lay(under, value, here, layer)
                if here in layer.keys:
                    self._keys[here] = layer.keys[here]
                continue
            for places, stated in ((self._keys, layer.keys), (self._values, layer.values)):
                for p in [p for p in places if p[: len(here)] == here]:
                    del places[p]
                places.update({p: place for p, place in stated.items() if p[: len(here)] == here})
            below[key] = _copy(value)

    def _spell_out(self, below: dict[str, Any], key: str, here: KeyPath) -> None:
        """`precision: bf16-mixed` under `precision: {output: …}` becomes `{preset: bf16-mixed}`."""
        stands_for = SHORT_FORMS.get(tuple(str(p) for p in here))
        value = below[key]
        if stands_for is None or isinstance(value, Mapping) or value is None:
            return
        spelt: dict[str, Any] = {stands_for: value}
        if here == ("precision",) and isinstance(value, str) and "=" in value:
            try:
                spelt = parse_short_form(value)
            except ValueError:
                return
        below[key] = spelt
        place = self._values.get(here)
        if place is not None:
            self._values |= {(*here, name): place for name in spelt}


def _is_open(path: KeyPath) -> bool:
    """Whether the keys below this path are the user's own choice."""
    return not models_at(RunConfig, path) and path != ("model",)


def _other_kind(under: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Whether two mappings are different members of a union told apart by `kind`: nothing carries over."""
    return "kind" in above and "kind" in under and under["kind"] != above["kind"]


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value
