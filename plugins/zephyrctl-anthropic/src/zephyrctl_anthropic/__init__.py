"""The teacher `anthropic`: models behind the Messages API, with the key in the environment."""

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, Field

from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.hooks import hookimpl
from zephyrctl.records import Message
from zephyrctl.teachers.http_service import Service, plain_url

zephyrctl_contract = "1"

API_VERSION = "2023-06-01"
FINISHED = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
READ = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class Anthropic(Teacher):
    """A model behind the Anthropic Messages API, which knows neither seeds nor schemas."""

    class Options(PluginOptions):
        """Options of `anthropic`."""

        model: str = Field(description="model id to ask for")
        base_url: Annotated[str, AfterValidator(plain_url)] = Field(
            default="https://api.anthropic.com/v1", description="of the server, with /v1"
        )
        key_variable: str = Field(default="ANTHROPIC_API_KEY", description="environment variable that holds the key")
        timeout_seconds: float = Field(default=120, gt=0, description="longest wait for one reply")
        system: str | None = Field(default=None, description="system prompt, for instance a principle")

    name = "anthropic"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._service = Service(
            options.base_url,
            "/messages",
            model=options.model,
            key_variable=options.key_variable,
            timeout_seconds=options.timeout_seconds,
            headers=lambda key: {"anthropic-version": API_VERSION} | ({"x-api-key": key} if key else {}),
        )

    @property
    def label(self) -> str:
        """The model asked for."""
        return str(self.options.model)

    @property
    def identity(self) -> dict[str, Any]:
        """Model and system prompt: the same model behind a proxy gives no other reply."""
        return {"model": self.options.model, "system": self.options.system}

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Ask the server once. Raises CallFailed where it brings no reply, ZephyrError for a temperature above 1."""
        answer = await self._service.post(self._body(messages, sampling))
        if answer.status != 200:
            raise self._service.refused(answer)
        return self._read(answer.body)

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """A request. Newer models refuse temperature beside top_p, so what is at its default is not sent."""
        if sampling.temperature > 1:
            raise ZephyrError(
                f"the Messages API takes temperatures from 0 to 1, and {sampling.temperature:g} is asked for",
                "lower the temperature, or choose another teacher",
            )
        systems = [self.options.system, *(message.content for message in messages if message.role == "system")]
        said = {
            "system": "\n\n".join(filter(None, systems)) or None,
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "temperature": sampling.temperature if sampling.temperature < 1 else None,
        }
        return {
            "model": self.options.model,
            "max_tokens": sampling.max_tokens,
            "messages": [message.model_dump() for message in messages if message.role != "system"],
            **{name: value for name, value in said.items() if value is not None},
        }

    def _read(self, content: bytes) -> Reply:
        """The reply in a body; thinking and tool calls are no part of it."""
        try:
            answer = orjson.loads(content)
            usage, reason = answer["usage"], str(answer["stop_reason"])
            text = "".join(block["text"] for block in answer["content"] if block["type"] == "text")
            read = sum(int(usage.get(name) or 0) for name in READ)
            reply = Reply(text, str(answer["model"]), read, int(usage["output_tokens"]), FINISHED.get(reason, reason))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._service.unreadable("an answer that is no message", content) from None
        if not reply.text.strip():
            is_refusal = reply.finish_reason == "refusal"
            raise self._service.unreadable("a refusal" if is_refusal else "an empty answer", may_pass=not is_refusal)
        return reply


@hookimpl
def zephyrctl_teachers() -> list[type[Teacher]]:
    """`anthropic`."""
    return [Anthropic]
