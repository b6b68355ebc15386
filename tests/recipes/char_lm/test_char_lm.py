"""The recipe `char-lm`: characters of parts of a text, the decoder, and its training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from castiron.data import load
from castiron.diagnostics import ConfigError
from castiron.training.config_file import load_config
from castiron.training.launch import load_run
from castiron_recipes.char_lm.corpus import write
from castiron_recipes.char_lm.model import CharDecoder, rotary_angles, rotated


def recipe_of(*words: str):
    loaded = load_config("char-lm", ["model.context=4", "model.stride=2", *words])
    return loaded.recipe(loaded.config)


def test_the_embedded_text_is_that_of_the_rules(tmp_path: Path) -> None:
    path = write(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("C601 ")
    assert len(text) > 20_000
    assert path.read_bytes() == write(tmp_path / "again").read_bytes()


def test_windows_are_of_each_part_alone_and_know_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcd\n\nabcdabcd\nzz\n")  # 18 characters
    recipe = recipe_of("model.parts={train: [0, 0.8], test: [0.5, 1]}")
    train = load(path, recipe.schema(), split="train")
    recipe.learn(train)
    assert recipe.characters == ["\ufffd", "\n", "a", "b", "c", "d"]  # z is beyond the training part
    columns = recipe.encode(train)
    assert columns["text"].starts.tolist() == [0, 2, 4, 6, 8]
    assert columns["text"].rows.tolist() == [0, 0, 0, 2, 2]
    assert (columns["text"].take([1])[0][1:] == columns["next"].take([1])[0][:-1]).all()
    test = load(path, recipe.schema(), split="test")
    windows = recipe.encode(test)["next"]
    assert windows.starts.tolist() == [10, 14]
    assert windows.take([1])[0].tolist() == [1, 0, 0, 1]  # "\nzz\n": what is not known is number 0


def decoder(**more) -> CharDecoder:
    torch.manual_seed(0)
    return CharDecoder(7, **{"context": 6, "width": 16, "layers": 2, "heads": 2, "dropout": 0.0, **more})


def test_no_place_sees_what_comes_after_it() -> None:
    model = decoder()
    a = torch.randint(0, 7, (2, 6))
    b = a.clone()
    b[:, 4:] = (b[:, 4:] + 1) % 7
    torch.testing.assert_close(model(a)[:, :4], model(b)[:, :4])
    assert not torch.allclose(model(a)[:, 4], model(b)[:, 4])


def test_one_table_is_input_and_output_and_a_copy_keeps_it_so() -> None:
    model = decoder()
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())
    clone = copy.deepcopy(model)
    assert clone.head.weight is clone.embedding.weight


def test_it_begins_as_a_guess() -> None:
    """Untrained, the loss is that of a guess among all characters."""
    model = decoder()
    x = torch.randint(0, 7, (64, 6))
    loss = F.cross_entropy(model(x).transpose(1, 2), torch.randint(0, 7, (64, 6)))
    assert loss.item() == pytest.approx(torch.tensor(7.0).log().item(), abs=0.05)


def test_rotation_keeps_lengths_and_knows_distances_alone() -> None:
    torch.manual_seed(0)
    angles = rotary_angles(9, 8)
    cos, sin = angles.cos(), angles.sin()
    q, k = torch.randn(2, 8, dtype=torch.float64)
    turned = rotated(q.expand(1, 1, 9, 8), cos, sin)[0, 0]
    torch.testing.assert_close(turned.norm(dim=1), q.norm().expand(9))
    keys = rotated(k.expand(1, 1, 9, 8), cos, sin)[0, 0]
    torch.testing.assert_close(turned[5] @ keys[2], turned[8] @ keys[5])
    assert rotated(q.half().expand(1, 1, 9, 8), cos.float(), sin.float()).dtype is torch.float16


def test_heads_must_fit() -> None:
    with pytest.raises(ConfigError, match=r"Width is 60; expected a multiple of 2 \* heads \(8\)"):
        load_config("char-lm", ["model.width=60"])


SMALL = ("model.context=16", "model.stride=16", "model.width=16", "model.layers=1", "model.heads=2")


def test_it_predicts_the_next_character(few_steps) -> None:
    from castiron.training.backend import Job, load_backend

    run, _ = few_steps("char-lm", *SMALL)
    loaded = load_run(run)
    job = Job(config=loaded.config, recipe=loaded.recipe, run=run, checkpoint=run.checkpoint("best"))
    answers = load_backend("torch").predict(job, ["The", "A text that is longer than the context"])
    assert [len(a["next"]) for a in answers] == [1, 1]
