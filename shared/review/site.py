"""The web page for raters: it shows one case at a time, and saves each choice at once.

The link of a rater contains a secret token, and nothing else is needed to open the rater's cases. No cookies are used. Pages
contain neither the models' names nor the key. Browsers and proxies must not cache them, they load nothing from other servers,
and the server refuses choices that a page of another site sends.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.review.store import BETTER, GRADES, MAX_COMMENT, Said, Store, problem

TEMPLATES = Path(__file__).parents[1] / "report" / "templates"
ASSETS = {"style.css": "text/css", "review.js": "text/javascript"}
NUMBER = re.compile(r"[1-9][0-9]{0,5}")
MAX_BODY = 16 * MAX_COMMENT  # bytes; more than any choice or comment needs, in any encoding
PROTECTION = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}


def site(store: Store, hosts: Collection[str], address: str = "") -> ASGIApp:
    """The ASGI application of a review.

    `hosts` are the host names that browsers may use for it ("*": any). `address` is the address of a proxy in front of it, or "".
    """
    return Protected(_Site(store, address).application(hosts))


class Protected:
    """Adds the headers of PROTECTION to every response of an application, also to errors."""

    def __init__(self, application: ASGIApp) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(PROTECTION)
            await send(message)

        await self.application(scope, receive, protected)


class _Site:
    def __init__(self, store: Store, address: str) -> None:
        self.store, self.address = store, address
        self.templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.assets = {name: (TEMPLATES / name).read_bytes() for name in ASSETS}

    def application(self, hosts: Collection[str]) -> Starlette:
        """The routes, the check of host names, and the handlers of errors."""
        application = Starlette(
            routes=[
                Route("/assets/{name}", self.asset),
                Route("/r/{token}", self.begin),
                Route("/r/{token}/", self.begin),
                Route("/r/{token}/all", self.overview),
                Route("/r/{token}/{number}", self.show),
                Route("/r/{token}/{number}", self.save, methods=["POST"]),
            ],
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
            exception_handlers={HTTPException: self.refused, sqlite3.Error: self.not_kept},
        )
        application.router.redirect_slashes = False  # behind a proxy, a redirect would give the address of this server
        return application

    def refused(self, request: Request, error: Exception) -> Response:
        """The response to a refused request: a page without any details for an unknown link, else one line as JSON."""
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and request.method != "POST":
            return self.page("review_none.html", 404)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    def not_kept(self, request: Request, error: Exception) -> Response:
        """The response if the file cannot be read or written. The error is logged too."""
        logging.error("the review's file: %s", error)
        return JSONResponse({"error": "the server cannot reach its file of ratings"}, 503)

    def asset(self, request: Request) -> Response:
        """The style sheet or the script."""
        name = request.path_params["name"]
        if name not in self.assets:
            raise HTTPException(404)
        return Response(self.assets[name], media_type=ASSETS[name])

    def begin(self, request: Request) -> Response:
        """Redirect to the first case without a preference, or to the list of cases if nothing or everything is rated."""
        rater = self.rater(request)
        place = (self.first_open(rater) if self.store.said(rater) else None) or "all"
        return RedirectResponse(f"/r/{request.path_params['token']}/{place}", 303)

    def overview(self, request: Request) -> Response:
        """The page with the list of all cases of a rater, and which of them are not rated yet."""
        rater = self.rater(request)
        said = self.store.said(rater)
        marks = [said.get(number, Said()) for number in range(1, self.store.counts[rater] + 1)]
        return self.page(
            "review_all.html",
            marks=marks,
            rated=sum(bool(mark.better) for mark in marks),
            ungraded=sum(bool(mark.better and not (mark.grade_1 and mark.grade_2)) for mark in marks),
            first_open=self.first_open(rater),
        )

    def show(self, request: Request) -> Response:
        """The page of one case."""
        rater = self.rater(request)
        number = self.number(request, rater)
        said = self.store.said(rater)
        return self.page(
            "review_case.html",
            case=self.store.case(rater, number),
            number=number,
            count=self.store.counts[rater],
            rated=sum(bool(mark.better) for mark in said.values()),
            said=dataclasses.asdict(said.get(number, Said())),
            better=BETTER,
            grades=GRADES,
            max_comment=MAX_COMMENT,
        )

    async def save(self, request: Request) -> Response:
        """Save one choice. The response is sent when the choice is on the disk."""
        rater = self.rater(request)
        number = self.number(request, rater)
        if self.is_foreign(request.headers):
            raise HTTPException(403, "sent by another site's page; nothing was kept")
        choice = await _read_object(request)
        if set(choice) != {"field", "value"}:
            raise HTTPException(400, "must hold field and value, nothing else; nothing was kept")
        reason = problem(choice["field"], choice["value"])
        if reason:
            raise HTTPException(400, f"{reason}; nothing was kept")
        said, rated = await run_in_threadpool(self.store.save, rater, number, choice["field"], choice["value"])
        return JSONResponse({"said": dataclasses.asdict(said), "rated": rated})

    def rater(self, request: Request) -> str:
        """The rater whose link was opened. Raises HTTPException for an unknown link."""
        rater = self.store.rater_of(request.path_params["token"])
        if rater is None:
            raise HTTPException(404)
        return rater

    def first_open(self, rater: str) -> int | None:
        """The number of the first case without a preference; None if there is none."""
        said = self.store.said(rater)
        numbers = range(1, self.store.counts[rater] + 1)
        return next((number for number in numbers if not said.get(number, Said()).better), None)

    def number(self, request: Request, rater: str) -> int:
        """The number of the case that was requested. Raises HTTPException if the rater has no such case."""
        word = request.path_params["number"]
        if not NUMBER.fullmatch(word) or int(word) > self.store.counts[rater]:
            raise HTTPException(404)
        return int(word)

    def is_foreign(self, headers: Headers) -> bool:
        """Whether the browser says that a page of another site sent the request. Other programs send no such headers."""
        origin = headers.get("origin")
        ours = origin is None or origin == self.address or urlsplit(origin).netloc == headers.get("host")
        return not ours or headers.get("sec-fetch-site", "same-origin") != "same-origin"

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A page made from a template."""
        return HTMLResponse(self.templates.get_template(template).render(values), status)


async def _read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body of a request. Raises HTTPException if it is too long, or is something else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(400, "must be JSON, and say so; nothing was kept")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise HTTPException(413, "too long; nothing was kept")
        content = json.loads(body)
    except (ValueError, RecursionError, ClientDisconnect):
        raise HTTPException(400, "not JSON; nothing was kept") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "must be a JSON object; nothing was kept")
    return content
