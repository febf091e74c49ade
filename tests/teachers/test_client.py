"""Whether a stage pays for a call once, keeps limits and budget, rides out failures, and stops when it must."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat_server import ChatServer, Fault, refusal, serve
from tests.data.rows_made import offered
from zephyrctl.builtin.openai import Endpoint
from zephyrctl.concurrency import together
from zephyrctl.contracts import Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.recipe.schema import TeacherChoice
from zephyrctl.records import Message
from zephyrctl.teachers import client as calling
from zephyrctl.teachers.call_log import CallLog
from zephyrctl.teachers.client import Calls
from zephyrctl.teachers.http_service import Service
from zephyrctl.teachers.limits import MinuteWindow
from zephyrctl.teachers.prices import Price, Prices

PRICES = Prices({"rules": Price(input=1000.0, output=1000.0)})
"""A thousandth of a dollar for each token: a call of the server's costs cents."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "FIRST_WAIT_SECONDS", 0.005)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """A server that says every question back in capitals."""
    with serve() as chat:
        chat.answer = lambda call: call.text.upper()
        yield chat


class Account:
    """What a draft takes of the calls."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.notes: list[str] = []
        self.cost_usd = 0.0


def choice(server: ChatServer, **limits: int) -> TeacherChoice:
    """The server as a recipe names it."""
    options = {"model": "rules", "base_url": server.base_url, "key_variable": "NO_KEY", "timeout_seconds": 5}
    return TeacherChoice.model_validate({"name": "openai", "options": options, "limits": limits})


def asked(text: object) -> list[Message]:
    """A question."""
    return [Message(role="user", content=str(text))]


def run(
    folder: Path,
    chosen: TeacherChoice,
    work: Callable[[Teacher], Awaitable[Any]],
    prices: Prices = PRICES,
    max_usd: float | None = None,
) -> tuple[Any, Account]:
    """What the work brought, errors too, and what a draft would take."""
    account = Account()

    async def go() -> Any:
        async with Calls(folder, "feedback", prices, max_usd) as calls:
            teacher = calls.teacher(chosen)
            assert calls.teacher(chosen) is teacher
            try:
                return await work(teacher)
            except ZephyrError as error:
                return error
            finally:
                calls.close_into(account)

    return asyncio.run(go()), account


def ask_all(*texts: object, sampling: Sampling | None = None, sample: int = 0) -> Callable[[Teacher], Awaitable[Any]]:
    """Ask all at once; errors come back in their places."""
    drawn = sampling or Sampling(max_tokens=8)

    async def work(teacher: Teacher) -> list[Any]:
        return await asyncio.gather(
            *(teacher.ask(asked(text), drawn, sample) for text in texts), return_exceptions=True
        )

    return work


def texts(replies: list[Any]) -> list[str]:
    """What was said, or the cause of the failure."""
    return [reply.text if isinstance(reply, Reply) else reply.cause for reply in replies]


def test_a_settled_call_is_never_made_again(server: ChatServer, tmp_path: Path) -> None:
    """Not by another command, nor with other limits; with another sampling or sample it is another call."""
    replies, account = run(tmp_path, choice(server), ask_all("a", "b"))
    assert texts(replies) == ["A", "B"]
    assert account.metrics["calls"] == 2
    cost = account.cost_usd
    replies, account = run(tmp_path, choice(server, concurrency=1), ask_all("b", "a", "c"))
    assert texts(replies) == ["B", "A", "C"]
    assert (account.metrics["calls"], account.metrics["calls_from_log"]) == (1, 2)
    assert account.cost_usd > cost > 0, "the cost of an artifact is that of its calls, whenever they were paid"
    assert len(server.calls) == 3
    run(tmp_path, choice(server), ask_all("a", sample=1))
    run(tmp_path, choice(server), ask_all("a", sampling=Sampling(max_tokens=8, seed=1)))
    assert len(server.calls) == 5


def test_equal_calls_under_way_are_one(server: ChatServer, tmp_path: Path) -> None:
    replies, account = run(tmp_path, choice(server), ask_all(*["same"] * 20))
    assert texts(replies) == ["SAME"] * 20
    assert len(server.calls) == account.metrics["calls"] == 1


def test_equal_calls_that_fail_fail_alike(server: ChatServer, tmp_path: Path) -> None:
    server.fail(refusal(400, "no"))
    replies, _ = run(tmp_path, choice(server), ask_all(*["same"] * 5))
    assert texts(replies) == ["400"] * 5
    assert len(server.calls) == 1


def test_what_may_pass_is_tried_again_and_every_attempt_is_on_record(server: ChatServer, tmp_path: Path) -> None:
    server.fail(refusal(429), Fault(cuts=True), refusal(500), Fault(body='{"choices": []}'), Fault(body="{"))
    replies, account = run(tmp_path, choice(server, attempts=6), ask_all("a"))
    assert texts(replies) == ["A"]
    assert account.metrics["attempts_failed"] == {
        "429": 1, "500": 1, "an answer that is no JSON": 1, "an answer without a choice": 1, "cut connection": 1
    }  # fmt: skip
    assert account.metrics["possibly_paid"] == 3
    with CallLog(tmp_path) as log:
        assert sum(row["attempts"] for row in log.outcomes()) == len(server.calls) == 6


def test_a_call_that_fails_for_good_costs_no_other(server: ChatServer, tmp_path: Path) -> None:
    """It is asked again by the next command."""
    server.fail(*[refusal(500)] * 2)
    replies, _ = run(tmp_path, choice(server, attempts=2), ask_all("a"))
    assert texts(replies) == ["500"]
    assert "'rules' failed 2 times: " in str(replies[0])
    replies, account = run(tmp_path, choice(server), ask_all("a", "b"))
    assert texts(replies) == ["A", "B"]
    assert account.metrics["calls"] == 2


def test_a_wrong_key_stops_everything_at_once(server: ChatServer, tmp_path: Path) -> None:
    server.fail(*[refusal(401)] * 50)
    replies, _ = run(tmp_path, choice(server, concurrency=1), ask_all(*range(50)))
    assert len(server.calls) == 1
    assert all("401" in str(reply) and not isinstance(reply, CallFailed) for reply in replies)


def test_the_breaker_opens_after_so_many_failures_in_a_row(server: ChatServer, tmp_path: Path) -> None:
    """And says that the work is kept; a success between them starts the count anew."""
    server.fail(refusal(400), refusal(400))
    server.answer = lambda call: "Yes."
    limits = {"attempts": 1, "concurrency": 1, "breaker": 3}
    replies, _ = run(tmp_path, choice(server, **limits), ask_all(*range(3)))
    assert texts(replies) == ["400", "400", "Yes."]
    server.fail(*[refusal(400)] * 20)
    replies, _ = run(tmp_path, choice(server, **limits), ask_all(*range(20)))
    assert len(server.calls) == 3 + 3
    assert replies[-1].problem.startswith("3 calls to 'rules' failed in a row, the last with: ")
    assert "are kept" in replies[-1].remedy
    assert not isinstance(replies[-1], CallFailed)


def test_a_server_that_asks_for_a_rest_gets_it_from_every_call(server: ChatServer, tmp_path: Path) -> None:
    server.fail(refusal(429, Retry_After="0.5"))
    began = time.monotonic()

    async def work(teacher: Teacher) -> list[float]:
        async def one(number: int) -> float:
            await teacher.ask(asked(number))
            return time.monotonic() - began

        first = asyncio.create_task(one(0))
        while not server.calls:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        return [await first, *(await asyncio.gather(one(1), one(2)))]

    seconds, _ = run(tmp_path, choice(server), work)
    assert min(seconds) >= 0.5


def test_no_more_calls_are_under_way_than_the_recipe_says(server: ChatServer, tmp_path: Path) -> None:
    most = under_way = 0

    def answer(call: Any) -> str:
        nonlocal most, under_way
        with server.lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with server.lock:
            under_way -= 1
        return "Yes."

    server.answer = answer
    run(tmp_path, choice(server, concurrency=3), ask_all(*range(30)))
    assert most == 3


def test_a_minute_has_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: in no span of 60 seconds are there more, and an estimate is corrected by what was used."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("zephyrctl.teachers.limits.time.monotonic", lambda: now)
    monkeypatch.setattr("zephyrctl.teachers.limits.asyncio.sleep", sleep)

    async def begin(most: int, units: int, count: int, used: int | None = None) -> list[float]:
        minute = MinuteWindow(most)
        begun = []
        for _ in range(count):
            entry = await minute.take(units)
            begun.append(now)
            if used is not None:
                entry.units = used
        return begun

    begun = asyncio.run(begin(5, 1, 20))
    assert all(sum(start <= moment < start + 60 for moment in begun) <= 5 for start in begun)
    assert begun[-1] - begun[0] == pytest.approx(180, abs=1)
    now = 0.0
    assert asyncio.run(begin(100, 60, 3, used=20))[-1] == 0, "room that was not used is given back"
    now = 0.0
    assert asyncio.run(begin(100, 500, 2)) == [0, pytest.approx(60, abs=1)], "one that is too large goes alone"


def test_a_budget_is_never_exceeded(server: ChatServer, tmp_path: Path) -> None:
    """Each call is at most 0.012 + 0.008 dollars; calls under way count at their worst until they settle."""
    server.answer = lambda call: "one two three four five six seven eight"
    replies, account = run(tmp_path, choice(server, concurrency=8), ask_all(*range(100)), max_usd=0.2)
    answered = [reply for reply in replies if isinstance(reply, Reply)]
    assert 10 <= len(answered) < 100
    assert 0.15 < account.cost_usd <= 0.2
    (error,) = {str(reply) for reply in replies if isinstance(reply, ZephyrError)}
    assert "the budget is used up" in error and "of 0.2 US dollars" in error
    assert len(server.calls) == len(answered)
    replies, _ = run(tmp_path, choice(server), ask_all(*range(100, 200)), max_usd=0.2)
    assert len(server.calls) == len(answered), "what earlier commands spent counts"
    replies, _ = run(tmp_path, choice(server), ask_all(*range(100)), max_usd=10)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert len(server.calls) == 100


def test_what_may_have_been_paid_counts_at_its_worst(server: ChatServer, tmp_path: Path) -> None:
    server.fail(*[Fault(cuts=True)] * 3)
    replies, _ = run(tmp_path, choice(server, attempts=1), ask_all(1, 2, 3), max_usd=0.05)
    assert set(texts(replies)) <= {"cut connection"}
    replies, _ = run(tmp_path, choice(server), ask_all(4, 5), max_usd=0.05)
    assert all("the budget is used up" in str(reply) for reply in replies)


def test_a_budget_wants_a_price(server: ChatServer, tmp_path: Path) -> None:
    """Before anything is asked; without a budget the calls are made and said to be unpriced."""
    with pytest.raises(ZephyrError, match="needs a price for 'rules'") as caught:
        run(tmp_path, choice(server), ask_all("a"), Prices({}), max_usd=1)
    assert "prices.yaml" in caught.value.remedy
    assert not server.calls
    _, account = run(tmp_path, choice(server), ask_all("a"), Prices({}))
    assert account.cost_usd == 0
    assert any("no price" in note for note in account.notes)


def test_calls_that_are_given_up_may_have_been_paid(server: ChatServer, tmp_path: Path) -> None:
    """Ctrl-C while they are under way."""
    server.fail(*[Fault(hangs=20)] * 2)

    async def work(teacher: Teacher) -> None:
        calls = [asyncio.create_task(teacher.ask(asked(number))) for number in range(2)]
        while len(server.calls) < 2:
            await asyncio.sleep(0.005)
        for call in calls:
            call.cancel()
        assert {type(one) for one in await asyncio.gather(*calls, return_exceptions=True)} == {asyncio.CancelledError}

    _, account = run(tmp_path, choice(server), work)
    assert account.metrics["possibly_paid"] == 2


def test_rules_leave_no_ledger(tmp_path: Path) -> None:
    """They cost nothing, and say the same again."""
    (reply,), account = run(tmp_path, TeacherChoice(name="offline"), ask_all("What is the capital of France?"))
    assert isinstance(reply, Reply)
    assert account.metrics == {}
    assert list(tmp_path.iterdir()) == []


class Broken(Teacher):
    """One that cannot be used at all."""

    name = "broken"

    async def reply(self, messages: Any, sampling: Any = None) -> Reply:
        """Never."""
        raise ZephyrError("no model is there", "put one there")


def test_a_teacher_that_cannot_be_used_stops_the_stage(tmp_path: Path) -> None:
    with offered(Broken):
        (error,), _ = run(tmp_path, TeacherChoice(name="broken"), ask_all("a"))
    assert error.problem == "no model is there"
    with CallLog(tmp_path) as log:
        assert log.possibly_paid() == []


def test_what_is_under_way_settles_before_all_stops(server: ChatServer, tmp_path: Path) -> None:
    """It is paid for: a wrong key for one call does not throw the others away."""
    server.fail(Fault(hangs=0.3, body='{"choices": [{"message": {"content": "Late."}}]}'))

    async def work(teacher: Teacher) -> Any:
        slow = asyncio.create_task(teacher.ask(asked("slow")))
        while not server.calls:
            await asyncio.sleep(0.005)
        server.fail(refusal(401))
        with pytest.raises(ZephyrError, match="401"):
            await teacher.ask(asked("fatal"))
        assert slow.done(), "the stage stopped while a call was under way"
        return await slow

    reply, _ = run(tmp_path, choice(server), work)
    assert reply.text == "Late."


def test_who_waits_for_a_call_that_another_gave_up_makes_it_himself(server: ChatServer, tmp_path: Path) -> None:
    server.fail(Fault(hangs=20))

    async def work(teacher: Teacher) -> Any:
        first, second = (asyncio.create_task(teacher.ask(asked("same"))) for _ in range(2))
        while not server.calls:
            await asyncio.sleep(0.005)
        first.cancel()
        return await second

    reply, account = run(tmp_path, choice(server), work)
    assert reply.text == "SAME"
    assert account.metrics["possibly_paid"] == 1


def test_calls_wait_while_every_server_rests(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that nobody reaches is asked again after longer and longer rests, not by every call at once."""
    monkeypatch.setattr("zephyrctl.builtin.openai.FIRST_REST_SECONDS", 0.1)
    away = choice(server).model_copy(update={"options": {"model": "rules", "base_url": "http://127.0.0.1:1/v1"}})
    limited = away.model_copy(update={"limits": away.limits.model_copy(update={"attempts": 3, "concurrency": 1})})
    began = time.monotonic()
    replies, account = run(tmp_path, limited, ask_all("a"))
    assert texts(replies) == ["no connection"]
    assert time.monotonic() - began >= 0.1 + 0.2
    assert account.metrics["attempts_failed"] == {"no connection": 3}
    assert "possibly_paid" not in account.metrics


def test_a_server_that_was_never_reached_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "FIRST_CONTACT_SECONDS", 1.5)
    with serve() as gone:
        chosen = choice(gone)
    began = time.monotonic()
    outcome, _ = run(tmp_path, chosen, lambda teacher: together(teacher.ask(asked(number)) for number in range(40)))
    assert isinstance(outcome, ZephyrError) and not isinstance(outcome, CallFailed)
    assert "no server answers for 'rules'" in outcome.problem and "127.0.0.1" in outcome.problem
    assert "see that the server runs" in outcome.remedy
    assert time.monotonic() - began < 15


def test_a_server_that_has_answered_is_waited_for(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "FIRST_CONTACT_SECONDS", 0.0)

    async def work(teacher: Teacher) -> list[str]:
        first = await teacher.ask(asked("before"))
        service = Service(
            "http://127.0.0.1:9/v1", "", model="", key_variable="", timeout_seconds=9, headers=lambda key: {}
        )
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(teacher, "_endpoints", [Endpoint(service)])
            waiting = asyncio.ensure_future(teacher.ask(asked("after")))
            await asyncio.sleep(0.2)
        return [first.text, (await waiting).text]

    outcome, _ = run(tmp_path, choice(server), work)
    assert outcome == ["BEFORE", "AFTER"]


def test_a_call_that_settled_in_this_very_turn_of_the_loop_is_not_made_again(
    server: ChatServer, tmp_path: Path
) -> None:
    async def work(teacher: Teacher) -> list[str]:
        return [(await teacher.ask(asked("the same"))).text for _ in range(3)]

    outcome, account = run(tmp_path, choice(server), work)
    assert outcome == ["THE SAME"] * 3
    assert len(server.calls) == 1
    assert (account.metrics["calls"], account.metrics["calls_from_log"]) == (1, 2)
