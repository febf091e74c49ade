"""A chat server on 127.0.0.1 that answers by the `offline` teacher's rules, and fails when it is told to.

It speaks `POST /v1/chat/completions`. Our own rating, judging, comparing, refining and user prompts are recognized and
answered in the form that they ask for, so that a whole stage can be run against it.
"""

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from zephyrctl.contracts import Sampling
from zephyrctl.records import ASPECTS, Message
from zephyrctl.tiny.teacher import OfflineTeacher

LARGEST = 4 * 2**20
PATH = "/v1/chat/completions"
REPORTED = "rules-2024-05-13"
"""The model id that the server reports, whatever it is asked for."""


@dataclass(frozen=True)
class Call:
    """One request."""

    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def messages(self) -> list[Message]:
        """Its conversation."""
        return [Message.model_validate(message) for message in self.body["messages"]]

    @property
    def text(self) -> str:
        """The last thing that was said."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Fault:
    """One answer that is not the usual one; `hangs` seconds come before it, and `cuts` ends it half-way."""

    status: int = 200
    body: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: float = 0.0
    cuts: bool = False


def refusal(status: int, message: str = "as the test asks", **headers: str) -> Fault:
    """A refusal in OpenAI's words; `Retry_After="1"` becomes the header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(status, json.dumps({"error": {"message": message, "type": "error", "param": None}}), named)


Answer = Callable[[Call], str]


def by_rules(call: Call) -> str:
    """What the `offline` teacher says."""
    return asyncio.run(answer_by_rules(call))


@dataclass
class ChatServer:
    """The state behind the server, which tests read and steer."""

    base_url: str = ""
    answer: Answer = by_rules
    calls: list[Call] = field(default_factory=list)
    script: "deque[Fault]" = field(default_factory=deque)
    """Faults, one a call; once they are used up, calls are answered."""
    rejects: set[str] = field(default_factory=set)
    """Fields for which a request is refused with 400, as servers do that do not know them."""
    stopped: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, *faults: Fault) -> None:
        """Answer the next calls with these."""
        self.script.extend(faults)

    def take(self, call: Call) -> Fault | None:
        """Note a call; the fault that it gets, if any."""
        with self.lock:
            self.calls.append(call)
            if self.script:
                return self.script.popleft()
        if field := next((name for name in call.body if name in self.rejects), None):
            return refusal(400, f"Unsupported parameter: '{field}' is not supported with this model.")
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = 10
    disable_nagle_algorithm = True
    chat: ClassVar[ChatServer]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """A chat completion."""
        length = int(self.headers.get("Content-Length", 0))
        if self.path != PATH or length > LARGEST:
            self._send(404 if self.path != PATH else 413, json.dumps({"error": {"message": f"no {self.path}"}}))
            return
        call = Call(json.loads(self.rfile.read(length)), dict(self.headers.items()))
        fault = self.chat.take(call)
        if fault is None:
            self._send(200, json.dumps(completion(call, self.chat.answer(call))))
            return
        if fault.hangs:
            self.chat.stopped.wait(fault.hangs)
        if fault.cuts:
            self._cut()
            return
        self._send(fault.status, fault.body, fault.headers)

    def _send(self, status: int, body: str, headers: Mapping[str, str] | None = None) -> None:
        content = body.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have given up
            self.wfile.write(content)

    def _cut(self) -> None:
        """Promise more than is sent, and hang up."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"choices": [')
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """One that lets many connect at once: with the usual 5 in its queue, a connection can be lost for minutes."""

    request_queue_size = 1024


@contextlib.contextmanager
def serve() -> Iterator[ChatServer]:
    """A server on a free port, stopped at the end with every call that still hangs."""
    chat = ChatServer()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"chat": chat}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    chat.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread.start()
    try:
        yield chat
    finally:
        chat.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def completion(call: Call, text: str) -> dict[str, Any]:
    """A text as the API answers it; words stand for tokens."""
    asked = sum(len(message.content.split()) for message in call.messages)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": REPORTED,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": asked, "completion_tokens": len(text.split())},
    }


async def answer_by_rules(call: Call) -> str:
    """What the `offline` teacher says, in the form that the prompt asks for."""
    teacher = OfflineTeacher(OfflineTeacher.Options())
    text, seed = call.text, int(call.body.get("seed") or 0)
    if text.startswith("You rate answers"):
        return await _rate(teacher, text)
    if text.startswith("You judge the last answer"):
        verdict = await teacher.judge(_conversation(text), _between(text, "=== The answer to judge ==="))
        return f"{verdict.reason} [[{verdict.score:g}]]"
    if text.startswith("You review the last answer"):
        critique = await teacher.critique(_conversation(text), _between(text, "=== The answer to review ==="))
        return f"{critique.text}\n[[{critique.overall:g}]]"
    if text.startswith("Two assistants answered"):
        first, second = _between(text, "=== Answer A ==="), _between(text, "=== Answer B ===")
        preference = await teacher.compare(_conversation(text), first, second)
        return f"By the rules: [[{'C' if preference is None else {1.0: 'A', 0.0: 'B', 0.5: 'C'}[preference]}]]"
    if text.startswith("Below are an instruction"):
        instruction, answer = text.split("\nInstruction:\n")[1].split("\n\nAnswer:\n")
        return await teacher.refine(instruction, answer.strip(), seed)
    if text.startswith("You list what people talk about"):
        count = int(text.split(" Name ")[1].split()[0])
        return "\n".join(await teacher.propose_subtopics(text.split("\nTopic: ")[1].strip(), count, seed))
    if text.startswith("You play a person who turns to an assistant"):
        topic, subtopic = text.split("\nTopic: ")[1].split("\nSubject: ")
        return await teacher.open_dialogue(topic, subtopic.strip(), seed)
    if text.startswith("You play the person"):
        return await teacher.speak_as_user(_turns(text), seed)
    return (await teacher.reply(call.messages, Sampling(seed=seed))).text


async def _rate(teacher: OfflineTeacher, text: str) -> str:
    aspect = next(aspect for aspect in ASPECTS if f"Aspect: {aspect.replace('_', ' ')}\n" in text)
    shown, _ = text.split("\nWrite one line for each answer")
    answers = [answer.strip() for answer in re.split(r"^=== Answer \d+ ===$", shown, flags=re.MULTILINE)[1:]]
    ratings = (await teacher.rate(_conversation(text), answers, aspect)).marks
    return "\n".join(f"Answer {place}: {rating.value}. {rating.rationale}" for place, rating in enumerate(ratings, 1))


def _conversation(text: str) -> Sequence[Message]:
    """The turns that a prompt shows before its first `===`."""
    return _turns(text.split("The conversation:\n")[1].split("\n===")[0])


def _turns(text: str) -> list[Message]:
    parts = re.split(r"^\[(system|user|assistant)\]\n", text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Message.model_validate({"role": role, "content": content.strip()}) for role, content in pairs]


def _between(text: str, title: str) -> str:
    return text.split(f"{title}\n")[1].split("\n===")[0].strip()
