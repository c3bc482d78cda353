"""The server of the page for raters as a process of its own: whom it answers, what it keeps, and how it ends."""

from __future__ import annotations

import dataclasses
import http.client
import json
import re
import resource
import signal
from urllib.parse import urlsplit

import pytest

from benchmarks import review_load
from launch import review_server
from shared.review import review
from shared.review.site import PROTECTION
from shared.review.store import STORE_FILE, Said, Store
from shared.storage import files
from tests.support.commands import here
from tests.support.review_files import replies

CASES = 6
RATERS = ("r1", "r2")
JSON = {"Content-Type": "application/json"}


@dataclasses.dataclass(frozen=True)
class Reply:
    """A status, headers, and a body."""

    status: int
    headers: dict[str, str]
    body: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    first, second = replies(place / "base.jsonl", "alpha", CASES), replies(place / "trained.jsonl", "omega", CASES)
    text = second.read_text().replace("omega answers 2", "omega answers 2 </div><script>alert(1)</script>")
    second.write_text(text)
    review.export(first, second, names=("base", "trained"), raters=RATERS, count=0, out=place / "review",
                  key=place / "key.json", seed=1)  # fmt: skip
    return place / "review"


@pytest.fixture(scope="module")
def server(folder):
    with review_load.serving(folder) as running:
        yield running


def ask(link, path="", method="GET", body=None, headers=None, whole=None):
    """One request to a rater's link and what is appended to it, or to the path `whole`."""
    parts = urlsplit(link)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        connection.request(method, whole or parts.path + path, body, headers or {})
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read().decode())
    finally:
        connection.close()


def choose(link, number, field, value, **headers):
    return ask(link, f"/{number}", "POST", json.dumps({"field": field, "value": value}), JSON | headers)


def kept(folder, rater):
    store = Store(folder / STORE_FILE)
    try:
        return store.said(rater)
    finally:
        store.close()


def test_a_link_opens_one_raters_cases(server, folder):
    store = Store(folder / STORE_FILE)
    for rater, link in server.links.items():
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/r/[\w-]{43,}", link) and "0 of 6 rated" in server.printed
        for number in range(1, CASES + 1):
            page, case = ask(link, f"/{number}"), store.case(rater, number)
            assert page.status == 200 and f"Case {number} of {CASES}" in page.body
            places = [page.body.index(text.partition("<")[0]) for text in (case.answer_1, case.answer_2)]
            assert places == sorted(places) and "<script>alert" not in page.body
            assert not re.search(r"base|trained|second_is|review_key|q\d\d|answer [AB]\b", page.body, re.IGNORECASE)
            assert page.body.count("<script") == 1 and "http://" not in page.body and "Set-Cookie" not in page.headers
    store.close()
    assert len(set(server.links.values())) == len(RATERS)


def test_a_rater_goes_on_where_they_were(server):
    link = server.links["r2"]
    assert ask(link).headers["location"] == f"{urlsplit(link).path}/all"
    assert choose(link, 1, "better", "2").status == 200 and choose(link, 3, "better", "equal").status == 200
    assert ask(link).headers["location"] == ask(link, "/").headers["location"] == f"{urlsplit(link).path}/2"
    page = ask(link, "/all").body
    assert "2 of 6 rated" in page and "Go on with case 2" in page and "2 rated cases lack the grade" in page
    assert page.count('class="ungraded"') == 2 and page.count('class="open"') == 4
    assert "Begin with case 1" in ask(server.links["r1"], "/all").body
    for number in range(1, CASES + 1):
        choose(link, number, "better", "1")
    assert "All 6 cases are rated" in ask(link, "/all").body
    assert ask(link).headers["location"].endswith("/all")


def test_a_wrong_token_tells_nothing(server):
    link = server.links["r1"]
    token = urlsplit(link).path.removeprefix("/r/")
    wrong = [f"/r/{token[:-1]}", f"/r/{token}x", f"/r/{token.swapcase()}", "/r/x", "/r/%C3%A9%00", "/", "/r", "/nothing",
             "/assets/review_case.html", "/assets/..%2Freview.sqlite", f"/r/{token[:-1]}/1", "/r/x/all"]  # fmt: skip
    answers = {ask(link, whole=path).body for path in wrong}
    assert {ask(link, whole=path).status for path in wrong} == {404} and len(answers) == 1
    assert not re.search(
        r"rater|review_|case|answer \d|r1", re.sub("<head>.*</head>", "", answers.pop(), flags=re.DOTALL)
    )
    posted = ask(
        link, whole=f"/r/{token[:-1]}/1", method="POST", body='{"field": "better", "value": "1"}', headers=JSON
    )
    assert posted.status == 404 and posted.body == '{"error":"Not Found"}'


@pytest.mark.parametrize("number", ["0", "-1", "01", "1.0", str(CASES + 1), "9" * 5_000, "all2", "%31%30"])
def test_a_case_that_is_not_this_raters_is_refused(server, folder, number):
    link, before = server.links["r1"], kept(folder, "r1")
    assert ask(link, f"/{number}").status == 404 and choose(link, number, "better", "1").status == 404
    assert kept(folder, "r1") == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"field": "better", "value": "A"}', "better must be empty or one of 1, 2, equal"),
        ('{"field": "better", "value": 1}', "better must be a text"),
        ('{"field": "grade_1", "value": "6"}', "grade_1 must be empty or one of 1, 2, 3, 4, 5"),
        ('{"field": "rater", "value": "r2"}', "field must be one of better"),
        ('{"field": ["better"], "value": "1"}', "field must be one of better"),
        ('{"field": "better", "value": "1", "rater": "r2"}', "must hold field and value, nothing else"),
        ('{"field": "better"}', "must hold field and value"),
        ('["better", "1"]', "must be a JSON object"),
        ("field=better&value=1", "not JSON"),
        ("[" * 20_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ('{"field": "comment", "value": "\\u0000"}', "cannot be kept"),
        ('{"field": "comment", "value": "\\ud800"}', "cannot be kept"),
        (json.dumps({"field": "comment", "value": "x" * 5_001}), "5,001 characters, 5,000 at most"),
    ],
)
def test_a_tampered_form_is_refused_in_one_line(server, folder, body, words):
    before = kept(folder, "r1")
    refused = ask(server.links["r1"], "/1", "POST", body, JSON)
    assert refused.status == 400 and words in refused.body and refused.body.count("\n") == 0
    assert json.loads(refused.body)["error"].endswith("nothing was kept")
    assert kept(folder, "r1") == before


def test_only_json_of_a_bearable_length(server, folder):
    link, before = server.links["r1"], kept(folder, "r1")
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # all that another site's form can send
    assert ask(link, "/1", "POST", '{"field": "better", "value": "1"}', form).status == 400
    assert ask(link, "/1", "POST", b" " * 2_000_000, JSON).status == 413
    assert ask(link, "/1", "PUT", "{}", JSON).status == 405
    assert kept(folder, "r1") == before


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)  # fmt: skip
def test_a_choice_from_another_sites_page_is_refused(server, folder, headers):
    before = kept(folder, "r1")
    refused = choose(server.links["r1"], 1, "better", "1", **headers)
    assert refused.status == 403 and "another site's page" in refused.body
    assert kept(folder, "r1") == before


def test_a_name_made_to_mean_this_machine_is_refused(server):
    link = server.links["r1"]
    port = urlsplit(link).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert ask(link, "/1", headers={"Host": host}).status == 400, host
    for host in (
        f"localhost:{port}",
        f"127.0.0.1:{port}",
        f"[::1]:{port}",
        "localhost:9000",
    ):  # the last through ssh -L
        assert ask(link, "/1", headers={"Host": host}).status == 200, host
    ours = {"Host": "localhost:9000", "Origin": "http://localhost:9000", "Sec-Fetch-Site": "same-origin"}
    assert choose(link, 5, "comment", "", **ours).status == 200


def test_every_answer_is_protected(server):
    link = server.links["r1"]
    answers = [ask(link, "/1"), ask(link), ask(link, "/99"), ask(link, "/1", "POST", "x", JSON), ask(link, "/1", "PUT"),
               ask(link, whole="/assets/review.js"), ask(link, "/1", headers={"Host": "evil.example"}),
               choose(link, 1, "comment", "")]  # fmt: skip
    assert [answer.status for answer in answers] == [200, 303, 404, 400, 405, 200, 400, 200]
    for answer in answers:
        assert {name: answer.headers[name.lower()] for name in PROTECTION} == PROTECTION
    policy = PROTECTION["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and PROTECTION["Cache-Control"] == "no-store"


def test_a_full_disk_is_said_and_mended(server, folder):
    """A choice that could not be kept is not confirmed; the next one is, once there is room."""
    link, pid = server.links["r1"], server.process.pid
    assert choose(link, 2, "grade_1", "1").status == 200
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        refused = choose(link, 2, "grade_1", "5")
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    assert (refused.status, json.loads(refused.body)) == (503, {"error": "the server cannot reach its file of ratings"})
    assert kept(folder, "r1")[2].grade_1 == "1"
    assert choose(link, 2, "grade_1", "4").status == 200 and kept(folder, "r1")[2] == Said(grade_1="4")


def test_what_cannot_be_served_is_refused(server, folder, tmp_path, monkeypatch, capfd):
    def refusal(*arguments):
        return here("review", "--serve", *arguments, monkeypatch=monkeypatch, capfd=capfd).refusal

    assert "is being served already" in refusal(f"--out={folder}", "--port=0")
    assert "no such file; a review's folder is what --out named" in refusal(f"--out={tmp_path}")
    assert "must be like https://" in refusal(f"--out={folder}", "--address=https://x/y")
    replied = [f"--first={folder.parent / 'base.jsonl'}", f"--second={folder.parent / 'trained.jsonl'}", "--raters=r1"]
    assert "give --serve and --out alone" in refusal(*replied, f"--out={folder}", f"--key={tmp_path / 'k'}")
    assert "--key is needed" in refusal(*replied, f"--out={tmp_path / 'new'}")
    other = review_load.write_review(tmp_path, ["r1"], 2)
    port = urlsplit(server.links["r1"]).port
    assert f"--port={port}: cannot listen there (Address already in use)" in refusal(f"--out={other}", f"--port={port}")
    assert "cannot listen there" in refusal(
        *replied, f"--out={tmp_path / 'new'}", f"--key={tmp_path / 'k'}", f"--port={port}"
    )
    assert not (tmp_path / "new").exists()
    assert "cannot listen there" in refusal(f"--out={other}", "--host=no.such.host.invalid")


@pytest.mark.slow
def test_it_is_written_and_served_in_one_command_and_ended_by_an_interrupt(folder, tmp_path):
    replied = [f"--first={folder.parent / 'base.jsonl'}", f"--second={folder.parent / 'trained.jsonl'}", "--raters=r1"]
    with review_load.serving(tmp_path / "new", *replied, f"--key={tmp_path / 'key.json'}") as server:
        assert f"cases    {CASES} for each of 1 raters" in server.printed
        assert choose(server.links["r1"], 1, "better", "1").status == 200
        server.process.send_signal(signal.SIGINT)
        rest, _ = server.process.communicate(timeout=20)
        assert server.process.returncode == 0 and "every choice that a page called saved is kept" in rest
    assert kept(tmp_path / "new", "r1") == {1: Said("1")}
    assert sorted(path.name for path in (tmp_path / "new").iterdir() if not path.name.startswith(".")) == [
        "r1",
        STORE_FILE,
    ]
    assert files.read_json(tmp_path / "key.json")["names"] == ["first", "second"]


def test_behind_a_proxy_and_open_to_others(tmp_path):
    """The links name the proxy, which calls the server by its own name or by the proxy's."""
    folder = review_load.write_review(tmp_path, ["r1"], 2)
    with review_load.serving(folder, "--address=https://review.example.org") as server:
        assert server.links["r1"].startswith("https://review.example.org/r/")
        port = re.search(r"port (\d+)", server.printed)
        link = server.links["r1"].replace("https://review.example.org", f"http://127.0.0.1:{port[1]}")
        assert (
            choose(link, 1, "better", "1", Host="review.example.org", Origin="https://review.example.org").status == 200
        )
        assert choose(link, 1, "better", "1", Origin="https://review.example.org").status == 200
        assert choose(link, 1, "better", "1", Origin="https://evil.example").status == 403
        assert ask(link, "/1", headers={"Host": "evil.example"}).status == 400
    assert review_server.is_loopback("127.0.0.2") and review_server.is_loopback("::1")
    assert not review_server.is_loopback("0.0.0.0") and not review_server.is_loopback("review.example.org")
    assert "not encrypted" in review_server.warning("0.0.0.0") and "ssh -L" in review_server.warning("0.0.0.0")


@pytest.mark.slow
def test_a_killed_server_loses_no_confirmed_choice(tmp_path):
    """With 50 kills: benchmarks/review.py."""
    raters = ["r1", "r2", "r3"]
    found = review_load.lost_after_kills(review_load.write_review(tmp_path, raters, 5), raters, 5, kills=4, seed=1)
    assert found["kills"] == 4 and found["confirmed"] > 20 and found["lost"] == 0, found


@pytest.mark.slow
def test_twenty_raters_at_once_lose_nothing_and_see_only_their_own(tmp_path):
    raters = [f"r{number:02}" for number in range(20)]
    found = review_load.all_at_once(review_load.write_review(tmp_path, raters, 4), raters, 4)
    assert found["choices"] == 20 * 4 * 4 and found["lost"] == 0 and found["pages with another's words"] == 0, found
