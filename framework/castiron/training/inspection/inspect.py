"""`inspect_file`: which kind of checkpoint a file is, and what is in it. Nothing in it is executed."""

from __future__ import annotations

import zipfile
from pathlib import Path

from castiron.diagnostics import CastironError, Finding, ManifestError, Place, finding
from castiron.training.checkpoint_file import check_is_file, damage, damaged, is_sealed
from castiron.training.inspection import keras_files, torch_files
from castiron.training.inspection.report import Inspection
from castiron.training.inspection.safetensors import header
from castiron.training.manifest import read_manifest


def inspect_file(path: Path) -> Inspection:
    """Look into a checkpoint of any origin.

    Raises:
        ManifestError: it is no checkpoint (C616), or so damaged that nothing can be read (C601).
    """
    kind = _kind(path)
    size = path.stat().st_size
    findings: list[Finding] = []
    seal = "none"
    if kind in ("torch", "safetensors"):
        reason = damage(path)
        if reason:
            seal = f"broken: {reason}"
            findings += damaged(path, reason).findings
        elif is_sealed(path):
            seal = "intact"
    try:
        manifest = read_manifest(path) if kind in ("torch", "safetensors") else None
        if kind == "safetensors":
            words, tensors = header(path)
            facts = {k: v for k, v in words.items() if len(v) <= 200}
            name, code = "safetensors", list[str]()
        elif kind == "keras":
            name, tensors, facts, code = keras_files.look_into(path)
        else:
            name, tensors, facts, code = torch_files.look_into(path)
    except CastironError as e:
        if findings:  # the seal has said it already
            raise ManifestError(findings) from None
        raise e from None
    if manifest is not None:
        name += " of castiron"
    if code:
        findings.append(
            finding(
                "C617",
                "Loading this file without care would run code that it names.",
                place=Place(file=str(path)),
                expected="tensors, numbers, text",
                received=", ".join(code[:10]) + (" …" if len(code) > 10 else ""),
                severity="warning",
            )
        )
    return Inspection(
        path=path,
        kind=name,
        size=size,
        tensors=tensors,
        facts=facts,
        manifest=manifest,
        seal=seal,
        findings=tuple(findings),
    )


def _kind(path: Path) -> str:
    try:
        check_is_file(path)
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as e:
        raise damaged(path, (e.strerror or str(e)).lower()) from None
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "keras"
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError):
            return "torch"  # which says how it is damaged
        if any(n.endswith(".pkl") for n in names):
            return "torch"
        if "config.json" in names or "metadata.json" in names:
            return "keras"
    elif path.suffix == ".safetensors" or (len(head) > 8 and head[8:9] == b"{" and head[5:8] == b"\0\0\0"):
        return "safetensors"
    elif head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"
    if not head:
        raise damaged(path, "it is empty")
    raise ManifestError(
        finding(
            "C616",
            "The file is no checkpoint.",
            place=Place(file=str(path)),
            expected="torch, Lightning, safetensors, .keras or HDF5",
            received=f"a file that begins with {head[:8]!r}",
        )
    )
