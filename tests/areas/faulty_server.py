"""A server between client and archive that fails when told to: errors, slowness, a connection cut inside an answer."""

import http.client
import http.server
import socket
import threading
import time


class FaultyServer:
    """`url` answers as `upstream` does, with addresses rewritten to itself, but for `faults`.

    faults: [part of the path, what ("500", "cut", "slow 2"), how many times]; seen: "METHOD path" of each request, and headers what the last
    one sent.
    """

    def __init__(self, upstream: str):
        self.upstream, self.faults, self.seen, self.headers = upstream, [], [], {}
        self.lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.answer(self)

            do_POST = do_HEAD = do_GET

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

    def answer(self, asked):
        self.seen.append(f"{asked.command} {asked.path}")
        self.headers = dict(asked.headers)
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0))
        fault = self._fault(asked.path)
        if fault.startswith("slow"):
            time.sleep(float(fault.split()[1]))
        if fault == "500":
            return self._send(asked, 500, {}, b"")
        headers = {key: asked.headers[key] for key in ("Range", "Content-Type") if key in asked.headers}
        host, _, root = self.upstream.removeprefix("http://").partition("/")
        there = http.client.HTTPConnection(host, timeout=30)  # through which redirects pass
        there.request(asked.command, f"/{root}{asked.path}" if root else asked.path, body or None, headers)
        answer = there.getresponse()
        status, said, content = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        there.close()
        if "json" in said.get("content-type", ""):
            content = content.replace(self.upstream.encode(), self.url.encode())
            said["content-length"] = str(len(content))
        self._send(asked, status, said, content, cut=fault == "cut")

    def _send(self, asked, status, said, content, cut=False):
        keep = ("content-type", "content-range", "accept-ranges", "last-modified", "etag", "location")
        asked.send_response(status)
        for key in keep:
            if key in said:
                asked.send_header(key, said[key])
        length = said.get("content-length", len(content)) if asked.command == "HEAD" else len(content)
        asked.send_header("Content-Length", str(length))
        asked.end_headers()
        if asked.command == "HEAD":
            return
        if cut:
            asked.wfile.write(content[: len(content) // 2])
            asked.wfile.flush()
            asked.connection.shutdown(socket.SHUT_RDWR)
            asked.close_connection = True
        else:
            asked.wfile.write(content)
