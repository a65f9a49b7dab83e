import functools
import hashlib
import http.server
import threading

import pytest

from polyhead.data.download import MULTI30K, download_multi30k

CONTENT = b"A dog.\n"
FILES = {"raw/train.en": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def address(tmp_path):
    """A server on loopback that has raw/train.en."""
    (tmp_path / "served" / "raw").mkdir(parents=True)
    (tmp_path / "served" / "raw" / "train.en").write_bytes(CONTENT)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def fetch(folder, address, files=FILES):
    download_multi30k(folder, address, files, say=lambda line: None)


def test_files_are_downloaded_once_and_verified(address, tmp_path):
    fetch(tmp_path / "data", address)
    assert (tmp_path / "data" / "train.en").read_bytes() == CONTENT
    (tmp_path / "served" / "raw" / "train.en").unlink()
    fetch(tmp_path / "data", address)  # complete files are not requested
    (tmp_path / "data" / "train.en").write_bytes(b"half")
    with pytest.raises(ConnectionError, match="cannot download .*raw/train.en: 404"):
        fetch(tmp_path / "data", address)


def test_a_file_with_a_wrong_checksum_is_refused_and_not_kept(address, tmp_path):
    with pytest.raises(ValueError, match="raw/train.en has changed"):
        fetch(tmp_path / "data", address, {"raw/train.en": "0" * 64})
    assert not [p for p in (tmp_path / "data").iterdir()]


def test_a_failed_download_names_the_address(tmp_path):
    with pytest.raises(ConnectionError, match="cannot download http://127.0.0.1:9/raw/train.en"):
        fetch(tmp_path, "http://127.0.0.1:9/")


def test_each_split_and_language_has_a_checksum():
    assert len(MULTI30K) == 12 and all(len(c) == 64 for c in MULTI30K.values())
