"""Findings as SARIF 2.1.0, as GitHub code scanning and editors read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from castiron.diagnostics.catalogue import RULES
from castiron.diagnostics.finding import Finding

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVEL = {"error": "error", "warning": "warning", "info": "note"}


def as_sarif(
    findings: Sequence[Finding],
    *,
    waived: Sequence[Finding] = (),
    root: Path | None = None,
    version: str = "",
    default_file: str | None = None,
) -> str:
    """A SARIF log of one run.

    Args:
        findings: what was found.
        waived: what was found and is not to be reported: results with a suppression.
        root: the checkout; files below it are named relative to it, as code scanning wants them.
        version: castiron's.
        default_file: the file that findings without one are shown at (the config). Code scanning drops
            results without a file.
    """
    codes = sorted({f.code for f in (*findings, *waived)})
    index = {code: i for i, code in enumerate(codes)}
    base = (root or Path.cwd()).resolve()
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "castiron",
                        "semanticVersion": version or "0.0.0",
                        "informationUri": "https://github.com/castiron-ml/castiron",
                        "rules": [_rule(code) for code in codes],
                    }
                },
                "originalUriBaseIds": {"SRCROOT": {"uri": base.as_uri() + "/"}},
                "columnKind": "unicodeCodePoints",
                "results": [
                    *(_result(f, index, base, default_file) for f in findings),
                    *(
                        {**_result(f, index, base, default_file), "suppressions": [{"kind": "inSource"}]}
                        for f in waived
                    ),
                ],
            }
        ],
    }
    return json.dumps(log, indent=2, ensure_ascii=False, default=str) + "\n"


def _rule(code: str) -> dict[str, Any]:
    rule = RULES[code]
    return {
        "id": rule.code,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.what},
        "fullDescription": {"text": f"{rule.what} {rule.why}"},
        "help": {"text": rule.remedy, "markdown": _markdown(rule.remedy, rule.bad, rule.good)},
        "defaultConfiguration": {"level": _LEVEL[rule.severity]},
    }


def _markdown(remedy: str, bad: str, good: str) -> str:
    parts = [remedy]
    for title, code in (("Bad", bad), ("Good", good)):
        if code:
            parts.append(f"**{title}**\n\n```python\n{code}\n```")
    return "\n\n".join(parts)


def _result(f: Finding, index: dict[str, int], base: Path, default_file: str | None) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": f.code,
        "ruleIndex": index[f.code],
        "level": _LEVEL[f.severity],
        "message": {"text": " ".join(part for part in (f.sentence(), f.remedy) if part)},
    }
    location: dict[str, Any] = {}
    file = f.place.file or default_file
    if file is not None:
        location["physicalLocation"] = {"artifactLocation": _artifact(file, base)}
        region: dict[str, int] = {"startLine": f.place.line or 1}
        if f.place.column is not None:
            region["startColumn"] = f.place.column
        location["physicalLocation"]["region"] = region
    if f.place.module is not None:
        name = f.place.module or "model"
        location["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "member"}]
    if location:
        result["locations"] = [location]
    if f.count > 1:
        result["occurrenceCount"] = f.count
    return result


def _artifact(file: str, base: Path) -> dict[str, str]:
    path = Path(file)
    if not path.is_absolute():
        return {"uri": quote(path.as_posix()), "uriBaseId": "SRCROOT"}
    try:
        return {"uri": quote(path.resolve().relative_to(base).as_posix()), "uriBaseId": "SRCROOT"}
    except ValueError:
        return {"uri": path.as_uri()}
