"""The reference of the Python API, read from the source without importing it: no framework is loaded.

A page per package, a section for each name of its `__all__`: signature and docstring, of the file that
defines it.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import castiron

ROOT = Path(castiron.__file__).parent
PACKAGES = (
    "castiron",
    "castiron.policy",
    "castiron.data",
    "castiron.training",
    "castiron.lightning",
    "castiron.torch",
    "castiron.keras",
    "castiron.health",
    "castiron.diagnostics",
)
"""The packages whose `__all__` people may rely on."""

Defined = ast.FunctionDef | ast.ClassDef


def api() -> dict[str, str]:
    """Name of a page → Markdown."""
    index = ["# API", "", "What the packages offer, read from their source.", ""]
    pages = {}
    for package in PACKAGES:
        tree = parse(package)
        first = (ast.get_docstring(tree) or "").split("\n")[0]
        index.append(f"- [{package}]({package}.md): {first}")
        pages[package] = page(package, tree)
    index += ["", "```{toctree}", ":hidden:", "", *PACKAGES, "```"]
    return {"index": "\n".join(index) + "\n", **pages}


def page(package: str, tree: ast.Module) -> str:
    """All public names of a package."""
    first, _, example = (ast.get_docstring(tree) or "").partition("\n\n")
    parts = [f"# {package}", "", first]
    if example:
        parts += ["", "```text", example, "```"]
    homes = imported(tree)
    for name in exported(tree):
        if name.startswith("__"):
            continue
        home, node, said = find(homes.get(name, package), name)
        parts += ["", f"## {name}", "", f"*{kind(node)}, of `{home}`*", ""]
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            parts += ["```python", *signature(node), "```", ""]
            said = ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            text = ast.unparse(node)
            if len(text) <= 200:
                parts += ["```python", text, "```", ""]
        parts += documentation(said)
        if isinstance(node, ast.ClassDef):
            for method in methods(node):
                parts += ["", f"**{method.name}**", "", "```python", *signature(method), "```", ""]
                parts += documentation(ast.get_docstring(method) or "")
    return "\n".join(parts).rstrip() + "\n"


# --- reading the source --------------------------------------------------------------------------------


def parse(module: str) -> ast.Module:
    base = ROOT.parent.joinpath(*module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def exported(tree: ast.Module) -> list[str]:
    """The names in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def imported(tree: ast.Module) -> dict[str, str]:
    """Name → module that it is imported from, of a package's top level and its `if TYPE_CHECKING`."""
    bodies = [tree.body, *(n.body for n in tree.body if isinstance(n, ast.If))]
    return {
        alias.asname or alias.name: node.module
        for body in bodies
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def find(module: str, name: str) -> tuple[str, ast.stmt | None, str]:
    """Where a name is defined, its definition, and the string under it."""
    tree = parse(module)
    for n, node in enumerate(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return module, node, ""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            below = tree.body[n + 1] if n + 1 < len(tree.body) else None
            text = below.value if isinstance(below, ast.Expr) else None
            return module, node, inspect.cleandoc(ast.literal_eval(text)) if text else ""
    further = imported(tree).get(name)
    return find(further, name) if further and further.startswith("castiron") else (module, None, "")


def methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """Public methods and properties that have a docstring."""
    found = (n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_"))
    return [n for n in found if ast.get_docstring(n)]


# --- showing it ----------------------------------------------------------------------------------------


def kind(node: ast.stmt | None) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    return "function" if isinstance(node, ast.FunctionDef) else "value"


def signature(node: Defined) -> list[str]:
    """The header of a function or class, one argument a line where there are many."""
    decorators = [f"@{ast.unparse(d)}" for d in node.decorator_list if ast.unparse(d) != "overload"]
    if isinstance(node, ast.ClassDef):
        made = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
        bases = ", ".join(ast.unparse(b) for b in node.bases)
        head = f"class {node.name}({bases})" if bases else f"class {node.name}"
        return [head] if made is None else [head, *arguments(f"{node.name}", made.args, None)]
    return [*decorators, *arguments(f"def {node.name}", node.args, node.returns)]


def arguments(name: str, given: ast.arguments, returns: ast.expr | None) -> list[str]:
    """On one line where it fits."""
    places = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(places) - len(given.defaults)) + list(given.defaults)
    pieces = [argument(a, d) for a, d in zip(places, defaults, strict=True) if a.arg not in ("self", "cls")]
    if given.vararg:
        pieces.append("*" + argument(given.vararg, None))
    elif given.kwonlyargs:
        pieces.append("*")
    pieces += [argument(a, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        pieces.append("**" + argument(given.kwarg, None))
    end = f" -> {ast.unparse(returns)}" if returns is not None else ""
    line = f"{name}({', '.join(pieces)}){end}"
    return [line] if len(line) <= 100 else [f"{name}(", *(f"    {piece}," for piece in pieces), f"){end}"]


def argument(given: ast.arg, default: ast.expr | None) -> str:
    text = f"{given.arg}: {ast.unparse(given.annotation)}" if given.annotation else given.arg
    if default is None:
        return text
    return f"{text} = {ast.unparse(default)}" if given.annotation else f"{text}={ast.unparse(default)}"


SECTIONS = ("Args:", "Returns:", "Raises:", "Yields:", "Example:", "Attributes:", "Call arguments:")


def documentation(text: str) -> list[str]:
    """A docstring: paragraphs as they are; sections and what is indented as they were typed."""
    if not text:
        return []
    parts, block = [], []

    def close() -> None:
        if block:
            while block and not block[-1].strip():
                block.pop()
            parts.extend(["", "```text", *block, "```", ""])
            block.clear()

    for line in inspect.cleandoc(text).splitlines():
        if (
            line.strip() in SECTIONS
            or (line.startswith(" ") and line.strip())
            or (block and not line.strip())
        ):
            block.append(line)
            continue
        close()
        parts.append(line.replace("<", "\\<").replace("[", "\\["))
    close()
    return parts
