"""Raters without a browser, to test the server of the review page: many raters at once, and a server that is killed.

The server is a real process, and the raters have real connections. Each choice that the server confirmed as saved is compared
with the stored file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared.review import review
from shared.review.store import ALLOWED, STORE_FILE, Said, Store
from shared.storage import files

REPOSITORY = Path(__file__).resolve().parents[1]
LINK = re.compile(r"^link +(\S+) +(\S+)", re.MULTILINE)
SAID = re.compile(r'data-said="([^"]*)"')
SECONDS = 20.0  # limit for the server to start, and to answer


@dataclasses.dataclass
class Server:
    """A running server: its process and each rater's link."""

    process: subprocess.Popen[str]
    links: dict[str, str]
    printed: str

    def kill(self) -> None:
        """Kill the process, as in a crash."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)


@contextlib.contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """Serve a review's folder in a process of its own, on a free port unless `arguments` name another one."""
    command = [sys.executable, "-m", "launch.review", "--serve", f"--out={folder}", "--port=0", *arguments]
    with subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            printed = ""
            while "Ctrl-C" not in printed:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the server ended with {process.wait()}:\n{printed}")
                printed += line
            yield Server(process, dict(LINK.findall(printed)), printed)
        finally:
            process.kill()


def write_review(folder: Path, raters: Sequence[str], cases: int) -> Path:
    """Write a review of invented answers into `folder/review`, and its key into `folder`; returns the review's folder."""
    for model in ("first", "second"):
        rows = [
            {"id": f"q{i}", "question": f"Record {i} " * 50, "completion": f"The {model} answer to record {i}. " * 40}
            for i in range(cases)
        ]
        files.write_json_lines(folder / f"{model}.jsonl", rows)
    review.export(
        folder / "first.jsonl", folder / "second.jsonl", names=("first", "second"), raters=raters, count=0,
        out=folder / "review", key=folder / "key.json", seed=1,
    )  # fmt: skip
    return folder / "review"


class Rater:
    """One rater's connection. `confirmed`: choices that the server confirmed as saved; `flying`: sent and not yet answered."""

    def __init__(self, link: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(link).netloc, timeout=SECONDS)
        self.path = urlsplit(link).path
        self.confirmed: dict[tuple[int, str], str] = {}
        self.flying: tuple[int, str, str] | None = None
        self.seconds: list[float] = []  # for each confirmed choice

    def show(self, number: int) -> str:
        """Get the page of a case."""
        self.connection.request("GET", f"{self.path}/{number}")
        reply = self.connection.getresponse()
        content = reply.read().decode()
        assert reply.status == 200, reply.status
        return content

    def choose(self, number: int, field: str, value: str) -> None:
        """Send a choice as the page does. Raises OSError or HTTPException if no answer comes."""
        self.flying = (number, field, value)
        begin = time.perf_counter()
        self.connection.request(
            "POST", f"{self.path}/{number}", json.dumps({"field": field, "value": value}),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        reply = self.connection.getresponse()
        content = json.loads(reply.read())
        assert reply.status == 200 and content["said"][field] == value, content
        self.seconds.append(time.perf_counter() - begin)
        self.confirmed[number, field], self.flying = value, None


def lost_after_kills(folder: Path, raters: Sequence[str], cases: int, kills: int, seed: int) -> dict[str, Any]:
    """Kill the server `kills` times at random times while all raters click, and count the confirmed choices that are lost.

    `folder` is a review without any rating. Returns the counts of confirmed choices, of lost ones, and of unconfirmed choices
    that were saved.
    """
    chance = random.Random(seed)
    confirmed: dict[str, dict[tuple[int, str], str]] = {rater: {} for rater in raters}
    counts = {"kills": 0, "confirmed": 0, "lost": 0, "kept unconfirmed": 0}
    links = None
    for _ in range(kills):
        with serving(folder) as server:
            paths = {rater: urlsplit(link).path for rater, link in server.links.items()}
            assert links in (None, paths), "a link has changed"
            links = paths
            people = {rater: Rater(server.links[rater]) for rater in raters}
            threads = [
                threading.Thread(target=_click_until_killed, args=(person, cases, chance.random()))
                for person in people.values()
            ]
            for thread in threads:
                thread.start()
            time.sleep(chance.uniform(0.01, 0.5))
            server.kill()
            for thread in threads:
                thread.join()
        counts["kills"] += 1
        store = Store(folder / STORE_FILE)
        for rater, person in people.items():
            counts["confirmed"] += len(person.seconds)
            confirmed[rater] |= person.confirmed
            stored = store.said(rater)
            for (number, field), value in confirmed[rater].items():
                stored_value = getattr(stored.get(number, Said()), field)
                if stored_value != value and (number, field, stored_value) != person.flying:
                    counts["lost"] += 1
            if person.flying is not None:
                number, field, value = person.flying
                stored_value = getattr(stored.get(number, Said()), field)
                if stored_value == value != confirmed[rater].get((number, field)):
                    counts["kept unconfirmed"] += 1
                    confirmed[rater][number, field] = stored_value
        store.close()
    return counts


def _click_until_killed(person: Rater, cases: int, seed: float) -> None:
    chance = random.Random(seed)
    with contextlib.suppress(OSError, http.client.HTTPException):
        while True:
            field = chance.choice(list(ALLOWED))
            person.choose(chance.randint(1, cases), field, chance.choice(ALLOWED[field]))


def all_at_once(folder: Path, raters: Sequence[str], cases: int) -> dict[str, float]:
    """All raters rate all cases at the same time, each with own words; checks that each page shows only these.

    `folder` is a review without any rating. Returns confirmed choices per second, milliseconds until a choice is confirmed
    (median, 99 of 100), and counts of lost choices and of pages with another rater's words.
    """
    strange: list[str] = []
    with serving(folder) as server:
        people = {rater: Rater(server.links[rater]) for rater in raters}
        threads = [
            threading.Thread(target=_rate_all, args=(person, rater, raters, cases, strange))
            for rater, person in people.items()
        ]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begin
    store = Store(folder / STORE_FILE)
    lost = 0
    for rater, person in people.items():
        stored = store.said(rater)
        for number in range(1, cases + 1):
            lost += stored.get(number) != _words_of(rater, raters, number)
            lost += any((number, field) not in person.confirmed for field in ("better", "comment"))
    store.close()
    times = sorted(second for person in people.values() for second in person.seconds)
    return {
        "raters": len(raters),
        "cases": cases,
        "choices": len(times),
        "choices per second": len(times) / seconds,
        "median ms": 1_000 * times[len(times) // 2],
        "99 of 100 ms": 1_000 * times[len(times) * 99 // 100],
        "lost": lost,
        "pages with another's words": len(strange),
    }


def _words_of(rater: str, raters: Sequence[str], number: int) -> Said:
    variant = raters.index(rater) + number
    return Said(
        ALLOWED["better"][1 + variant % 3],
        str(1 + variant % 5),
        str(1 + variant // 2 % 5),
        f"of {rater} on case {number}",
    )


def _rate_all(person: Rater, rater: str, raters: Sequence[str], cases: int, strange: list[str]) -> None:
    others = [f"of {other} on case" for other in raters if other != rater]
    for again in (False, True):
        for number in range(1, cases + 1):
            content = person.show(number)
            words = _words_of(rater, raters, number)
            shown = SAID.search(content)
            assert shown is not None
            mine = f"{words.comment}&" in shown[1]
            if any(other in content for other in others) or mine != again:
                strange.append(f"{rater}, case {number}")
            if not again:
                for field in ("better", "grade_1", "grade_2", "comment"):
                    person.choose(number, field, getattr(words, field))
