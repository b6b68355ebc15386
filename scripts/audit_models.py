"""Audits models of transformers, from configs without weights: `python scripts/audit_models.py [NAME…]`.

Prints a Markdown table: what was found in each, under float32, bf16-mixed and fp16-mixed. Needs the package
transformers, which castiron itself does not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch

import castiron

os.environ.setdefault("HF_HUB_OFFLINE", "1")

POLICIES = ("float32", "bf16-mixed", "fp16-mixed")
ROWS, LENGTH, WORDS, CLASSES = 4, 24, 500, 5
Made = tuple[torch.nn.Module, dict[str, Any]]


def words(length: int = LENGTH) -> torch.Tensor:
    """Ids [4, length]."""
    return torch.randint(3, WORDS, (ROWS, length))


def text(**more: Any) -> dict[str, Any]:
    """Ids, a mask, and the ids as labels."""
    ids = words()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, **more}


def pictures(size: int) -> dict[str, Any]:
    """Images [4, 3, size, size] and classes."""
    return {"pixel_values": torch.randn(ROWS, 3, size, size), "labels": torch.randint(CLASSES, (ROWS,))}


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TWO_STACKS = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128,
}  # fmt: skip
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def bert(t: Any) -> Made:
    config = t.BertConfig(vocab_size=WORDS, num_labels=CLASSES, **SMALL)
    return t.BertForSequenceClassification(config), text(labels=torch.randint(CLASSES, (ROWS,)))


def distilbert(t: Any) -> Made:
    return t.DistilBertForMaskedLM(
        t.DistilBertConfig(vocab_size=WORDS, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    ), text()


def gpt2(t: Any) -> Made:
    config = t.GPT2Config(vocab_size=WORDS, n_embd=64, n_layer=2, n_head=4, n_positions=64, **MARKS)
    return t.GPT2LMHeadModel(config), text()


def t5(t: Any) -> Made:
    config = t.T5Config(
        vocab_size=WORDS, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return t.T5ForConditionalGeneration(config), {"input_ids": words(), "labels": words(10)}


def bart(t: Any) -> Made:
    config = t.BartConfig(vocab_size=WORDS, max_position_embeddings=64, **TWO_STACKS)
    return t.BartForConditionalGeneration(config), {"input_ids": words(), "labels": words(10)}


def whisper(t: Any) -> Made:
    config = t.WhisperConfig(
        vocab_size=WORDS, num_mel_bins=16, max_source_positions=50, max_target_positions=40,
        decoder_start_token_id=1, **MARKS, **TWO_STACKS,
    )  # fmt: skip
    sound = {"input_features": torch.randn(ROWS, 16, 100), "labels": words(12)}
    return t.WhisperForConditionalGeneration(config), sound


def wav2vec2(t: Any) -> Made:
    config = t.Wav2Vec2Config(
        vocab_size=32, conv_dim=(32, 32), conv_stride=(5, 4), conv_kernel=(10, 4), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, **SMALL,
    )  # fmt: skip
    sound = {"input_values": torch.randn(ROWS, 2000), "labels": torch.randint(1, 32, (ROWS, 8))}
    return t.Wav2Vec2ForCTC(config), sound


def vit(t: Any) -> Made:
    config = t.ViTConfig(image_size=32, patch_size=8, num_labels=CLASSES, **SMALL)
    return t.ViTForImageClassification(config), pictures(32)


def resnet(t: Any) -> Made:
    config = t.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=CLASSES, layer_type="basic"
    )
    return t.ResNetForImageClassification(config), pictures(32)


def convnext(t: Any) -> Made:
    config = t.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, num_labels=CLASSES)
    return t.ConvNextForImageClassification(config), pictures(64)


def clip(t: Any) -> Made:
    config = t.CLIPConfig(
        text_config={"vocab_size": WORDS, **MARKS, **SMALL},
        vision_config={"image_size": 32, "patch_size": 8, **SMALL},
        projection_dim=32,
    )
    batch = {"input_ids": words(), "pixel_values": torch.randn(ROWS, 3, 32, 32), "return_loss": True}
    return t.CLIPModel(config), batch


def llama(t: Any) -> Made:
    config = t.LlamaConfig(vocab_size=WORDS, num_key_value_heads=2, **SMALL)
    return t.LlamaForCausalLM(config), text()


def mistral(t: Any) -> Made:
    config = t.MistralConfig(vocab_size=WORDS, num_key_value_heads=2, sliding_window=8, **SMALL)
    return t.MistralForCausalLM(config), text()


def mixtral(t: Any) -> Made:
    config = t.MixtralConfig(vocab_size=WORDS, num_key_value_heads=2, num_local_experts=4, **SMALL)
    return t.MixtralForCausalLM(config), text()


MODELS: dict[str, Callable[[Any], Made]] = {
    make.__name__: make
    for make in (
        bert, distilbert, gpt2, t5, bart, llama, mistral, mixtral, vit, resnet, convnext, clip, whisper,
        wav2vec2,
    )
}  # fmt: skip


def audited(name: str, policy: str) -> castiron.AuditReport:
    """The report on one of the models."""
    import transformers

    torch.manual_seed(0)
    model, batch = MODELS[name](transformers)
    return castiron.audit(model, batch, policy)


def main(names: list[str]) -> None:
    """The table."""
    torch.set_num_threads(1)
    print(f"| model | {' | '.join(POLICIES)} |\n|---|{'---|' * len(POLICIES)}")
    for name in names or MODELS:
        cells = []
        for policy in POLICIES:
            report = audited(name, policy)
            found = [f"{f.code} ({f.count})" for f in report.findings if f.severity != "info"]
            cells.append(f"{report.operations} operations: {', '.join(found) or 'nothing'}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
