"""A resolved config as YAML that people can read and that reads back to the same values."""

from __future__ import annotations

import io
import math
from typing import Any

MAX_FLOW = 80


def as_yaml(tree: dict[str, Any], header: str = "") -> str:
    """YAML 1.2 in block style; short lists and mappings without nesting on one line."""
    from ruamel.yaml import YAML

    yaml = YAML(pure=True)
    yaml.width = 4096
    yaml.representer.add_representer(float, _float)
    yaml.representer.add_representer(str, _text)
    yaml.representer.add_representer(type(None), _null)
    out = io.StringIO()
    yaml.dump(_styled(tree, root=True), out)
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + out.getvalue()


def _styled(value: Any, *, root: bool = False) -> Any:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    styled: Any
    if isinstance(value, dict):
        styled = CommentedMap({str(k): _styled(v) for k, v in value.items()})
    elif isinstance(value, list):
        styled = CommentedSeq([_styled(v) for v in value])
    elif value is None:
        return None
    else:
        return value
    if not root and _is_flat(value) and len(str(value)) <= MAX_FLOW:
        styled.fa.set_flow_style()
    return styled


def _is_flat(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value
    return not any(isinstance(v, dict | list) and v for v in inner)


def _null(representer: Any, value: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _text(representer: Any, value: str) -> Any:
    """Quoted where reading back would give something else.

    With escapes where a character is not to be seen: other line breaks would read as blanks. And where it
    begins like a complex key: ruamel.yaml writes it plainly into a list on one line, and reads it as a key.
    """
    style = '"' if not value.isprintable() or value.startswith(("?", ":", "-")) else None
    return representer.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _float(representer: Any, value: float) -> Any:
    """The shortest digits that read back to the same value; always with a point or an exponent."""
    if math.isnan(value):
        text = ".nan"
    elif math.isinf(value):
        text = ".inf" if value > 0 else "-.inf"
    else:
        text = repr(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", text)
