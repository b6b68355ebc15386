"""Data sets that can be fetched: public addresses of files whose content is pinned by SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at `<base>/<path>`, exactly these bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSet:
    """A data set by split, where it lies, and under which terms."""

    name: str
    title: str
    base: str
    """Address that the files' paths follow; pinned to a commit."""
    files: Mapping[str, RemoteFile]
    """By split: train, validation, test."""
    licence: str
    note: str
    """What to know before it is read."""

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())


_SST_LICENCE = (
    "None stated by the authors (Stanford Sentiment Treebank); for research, citing Socher et al. 2013."
)

CATALOGUE: dict[str, RemoteSet] = {
    s.name: s
    for s in (
        RemoteSet(
            name="sst2",
            title="SST-2 as in GLUE: 67,349 phrases to train, 872 and 1,821 sentences to validate and test",
            base="https://raw.githubusercontent.com/awake020/pytorch_Bert_sst2/"
            "ce2ab1719d32182e6233b24b2de246bd32814fde/SST-2",
            files={
                "train": RemoteFile(
                    "train.tsv", "e981ceb4fe6c9acd1c79851d0d091b9e78103f1f2a399ca83dda27915d41c56c", 3_806_081
                ),
                "validation": RemoteFile(
                    "dev.tsv", "84207e6be5873fb18db798cc6faec86871f5a426554650ff64a1c34e87665f6f", 94_414
                ),
                "test": RemoteFile(
                    "test.tsv", "fcd46f967b7b8efd8b5398481dadf873886298d092195167af907fd532e81e1c", 193_576
                ),
            },
            licence=_SST_LICENCE,
            note="Tab-separated with a header; the columns are label, sentence (train) and label, content "
            "(validation, test). The test labels are the treebank's own.",
        ),
        RemoteSet(
            name="sst2-sentences",
            title="SST-2, whole sentences alone: 6,920 to train, 872 and 1,821 to validate and test",
            base="https://raw.githubusercontent.com/clairett/pytorch-sentiment-classification/"
            "457ffd83de90a9d6d472d8ffc31bbffe40a8b236/data/SST2",
            files={
                "train": RemoteFile(
                    "train.tsv", "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920", 720_259
                ),
                "validation": RemoteFile(
                    "dev.tsv", "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359", 92_057
                ),
                "test": RemoteFile(
                    "test.tsv", "831169c7e2e429d6026e1bdbb542f33b636e3e596caad9602ebc953c205928b7", 188_749
                ),
            },
            licence=_SST_LICENCE,
            note="Tab-separated without a header: sentence, label. Two training sentences are test ones too.",
        ),
    )
}
"""By name, as `castiron data fetch NAME` takes it."""
