"""Weights from the hub through its own client, against a local server with the hub's file routes."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from clay_lib import Clay, ClayConfig, ContractError
from clay_lib.checkpoint import load_model

NAME = "made-with-clay/Clay"
ROUTE = f"/{NAME}/resolve/main/v1.5/clay.safetensors"
CUT = 15_000_000  # bytes sent before the first download breaks off; the client keeps whole pieces of 10 MiB


class Hub(BaseHTTPRequestHandler):
    """HEAD and GET of a file with ETag, commit and byte ranges; the first GET breaks off."""

    protocol_version = "HTTP/1.1"
    content, requests = b"", []  # requests: (method, path, Range, bytes sent)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        requested, sent = self.headers.get("Range"), 0
        if self.path != ROUTE:
            gated, foreign = "/gated/" in self.path, NAME not in self.path
            code = "GatedRepo" if gated else "RepoNotFound" if foreign else "EntryNotFound"
            self.send(401 if gated or foreign else 404, 0, {"X-Error-Code": code, "X-Error-Message": "from the hub"})
        else:
            start = int(requested.removeprefix("bytes=").split("-")[0]) if requested else 0
            rest = self.content[start:]
            span = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
            partly = {"Content-Range": span} if requested else {}
            self.send(206 if requested else 200, len(rest), partly)
            if body:
                first = not any(method == "GET" for method, *_ in self.requests)
                piece = rest[:CUT] if first else rest
                self.wfile.write(piece)
                sent, self.close_connection = len(piece), first
        self.requests.append((self.command, self.path, requested, sent))

    def send(self, status, length, more):
        self.send_response(status)
        fixed = {
            "ETag": f'"{hashlib.sha256(self.content).hexdigest()}"',
            "X-Repo-Commit": "0123456789abcdef0123456789abcdef01234567",
            "Accept-Ranges": "bytes",
            "Content-Length": str(length),
        }
        for key, value in (fixed | more).items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def serving(content):
    handler = type("Serving", (Hub,), {"content": content, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


SCRIPT = """
import hashlib, json, sys
from clay_lib import Clay, ContractError

results = {}
for name in sys.argv[1:]:
    try:
        state = Clay.load(name).model.state_dict()
        results[name] = hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()
    except ContractError as error:
        results[name] = str(error)
print(json.dumps(results))
"""


def loaded(*names, cache, endpoint, **environment):
    """{name: hash of the weights, or what the error says}, from a process of its own: the client reads its settings once."""
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and key[:3] != "HF_"}
    settings = {
        "HF_HOME": str(cache),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    options = dict(env=clean | settings | environment, cwd=Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_broken_download_resumes_and_then_needs_no_network(tmp_path):
    clay = Clay.random(ClayConfig.named("tiny", teacher_dim=24), seed=5)
    content = clay.save(tmp_path / "w.safetensors").read_bytes()
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in clay.model.state_dict().values())).hexdigest()
    assert len(content) > CUT
    weights = f"hub:{NAME}/v1.5/clay.safetensors"
    absent, gated, unknown = f"hub:{NAME}/v2/clay.ckpt", "hub:gated/Clay/clay.ckpt", "hub:nobody/Clay/clay.ckpt"

    with serving(content) as (endpoint, requests):
        results = loaded(weights, absent, gated, unknown, cache=tmp_path, endpoint=endpoint)
    assert results[weights] == digest
    assert f"no file v2/clay.ckpt in {NAME}" in results[absent] and absent in results[absent]
    assert "a gated repository" in results[gated] and "hf auth login" in results[gated]
    assert "no such repository" in results[unknown]
    first, second = [request for request in requests if request[0] == "GET" and request[1] == ROUTE]
    assert first[2:] == (None, CUT)
    start = int(second[2].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= CUT and second[3] == len(content) - start  # what had arrived is not sent again

    results = loaded(weights, absent, cache=tmp_path, endpoint=endpoint, HF_HUB_OFFLINE="1")  # the server is gone
    assert results[weights] == digest
    assert "HF_HUB_OFFLINE is set" in results[absent]


@pytest.mark.parametrize("name", ["hub:", "hub:Clay", "hub:made-with-clay/Clay", "hub:made-with-clay/Clay/", "hub://x"])
def test_name_without_a_path_is_refused(name):
    with pytest.raises(ContractError, match="path is missing"):
        load_model(name)
