"""The `openai` teacher: any server that speaks the OpenAI chat API, local ones included."""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

import aiohttp
from pydantic import Field

from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Message

RETRIED = {408, 409, 429, 500, 502, 503, 504}


class OpenAITeacher(Teacher):
    """Chat completions over HTTP, retried as Retry-After says; the key stays in the environment."""

    class Options(PluginOptions):
        """Options of `openai`."""

        model: str = Field(description="model id to ask for")
        base_url: str = Field(default="https://api.openai.com/v1", description="of the server, with /v1")
        key_variable: str = Field(default="OPENAI_API_KEY", description="environment variable that holds the key")
        timeout_seconds: float = Field(default=120, gt=0, description="longest wait for one reply")
        attempts: int = Field(default=6, ge=1, le=50, description="tries before a call fails")
        system: str | None = Field(default=None, description="system prompt, for instance a principle")
        token_limit_field: str = Field(
            default="max_completion_tokens",
            description="name of the length limit; older servers want max_tokens",
        )

    name = "openai"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._session: aiohttp.ClientSession | None = None

    @property
    def label(self) -> str:
        """The model asked for."""
        label: str = self.options.model
        return label

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Ask the server. Raises ZephyrError where it refuses, or keeps failing."""
        body = self._body(messages, sampling)
        for attempt in range(1, self.options.attempts + 1):
            try:
                async with self._open().post(f"{self.options.base_url}/chat/completions", json=body) as response:
                    text = await response.text()
                    if response.status == 200:
                        return self._read(text)
                    problem = f"{response.status} {_reason(text)}"
                    if response.status not in RETRIED:
                        raise self._refused(response.status, problem)
                    wait = _retry_after(response) or _backoff(attempt)
            except (aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError) as error:
                problem, wait = f"{type(error).__name__}: {error}", _backoff(attempt)
            if attempt < self.options.attempts:
                await asyncio.sleep(wait)
        raise ZephyrError(
            f"{self.options.base_url} failed {self.options.attempts} times, the last with {problem}",
            "see that the server runs, then run the same command again: what is answered is kept",
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            key = os.environ.get(self.options.key_variable)
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=aiohttp.ClientTimeout(total=self.options.timeout_seconds),
                connector=aiohttp.TCPConnector(limit=0),
            )
        return self._session

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        system = [{"role": "system", "content": self.options.system}] if self.options.system else []
        return {
            "model": self.options.model,
            "messages": [*system, *(message.model_dump() for message in messages)],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            self.options.token_limit_field: sampling.max_tokens,
        }

    def _read(self, text: str) -> Reply:
        answer = json.loads(text)
        try:
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            return Reply(
                choice["message"]["content"] or "",
                model=answer.get("model") or self.options.model,
                prompt_tokens=usage.get("prompt_tokens") or 0,
                completion_tokens=usage.get("completion_tokens") or 0,
                finish_reason=choice.get("finish_reason") or "stop",
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ZephyrError(
                f"{self.options.base_url} answered without a choice in the OpenAI form",
                "check base_url and model",
            ) from None

    def _refused(self, status: int, problem: str) -> ZephyrError:
        remedies = {
            401: f"put a valid key into the environment variable {self.options.key_variable}",
            403: f"put a key with access to {self.options.model!r} into {self.options.key_variable}",
            404: "check base_url (it ends on /v1) and the model's name",
        }
        return ZephyrError(
            f"{self.options.base_url} refused: {problem}", remedies.get(status, "check the teacher's options")
        )


def _reason(text: str) -> str:
    """The server's own sentence, shortened; never what we sent."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:200]
    except (json.JSONDecodeError, KeyError, TypeError):
        return ""


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    try:
        return min(60.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _backoff(attempt: int) -> float:
    return float(min(30.0, 0.25 * 2**attempt))
