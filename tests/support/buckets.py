"""A bucket on this machine, for whatever reads or writes gs:// addresses: gcsfs, TensorStore and Google's own client."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socketserver
from collections.abc import Iterator
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound

BUCKET = "pod"


class Handler(server.RequestHandler):
    """The emulator's, and what TensorStore's conditional writes need beside it: generations, and to be refused by them."""

    def do_GET(self) -> None:
        """Read or list; a read says which generation it is of."""
        if self._query.get("ifGenerationNotMatch") == self._generation:
            self._refuse(304)
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Write, unless the object has changed."""
        if self._query.get("ifGenerationMatch", self._generation) == self._generation:
            super().do_POST()
        else:
            self._refuse(412)

    def do_DELETE(self) -> None:
        """Remove, unless the object has changed."""
        if self._query.get("ifGenerationMatch", self._generation) == self._generation:
            super().do_DELETE()
        else:
            self._refuse(412)

    def end_headers(self) -> None:
        """The generation is a header where the answer is the object itself."""
        if self.command == "GET" and self._query.get("alt") == "media":
            self.send_header("x-goog-generation", self._generation)
        super().end_headers()

    @property
    def _query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}

    @property
    def _generation(self) -> str:
        """Of the object that is asked for; 0 where it is not there."""
        found = re.search(r"/b/([^/]+)/o(?:/(.+))?$", urlsplit(self.path).path)
        try:
            bucket, name = found.groups() if found else ("", "")
            return self.storage.get_file_obj(bucket, unquote(name or self._query.get("name", "")))["generation"]
        except NotFound:
            return "0"

    def _refuse(self, code: int) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def emulated(url: str) -> dict[str, str]:
    """What tells the three clients, in this process and in those it starts, where the bucket is."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask by gRPC, which is not emulated
    }


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """A server with one bucket, in memory; yields its address as `gs://`."""
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with (
        mock.patch.object(server, "RequestHandler", Handler),
        # A client that has heard enough hangs up, and the server would print a traceback each time.
        mock.patch.object(socketserver.BaseServer, "handle_error", lambda *_: None),
    ):
        running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
        running.start()
        os.environ.update(emulated(f"http://127.0.0.1:{running._api._httpd.server_address[1]}"))
        yield f"gs://{BUCKET}"
        running.stop()
