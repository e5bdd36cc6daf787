"""A proxy between client and archive that fails on request: errors, delays, a connection cut inside an answer."""

import http.server
import socket
import threading
import time

import requests

KEPT = ("content-type", "content-range", "accept-ranges", "last-modified", "etag", "location")


class FaultyServer:
    """`url` answers as `upstream` does, with addresses rewritten to itself, except for `faults`.

    faults: [part of the path, fault ("500", "cut", "slow 2"), how many times]; requests: "METHOD path" of each request;
    headers: of the last one.
    """

    def __init__(self, upstream: str):
        self.upstream, self.faults, self.requests, self.headers = upstream, [], [], {}
        self.lock, outer = threading.Lock(), self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_GET = do_POST = do_HEAD = lambda self: outer.answer(self)
            log_message = lambda *_: None  # noqa: E731

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def _fault(self, path: str) -> str:
        with self.lock:
            for fault in self.faults:
                if fault[0] in path and fault[2] > 0:
                    fault[2] -= 1
                    return fault[1]
        return ""

    def answer(self, request):
        self.requests.append(f"{request.command} {request.path}")
        self.headers = dict(request.headers)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        fault = self._fault(request.path)
        if fault.startswith("slow"):
            time.sleep(float(fault.split()[1]))
        headers = {key: request.headers[key] for key in ("Range", "Content-Type") if key in request.headers}
        headers["Accept-Encoding"] = "identity"
        forward = dict(data=body, headers=headers, timeout=30, allow_redirects=False)
        answer = requests.request(request.command, self.upstream + request.path, **forward)
        content, length = answer.content, answer.headers.get("content-length", "0")
        if "json" in answer.headers.get("content-type", ""):
            content = content.replace(self.upstream.encode(), self.url.encode())
        request.send_response(500 if fault == "500" else answer.status_code)
        for key in set(KEPT) & {key.lower() for key in answer.headers}:
            request.send_header(key, answer.headers[key])
        request.send_header("Content-Length", length if request.command == "HEAD" else str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        if fault == "cut":
            request.wfile.flush()
            request.connection.shutdown(socket.SHUT_RDWR)
            request.close_connection = True
