"""Whether the `openai` teacher reads what a real server sends, says what its failures are, and never tells the key."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import trustme
from aiohttp import web

from tests.chat_server import REPORTED, Call, ChatServer, Fault, refusal, serve
from zephyrctl import plugins
from zephyrctl.builtin.openai import OpenAITeacher
from zephyrctl.contracts import Reply, Sampling
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.records import ASPECTS, Message
from zephyrctl.teachers.http_service import MAY_PASS, retry_after
from zephyrctl.tiny.teacher import OfflineTeacher

KEY = "sk-test-only/Loopback-0123456789"
ASKED = [Message(role="user", content="What is the capital of France?")]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A running chat server."""
    with serve() as chat:
        yield chat


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZEPHYR_TEST_KEY", KEY)


def teacher(base_url: str | list[str], **options: Any) -> OpenAITeacher:
    """The teacher as a recipe makes it."""
    given = {"model": "rules", "base_url": base_url, "key_variable": "ZEPHYR_TEST_KEY", **options}
    made = plugins.load().teacher("openai", given)
    assert isinstance(made, OpenAITeacher)
    return made


def ask(made: OpenAITeacher, sampling: Sampling | None = None) -> Reply:
    """One reply, with connections closed after it."""

    async def talk() -> Reply:
        try:
            return await made.reply(ASKED, sampling or Sampling())
        finally:
            await made.close()

    return asyncio.run(talk())


def refused(made: OpenAITeacher) -> CallFailed:
    """The error of a call that must fail; it never holds the key."""
    with pytest.raises(CallFailed) as caught:
        ask(made)
    assert KEY not in f"{caught.value.problem} {caught.value.remedy} {caught.value!r}"
    return caught.value


def test_a_reply_keeps_what_the_server_said(server: ChatServer) -> None:
    """Text, token counts and the model id that really answered; the key travels in the header alone."""
    reply = ask(
        teacher(server.base_url, system="Be brief."), Sampling(temperature=0.7, top_p=0.9, max_tokens=9, seed=3)
    )
    assert reply.model == REPORTED
    assert reply.text
    assert (reply.prompt_tokens, reply.completion_tokens) == (8, len(reply.text.split()))
    (call,) = server.calls
    assert call.headers["Authorization"] == f"Bearer {KEY}"
    assert call.body == {
        "model": "rules",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": 3,
        "max_completion_tokens": 9,
    }


def test_without_a_key_none_is_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local server wants none."""
    monkeypatch.delenv("ZEPHYR_TEST_KEY")
    assert ask(teacher(f"{server.base_url}/")).text
    assert "Authorization" not in server.calls[0].headers


@pytest.mark.parametrize(
    "fault",
    [
        *(refusal(status) for status in sorted(MAY_PASS)),
        refusal(429, Retry_After="soon"),
        refusal(503, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
        Fault(502, "<html>Bad gateway</html>"),
        Fault(cuts=True),
        Fault(body=""),
        Fault(body='{"choices": [{"mess'),
        Fault(body="\udcff".encode("utf-8", "surrogateescape").decode("latin-1")),
        Fault(body='{"choices": []}'),
        Fault(body='{"choices": null}'),
        Fault(body='{"choices": [{"message": {"content": 7}}]}'),
        Fault(body='{"choices": [{"message": null}]}'),
        Fault(body='{"error": {"message": "the model is loading"}}'),
        Fault(body="[]"),
        Fault(body="null"),
    ],
    ids=lambda fault: f"{fault.status} {fault.body[:30]}{fault.headers or ''}",
)
def test_what_may_pass_says_so(server: ChatServer, fault: Fault) -> None:
    """One try is made, and the next one is answered; a broken answer may have been paid, a refused call was not."""
    server.fail(fault)
    made = teacher(server.base_url)
    error = refused(made)
    assert error.may_pass
    assert error.may_be_paid == (fault.status == 200)
    assert len(server.calls) == 1
    assert ask(made).model == REPORTED


@pytest.mark.parametrize("status", sorted(MAY_PASS))
def test_a_status_that_may_pass_names_itself(server: ChatServer, status: int) -> None:
    """In a few words to be counted under, and one line that quotes the server without the key."""
    server.fail(refusal(status, f"out of\n  order {KEY}"))
    error = refused(teacher(server.base_url))
    assert (error.cause, error.may_pass, error.may_be_paid) == (str(status), True, False)
    assert error.problem == f"{server.base_url}: {status} out of order ..."
    assert "run the same command again" in error.remedy


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_passed_on(server: ChatServer, form: str) -> None:
    """In seconds, and as an HTTP date, which has whole seconds only."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server.fail(refusal(429, Retry_After="20" if form == "seconds" else date))
    wait = refused(teacher(server.base_url)).wait
    assert wait is not None
    assert 15 < wait <= 20


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [("7", 7.0), ("0", 0.0), ("-3", 0.0), ("86400", 300.0), ("nan", None), ("inf", None), ("soon", None), ("", None)],
)
def test_how_retry_after_is_read(stated: str, seconds: float | None) -> None:
    """Bounded: a server that says tomorrow is asked again after five minutes."""
    assert retry_after(stated) == seconds


def test_a_server_that_hangs_is_left(server: ChatServer) -> None:
    """After `timeout_seconds`; whether it worked on the answer nobody knows."""
    server.fail(Fault(hangs=30))
    error = refused(teacher(server.base_url, timeout_seconds=0.3))
    assert error.problem == f"{server.base_url}: no reply within 0.3 s"
    assert (error.cause, error.may_pass, error.may_be_paid) == ("timeout", True, True)
    assert "timeout_seconds" in error.remedy


def test_a_server_that_does_not_run() -> None:
    """Is named by its address; nothing can have been paid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    error = refused(teacher(f"http://{address}/v1"))
    assert error.problem.startswith(f"http://{address}/v1: ")
    assert (error.cause, error.may_pass, error.may_be_paid) == ("no connection", True, False)
    assert "see that the server runs" in error.remedy


@pytest.mark.parametrize(
    ("status", "problem", "remedy"),
    [
        (401, "401, the key in ZEPHYR_TEST_KEY is not accepted", "put a valid key into the environment variable ZEPH"),
        (403, "403, the key in ZEPHYR_TEST_KEY is not accepted", "put a key with access to 'rules' into ZEPHYR_TEST"),
        (404, "404 no such model: ...", "check base_url (it ends with /v1) and the model's name"),
        (400, "400 no such model: ...", "check the teacher's options"),
        (301, "301 no such model: ...", "check base_url (it ends with /v1) and the model's name"),
    ],
)
def test_what_cannot_pass_is_refused_at_once(server: ChatServer, status: int, problem: str, remedy: str) -> None:
    """With the server's words, but for a key that it repeats; after a refused key with none of them."""
    server.fail(refusal(status, f"no such model: {KEY}", Location="/v1/elsewhere"))
    error = refused(teacher(server.base_url))
    assert error.problem == f"{server.base_url} refused: {problem}"
    assert error.remedy.startswith(remedy)
    assert not error.may_pass
    assert error.is_fatal == (status != 400)
    assert len(server.calls) == 1


def test_a_key_that_is_not_there_is_said(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than that it is refused."""
    monkeypatch.setenv("ZEPHYR_TEST_KEY", " \n")
    server.fail(refusal(401))
    assert refused(teacher(server.base_url)).problem.endswith("401, the key in ZEPHYR_TEST_KEY is empty")


@pytest.mark.parametrize("key", ["two\nlines", "sk-…", "sk\x00"])
def test_what_can_be_no_key_is_not_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """A pasted newline would end the header."""
    if "\x00" in key:
        monkeypatch.setattr("os.environ", {"ZEPHYR_TEST_KEY": key})
    else:
        monkeypatch.setenv("ZEPHYR_TEST_KEY", key)
    with pytest.raises(ZephyrError, match="ZEPHYR_TEST_KEY does not contain a key") as caught:
        ask(teacher(server.base_url))
    assert key not in str(caught.value)
    assert not server.calls


@pytest.mark.parametrize("form", ["detail", "message", "error", "list"])
def test_the_server_is_quoted_whatever_its_form(server: ChatServer, form: str) -> None:
    """OpenAI's, vLLM's and FastAPI's ways to say what is wrong; a text that is none of them is not quoted."""
    words = {"list": [{"loc": ["body"], "msg": "bad"}]}.get(form, "bad")
    server.fail(Fault(400, json.dumps({"detail" if form == "list" else form: words})))
    assert "bad" in refused(teacher(server.base_url)).problem


@pytest.mark.parametrize("known", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("first", ["max_tokens", "max_completion_tokens"])
def test_the_name_of_the_limit_is_found_and_kept(server: ChatServer, known: str, first: str) -> None:
    """Newer models refuse max_tokens, older servers the other: whichever the options say, one extra call finds out."""
    server.rejects = {"max_tokens", "max_completion_tokens"} - {known}
    made = teacher(server.base_url, token_limit_field=first)
    for _ in range(2):
        assert ask(made, Sampling(max_tokens=12)).text
    assert [known in call.body for call in server.calls] == ([True] * 2 if known == first else [False, True, True])
    assert server.calls[-1].body[known] == 12
    assert all(("max_tokens" in call.body) != ("max_completion_tokens" in call.body) for call in server.calls)


def test_a_limit_that_is_refused_under_both_names(server: ChatServer) -> None:
    """Shows the first refusal, as the second speaks of a name that nobody chose."""
    server.fail(
        refusal(400, "max_completion_tokens is too large: 512, at most 256"), refusal(400, "max_tokens is unknown")
    )
    assert "too large: 512" in refused(teacher(server.base_url)).problem
    assert len(server.calls) == 2


def test_a_failure_while_the_name_is_looked_for(server: ChatServer) -> None:
    """Ends the try, and the next one looks again."""
    server.rejects = {"max_completion_tokens"}
    server.fail(refusal(400, "max_completion_tokens?"), refusal(503))
    made = teacher(server.base_url)
    assert refused(made).cause == "503"
    assert ask(made).text
    assert ["max_tokens" in call.body for call in server.calls] == [False, True, False, True]


def test_many_calls_share_the_server(server: ChatServer) -> None:
    """Each gets the answer to its own question."""
    server.answer = lambda call: call.text.upper()
    words = [f"word {number}" for number in range(24)]

    async def talk() -> list[str]:
        made = teacher(server.base_url)
        try:
            replies = await asyncio.gather(*(made.reply([Message(role="user", content=word)]) for word in words))
        finally:
            await made.close()
        return [reply.text for reply in replies]

    assert asyncio.run(talk()) == [word.upper() for word in words]


def test_calls_are_spread_over_the_servers_of_one_model(server: ChatServer) -> None:
    """By the calls under way; one that is gone is left alone for a while, and the others do its work."""
    gate = threading.Event()
    with serve() as other:
        for chat in (server, other):
            chat.answer = lambda call: (gate.wait(5), "Yes.")[1]
        made = teacher([server.base_url, other.base_url])

        async def talk() -> None:
            calls = [asyncio.create_task(made.reply(ASKED)) for _ in range(10)]
            while len(server.calls) + len(other.calls) < 10:
                await asyncio.sleep(0.01)
            gate.set()
            await asyncio.gather(*calls)

        run(made, talk())
        assert (len(server.calls), len(other.calls)) == (5, 5)
    calls = len(server.calls)

    async def talk_on() -> list[str]:
        outcomes = []
        for _ in range(6):
            try:
                outcomes.append((await made.reply(ASKED)).text)
            except CallFailed as error:
                outcomes.append(error.cause)
        return outcomes

    outcomes = run(made, talk_on())
    assert outcomes.count("Yes.") >= 5
    assert set(outcomes) <= {"Yes.", "no connection"}
    assert len(server.calls) - calls == outcomes.count("Yes.")


def test_another_server_of_the_same_model_is_the_same_teacher(server: ChatServer) -> None:
    """What was paid for is found again behind another address, with another key or patience; not for another model."""
    mine = teacher(server.base_url).identity
    assert teacher(["http://127.0.0.1:9/v1"], timeout_seconds=5, key_variable="OTHER").identity == mine
    assert teacher(server.base_url, system="Be brief.").identity != mine
    assert teacher(server.base_url, model="other").identity != mine


SCHEMA = json.dumps({"type": "object", "properties": {"rating": {"type": "number"}}, "required": ["rating"]})


def test_a_form_is_asked_for_where_the_server_can_hold_to_one(server: ChatServer) -> None:
    """As OpenAI writes it; without a schema no form is sent."""
    made = teacher(server.base_url)
    ask(made, Sampling(json_schema=SCHEMA))
    ask(made)
    first, second = (call.body.get("response_format") for call in server.calls)
    assert first == {
        "type": "json_schema",
        "json_schema": {"name": "reply", "strict": True, "schema": json.loads(SCHEMA)},
    }
    assert second is None


def test_a_server_without_forms_is_asked_without_one(server: ChatServer) -> None:
    """An extra call finds out, for all calls to come; an older name of the limit is found beside it."""
    server.rejects = {"response_format", "max_completion_tokens"}
    made = teacher(server.base_url)
    for _ in range(2):
        assert ask(made, Sampling(json_schema=SCHEMA)).text
    assert [sorted({"response_format", "max_tokens"} & set(call.body)) for call in server.calls] == [
        ["response_format"], ["max_tokens", "response_format"], ["max_tokens"], ["max_tokens"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "text"),
    [('"Paris "', "Paris "), ('[{"type": "text", "text": "Par"}, {"type": "text", "text": "is"}, {}]', "Paris")],
)
def test_forms_of_content(server: ChatServer, content: str, text: str) -> None:
    """Parts are joined; what is not said takes its default."""
    server.fail(Fault(body=f'{{"choices": [{{"message": {{"content": {content}}}}}], "usage": null}}'))
    assert ask(teacher(server.base_url)) == Reply(text, model="rules")


@pytest.mark.parametrize("content", ["null", '""', '" \\n"', "[]"])
def test_an_empty_answer_is_none(server: ChatServer, content: str) -> None:
    """It was paid for, and another try may bring one."""
    server.fail(Fault(body=f'{{"choices": [{{"message": {{"content": {content}}}}}]}}'))
    error = refused(teacher(server.base_url))
    assert (error.cause, error.may_pass, error.may_be_paid) == ("an empty answer", True, True)


def test_a_body_sent_in_pieces_by_another_server() -> None:
    """aiohttp's own server, chunked and compressed: not only the one written for these tests is understood."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.json_response(
            {"model": "other", "choices": [{"message": {"content": "Grüße"}, "finish_reason": "length"}]}
        )
        response.enable_compression()
        response.enable_chunked_encoding()
        return response

    async def talk() -> Reply:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made = teacher(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        try:
            return await made.reply(ASKED)
        finally:
            await made.close()
            await runner.cleanup()

    assert asyncio.run(talk()) == Reply("Grüße", model="other", finish_reason="length")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"base_url": "localhost:8000/v1"}, "base_url: Value error, a URL begins with http"),
        ({"base_url": "ftp://host/v1"}, "base_url: Value error, a URL begins with http"),
        ({"base_url": f"http://host:{KEY}/v1"}, "base_url: Value error, a URL begins with http"),
        ({"base_url": "http://[host/v1"}, "base_url: Value error, a URL begins with http"),
        ({"base_url": f"https://user:{KEY}@host/v1"}, "base_url: Value error, keys do not belong into the URL"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "base_url: Value error, keys do not belong into the URL"),
        ({"token_limit_field": "limit"}, "token_limit_field"),
        ({"api_key": KEY}, "api_key: Extra inputs"),
        ({"base_url": []}, "name at least one URL"),
        ({"base_url": ["http://host/v1", "host"]}, "a URL begins with http"),
        ({"attempts": 3}, "attempts: Extra inputs"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], named: str) -> None:
    """By name, and never with what was given."""
    with pytest.raises(ZephyrError) as caught:
        plugins.load().teacher("openai", {"model": "rules", **options})
    assert named in caught.value.problem
    assert KEY not in f"{caught.value.problem} {caught.value.remedy}"


CONVERSATION = [
    Message(role="system", content="Be kind."),
    Message(role="user", content="What is the capital of France?"),
]
ANSWERS = ["The capital of France is Paris.", "Rome", "I don't have opinions."]


def canned(server: ChatServer, text: str) -> OpenAITeacher:
    """A teacher whose server says this to everything."""
    server.answer = lambda call: text
    return teacher(server.base_url)


def run(made: OpenAITeacher, work: Any) -> Any:
    """Await one of the teacher's methods and close it."""

    async def do() -> Any:
        try:
            return await work
        finally:
            await made.close()

    return asyncio.run(do())


def assert_shows(call: Call, parts: Sequence[str]) -> None:
    """A prompt shows these parts, in this order, and has no trace of its template."""
    places = [call.text.index(part) for part in parts]
    assert places == sorted(places)
    assert not {"{{", "}}", "{%"} & {call.text[place : place + 2] for place in range(len(call.text))}


@pytest.mark.parametrize("aspect", [*ASPECTS, "brevity"])
def test_rating(server: ChatServer, aspect: str) -> None:
    """One greedy call shows all answers in order and names the aspect; a plugin may bring an aspect of its own."""
    made = canned(server, "Answer 1: 5. Right.\nAnswer 2: N/A. Off.\n\n**Answer 3**: 1.5. Evasive.")
    rated = run(made, made.rate(CONVERSATION, ANSWERS, aspect))
    ratings = rated.marks
    assert (rated.model, rated.is_readable) == (REPORTED, True)
    assert {rating.rater for rating in ratings} == {REPORTED}
    assert [(rating.value, rating.rationale) for rating in ratings] == [
        (5, "Right."),
        (None, "N/A. Off."),
        (1.5, "Evasive."),
    ]
    assert {rating.aspect for rating in ratings} == {aspect}
    (call,) = server.calls
    shown = ["Aspect:", aspect.replace("_", " "), "Be kind.", CONVERSATION[1].content]
    assert_shows(call, [*shown, *(f"=== Answer {n} ===\n{text}" for n, text in enumerate(ANSWERS, 1)), "Answer 3: RAT"])
    assert call.body["temperature"] == 0


def test_judging(server: ChatServer) -> None:
    """Score, reason, and the model that the server reports."""
    made = canned(server, "It is right, and says more than was asked.\n[[7.5]]")
    verdict = run(made, made.judge(CONVERSATION, ANSWERS[0]))
    assert (verdict.score, verdict.model) == (7.5, REPORTED)
    assert verdict.reason.startswith("It is right")
    assert_shows(server.calls[0], ["[[SCORE]]", "Be kind.", CONVERSATION[1].content, ANSWERS[0]])


@pytest.mark.parametrize(("text", "outcome"), [("[[A]]", 1.0), ("[[B]]", 0.0), ("[[C]]", 0.5), ("both", None)])
def test_comparing(server: ChatServer, text: str, outcome: float | None) -> None:
    """The first answer is A."""
    made = canned(server, f"Reasons. {text}")
    assert run(made, made.compare(CONVERSATION, "Paris", "Rome")) == outcome
    assert_shows(server.calls[0], ["[[C]]", CONVERSATION[1].content, "Answer A ===\nParis", "Answer B ===\nRome"])


def test_refining_and_speaking_as_the_user(server: ChatServer) -> None:
    """Drawn warm, by the seed that is given; white space around the reply goes."""
    made = canned(server, "\n Name its rivers.  ")
    assert run(made, made.refine("Name a city.", "Paris", seed=5)) == "Name its rivers."
    turns = [Message(role="user", content="Name a city."), Message(role="assistant", content="Paris")]
    assert run(made, made.speak_as_user(turns, seed=6)) == "Name its rivers."
    assert [(call.body["temperature"], call.body["seed"]) for call in server.calls] == [(1.0, 5), (1.0, 6)]
    for call in server.calls:
        assert_shows(call, ["Name a city.", "Paris"])


def test_through_the_prompts_the_rules_come_to_the_same_marks(server: ChatServer) -> None:
    """The server reads conversation and answers back out of our prompts: nothing that a judge needs is lost there."""
    made, rules = teacher(server.base_url), OfflineTeacher(OfflineTeacher.Options())

    async def both() -> None:
        for aspect in ASPECTS:
            rated, own_marks = [await by.rate(CONVERSATION, ANSWERS, aspect) for by in (made, rules)]
            assert [mark.value for mark in rated.marks] == [mark.value for mark in own_marks.marks]
            assert [mark.rationale for mark in rated.marks] == [mark.rationale for mark in own_marks.marks]
        for answer in ANSWERS:
            theirs, own = await made.judge(CONVERSATION, answer), await rules.judge(CONVERSATION, answer)
            assert theirs.score == own.score
            assert await made.compare(CONVERSATION, ANSWERS[0], answer) == await rules.compare(
                CONVERSATION, ANSWERS[0], answer
            )
        assert await made.refine(ASKED[0].content, ANSWERS[0], 1) == await rules.refine(ASKED[0].content, ANSWERS[0], 1)
        turns = [*ASKED, Message(role="assistant", content=ANSWERS[0])]
        assert await made.speak_as_user(turns, 2) == await rules.speak_as_user(turns, 2)

    run(made, both())


def test_one_that_was_never_asked_is_closed() -> None:
    """No connection is opened before the first call."""
    asyncio.run(teacher("http://127.0.0.1:9/v1").close())


def test_a_server_whose_certificate_nobody_signed_is_asked_once_and_never_again() -> None:
    """Nothing was sent, and no other call can do better: the remedy names what to trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as accepted:
                context.wrap_socket(accepted, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        error = refused(teacher(f"https://127.0.0.1:{listening.getsockname()[1]}/v1"))
        thread.join(5)
    assert (error.is_fatal, error.may_be_paid, error.cause) == (True, False, "certificate")
    assert "certificate is not trusted" in error.problem
    assert "SSL_CERT_FILE" in error.remedy
