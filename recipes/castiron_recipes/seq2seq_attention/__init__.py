"""Sequence to sequence: an LSTM that reads, an LSTM that writes, and attention between them."""

from castiron_recipes.seq2seq_attention.recipe import Seq2SeqAttention

__all__ = ["Seq2SeqAttention"]
