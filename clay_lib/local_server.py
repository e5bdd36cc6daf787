"""Serving a local archive: `rustac serve` answers searches, Starlette the ranges of files, behind one loopback address."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from clay_lib.contract import ContractError

PATIENCE = 60.0  # s until both servers answer


@contextlib.contextmanager
def serve_archive(folder: str | Path, *, port: int = 0) -> Iterator[str]:
    """The address of a STAC API over what `write_archive` wrote, while the block runs; files are below it, in ranges.

    port: 0 takes a free one. Static catalogues, such as LINZ's, hang below its /catalog.json.
    """
    folder = Path(folder)
    items = folder / "items.json"
    if not items.is_file():
        raise ContractError(
            "archive", found=str(items), expected="a folder that write_archive finished", cause="another folder"
        )
    program = rustac()
    if program is None:
        raise ContractError("archive", found="no rustac", expected="the package rustac", cause="pip install rustac")
    port, inner = port or _free_port(), _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as ends:
        listed = Path(scratch) / "items.json"
        listed.write_text(json.dumps(_placed(json.loads(items.read_text()), f"{url}/files")))
        log = ends.enter_context(open(Path(scratch) / "log", "w+"))
        command = [program, "serve", "--use-duckdb", "false", "--create-collections"]
        command += ["--addr", url, "--bind", f"127.0.0.1:{inner}", str(listed)]
        api = subprocess.Popen(command, stdout=log, stderr=log)
        ends.callback(_end, api)
        config = uvicorn.Config(
            _app(folder, inner), host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=2
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        ends.callback(thread.join, 10)
        ends.callback(setattr, server, "should_exit", True)
        _wait(url, api, thread, log)
        yield url


def rustac() -> str | None:
    """Where the program is: beside this Python, else on the path."""
    beside = Path(sys.executable).parent / "rustac"
    return str(beside) if beside.is_file() else shutil.which("rustac")


def _placed(items: dict, root: str) -> dict:
    """Items whose relative addresses lie below root."""
    for item in items["features"]:
        for asset in item["assets"].values():
            asset["href"] = f"{root}/{asset['href']}"
    return items


def _app(folder: Path, inner: int) -> Starlette:
    """Files of the folder, and everything else from the API behind."""

    async def search(request: Request) -> Response:
        body = await request.body()
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return await run_in_threadpool(_forward, f"http://127.0.0.1:{inner}{path}", request.method, body)

    async def catalogue(request: Request) -> Response:
        return RedirectResponse("/files/catalog.json")

    files = Mount("/files", StaticFiles(directory=folder))
    return Starlette(
        routes=[files, Route("/catalog.json", catalogue), Route("/{path:path}", search, methods=["GET", "POST"])]
    )


def _forward(address: str, method: str, body: bytes) -> Response:
    headers = {"content-type": "application/json"} if body else {}
    request = urllib.request.Request(address, data=body or None, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Response(answer.read(), answer.status, media_type=answer.headers.get_content_type())
    except urllib.error.HTTPError as error:
        return Response(error.read(), error.code, media_type=error.headers.get_content_type())
    except OSError as error:
        return Response(str(error), 502)


def _wait(url: str, api: subprocess.Popen, thread: threading.Thread, log) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and api.poll() is None and thread.is_alive():
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{url}/collections", timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.1)
    log.seek(0)
    told = " ".join(log.read().split())[-300:]
    raise ContractError(
        "archive",
        found=f"no answer at {url}: {told or 'no message'}",
        expected=f"rustac and the file server within {PATIENCE:g} s",
        cause="the port was taken in between, or items.json is broken: write the archive again",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
