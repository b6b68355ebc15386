"""Fetching, against a server of this machine. Nothing here reaches the network."""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from castiron.data import fetch as fetching
from castiron.data.catalogue import CATALOGUE, RemoteFile, RemoteSet
from castiron.data.fetch import Progress, cache_folder, fetch
from castiron.data.files import sha256_of
from castiron.diagnostics import DataError

CONTENT = {
    "train.tsv": b"label\tsentence\r\n1\ta good film\r\n" * 20_000,
    "dev.tsv": b"label\tcontent\n0\tdull\n",
    "test.tsv": "label\tcontent\n1\tcafé\n".encode(),
}


class Server(ThreadingHTTPServer):
    """Serves `content`; `broken` names a file that is cut off in the middle of its body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = dict(CONTENT)
        self.broken: str | None = None
        self.compress = False
        self.asked: list[str] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/pinned/"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(self.path)
        self.close_connection = True
        if name not in self.server.content:
            self.send_error(404, "Not Found")
            return
        body = self.server.content[name]
        self.send_response(200)
        if self.server.compress:
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if name == self.server.broken else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and a catalogue whose set `tiny` has the digests of its content."""
    files = {
        split: RemoteFile(name, hashlib.sha256(CONTENT[name]).hexdigest(), len(CONTENT[name]))
        for split, name in (("train", "train.tsv"), ("validation", "dev.tsv"), ("test", "test.tsv"))
    }
    tiny = RemoteSet(
        name="tiny", title="A tiny set", base="http://127.0.0.1:9/none", files=files, licence="", note=""
    )
    monkeypatch.setitem(CATALOGUE, "tiny", tiny)
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def refused(server: Server, cache: Path) -> str:
    with pytest.raises(DataError) as caught:
        fetch("tiny", cache=cache, base=server.base)
    return str(caught.value)


def test_a_set_is_fetched_once(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[Progress] = []
    fetched = fetch("tiny", cache=tmp_path, base=server.base, progress=seen.append)
    assert fetched.folder == tmp_path / "data" / "tiny"
    assert {split: path.read_bytes() for split, path in fetched.files.items()} == {
        "train": CONTENT["train.tsv"],
        "validation": CONTENT["dev.tsv"],
        "test": CONTENT["test.tsv"],
    }
    assert fetched.arguments == [
        f"data.train={fetched.folder}/train.tsv",
        f"data.validation={fetched.folder}/dev.tsv",
        f"data.test={fetched.folder}/test.tsv",
    ]
    assert server.asked == ["/pinned/train.tsv", "/pinned/dev.tsv", "/pinned/test.tsv"]
    of_train = [p for p in seen if p.file == "train.tsv"]
    assert [p.done for p in of_train] == sorted(p.done for p in of_train)
    assert of_train[-1] == Progress("train.tsv", len(CONTENT["train.tsv"]), len(CONTENT["train.tsv"]))
    assert str(of_train[-1]) == "train.tsv: 0.6 of 0.6 MB"
    assert capfd.readouterr() == ("", "")

    # From the cache: the address of the catalogue, where nobody answers, is not asked.
    again = fetch("tiny", cache=tmp_path)
    assert again == fetched
    assert len(server.asked) == 3


def test_a_server_may_compress(server: Server, tmp_path: Path) -> None:
    server.compress = True
    seen: list[Progress] = []
    fetched = fetch("tiny", cache=tmp_path, base=server.base, progress=seen.append)
    assert fetched.files["train"].read_bytes() == CONTENT["train.tsv"]
    assert all(p.done <= p.total for p in seen)


def test_another_file_than_the_pinned_one_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.content["dev.tsv"] = b"<html>Sign in to continue</html>"
    message = refused(server, tmp_path)
    expected, received = (
        hashlib.sha256(c).hexdigest() for c in (CONTENT["dev.tsv"], server.content["dev.tsv"])
    )
    assert message == (
        f"D162 The file is not the one that is pinned; it was deleted. Expected SHA-256 {expected} (21 "
        f"bytes). Received {received} (32 bytes) at {server.base}dev.tsv. Fetch again; if it "
        "persists, the address serves another file: get it by other means."
    )
    assert kept(tmp_path) == ["train.tsv"]


def test_a_download_that_is_cut_off_is_not_kept_and_can_be_repeated(server: Server, tmp_path: Path) -> None:
    server.broken = "train.tsv"
    message = refused(server, tmp_path)
    assert message == (
        "D161 The data set 'tiny' could not be fetched; nothing incomplete was kept. Expected the whole "
        f"file. Received a part of the file; then the connection was closed at {server.base}train.tsv. "
        f"Check the network and fetch again, or put the file at {tmp_path}/data/tiny/train.tsv yourself, "
        "or give files by path (data.train=…)."
    )
    assert kept(tmp_path) == []
    server.broken = None
    assert fetch("tiny", cache=tmp_path, base=server.base).files["train"].read_bytes() == CONTENT["train.tsv"]


def test_a_damaged_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    fetched = fetch("tiny", cache=tmp_path, base=server.base)
    fetched.files["test"].write_bytes(b"damaged")
    assert fetch("tiny", cache=tmp_path, base=server.base).files["test"].read_bytes() == CONTENT["test.tsv"]
    assert server.asked[3:] == ["/pinned/test.tsv"]


def test_a_file_that_was_put_into_the_cache_by_hand_is_used(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "tiny"
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    assert set(fetch("tiny", cache=tmp_path).files) == {"train", "validation", "test"}
    assert server.asked == []


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    del server.content["train.tsv"]
    assert f"Received HTTP 404 Not Found at {server.base}train.tsv." in refused(server, tmp_path)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("base", ["http://127.0.0.1:{port}", "http://no-such-host.invalid"])
def test_offline(server: Server, tmp_path: Path, base: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        base = base.format(port=unused.getsockname()[1])
        with pytest.raises(DataError) as caught:
            fetch("tiny", cache=tmp_path, base=base)
    message = str(caught.value)
    assert "D161 The data set 'tiny' could not be fetched; nothing incomplete was kept." in message
    assert (
        "Received connection refused at" in message
        or "Received no address of this name (offline?) at" in message
    )
    assert (
        f" at {base}/train.tsv. Check the network and fetch again, or put the file at {tmp_path}" in message
    )
    assert kept(tmp_path) == []


def test_a_server_that_does_not_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        base = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(
            DataError, match=r"Received no answer for 0.2 seconds at http://127.0.0.1:\d+/train.tsv"
        ):
            fetch("tiny", cache=tmp_path, base=base)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(server, tmp_path)


def test_a_cache_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    assert f"Received {tmp_path}/data/tiny: Not a directory at {server.base}train.tsv." in refused(
        server, tmp_path
    )


def test_an_unknown_name() -> None:
    with pytest.raises(DataError) as caught:
        fetch("sst3")
    assert str(caught.value) == (
        "D160 There is no data set 'sst3' to fetch. Did you mean 'sst2'? Expected sst2 or sst2-sentences. "
        "Received 'sst3'. Use a name that `castiron data fetch --help` lists, or give files by path."
    )


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CASTIRON_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("CASTIRON_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder().name == "castiron"


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_addresses_are_pinned(name: str) -> None:
    remote = CATALOGUE[name]
    assert remote.base.startswith("https://")
    commit = remote.base.removeprefix("https://raw.githubusercontent.com/").split("/")[2]
    assert len(commit) == 40
    assert set(remote.files) == {"train", "validation", "test"}
    assert all(len(file.sha256) == 64 for file in remote.files.values())
    assert remote.bytes == sum(file.bytes for file in remote.files.values())


@pytest.mark.data
@pytest.mark.parametrize(("name", "folder"), [("sst2", "glue_phrases"), ("sst2-sentences", "clean_tsv")])
def test_the_digests_are_those_of_the_real_files(name: str, folder: str) -> None:
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    data = Path(os.environ.get("CASTIRON_DATA", beside)) / "sst2" / folder
    if not data.is_dir():
        pytest.skip(f"no real data at {data}")
    for file in CATALOGUE[name].files.values():
        assert sha256_of(data / file.path) == file.sha256
        assert (data / file.path).stat().st_size == file.bytes
