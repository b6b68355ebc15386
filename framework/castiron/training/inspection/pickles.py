"""Pickles, read for what they say, never for what they would do.

Nothing that a pickle names is imported or called: an inert stand-in takes the place of every global. The
unpickler is Python's own, not the C one, whose memo a few bytes can make gigabytes large.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

MOST_PICKLE = 64 << 20
"""Bytes of a pickle that are read."""
_MOST_OPERATIONS = 20_000_000

SAFE = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_sparse_tensor",
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
        "torch._utils._rebuild_meta_tensor_no_storage",
        "torch._utils._rebuild_qtensor",
        "torch._utils._rebuild_nested_tensor",
        "torch._tensor._rebuild_from_type_v2",
        "torch.serialization._get_layout",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.UninitializedParameter",
        "torch.Tensor",
        "torch.Size",
        "torch.device",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "torch.storage._load_from_bytes",
    }
)
"""Names that build tensors and no more; dtypes and storages of torch beside them."""


class Unreadable(ValueError):
    """What is no pickle, or too large to be looked into."""


class Named:
    """Stands for a global of a pickle. Calling it keeps the arguments, and calls nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Made:
        return Made(self.name, arguments)


class Made:
    """Stands for an object that a pickle would make."""

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.items: dict[Any, Any] = {}
        self.state: Any = None

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.items[len(self.items)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    def add(self, value: Any) -> None:
        self.append(value)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle._Unpickler):
    """Python's unpickler, for which every name stands for nothing."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        return dict if full == "collections.OrderedDict" else Named(full)

    def persistent_load(self, identity: Any) -> Any:
        return Made("storage", tuple(identity) if isinstance(identity, tuple | list) else (identity,))

    def get_extension(self, code: int) -> None:
        raise Unreadable(f"it names an extension by the number {code}")


# `object.__new__` by NEWOBJ would need a class; a stand-in is called instead.
def _new_object(reader: Any) -> None:
    arguments = reader.stack.pop()
    cls = reader.stack.pop()
    reader.append(cls(*arguments) if callable(cls) else Made("?", ()))


def _new_object_named(reader: Any) -> None:
    named = reader.stack.pop()
    arguments = reader.stack.pop()
    cls = reader.stack.pop()
    made = cls(*arguments) if isinstance(cls, Named) else Made("?", ())
    made.state = named
    reader.append(made)


def _instance(reader: Any) -> None:
    module = reader.readline()[:-1].decode("ascii", "replace")
    name = reader.readline()[:-1].decode("ascii", "replace")
    reader.append(Made(f"{module}.{name}", tuple(reader.pop_mark())))


def _object(reader: Any) -> None:
    arguments = reader.pop_mark()
    cls = arguments.pop(0)
    reader.append(cls(*arguments) if isinstance(cls, Named) else Made("?", ()))


def _reduce(reader: Any) -> None:
    arguments = reader.stack.pop()
    function = reader.stack[-1]
    if function is dict:
        reader.stack[-1] = dict(*arguments) if not arguments or isinstance(arguments[0], list) else {}
    elif isinstance(function, Named):
        reader.stack[-1] = function(*arguments)
    else:
        raise Unreadable("it calls what is no function")


def _byte_array(reader: Any) -> None:
    size = int.from_bytes(reader.read(8), "little")
    if size > MOST_PICKLE:
        raise Unreadable(f"it asks for {size:,} bytes at once")
    reader.append(bytearray(reader.read(size)))


def _build(reader: Any) -> None:
    state = reader.stack.pop()
    thing = reader.stack[-1]
    if isinstance(thing, Made):
        thing.state = state


_Reader.dispatch = {
    **pickle._Unpickler.dispatch,
    pickle.NEWOBJ[0]: _new_object,
    pickle.NEWOBJ_EX[0]: _new_object_named,
    pickle.INST[0]: _instance,
    pickle.OBJ[0]: _object,
    pickle.REDUCE[0]: _reduce,
    pickle.BUILD[0]: _build,
    pickle.BYTEARRAY8[0]: _byte_array,
}


def read(data: bytes) -> Any:
    """What a pickle describes: plain values, `Named` and `Made` in the place of everything else.

    Raises:
        Unreadable: it is no pickle, or too large.
    """
    if len(data) > MOST_PICKLE:
        raise Unreadable(f"it has {len(data):,} bytes")
    try:
        return _Reader(io.BytesIO(data)).load()
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("it asks for more memory than there is") from None
    except Exception as e:  # whatever Python's unpickler meets in bytes that are no pickle
        raise Unreadable(f"{type(e).__name__}: {e}") from None


def globals_of(data: bytes) -> list[str]:
    """Every global that a pickle names, and those right after it in the same bytes, in order, each once.

    Raises:
        Unreadable: it is no pickle.
    """
    found: dict[str, None] = {}
    stream = io.BytesIO(data)
    _collect(stream, found)
    while stream.tell() < len(data):
        try:
            _collect(stream, found)
        except Unreadable:  # what follows the pickles is no pickle: tensors
            break
    return list(found)


def _collect(stream: IO[bytes], found: dict[str, None]) -> None:
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
            if count > _MOST_OPERATIONS:
                raise Unreadable("it is too long")
            if operation.name in ("GLOBAL", "INST"):
                found[str(argument).replace(" ", ".", 1)] = None
            elif operation.name == "STACK_GLOBAL":
                found[".".join(strings[-2:]) or "?"] = None
            elif operation.name in ("EXT1", "EXT2", "EXT4"):
                found[f"extension {argument}"] = None
            if isinstance(argument, str) and "UNICODE" in operation.name:
                strings.append(argument)
            elif operation.name in ("MEMOIZE",) and strings:
                memo[len(memo)] = strings[-1]
            elif operation.name in ("BINPUT", "LONG_BINPUT", "PUT") and strings and argument is not None:
                memo[int(argument)] = strings[-1]
            elif operation.name in ("BINGET", "LONG_BINGET", "GET") and int(str(argument)) in memo:
                strings.append(memo[int(str(argument))])
    except Unreadable:
        raise
    except Exception as e:  # pickletools on arbitrary bytes
        raise Unreadable(f"{type(e).__name__}: {e}") from None


def is_safe(name: str) -> bool:
    """Whether a global builds tensors and no more."""
    if name in SAFE:
        return True
    module, _, last = name.rpartition(".")
    return module == "torch" and (last.endswith("Storage") or last in _DTYPES)


_DTYPES = frozenset(
    {
        *("float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "qint8", "quint8", "qint32"),
    }
)


def named_by(path: Path) -> list[str]:
    """Globals that a file's pickles name and that do more than build tensors; empty where that cannot be
    told."""
    try:
        return [n for data in pickles_in(path) for n in globals_of(data) if not is_safe(n)]
    except (Unreadable, OSError, zipfile.BadZipFile, ValueError, RuntimeError, NotImplementedError, EOFError):
        return []


def pickles_in(path: Path) -> Iterator[bytes]:
    """The pickles of a file of torch: of its archive, or the file itself."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            yield _limited(file)
            return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".pkl"):
                if info.file_size > MOST_PICKLE:
                    raise Unreadable(f"'{info.filename}' has {info.file_size:,} bytes")
                yield archive.read(info)


def _limited(file: IO[bytes]) -> bytes:
    data = file.read(MOST_PICKLE + 1)
    if len(data) > MOST_PICKLE:
        raise Unreadable("it is too large")
    return data


def plain_mapping(value: Any) -> Mapping[Any, Any]:
    """A mapping that a pickle described; empty where it described something else."""
    if isinstance(value, Made):
        return value.items
    return value if isinstance(value, dict) else {}
