"""Downloads from a server on this machine: every download is checked before it is kept."""

import dataclasses
import hashlib
import http.client
import http.server
import ssl
import threading

import pytest

from inception_jax import convert
from inception_jax.errors import UserError
from inception_jax.pretrained import catalog, downloading, networks, preprocessing, records

WEIGHTS = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "http://publisher.invalid/weights.pth")
            self.end_headers()
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        self.send_response(200)
        page = self.path == "/page"
        self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
        if self.path != "/endless":
            missing = {"/short": 1, "/boast": 10**12}.get(self.path, 0)
            self.send_header("Content-Length", str(len(WEIGHTS) + missing))
        self.end_headers()
        try:
            for _ in range(100 if self.path == "/endless" else 1):
                self.wfile.write(WEIGHTS)
        except OSError:
            self.close_connection = True  # the client has seen enough

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def record(url, digest=SHA256, of="weights.pth"):
    return records.WeightRecord(
        "publisher/weights",
        "inception_v4",
        "timm",
        "weights.pth",
        preprocessing.timm(341),
        url=url,
        digest=digest and records.Digest("sha256", digest, of),
    )


def test_a_file_comes_whole_and_its_hash_is_checked(server, tmp_path):
    for digest in (SHA256, SHA256[:8]):
        output = tmp_path / f"{len(digest)}.pth"
        assert downloading.download(record(f"{server}/weights.pth", digest), output).endswith(": matches")
        assert output.read_bytes() == WEIGHTS
    for digest, of in ((None, None), ("0" * 64, "inner.pth")):
        output = tmp_path / f"{of}.pth"
        said = downloading.download(record(f"{server}/weights.pth", digest, of), output)
        assert said.startswith(f"sha256 {SHA256}; not verified: the publisher gives no hash of this file")
        assert ("inner.pth" in said) == bool(of) and output.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("path", "digest", "message"),
    [
        ("/weights.pth", "0" * 64, f"the sha256 of the download is {SHA256}, that of weights.pth is sha256 0000"),
        ("/page", SHA256, "the server sent text/html, not a file of weights; download it with a browser"),
        ("/gone", SHA256, "cannot download .*/gone: Not Found"),
        ("/short", SHA256, "received 1,280,000 of 1,280,001 bytes"),
        ("/endless", SHA256, "more than 2,000,000 bytes"),
        ("/moved", SHA256, "http://publisher.invalid/weights.pth: only https is downloaded"),
    ],
)
def test_nothing_else_is_kept(server, path, digest, message, tmp_path):
    with pytest.raises(UserError, match=message):
        downloading.download(record(server + path, digest), tmp_path / "a.pth", limit=2_000_000)
    assert not list(tmp_path.iterdir())


def test_declared_sizes_are_believed_before_anything_is_read(server, tmp_path):
    with pytest.raises(UserError, match="more than 1,073,741,824 bytes"):
        downloading.download(record(f"{server}/boast"), tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


def test_no_network_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1:1/a: .*import it with --weights") as raised:
        downloading.download(record("http://127.0.0.1:1/a"), tmp_path / "a.pth")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLError(1, "bad record mac"),
        ConnectionResetError(104, "reset by peer"),
        TimeoutError("timed out"),
        http.client.IncompleteRead(b""),
    ],
)
def test_a_connection_that_breaks_is_no_fault_of_the_disk(server, error, tmp_path, monkeypatch):
    def broken(*_):
        raise error

    monkeypatch.setattr(downloading, "_receive", broken)
    with pytest.raises(UserError, match=r"cannot download http://127.0.0.1"):
        downloading.download(record(f"{server}/weights.pth"), tmp_path / "a.pth")
    assert not list(tmp_path.iterdir())


def test_only_https_and_only_where_nothing_is(server, tmp_path):
    for url in ("http://publisher.invalid/a", "ftp://publisher.invalid/a", "file:///etc/passwd"):
        with pytest.raises(UserError, match="only https is downloaded"):
            downloading.download(record(url), tmp_path / "a.pth")
    with pytest.raises(UserError, match="the address of this file is not known"):
        downloading.download(record(None), tmp_path / "a.pth")
    (tmp_path / "a.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match="the file exists already"):
        downloading.download(record(f"{server}/weights.pth"), tmp_path / "a.pth")
    assert (tmp_path / "a.pth").read_bytes() == b"mine"


def test_two_processes_that_fill_one_cache_have_the_file(server, tmp_path, monkeypatch):
    real, here = downloading.download, record(f"{server}/weights.pth")

    def late(*arguments, **given):
        real(*arguments, **given)  # the other process is quicker
        return real(*arguments, **given)

    monkeypatch.setattr(downloading, "download", late)
    assert networks.cached_file(here, tmp_path).read_bytes() == WEIGHTS
    with pytest.raises(UserError, match="Not Found"):
        networks.cached_file(record(f"{server}/gone"), tmp_path / "empty")


def test_the_command_fetches_a_record(server, tmp_path, monkeypatch, capsys):
    name = "torchvision/googlenet"
    here = dataclasses.replace(catalog.get_record(name), url=f"{server}/weights.pth", digest=None)
    monkeypatch.setattr(catalog, "PUBLISHED", (here,))
    assert convert.main([f"--download={name}", f"--output={tmp_path / 'a.pth'}"]) == 0
    assert name in capsys.readouterr().out and (tmp_path / "a.pth").read_bytes() == WEIGHTS
