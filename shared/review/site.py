"""The page for raters: one case a screen, each choice saved when it is made.

A rater's link holds a token that nobody can guess, and is all that opens their cases. No cookie is set. Pages know neither
the models' names nor the key; they are kept by no cache, load nothing from elsewhere, and take no choice that another
site's page sends.
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
MAX_BODY = 16 * MAX_COMMENT  # bytes; more than any choice or comment takes, however it is spelled
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
    """The application. `hosts` are the names by which browsers may call it ("*": any); `address` that of a proxy before it."""
    return Protected(_Site(store, address).application(hosts))


class Protected:
    """Every answer of the application, errors included, with the headers of PROTECTION."""

    def __init__(self, application: ASGIApp) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

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
        """The routes, and what a request must be before it comes to one."""
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
        application.router.redirect_slashes = False  # it would name this server where a proxy stands before it
        return application

    def refused(self, request: Request, error: Exception) -> Response:
        """One line to a script; to a person a page that says nothing of what is here."""
        assert isinstance(error, HTTPException)
        if error.status_code == 404 and request.method != "POST":
            return self.page("review_none.html", 404)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    def not_kept(self, request: Request, error: Exception) -> Response:
        """The file cannot be read or written: said to the rater, and to whoever started the server."""
        logging.error("the review's file: %s", error)
        return JSONResponse({"error": "the server cannot reach its file of ratings"}, 503)

    def asset(self, request: Request) -> Response:
        """The style sheet, or the script."""
        name = request.path_params["name"]
        if name not in self.assets:
            raise HTTPException(404)
        return Response(self.assets[name], media_type=ASSETS[name])

    def begin(self, request: Request) -> Response:
        """To the first case without a preference; to the list of all where nothing, or everything, was rated."""
        rater = self.rater(request)
        place = (self.first_open(rater) if self.store.said(rater) else None) or "all"
        return RedirectResponse(f"/r/{request.path_params['token']}/{place}", 303)

    def overview(self, request: Request) -> Response:
        """All cases of a rater, by number, and which are open."""
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
        """One case."""
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
        """Keep one choice; the answer comes when it is on the disk."""
        rater = self.rater(request)
        number = self.number(request, rater)
        if self.is_foreign(request.headers):
            raise HTTPException(403, "sent by another site's page; nothing was kept")
        choice = await _read_object(request)
        if set(choice) != {"field", "value"}:
            raise HTTPException(400, "must hold field and value, nothing else; nothing was kept")
        wrong = problem(choice["field"], choice["value"])
        if wrong:
            raise HTTPException(400, f"{wrong}; nothing was kept")
        said, rated = await run_in_threadpool(self.store.save, rater, number, choice["field"], choice["value"])
        return JSONResponse({"said": dataclasses.asdict(said), "rated": rated})

    def rater(self, request: Request) -> str:
        """Whose link was opened."""
        found = self.store.rater_of(request.path_params["token"])
        if found is None:
            raise HTTPException(404)
        return found

    def first_open(self, rater: str) -> int | None:
        """The first case without a preference."""
        said = self.store.said(rater)
        numbers = range(1, self.store.counts[rater] + 1)
        return next((number for number in numbers if not said.get(number, Said()).better), None)

    def number(self, request: Request, rater: str) -> int:
        """Which of the rater's cases was asked for."""
        word = request.path_params["number"]
        if not NUMBER.fullmatch(word) or int(word) > self.store.counts[rater]:
            raise HTTPException(404)
        return int(word)

    def is_foreign(self, headers: Headers) -> bool:
        """Whether a browser says that a page of another origin sent this. Programs that are no browsers say nothing."""
        origin = headers.get("origin")
        ours = origin is None or origin == self.address or urlsplit(origin).netloc == headers.get("host")
        return not ours or headers.get("sec-fetch-site", "same-origin") != "same-origin"

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """A filled-in template."""
        return HTMLResponse(self.templates.get_template(template).render(values), status)


async def _read_object(request: Request) -> dict[str, Any]:
    """The JSON object that was sent. Raises HTTPException where it is too long or something else."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(400, "must be JSON, and say so; nothing was kept")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise HTTPException(413, "too long; nothing was kept")
        found = json.loads(body)
    except (ValueError, RecursionError, ClientDisconnect):
        raise HTTPException(400, "not JSON; nothing was kept") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "must be a JSON object; nothing was kept")
    return found
