"""The `openai` teacher: any server with the OpenAI chat API, or several that serve the same model."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import orjson
from pydantic import Field, field_validator

from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed
from zephyrctl.records import Message
from zephyrctl.teachers.http_service import UNREACHED, Service, plain_url

REJECTED = {400, 422}
"""The statuses of servers that do not know a field of the request."""
FAILURES_BEFORE_REST = 5
"""A server that fails one call in five, as busy ones do, fails five in a row once in three thousand calls."""
FIRST_REST_SECONDS = 1.0
LONGEST_REST_SECONDS = 60.0
LIMIT_FIELDS = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}
SCHEMA_WORDS = ("response_format", "json_schema", "guided_json", "structured")
RESTING = {UNREACHED, "cut connection", "timeout", "500", "502", "503", "504"}
"""The causes after which a base URL rests, so that calls go to the others."""


@dataclass(frozen=True)
class Rejection:
    """A request that the server rejects in this form, with the server's words."""

    words: str
    failure: CallFailed


@dataclass(frozen=True)
class RequestForm:
    """The form of a request: the name of its length limit, and whether it contains a JSON schema."""

    limit_field: str
    has_schema: bool

    def fill(self, body: Mapping[str, object], sampling: Sampling) -> dict[str, object]:
        """The body with its length limit and, if there is one, the schema of its reply."""
        filled = {**body, self.limit_field: sampling.max_tokens}
        if self.has_schema and sampling.json_schema:
            schema = {"name": "reply", "strict": True, "schema": orjson.loads(sampling.json_schema)}
            filled["response_format"] = {"type": "json_schema", "json_schema": schema}
        return filled

    def without(self, words: str) -> "RequestForm | None":
        """The form without the field that a rejection names, or None if it names none."""
        if self.limit_field in words:
            return replace(self, limit_field=LIMIT_FIELDS[self.limit_field])
        if self.has_schema and any(name in words for name in SCHEMA_WORDS):
            return replace(self, has_schema=False)
        return None


@dataclass
class Endpoint:
    """One base URL, with its calls in flight and the end of its rest after failures."""

    service: Service
    in_flight: int = 0
    failures: int = 0
    rests: int = 0
    rested_at: float = 0.0
    rests_until: float = 0.0

    def fail(self, begun_at: float, is_unreached: bool) -> None:
        """Rest after five failures in a row, or after one if there was no connection; twice as long each time.

        Calls that were sent before the last rest began are ignored: their failures are the same news.
        """
        if begun_at < self.rested_at:
            return
        self.failures += 1
        if is_unreached or self.failures >= FAILURES_BEFORE_REST or self.rests:
            now = time.monotonic()
            seconds = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2.0**self.rests)
            self.rests, self.rested_at, self.rests_until = self.rests + 1, now, now + seconds

    def succeed(self) -> None:
        """End the rest."""
        self.failures, self.rests, self.rests_until = 0, 0, 0.0


class OpenAITeacher(Teacher):
    """Chat completions over HTTP, spread over one base URL or several; the key stays in the environment."""

    class Options(PluginOptions):
        """Options of `openai`."""

        model: str = Field(description="model id to ask for")
        base_url: str | list[str] = Field(
            default="https://api.openai.com/v1",
            description="URL of the server, with /v1; or several that serve the same model, to spread calls over them",
        )
        key_variable: str = Field(default="OPENAI_API_KEY", description="environment variable that contains the key")
        timeout_seconds: float = Field(default=120, gt=0, description="longest wait for one reply")
        system: str | None = Field(default=None, description="system prompt, for instance a principle")
        token_limit_field: Literal["max_completion_tokens", "max_tokens"] = Field(
            default="max_completion_tokens",
            description="name of the length limit to try first; if the server rejects it, the other is used",
        )

        @field_validator("base_url")
        @classmethod
        def _check_urls(cls, given: str | list[str]) -> str | list[str]:
            if isinstance(given, str):
                return plain_url(given)
            if not given:
                raise ValueError("name at least one URL")
            return [plain_url(url) for url in given]

    name = "openai"
    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        urls = [options.base_url] if isinstance(options.base_url, str) else options.base_url
        self._endpoints = [Endpoint(self._service(url)) for url in dict.fromkeys(urls)]
        self._form = RequestForm(options.token_limit_field, has_schema=True)
        """The form that the server accepted last."""

    @property
    def label(self) -> str:
        """The model asked for."""
        return self.options.model

    @property
    def identity(self) -> dict[str, object]:
        """Model and system prompt. Not the address: another server of the same model would reply the same."""
        return {"model": self.options.model, "system": self.options.system}

    @property
    def rest_seconds(self) -> float:
        """Above 0 while all base URLs rest after failures."""
        wakes_at = min([endpoint.rests_until for endpoint in self._endpoints])
        return max(0.0, wakes_at - time.monotonic()) if wakes_at else 0.0

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Ask the server once. Raises CallFailed if there is no reply."""
        endpoint = self._endpoints[0] if len(self._endpoints) == 1 else min(self._endpoints, key=_by_readiness)
        begun_at = time.monotonic()
        endpoint.in_flight += 1
        try:
            reply = await self._call(endpoint.service, self._body(messages, sampling), sampling)
        except CallFailed as error:
            if error.cause in RESTING:
                endpoint.fail(begun_at, error.cause == UNREACHED)
            raise
        finally:
            endpoint.in_flight -= 1
        endpoint.succeed()
        return reply

    async def close(self) -> None:
        """Close the connections."""
        for endpoint in self._endpoints:
            await endpoint.service.close()

    async def _call(self, service: Service, body: Mapping[str, object], sampling: Sampling) -> Reply:
        """Call, and call again without any field that the server rejects by name: a rejected call costs nothing.

        Newer models want `max_completion_tokens`, older servers `max_tokens`, and some know no schemas. The form that
        worked is used for the next call.
        """
        form = RequestForm(self._form.limit_field, self._form.has_schema and bool(sampling.json_schema))
        rejections: dict[RequestForm, Rejection] = {}
        while isinstance(answer := await self._post(service, form.fill(body, sampling)), Rejection):
            rejections[form] = answer
            other_form = form.without(answer.words)
            if other_form is None:
                raise answer.failure
            if other_form in rejections:
                raise next(iter(rejections.values())).failure
            form = other_form
        # A call without a schema does not show whether the server knows schemas: what was known of that stays.
        knows_schemas = form.has_schema or (self._form.has_schema and not sampling.json_schema)
        self._form = RequestForm(form.limit_field, knows_schemas)
        return answer

    def _service(self, url: str) -> Service:
        return Service(
            url,
            "/chat/completions",
            model=self.options.model,
            key_variable=self.options.key_variable,
            timeout_seconds=self.options.timeout_seconds,
            headers=lambda key: {"Authorization": f"Bearer {key}"} if key else {},
        )

    async def _post(self, service: Service, body: Mapping[str, object]) -> Reply | Rejection:
        """One request: its reply, or the server's rejection of its form. Other failures are raised."""
        answer = await service.post(body)
        if answer.status == 200:
            return self._read(service, answer.body)
        if answer.status in REJECTED:
            return Rejection(answer.body.decode(errors="replace"), service.refused(answer))
        raise service.refused(answer)

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, object]:
        system = [{"role": "system", "content": self.options.system}] if self.options.system else []
        return {
            "model": self.options.model,
            "messages": [*system, *({"role": message.role, "content": message.content} for message in messages)],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }

    def _read(self, service: Service, content: bytes) -> Reply:
        """The reply in a body. Raises CallFailed if it is broken, empty or without a choice."""
        try:
            answer = orjson.loads(content)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            reply = Reply(
                _text(choice["message"]["content"]),
                model=str(answer.get("model") or self.options.model),
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
                finish_reason=str(choice.get("finish_reason") or "stop"),
            )
        except orjson.JSONDecodeError:
            raise service.unreadable("an answer that is no JSON") from None
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise service.unreadable("an answer without a choice", content) from None
        if not reply.text.strip():
            raise service.unreadable("an empty answer", content)
        return reply


def _by_readiness(endpoint: Endpoint) -> tuple[float, int]:
    """Sort key: URLs that do not rest first, and of these the one with the fewest calls in flight."""
    return max(0.0, endpoint.rests_until - time.monotonic()), endpoint.in_flight


def _text(content: object) -> str:
    """The text of a message, which some servers send as a list of parts; empty if the model only refused."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError("content that is not text")
    return content or ""
