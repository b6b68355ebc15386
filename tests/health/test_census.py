from __future__ import annotations

import pytest

from castiron.health import Count, census
from castiron.policy import LayerInfo, PrecisionPolicy, TensorInfo, resolve

W = TensorInfo(name="a.weight", dtype="float32", shape=(10, 4), trainable=True)
LAYERS = [
    LayerInfo(path="", type="Model"),
    LayerInfo(path="a", type="Linear", family="matmul", parameters=(W,)),
    LayerInfo(
        path="b",
        type="BatchNorm1d",
        family="normalization",
        parameters=(TensorInfo(name="b.weight", dtype="bfloat16", shape=(3,), trainable=True),),
        buffers=(
            TensorInfo(name="b.mean", dtype="float32", shape=(3,)),
            TensorInfo(name="b.n", dtype="int64", shape=()),
        ),
    ),
    LayerInfo(
        path="c", type="Linear", family="matmul", parameters=(W.model_copy(update={"same_as": "a.weight"}),)
    ),
]


def test_counts_elements_and_bytes_of_each_format() -> None:
    found = census(LAYERS)
    assert found.parameters() == {"float32": Count(1, 40, 160), "bfloat16": Count(1, 3, 6)}
    assert found.buffers() == {"float32": Count(1, 3, 12), "int64": Count(1, 1, 8)}


def test_a_tied_tensor_counts_once() -> None:
    assert census(LAYERS).layers[3].parameters == {}


def test_the_largest_share_comes_first() -> None:
    assert list(census([LAYERS[2], LAYERS[1]]).parameters()) == ["float32", "bfloat16"]


def test_with_a_plan_it_counts_what_layers_compute_in() -> None:
    plan, _ = resolve(PrecisionPolicy.preset("bf16-mixed"), LAYERS)
    found = census(LAYERS, plan)
    assert found.compute == {"bfloat16": 2, "float32": 1}


def test_scalars_are_bytes_and_layers() -> None:
    plan, _ = resolve(PrecisionPolicy.preset("bf16-mixed"), LAYERS)
    values = {str(tag): value for tag, value in census(LAYERS, plan).scalars().items()}
    assert values == {
        "Precision/parameters bytes/float32": 160,
        "Precision/parameters bytes/bfloat16": 6,
        "Precision/buffers bytes/float32": 12,
        "Precision/buffers bytes/int64": 8,
        "Precision/layers by compute format/bfloat16": 2,
        "Precision/layers by compute format/float32": 1,
    }


def test_markdown() -> None:
    text = census(LAYERS).as_markdown()
    assert text == (
        "| format | parameters | bytes | buffers | bytes | layers computing in it |\n"
        "|---|---:|---:|---:|---:|---:|\n"
        "| float32 | 40 | 160 | 3 | 12 | – |\n"
        "| bfloat16 | 3 | 6 | – | – | – |\n"
        "| int64 | – | – | 1 | 8 | – |\n"
        "\n"
        "Layer by layer:\n"
        "\n"
        "| layer | type | parameters | buffers |\n"
        "|---|---|---|---|\n"
        "| `a` | Linear | 40 float32 | – |\n"
        "| `b` | BatchNorm1d | 3 bfloat16 | 3 float32, 1 int64 |"
    )


def test_a_model_of_thousands_of_layers_stays_readable() -> None:
    many = [LAYERS[1].model_copy(update={"path": f"l{i}"}) for i in range(1000)]
    lines = census(many).as_markdown(limit=10).splitlines()
    assert lines[-1] == "… and 990 more layers."
    assert sum(line.startswith("| `l") for line in lines) == 10


@pytest.mark.parametrize(("dtype", "size"), [("complex64", 8), ("quint8", 1), ("bool", 1), ("mystery", 0)])
def test_formats_outside_the_table(dtype: str, size: int) -> None:
    layer = LayerInfo(path="x", type="X", buffers=(TensorInfo(name="x.b", dtype=dtype, shape=(5,)),))
    assert census([layer]).buffers() == {dtype: Count(1, 5, 5 * size)}


def test_a_model_without_tensors() -> None:
    assert census([LAYERS[0]]).scalars() == {}
    assert "(model)" not in census([LAYERS[0]]).as_markdown()
