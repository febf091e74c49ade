"""The teacher `anthropic`: models behind the Messages API, with the key in the environment."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import orjson
from pydantic import Field, field_validator

from zephyrctl.builtin.wire import Answer, Cut, Unreached, Untrusted, Wire
from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.hooks import hookimpl
from zephyrctl.records import Message

zephyrctl_contract = "1"

API_VERSION = "2023-06-01"
MAY_PASS = {408, 409, 429, 500, 502, 503, 504, 529}
"""529 is the API's own word for being overloaded."""
LONGEST_WAIT_SECONDS = 300.0
FINISHED = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
QUOTED_CHARACTERS = 200


class Anthropic(Teacher):
    """A model behind the Anthropic Messages API; the key stays in the environment."""

    class Options(PluginOptions):
        """Options of `anthropic`."""

        model: str = Field(description="model id to ask for")
        base_url: str = Field(default="https://api.anthropic.com/v1", description="of the server, with /v1")
        key_variable: str = Field(default="ANTHROPIC_API_KEY", description="environment variable that holds the key")
        timeout_seconds: float = Field(default=120, gt=0, description="longest wait for one reply")
        system: str | None = Field(default=None, description="system prompt, for instance a principle")

        @field_validator("base_url")
        @classmethod
        def _is_plain(cls, given: str) -> str:
            if set("@?#") & set(given):
                raise ValueError("keys do not belong into the URL; name their variable under key_variable")
            if urlsplit(given).scheme not in ("http", "https") or not urlsplit(given).hostname:
                raise ValueError("a URL begins with http:// or https:// and names a host")
            return given.rstrip("/")

    name = "anthropic"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._wire: Wire | None = None
        self._key = ""

    @property
    def label(self) -> str:
        """The model asked for."""
        return str(self.options.model)

    @property
    def identity(self) -> dict[str, Any]:
        """Model and system prompt: the same model behind a proxy gives no other reply."""
        return {"model": self.options.model, "system": self.options.system}

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Ask the server once; the API knows neither seeds nor schemas. Raises CallFailed where it brings no reply."""
        body = orjson.dumps(self._body(messages, sampling))
        self._wire = self._wire or self._connect()
        try:
            answer = await self._wire.post(body)
        except TimeoutError:
            said, remedy = f"no reply within {self.options.timeout_seconds:g} s", "raise the teacher's timeout_seconds"
            raise self._failed(said, remedy, cause="timeout", may_pass=True, may_be_paid=True) from None
        except Untrusted as error:
            remedy = "name your authority's certificate in SSL_CERT_FILE, or mend the teacher's base_url"
            raise self._failed(str(error), remedy, cause="certificate", is_fatal=True) from None
        except (Unreached, Cut) as error:
            sent = isinstance(error, Cut)
            remedy = "see that the server runs, then run the same command again: what is answered is kept"
            cause = "cut connection" if sent else "no connection"
            raise self._failed(
                str(error), remedy, cause=cause, may_pass=True, may_be_paid=sent, is_unreached=not sent
            ) from None
        if answer.status != 200:
            raise self._refused(answer)
        return self._read(answer.body)

    async def close(self) -> None:
        """Close the connections."""
        if self._wire:
            await self._wire.close()
            self._wire = None

    def _connect(self) -> Wire:
        variable = self.options.key_variable
        self._key = os.environ.get(variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ZephyrError(f"the environment variable {variable} holds no key", "put the key alone into it")
        headers = {"anthropic-version": API_VERSION} | ({"x-api-key": self._key} if self._key else {})
        return Wire(f"{self.options.base_url}/messages", headers, self.options.timeout_seconds)

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """A request. Newer models refuse temperature beside top_p, so what is at its default is not sent."""
        if sampling.temperature > 1:
            raise ZephyrError(
                f"the Messages API takes temperatures from 0 to 1, and {sampling.temperature:g} is asked for",
                "lower the temperature, or choose another teacher",
            )
        systems = [self.options.system, *(message.content for message in messages if message.role == "system")]
        body: dict[str, Any] = {
            "model": self.options.model,
            "max_tokens": sampling.max_tokens,
            "messages": [message.model_dump() for message in messages if message.role != "system"],
        }
        if system := "\n\n".join(filter(None, systems)):
            body["system"] = system
        if sampling.top_p < 1:
            body["top_p"] = sampling.top_p
        if sampling.temperature < 1:
            body["temperature"] = sampling.temperature
        return body

    def _read(self, content: bytes) -> Reply:
        """The reply in a body; thinking and tool calls are no part of it."""
        try:
            answer = orjson.loads(content)
            usage, reason = answer["usage"], str(answer["stop_reason"])
            read = sum(int(count or 0) for name, count in usage.items() if name in READ)
            text = "".join(block["text"] for block in answer["content"] if block["type"] == "text")
            reply = Reply(text, str(answer["model"]), read, int(usage["output_tokens"]), FINISHED.get(reason, reason))
        except (KeyError, TypeError, ValueError, AttributeError):
            remedy = "check the teacher's base_url and model"
            cause = "an answer that is no message"
            raise self._failed(cause, remedy, cause=cause, may_pass=True, may_be_paid=True) from None
        if not reply.text.strip():
            cause = "a refusal" if reply.finish_reason == "refusal" else "an empty answer"
            remedy = "ask something else, or raise max_tokens"
            raise self._failed(cause, remedy, cause=cause, may_pass=cause != "a refusal", may_be_paid=True)
        return reply

    def _refused(self, answer: Answer) -> CallFailed:
        """What a status other than 200 means. Of a refused key nothing is quoted."""
        status, variable = answer.status, self.options.key_variable
        if status in (401, 403):
            said = f"{status}, the key in {variable} {'is not accepted' if self._key else 'is empty'}"
            remedy = f"put a key with access to {self.options.model!r} into the environment variable {variable}"
            return self._failed(said, remedy, cause=str(status), is_fatal=True)
        said = f"{status} {_words(answer.body)}".strip()
        if status in MAY_PASS:
            remedy = "run the same command again later: what is answered is kept"
            return self._failed(said, remedy, cause=str(status), may_pass=True, wait=_wait(answer))
        remedies = {404: "check the model's name and base_url (it ends on /v1)", 413: "shorten the conversation"}
        remedy = remedies.get(status, "check the teacher's options")
        return self._failed(said, remedy, cause=str(status), is_fatal=status not in (400, 413, 422))

    def _failed(self, said: str, remedy: str, **flags: Any) -> CallFailed:
        """The error of a call, without the key, should a server repeat it."""
        said = said.replace(self._key, "...") if self._key else said
        return CallFailed(f"{self.options.base_url}: {said[:QUOTED_CHARACTERS]}", remedy, **flags)


READ = {"input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"}


def _words(body: bytes) -> str:
    """The server's own sentence, in one line."""
    with suppress(ValueError, KeyError, TypeError):
        return " ".join(str(orjson.loads(body)["error"]["message"]).split())
    return ""


def _wait(answer: Answer) -> float | None:
    """The seconds that Retry-After states, at most five minutes."""
    with suppress(ValueError):
        return min(max(0.0, float(answer.headers.get("retry-after", ""))), LONGEST_WAIT_SECONDS)
    return None


@hookimpl
def zephyrctl_teachers() -> list[type[Teacher]]:
    """`anthropic`."""
    return [Anthropic]
