"""Whether the `anthropic` teacher speaks the Messages API to a server that holds it to that, and tells no key."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import zephyrctl_anthropic
from zephyrctl_anthropic import Anthropic

from zephyrctl import plugins
from zephyrctl.contracts import Reply, Sampling
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.records import Message
from zephyrctl.testing import check_plugin, check_teacher

KEY = "sk-ant-loopback-0123456789"
MODEL = "rules-1"
ASKED = [Message(role="user", content="Where is Paris?")]


@dataclass(frozen=True)
class Scripted:
    """An answer that is not the usual one; `hangs` seconds come before it, and `cuts` ends it half-way."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: float = 0.0
    cuts: bool = False


@dataclass
class MessagesApi:
    """The state behind the server."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    script: list[Scripted] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


def refusal(status: int, kind: str, message: str, **headers: str) -> Scripted:
    """A refusal in the API's words."""
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}})
    return Scripted(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def violation(body: dict[str, Any]) -> str:
    """What the API refuses a request for; empty where it takes it."""
    roles = [message["role"] for message in body.get("messages", [])]
    if missing := [name for name in ("model", "max_tokens", "messages") if name not in body]:
        return f"{missing[0]}: Field required"
    if unknown := set(body) - {"model", "max_tokens", "messages", "system", "temperature", "top_p"}:
        return f"{min(unknown)}: Extra inputs are not permitted"
    if not roles or set(roles) - {"user", "assistant"} or roles[0] != "user":
        return "messages: roles must be user and assistant, and the first one user"
    if not 0 <= body.get("temperature", 1) <= 1:
        return "temperature: range: 0..1"
    return ""


def message(body: dict[str, Any], text: str = "", stop: str = "end_turn") -> dict[str, Any]:
    """A message as the API answers it; words stand for tokens."""
    words = (text or f"You asked: {body['messages'][-1]['content']}").split()[: body["max_tokens"]]
    is_cut = len(words) == body["max_tokens"]
    asked = sum(len(turn["content"].split()) for turn in body["messages"])
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": " ".join(words)}],
        "stop_reason": "max_tokens" if is_cut else stop,
        "usage": {"input_tokens": asked, "cache_read_input_tokens": 2, "output_tokens": len(words)},
    }


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    api: MessagesApi

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """A message, the next scripted answer, or what the API says of a request that it does not take."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.api.bodies.append(body)
        self.api.headers.append({name.lower(): value for name, value in self.headers.items()})
        self._send(self.api.script.pop(0) if self.api.script else self._answer(body))

    def _answer(self, body: dict[str, Any]) -> Scripted:
        if self.path != "/v1/messages":
            return refusal(404, "not_found_error", f"no {self.path}")
        if self.headers["x-api-key"] != KEY:
            return refusal(401, "authentication_error", f"invalid x-api-key {self.headers['x-api-key']}")
        if not self.headers["anthropic-version"]:
            return refusal(400, "invalid_request_error", "anthropic-version: header is required")
        if wrong := violation(body):
            return refusal(400, "invalid_request_error", wrong)
        return Scripted(200, json.dumps(message(body)))

    def _send(self, answer: Scripted) -> None:
        self.api.stopped.wait(answer.hangs)
        content = answer.body.encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) + 1000 * answer.cuts))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)
        if answer.cuts:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[MessagesApi]:
    """A running server, and its key in the environment."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    state = MessagesApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"api": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread.start()
    yield state
    state.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join(5)


def teacher(api: MessagesApi, **options: Any) -> Anthropic:
    """The teacher at this server."""
    return Anthropic(Anthropic.Options(model=MODEL, base_url=api.url, **options))


def ask(made: Anthropic, sampling: Sampling | None = None, asked: list[Message] = ASKED) -> Reply:
    """One reply, with connections closed after it."""

    async def talk() -> Reply:
        try:
            return await made.reply(asked, sampling or Sampling())
        finally:
            await made.close()

    return asyncio.run(talk())


def failure(made: Anthropic) -> CallFailed:
    """The error of a call that must fail; it never holds the key."""
    with pytest.raises(CallFailed) as caught:
        ask(made)
    assert KEY not in f"{caught.value.problem} {caught.value.remedy}"
    return caught.value


def test_it_keeps_the_contract(api: MessagesApi) -> None:
    check_plugin(zephyrctl_anthropic)
    check_teacher(lambda: teacher(api), honours_seed=False)


def test_it_is_installed_and_found() -> None:
    origin = plugins.load().find("teacher", "anthropic").origin
    assert origin.startswith("zephyrctl-anthropic ")


def test_a_request_is_what_the_api_wants(api: MessagesApi) -> None:
    """The system prompts stand beside the messages, and the key in a header alone."""
    asked = [Message(role="system", content="Be brief."), *ASKED]
    reply = ask(teacher(api, system="Be kind."), Sampling(temperature=0.5, max_tokens=9, seed=7), asked)
    (body,), (headers,) = api.bodies, api.headers
    assert body == {
        "model": MODEL,
        "max_tokens": 9,
        "system": "Be kind.\n\nBe brief.",
        "messages": [{"role": "user", "content": "Where is Paris?"}],
        "temperature": 0.5,
    }
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers
    assert reply == Reply("You asked: Where is Paris?", MODEL, prompt_tokens=5, completion_tokens=5)


def test_why_it_ended(api: MessagesApi) -> None:
    assert ask(teacher(api), Sampling(max_tokens=2)).finish_reason == "length"
    body = {"messages": [{"content": "x"}], "max_tokens": 99}
    api.script = [Scripted(200, json.dumps(message(body, "I may not.", "refusal")))]
    assert ask(teacher(api)).finish_reason == "refusal"


def test_only_what_is_not_a_default_is_sent(api: MessagesApi) -> None:
    """Newer models refuse temperature beside top_p."""
    ask(teacher(api), Sampling(temperature=1, top_p=0.9))
    ask(teacher(api), Sampling(temperature=0))
    assert [{"temperature", "top_p"} & set(body) for body in api.bodies] == [{"top_p"}, {"temperature"}]


def test_a_temperature_above_1_is_refused_and_not_clamped(api: MessagesApi) -> None:
    with pytest.raises(ZephyrError, match=r"from 0 to 1, and 1\.5 is asked for"):
        ask(teacher(api), Sampling(temperature=1.5))
    assert not api.bodies


@pytest.mark.parametrize(
    ("answer", "cause", "flags"),
    [
        (refusal(400, "invalid_request_error", f"prompt is too long {KEY}"), "400", set()),
        (refusal(401, "authentication_error", f"invalid x-api-key {KEY[:9]}"), "401", {"is_fatal"}),
        (refusal(403, "permission_error", "no"), "403", {"is_fatal"}),
        (refusal(404, "not_found_error", "model: rules-1"), "404", {"is_fatal"}),
        (refusal(413, "request_too_large", "too large"), "413", set()),
        (refusal(429, "rate_limit_error", "slow down", retry_after="7"), "429", {"may_pass", "wait"}),
        (refusal(429, "rate_limit_error", "slow down"), "429", {"may_pass"}),
        (refusal(500, "api_error", "internal"), "500", {"may_pass"}),
        (refusal(529, "overloaded_error", "Overloaded", retry_after="7"), "529", {"may_pass", "wait"}),
        (Scripted(502, "<html>Bad gateway</html>"), "502", {"may_pass"}),
        (Scripted(200, '{"content": ['), "an answer that is no message", {"may_pass", "may_be_paid"}),
        (Scripted(200, '{"content": null}'), "an answer that is no message", {"may_pass", "may_be_paid"}),
        (Scripted(200, "[]"), "an answer that is no message", {"may_pass", "may_be_paid"}),
        (Scripted(200, cuts=True), "cut connection", {"may_pass", "may_be_paid"}),
        (Scripted(200, hangs=5), "timeout", {"may_pass", "may_be_paid"}),
    ],
    ids=lambda value: f"{value.status} {value.body[:20]}" if isinstance(value, Scripted) else "",
)
def test_what_a_failure_means(api: MessagesApi, answer: Scripted, cause: str, flags: set[str]) -> None:
    """A refused call was not paid, a broken answer may have been; after a refused key none of its words are told."""
    api.script = [answer]
    made = teacher(api, timeout_seconds=0.5)
    error = failure(made)
    assert error.cause == cause
    names = ("is_fatal", "may_pass", "may_be_paid", "is_unreached", "wait")
    assert {name for name in names if getattr(error, name)} == flags
    assert error.wait in (None, 7.0)
    assert "sk-ant" not in error.problem
    assert ask(made).text


def test_an_empty_answer_may_pass_and_a_silent_refusal_does_not(api: MessagesApi) -> None:
    body = {"messages": [{"content": "x"}], "max_tokens": 99}
    for stop, may_pass in (("end_turn", True), ("refusal", False)):
        api.script = [Scripted(200, json.dumps(message(body, stop=stop) | {"content": []}))]
        error = failure(teacher(api))
        assert (error.may_pass, error.may_be_paid) == (may_pass, True)


def test_a_server_that_does_not_run() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/v1"
    error = failure(Anthropic(Anthropic.Options(model=MODEL, base_url=url)))
    assert (error.cause, error.may_pass, error.may_be_paid, error.is_unreached) == ("no connection", True, False, True)


def test_without_a_key_it_says_which_variable_is_empty(api: MessagesApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    assert "the key in ANTHROPIC_API_KEY is empty" in failure(teacher(api)).problem
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a key\nof two lines")
    with pytest.raises(ZephyrError, match="ANTHROPIC_API_KEY does not contain a key"):
        ask(teacher(api))


@pytest.mark.parametrize("url", [f"https://{KEY}@api.example/v1", "ftp://api.example/v1", "api.example"])
def test_a_base_url_is_one_and_holds_no_key(url: str) -> None:
    with pytest.raises(ZephyrError, match="base_url") as caught:
        plugins.load().teacher("anthropic", {"model": MODEL, "base_url": url})
    assert KEY not in caught.value.problem
