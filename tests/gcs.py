"""Google Cloud Storage on this machine: of its XML API what obstore asks for, by Google's reference, over real HTTP.

https://cloud.google.com/storage/docs/xml-api/reference-headers; moto has no Google, and what emulators there are for
Python know neither HEAD nor the conditional writes of the XML API.
"""

import contextlib
import hashlib
import itertools
import json
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class _Object:
    data: bytes
    generation: int
    at: float = field(default_factory=time.time)

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.data).hexdigest()}"'


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: set[str] = set()
        self.objects: dict[str, _Object] = {}  # by bucket and name
        self.generations, self.one_at_a_time = (
            itertools.count(1_700_000_000_000_000),
            threading.Lock(),
        )


@contextlib.contextmanager
def gcs() -> Iterator[str]:
    """The server's address, while the block runs."""
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def environment(address: str) -> dict[str, str]:
    """What a process needs to find it."""
    key = {
        "gcs_base_url": address,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key)}


def new_bucket(address: str) -> str:
    """The URL of a run directory in a bucket of its own."""
    name = f"b{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(
        urllib.request.Request(f"{address}/{name}", method="PUT", data=b"")
    ).close()
    return f"gs://{name}/runs/one"


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # else an answer's second part waits for the client to confirm the first
    )

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["content-length"]))
        bucket, _, name = self._name[1:].partition("/")
        if not name:
            self.server.buckets.add(bucket)
            return self._answer(200)
        if bucket not in self.server.buckets:
            return self._answer(404)
        with self.server.one_at_a_time:
            there = self.server.objects.get(self._name)
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (there.generation if there else 0):
                return self._answer(412)
            self.server.objects[self._name] = made = _Object(
                data, next(self.server.generations)
            )
        self._answer(200, made)

    def do_DELETE(self):
        with self.server.one_at_a_time:
            self._answer(204 if self.server.objects.pop(self._name, None) else 404)

    def do_GET(self):
        if "list-type=2" in self.path:
            return self._list()
        found, part = self.server.objects.get(self._name), self.headers.get("range")
        if not found:
            return self._answer(404)
        if not part:
            return self._answer(200, found, found.data)
        start, end = (int(at) for at in part.removeprefix("bytes=").split("-"))
        end = min(end, len(found.data) - 1)
        place = {"content-range": f"bytes {start}-{end}/{len(found.data)}"}
        self._answer(206, found, found.data[start : end + 1], place)

    do_HEAD = do_GET

    @property
    def _name(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _list(self) -> None:
        asked = {
            name: values[0]
            for name, values in parse_qs(urlsplit(self.path).query).items()
        }
        start, after = (
            f"{self._name}/{asked['prefix']}",
            asked.get("continuation-token", ""),
        )
        names = sorted(
            name
            for name in [*self.server.objects]
            if name.startswith(start) and name > after
        )
        page = names[: int(asked.get("max-keys", 1000))]
        more = (
            f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
            if page != names
            else ""
        )
        entries = "".join(map(self._entry, page))
        self._answer(
            200, None, f"<ListBucketResult>{more}{entries}</ListBucketResult>".encode()
        )

    def _entry(self, name: str) -> str:
        found = self.server.objects[name]
        at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(found.at))
        return (
            f"<Contents><Key>{escape(name.removeprefix(f'{self._name}/'))}</Key><LastModified>{at}</LastModified>"
            f"<ETag>{escape(found.tag)}</ETag><Size>{len(found.data)}</Size></Contents>"
        )

    def _answer(
        self,
        status: int,
        of: _Object | None = None,
        data: bytes = b"",
        more: dict | None = None,
    ) -> None:
        self.send_response(status)
        if of:
            self.send_header("etag", of.tag)
            self.send_header("x-goog-generation", str(of.generation))
            self.send_header("last-modified", formatdate(of.at, usegmt=True))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass
