"""Who may ask: with keys nobody without one, without keys this machine only; each key within its limits."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from liuli.assistant import Store
from liuli.cli import app as command
from liuli.errors import LiuliError, UsageError
from liuli.server import serve
from liuli.server.app import create_app
from liuli.server.keys import FRESH_SECONDS, OPEN, Keys, Logins
from liuli.server.limits import Limits
from liuli.server.load import Load, bench
from tests.server.scripted import LiveServer, ScriptedVoice, make_model, until

HTTP = httpx.Client()
HI = [{"role": "user", "content": "Hi"}]


class Locked:
    """A server with keys for ada (no limits) and bob (3 requests and 60 tokens a minute)."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store.sqlite"
        keys = Keys(Store(self.store))
        self.ada, self.bob = keys.add("ada"), keys.add("bob", 3, 60)
        model = make_model(folder / "tiny")
        self.app = create_app(model, load=ScriptedVoice, store=self.store)
        self.live = LiveServer(model, self.app)

    def get(self, path: str, key: str = "", method: str = "GET", **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return HTTP.request(method, self.live.url + path, headers=headers, **options)

    def client(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.live.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Locked]:
    made = Locked(tmp_path)
    with made.live:
        yield made


def test_every_route_but_the_open_ones_needs_a_key(locked: Locked) -> None:
    spec = locked.app.openapi()  # every route there is, with its methods
    asked = [(method.upper(), path) for path, methods in spec["paths"].items() for method in methods]
    assert len(asked) > 15 and ("POST", "/v1/chat/completions") in asked and ("PUT", "/api/chats/{id}") in asked
    for method, path in [*asked, ("GET", "/assets/x.js"), ("GET", "/nowhere"), ("GET", "/openapi.json")]:
        for key in ("", "wrong", locked.ada[:-1], locked.ada + "x"):
            body = {"json": {}} if method in ("POST", "PUT") else {}
            said = locked.get(path, key, method, **body)
            if path in OPEN:
                assert said.status_code == 200
            else:
                assert said.status_code == 401, (method, path, said.text)
    said = locked.get("/v1/models", "wrong").json()["error"]
    assert (said["type"], said["code"], said["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert locked.get("/v1/models", locked.ada).status_code == 200


def test_the_openai_client_meets_the_errors_it_knows(locked: Locked) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        locked.client("sk-wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    for _ in range(3):
        said = locked.client(locked.bob).chat.completions.with_raw_response.create(model="", messages=HI, max_tokens=2)
        assert said.headers["x-ratelimit-limit-requests"] == "3"
    assert said.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError) as limited:
        locked.client(locked.bob).chat.completions.create(model="", messages=HI, max_tokens=2)
    headers = limited.value.response.headers
    assert limited.value.code == "rate_limit_exceeded" and 15 <= int(headers["retry-after"]) <= 20
    assert re.fullmatch(r"[\d.]+s", headers["x-ratelimit-reset-requests"])
    assert locked.client(locked.ada).chat.completions.create(model="", messages=HI).choices  # others are not slowed
    assert locked.client(locked.bob).models.list().data  # reading is free


def test_tokens_are_charged_when_they_are_known_also_those_of_a_stream(locked: Locked) -> None:
    long = [{"role": "user", "content": "long"}]
    list(locked.client(locked.bob).chat.completions.create(model="", messages=long, max_tokens=100, stream=True))
    with pytest.raises(openai.RateLimitError, match="60 tokens per minute") as limited:
        locked.client(locked.bob).chat.completions.create(model="", messages=HI)
    assert 40 <= int(limited.value.response.headers["retry-after"]) <= 46  # 3 read and 100 written, 60 allowed
    assert limited.value.response.headers["x-ratelimit-remaining-tokens"] == "0"


def test_embeddings_are_charged_for_what_they_read(real: LiveServer, tmp_path: Path) -> None:
    key = Keys(Store(tmp_path / "store.sqlite")).add("eve", tokens_per_minute=60)
    with LiveServer(real.path, create_app(real.path, store=tmp_path / "store.sqlite")) as live:
        headers, asked = {"authorization": f"Bearer {key}"}, {"input": ["hello world"] * 30}
        statuses = [httpx.post(f"{live.url}/v1/embeddings", json=asked, headers=headers).status_code for _ in range(2)]
        assert statuses == [200, 429]


def test_a_removed_key_is_refused_and_a_server_opened_to_the_network_never_falls_open(tmp_path: Path) -> None:
    keys = Keys(Store(tmp_path / "store.sqlite"))
    key, model = keys.add("ada"), make_model(tmp_path / "tiny")
    app = create_app(model, load=ScriptedVoice, store=tmp_path / "store.sqlite", host="0.0.0.0")
    with LiveServer(model, app) as live:

        def status() -> int:
            return httpx.get(f"{live.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

        assert status() == 200
        keys.remove("ada")  # it was the last one
        until(lambda: status() == 401, FRESH_SECONDS + 2)


def test_without_a_key_the_server_stays_on_this_machine(tmp_path: Path) -> None:
    model = make_model(tmp_path / "tiny")
    for host in ("0.0.0.0", "::"):
        with pytest.raises(UsageError, match="anyone on the network") as refused:
            serve(model, host=host, port=0, store=tmp_path / "s.sqlite")
        assert f"liuli keys add me --store {tmp_path / 's.sqlite'}" in str(refused.value)
    assert not (tmp_path / "s.sqlite").exists()
    with LiveServer(model, create_app(model, load=ScriptedVoice, store=tmp_path / "s.sqlite")) as live:
        assert httpx.get(f"{live.url}/v1/models").status_code == 200


def test_the_page_comes_in_once_by_its_address_then_by_a_cookie_no_script_reads(locked: Locked) -> None:
    token = locked.app.state.logins.token("")
    page = httpx.Client(base_url=locked.live.url)
    assert page.get("/").status_code == 401 and "login" in page.get("/").text
    said = page.get(f"/?login={token}")
    assert (said.status_code, said.headers["location"]) == (303, "/")  # the token leaves the address
    cookie = said.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and token not in cookie
    assert page.get("/v1/models").status_code == 200 and page.get("/api/run").status_code == 200
    again = httpx.Client(base_url=locked.live.url)
    assert "set-cookie" not in again.get(f"/?login={token}").headers and again.get("/api/run").status_code == 401


def test_a_key_logs_a_browser_in_as_itself(locked: Locked) -> None:
    link = locked.get("/api/login", locked.bob, "POST", json={}).json()["login"]
    page = httpx.Client(base_url=locked.live.url)
    page.get(link)
    page.put("/api/chats/c1", json={"title": "bob's", "messages": []}).raise_for_status()
    assert [chat["title"] for chat in locked.get("/api/chats", locked.bob).json()["chats"]] == ["bob's"]
    Keys(Store(locked.store)).remove("bob")
    until(lambda: page.get("/api/run").status_code == 401, FRESH_SECONDS + 2)


def test_no_key_nor_login_is_ever_written(locked: Locked, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = locked.app.state.logins.token("")
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        httpx.get(f"{locked.live.url}/?login={token}")
        broken = [{"role": "user", "content": "break"}]
        locked.get("/v1/chat/completions", locked.ada, "POST", json={"messages": broken})
        for _ in range(4):
            locked.get("/v1/chat/completions", locked.bob, "POST", json={"messages": HI, "max_tokens": 1})
        locked.get("/v1/models", "x" + locked.ada)
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]  # the client's
    logged = out.getvalue() + "".join(f"{record.getMessage()}{record.exc_text}" for record in ours)
    assert "the engine broke" in logged
    stored = b"".join(file.read_bytes() for file in locked.store.parent.glob("store.sqlite*"))
    for secret in (token, locked.ada, locked.bob):
        assert secret not in logged and secret.encode() not in stored


def chat(*texts: str) -> dict[str, Any]:
    messages = [{"id": f"m{n}", "message": {"role": "user", "content": text}} for n, text in enumerate(texts)]
    return {"title": "t", "messages": messages}


def test_another_users_chat_is_not_there(locked: Locked) -> None:
    saved = chat("hello", "你好")
    saved["messages"][1] |= {"parent_id": "m0", "seed": 7, "model": "tiny", "sampling": {"temperature": 0.5}}
    assert locked.get("/api/chats/c1", locked.ada, "PUT", json=saved).status_code == 200
    read = locked.get("/api/chats/c1", locked.ada).json()
    assert (read["title"], [each["parent_id"] for each in read["messages"]]) == ("t", [None, "m0"])
    assert read["messages"][1]["message"] == {"role": "user", "content": "你好"}
    assert (read["messages"][1]["seed"], read["messages"][1]["sampling"]) == (7, {"temperature": 0.5})
    for method in ("GET", "PUT", "DELETE"):
        body = {"json": saved} if method == "PUT" else {}
        said = locked.get("/api/chats/c1", locked.bob, method, **body)
        assert (said.status_code, said.json()["error"]["code"]) == (404, "chat_not_found"), method
    assert locked.get("/api/chats/c1", locked.ada, "DELETE").json() == {"id": "c1", "deleted": True}
    assert locked.get("/api/chats", locked.ada).json() == {"chats": []}
    assert locked.get("/api/chats/c1", locked.ada).status_code == 404
    wrong = [("a b", saved), ("c", {}), ("c", chat("\ud800") | {"title": "\ud800"}), ("c", {**saved, "x": 1})]
    twice = {"title": "", "messages": [saved["messages"][0]] * 2}
    for id, body in [*wrong, ("c", twice), ("c", {"title": "", "messages": [saved["messages"][1]]})]:
        said = httpx.put(
            f"{locked.live.url}/api/chats/{id}", content=json.dumps(body),
            headers={"authorization": f"Bearer {locked.ada}", "content-type": "application/json"},
        )  # fmt: skip
        assert said.status_code == 400, (id, body)


def test_the_command_makes_lists_and_removes_keys(tmp_path: Path) -> None:
    where = ["--store", str(tmp_path / "run" / "store.sqlite")]
    run = CliRunner().invoke
    assert f"no keys: there is no file {where[1]} yet" in run(command, ["keys", "list", *where]).stdout
    key = run(command, ["keys", "add", "ada", *where, "--tokens-per-minute", "500"]).stdout.strip()
    assert re.fullmatch(r"liuli-[\w-]{43}", key)  # 256 bits in base64
    run(command, ["keys", "add", "bob", *where])
    listed = run(command, ["keys", "list", *where]).stdout
    assert re.search(r"ada +500 tokens per minute\nbob +no limits", listed) and key not in listed
    with sqlite3.connect(where[1]) as raw:
        ((digest,),) = raw.execute("SELECT digest FROM keys WHERE name = 'ada'").fetchall()
    assert re.fullmatch("[0-9a-f]{64}", digest)
    for arguments, what in (
        (["add", "ada"], "a key 'ada' already"),
        (["add", "a b"], "no name"),
        (["remove", "eve"], "no key"),
    ):
        failed = run(command, ["keys", *arguments, *where])
        assert isinstance(failed.exception, UsageError) and what in str(failed.exception)
    run(command, ["keys", "remove", "ada", *where])
    assert "ada" not in run(command, ["keys", "list", *where]).stdout
    run(command, ["keys", "remove", "bob", *where])
    assert run(command, ["keys", "list", *where]).stdout == "no keys\n"
    assert run(command, ["keys", "list", "--json", *where]).stdout == '{"keys": []}\n'


def test_a_bench_without_the_key_is_told_how_to_give_it(locked: Locked) -> None:
    for model in ("", "tiny"):
        with pytest.raises(LiuliError, match=r"HTTP 401(?s:.*)to do: give the key: --key or LIULI_KEY"):
            bench(Load(locked.live.url, model, requests=1))
    assert bench(Load(locked.live.url, requests=1, warm_up=1, max_tokens=1), locked.ada)["errors"] == {}


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=60), st.integers(1, 40), st.integers(1, 200))
def test_no_key_ever_gets_more_than_its_limit(visits: list[tuple[float, int]], requests: int, tokens: int) -> None:
    """Over any time: at most one bucket and what flowed in since; and whoever waits as told is let in."""
    now = 0.0
    limits = Limits(clock=lambda: now)
    spent = 0
    for admitted, (pause, used) in enumerate(visits, start=1):
        now += pause
        refused, headers = limits.admit("ada", requests, tokens)
        if refused:
            assert refused.status == 429
            now += int(headers["retry-after"])
            refused, headers = limits.admit("ada", requests, tokens)
            assert refused is None
        assert admitted <= requests + now * requests / 60 + 1e-6
        assert spent <= tokens + now * tokens / 60 + 1e-6  # what was spent before this one was let in
        limits.charge("ada", used)
        spent += used


def test_a_login_is_good_once_and_they_are_bounded() -> None:
    logins = Logins()
    tokens = [logins.token(str(n)) for n in range(1005)]
    assert logins.trade(tokens[0]) is None  # the oldest are forgotten
    session = logins.trade(tokens[-1])
    assert session and logins.name(session) == "1004" and logins.trade(tokens[-1]) is None
    assert logins.name(tokens[-2]) is None  # a token is no session
