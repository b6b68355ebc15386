"""Everything that reads what others wrote, and valid examples of what it reads.

A reader may take bytes, or refuse them with a CastironError (a policy's string form: with pydantic's
ValidationError). Anything else is a bug.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Target:
    """A reader."""

    read: Callable[[bytes, Path], Any]
    """Bytes and a folder to work in."""
    seeds: Callable[[], list[bytes]]
    """Valid examples, which are then changed."""
    refusals: tuple[str, ...] = ("CastironError",)
    """Names of the classes of errors that are refusals."""


def is_refusal(error: BaseException, target: Target) -> bool:
    return any(cls.__name__ in target.refusals for cls in type(error).__mro__)


def _written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- config and policy --------------------------------------------------------------------------------------


def _config(data: bytes, folder: Path) -> Any:
    from castiron.training.config_file import load_config

    return load_config(_written(folder, "config.yaml", data))


def _config_seeds() -> list[bytes]:
    return [
        b"recipe: lstm-sentiment\nseed: 3\nprecision: bf16-mixed\ndata: {batch_size: 8}\n",
        b"recipe: lstm-sentiment\nprecision:\n  preset: float32\n  layers:\n    head: {compute: float32}\n"
        b"optimizer: {name: adamw, lr: 1e-3, schedule: cosine}\ntrainer:\n  max_epochs: 3\n  ema: 0.9\n"
        b"guard: {every: 1, watch: [loss, gradients], response: hold, budget: {holds: 10, window: 100}}\n",
        b"a: &x [1, 2]\nb: *x\n<<: {c: 1}\n",
    ]


def _override(data: bytes, folder: Path) -> Any:
    from castiron.training import config_file

    with mock.patch.multiple(config_file, **_read_once()):
        return config_file.load_config("lstm-sentiment", [data.decode("utf-8", "replace")])


@functools.cache
def _read_once() -> dict[str, Any]:
    """What reads the recipe's own config, which is the same in every case."""
    from castiron.training import config_file

    return {
        name: functools.cache(getattr(config_file, name))
        for name in ("read_file", "packaged_configs", "default_config")
    }


def _policy(data: bytes, folder: Path) -> Any:
    from castiron.policy import PrecisionPolicy

    found = PrecisionPolicy.parse(data.decode("utf-8", "replace"))
    assert PrecisionPolicy.parse(str(found)) == found
    return found


# --- data ---------------------------------------------------------------------------------------------------


def _schema() -> Any:
    from castiron.data import Field, Schema

    return Schema.of(
        Field(name="id", role="id", dtype="int64"),
        Field(name="x", role="feature", dtype="float32"),
        Field(name="text", role="text"),
        Field(name="label", role="target", dtype="int64"),
    )


def _table(suffix: str, schema: Callable[[], Any] = _schema) -> Callable[[bytes, Path], Any]:
    def read(data: bytes, folder: Path) -> Any:
        from castiron.data import ReadOptions, load

        options = ReadOptions(digest=True)  # as a run reads it
        return load([_written(folder, f"data{suffix}", data)], schema(), options=options)

    return read


_COLUMNS = {"id": [1, 2, 3], "x": [0.5, -1.25, 3.0], "text": ["a b", "ä, “c”", ""], "label": [0, 1, 1]}


def _csv_seeds() -> list[bytes]:
    return [
        b"id,x,text,label\n1,0.5,a b,0\n2,-1e-3,c,1\n",
        'id,x,text,label\n1,0.5,a b,0\n2,-1.25,"ä, ""c""",1\n3,3e0,"two\nlines",1\n'.encode(),
        "\ufeffid,x,text,label\r\n1,0.5,,0\r\n".encode(),
        b"id,x,text,label\n9007199254740993,1e39,x,0\n,nan,y,1\n",
    ]


def _jsonl_seeds() -> list[bytes]:
    rows = [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*_COLUMNS.values(), strict=True)]
    return ["".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()]


def _parquet_seeds() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for compression in ("none", "snappy"):
        buffer = io.BytesIO()
        pq.write_table(pa.table(_COLUMNS), buffer, compression=compression)
        found.append(buffer.getvalue())
    return found


def _numbers() -> Any:
    from castiron.data import Field, Schema

    return Schema.of(
        Field(name="id", role="id", dtype="int64"),
        Field(name="x", missing="mean"),
        Field(name="label", role="target", dtype="int64"),
    )


def _numbers_seeds() -> list[bytes]:
    """Row groups large enough for columns to be read side by side."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 1 << 16
    labels = [i % 2 for i in range(rows)]
    table = pa.table({"id": labels, "x": [0.5, None] * (rows // 2), "label": labels})
    found = []
    for compression in ("none", "snappy"):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression=compression, write_page_checksum=compression == "none")
        found.append(buffer.getvalue())
    return found


def _npz_seeds() -> list[bytes]:
    import numpy as np

    buffer = io.BytesIO()
    arrays = {k: np.array(v) for k, v in _COLUMNS.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    return [buffer.getvalue(), packed.getvalue()]


def _fitted(data: bytes, folder: Path) -> Any:
    from castiron.data import FittedMissing

    return FittedMissing.load(_written(folder, "missing.json", data))


def _vocabulary(data: bytes, folder: Path) -> Any:
    from castiron.data import TextEncoder

    encoder = TextEncoder.load(_written(folder, "text.json", data))
    return encoder.encode("a good film \ud7ff\U0001f3ac")


def _vocabulary_seeds() -> list[bytes]:
    import tempfile

    from castiron.data import TextEncoder

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.json"
        TextEncoder(max_vocabulary=30, min_frequency=1).fit(["a good film", "a bad film, äh"]).save(path)
        return [path.read_bytes()]


def _fitted_seeds() -> list[bytes]:
    from castiron.data import FittedMissing

    return [FittedMissing().model_dump_json().encode(), b'{"values": {"x": 0.5}}']


# --- checkpoints --------------------------------------------------------------------------------------------


def _checkpoint(name: str) -> Callable[[bytes, Path], Any]:
    def read(data: bytes, folder: Path) -> Any:
        from castiron.training.inspection.inspect import inspect_file

        found = inspect_file(_written(folder, name, data))
        found.as_dict(), found.lines()
        return found

    return read


def _weights(name: str) -> Callable[[bytes, Path], Any]:
    def read(data: bytes, folder: Path) -> Any:
        from castiron.torch.weights import read_weights

        return read_weights(_written(folder, name, data))

    return read


def _torch_seeds() -> list[bytes]:
    import tempfile

    import torch

    from castiron.lightning.checkpoints import write_checkpoint
    from castiron.training.manifest import Manifest

    found = []
    state = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    for content, new in ((state, True), (state, False), ({"state_dict": state, "epoch": 1}, True)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        found.append(buffer.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        write_checkpoint({"state_dict": state}, Manifest(castiron="0", policy="float32", declared={}), path)
        found.append(path.read_bytes())
    return found


def _safetensors_seeds() -> list[bytes]:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    ).encode()
    return [len(header).to_bytes(8, "little") + header + bytes(8)]


def _keras_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1", "date_saved": "today"}')
        config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {}}]}}
        archive.writestr("config.json", json.dumps(config))
    return [buffer.getvalue()]


def _manifest(data: bytes, folder: Path) -> Any:
    from castiron.training.manifest import parse

    return parse(data, folder / "x.ckpt")


def _manifest_seeds() -> list[bytes]:
    record = {
        "format": 1, "castiron": "0.1", "policy": "float32", "declared": {"param": "float32"},
        "tensors": {"parameters": {"w": {"dtype": "float32", "shape": [2, 3]}}},
        "optimizers": [{"type": "AdamW", "groups": [1]}], "scaler": {"kind": "none"}, "plan": {"": {}},
    }  # fmt: skip
    return [json.dumps(record).encode()]


# --- folders ------------------------------------------------------------------------------------------------


def _incident(name: str) -> Callable[[bytes, Path], Any]:
    def read(data: bytes, folder: Path) -> Any:
        from castiron.training.incident_folder import IncidentFolder

        shutil.rmtree(folder / "incidents", ignore_errors=True)
        path = _incident_folder(folder)
        (path / name).write_bytes(data)
        found = IncidentFolder.open(path)
        return [found.bytes(n) for n in ("config.yaml", "batch.safetensors") if found.has(n)]

    return read


def _incident_folder(folder: Path) -> Path:
    from castiron.training.incident import Incident
    from castiron.training.incident_folder import write_incident

    record = Incident(
        code="N504", step=12, epoch=2, phase="forward", event="domain", message="log met 0", policy="float32",
        castiron="0.1.0",
    )  # fmt: skip
    files: dict[str, Any] = {"config.yaml": "seed: 17\n", "batch.safetensors": b"\0" * 100}
    return write_incident(folder / "incidents", record, facts={"scale": 2.0}, files=files)


def _incident_seeds(name: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            return [(_incident_folder(Path(folder)) / name).read_bytes()]

    return seeds


def _run_file(name: str) -> Callable[[bytes, Path], Any]:
    def read(data: bytes, folder: Path) -> Any:
        from castiron.training import RunDirectory

        run = RunDirectory(folder)
        _written(folder, name, data)
        if name == "metrics.jsonl":
            found: Any = run.metrics()
            run.trim_metrics(3)
        else:
            found = run.summary()
        return found

    return read


TARGETS: dict[str, Target] = {
    "config": Target(_config, _config_seeds),
    "override": Target(
        _override, lambda: [b"optimizer.lr=3e-4", b"precision={preset: bf16-mixed, loss: float32}", b"seed=1"]
    ),
    "policy": Target(
        _policy,
        lambda: [
            b"bf16-mixed",
            b"p=float32,c=bfloat16,layers.head.compute=float32",
            b"fp16-mixed,scaling=none",
        ],
        ("CastironError", "ValidationError"),
    ),
    "csv": Target(_table(".csv"), _csv_seeds),
    "tsv": Target(_table(".tsv"), lambda: [s.replace(b",", b"\t") for s in _csv_seeds()]),
    "jsonl": Target(_table(".jsonl"), _jsonl_seeds),
    "parquet": Target(_table(".parquet"), _parquet_seeds),
    "parquet-numbers": Target(_table(".parquet", _numbers), _numbers_seeds),
    "npz": Target(_table(".npz"), _npz_seeds),
    "vocabulary": Target(_vocabulary, _vocabulary_seeds),
    "fitted": Target(_fitted, _fitted_seeds),
    "inspect-torch": Target(_checkpoint("x.ckpt"), _torch_seeds),
    "inspect-safetensors": Target(_checkpoint("x.safetensors"), _safetensors_seeds),
    "inspect-keras": Target(_checkpoint("x.keras"), _keras_seeds),
    "weights-torch": Target(_weights("x.ckpt"), _torch_seeds),
    "weights-safetensors": Target(_weights("x.safetensors"), _safetensors_seeds),
    "manifest": Target(_manifest, _manifest_seeds),
    "incident": Target(_incident("incident.json"), _incident_seeds("incident.json")),
    "incident-state": Target(_incident("state.json"), _incident_seeds("state.json")),
    "metrics": Target(
        _run_file("metrics.jsonl"), lambda: [b'{"step": 1, "train/loss": 0.5}\n{"step": 2}\n{"step": 3, "tr']
    ),
    "summary": Target(_run_file("summary.json"), lambda: [b'{"status": "completed", "steps": 3}\n']),
}


# --- changing bytes -----------------------------------------------------------------------------------------

Edit = tuple[int, int, bytes]
"""What is done (0 to 6), where (any number), with which bytes."""
WORDS = (
    b"", b"\0", b"\xff", b"\n", b'"', b"'", b"{", b"[", b"}", b"]", b",", b":", b"-", b"null", b"NaN",
    b"1e999", b"-1", b"true", b"18446744073709551616", b"0.1", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"&a", b"*a", b"!!python/object:os.system", b"<<: ", b"[[[[[[[[", b'{"a":' * 20, b"PK\x05\x06",
    b"\xff" * 8,
    b"\x80" * 4, b"float32", b"float99", b"=", b".", b"..", b"a" * 300,
)  # fmt: skip
"""Bytes that mean something to some reader."""


def changed(data: bytes, edits: list[Edit]) -> bytes:
    """Bytes after some edits: flip a bit, insert, overwrite, delete, cut, double, replace all."""
    found = bytearray(data)
    for kind, where, new in edits:
        at = where % (len(found) + 1)
        if kind == 0 and found:
            found[at % len(found)] ^= 1 << (where // 7 % 8)
        elif kind == 1:
            found[at:at] = new
        elif kind == 2:
            found[at : at + len(new)] = new
        elif kind == 3:
            del found[at : at + 1 + where % 17]
        elif kind == 4:
            del found[at:]
        elif kind == 5:
            found[at:at] = found[at : at + 1 + where % 97]
        elif kind == 6 and len(found) < 100:
            found = bytearray(new)
    return bytes(found[:100_000])
