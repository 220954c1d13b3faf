"""Amazon S3 on this machine: moto's server over real HTTP, and a proxy before it whose answers fail now and then."""

import contextlib
import http.client
import random
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """The server's address, while the block runs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def environment(address: str) -> dict[str, str]:
    """What a process needs to find it."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def new_bucket(address: str) -> str:
    """The URL of a run directory in a bucket of its own."""
    name = f"b{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(
        urllib.request.Request(f"{address}/{name}", method="PUT")
    ).close()
    return f"s3://{name}/runs/one"


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server; `faulty` of them end in a 5xx, a cut answer, or come late."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behind: str, faulty: float):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.faulty, self.rng = (
            behind.removeprefix("http://"),
            faulty,
            random.Random(0),
        )
        self.faults = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def failing(behind: str, faulty: float = 0.1) -> Iterator[Proxy]:
    """The proxy, while the block runs."""
    proxy = Proxy(behind, faulty)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # else an answer's second part waits for the client to confirm the first
    )

    def _handle(self):
        body = self._body()
        fault = (
            self.server.rng.choice(["503", "late", "cut"])
            if self.server.rng.random() < self.server.faulty
            else ""
        )
        self.server.faults += bool(fault)
        if fault == "503":
            return self._answer(
                503,
                [],
                b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>",
            )
        if fault == "late":
            time.sleep(self.server.rng.uniform(0.2, 1.5))
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in _HOP
        }
        connection.request(self.command, self.path, body, headers)
        found = connection.getresponse()
        data = found.read()
        connection.close()
        self._answer(found.status, found.getheaders(), data, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        whole = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _answer(
        self, status: int, headers: list, data: bytes, cut: bool = False
    ) -> None:
        self.send_response(status)
        length = next(
            (value for name, value in headers if name.lower() == "content-length"),
            str(len(data)),
        )
        for name, value in headers:
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header(
            "content-length", length if self.command == "HEAD" else str(len(data))
        )
        self.end_headers()
        if cut:  # the answer is lost, although the request was carried out
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            self.connection.close()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass
