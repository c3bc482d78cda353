"""The server of the raters' page: one process serves one review's folder, only on this machine unless a flag says otherwise."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import uvicorn

from shared.errors import InputError
from shared.review.site import site
from shared.review.store import STORE_FILE, Store

LOCK_FILE = ".serving.lock"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
SECONDS_TO_END = 5  # time to finish running requests after the server is asked to end


def serve(folder: Path, listening: socket.socket, *, host: str, address: str = "") -> None:
    """Serve the review in `folder` until Ctrl-C, and print each rater's link.

    `listening` is a socket from `listen(host, ...)`. `address` is the address of a proxy through which raters reach the server,
    such as https://review.example.org, or "". Raises InputError where the folder holds no review or is already served.
    """
    with contextlib.closing(Store(folder / STORE_FILE)) as store, _alone(folder):
        configuration = uvicorn.Config(
            site(store, _hosts(is_loopback(host), address), address),
            access_log=False,  # it would contain the raters' secret tokens
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=SECONDS_TO_END,
        )
        if not is_loopback(host):
            print(warning(host), file=sys.stderr, flush=True)
        print("\n".join(_lines(store, folder, host, listening.getsockname()[1], address)), flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # the server raises it again after it has ended
            uvicorn.Server(configuration).run(sockets=[listening])
        print("\nended; every choice that a page called saved is kept, and the links stay as they are")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on this host and port; port 0 takes a free one. Raises InputError where that is not possible."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise InputError(
            f"--host={host} --port={port}: cannot listen there ({reason}); give another --port, or 0 for a free one"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def warning(host: str) -> str:
    """A warning for a server that other machines can reach."""
    return (
        f"warning: --host={host} lets other machines reach these pages over a connection that is not encrypted: others on the "
        "network can read patients' data and the links. It is better to leave out --host, and to use ssh -L or a proxy with TLS "
        "on this machine (docs/review.md)"
    )


def check_address(address: str) -> None:
    """Raise InputError for an address that is not of the form scheme://name[:port]."""
    if address and not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?", address):
        raise InputError(f"--address={address}: must be like https://review.example.org, without a path")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(folder / LOCK_FILE, timeout=0):
            yield
    except filelock.Timeout:
        raise InputError(
            f"{folder}: is being served already, by another process; one is enough for all raters"
        ) from None


def _hosts(local: bool, address: str) -> list[str]:
    """The host names that requests may have. Without this check, another site could point its own name at this machine
    (DNS rebinding) and read the pages."""
    named = [str(urlsplit(address).hostname)] if address else []
    return [*LOOPBACK_NAMES, *named] if local else named or ["*"]


def _base(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _lines(store: Store, folder: Path, host: str, port: int, address: str) -> list[str]:
    base = address or _base(host, port)
    rated = {rater: sum(bool(said.better) for said in store.said(rater).values()) for rater in store.counts}
    width = max(map(len, store.tokens))
    return [
        f"review   {folder / STORE_FILE}, one link a rater; whoever has a link sees that rater's cases",
        *([f"listens  on {host}, port {port}, for the proxy"] if address else []),
        *(
            f"link     {rater:<{width}}  {base}/r/{token}  {rated[rater]} of {store.counts[rater]} rated"
            for rater, token in store.tokens.items()
        ),
        "Ctrl-C ends it; the same --serve and --out start it again, with the same links",
    ]
