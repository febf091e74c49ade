"""The `openai` teacher: any server that speaks the OpenAI chat API, local ones included."""

import asyncio
import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.records import Message

if TYPE_CHECKING:
    import aiohttp

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
REJECTED = {400, 422}
"""What servers answer to a field that they do not take."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
LONGEST_WAIT_SECONDS = 300.0
"""The most that a server's Retry-After is followed."""
QUOTED_CHARACTERS = 200
LIMIT_FIELDS = {"max_completion_tokens": "max_tokens", "max_tokens": "max_completion_tokens"}


@dataclass(frozen=True)
class Failure:
    """A call that brought no reply: why, what to do about it, and whether another try may help."""

    problem: str
    remedy: str = "see that the server runs, then run the same command again: what is answered is kept"
    may_pass: bool = True
    wait: float | None = None
    """Seconds that the server asks to wait."""
    rejects: str | None = None
    """The server's words, where it rejects the request itself."""


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
        token_limit_field: Literal["max_completion_tokens", "max_tokens"] = Field(
            default="max_completion_tokens",
            description="name of the length limit to try first; where the server rejects it, the other is used",
        )

        @field_validator("base_url")
        @classmethod
        def _is_plain(cls, url: str) -> str:
            if set("@?#") & set(url):
                raise ValueError("keys do not belong into the URL; name their variable under key_variable")
            if not _is_address(url):
                raise ValueError("a URL begins with http:// or https:// and names a host")
            return url.rstrip("/")

    name = "openai"

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self._session: aiohttp.ClientSession | None = None
        self._key = ""
        self._limit_field: str = options.token_limit_field

    @property
    def label(self) -> str:
        """The model asked for."""
        label: str = self.options.model
        return label

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Ask the server. Raises ZephyrError where it refuses, or keeps failing."""
        body = self._body(messages, sampling)
        attempt = 1
        while isinstance(answer := await self._ask_with_limit(body, sampling.max_tokens), Failure):
            if not answer.may_pass:
                raise ZephyrError(f"{self.options.base_url} refused: {answer.problem}", answer.remedy)
            if attempt == self.options.attempts:
                tries = "once" if attempt == 1 else f"{attempt} times, the last"
                raise ZephyrError(f"{self.options.base_url} failed {tries} with: {answer.problem}", answer.remedy)
            await asyncio.sleep(answer.wait or _backoff(attempt))
            attempt += 1
        return answer

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()
            self._session = None

    async def _ask_with_limit(self, body: Mapping[str, Any], limit: int) -> Reply | Failure:
        """One call; where the server rejects the name of the length limit, one more with its other name.

        Newer models want `max_completion_tokens`, older servers `max_tokens`; the name that worked is kept.
        """
        field = self._limit_field
        answer = await self._post({**body, field: limit})
        if isinstance(answer, Failure) and field in (answer.rejects or ""):
            field = LIMIT_FIELDS[field]
            second = await self._post({**body, field: limit})
            if isinstance(second, Failure) and second.rejects is not None:
                return answer
            answer = second
        if isinstance(answer, Reply):
            self._limit_field = field
        return answer

    async def _post(self, body: Mapping[str, Any]) -> Reply | Failure:
        import aiohttp  # 0.2 s that only a command which asks pays

        url = f"{self.options.base_url}/chat/completions"
        try:
            async with self._open().post(url, json=body, allow_redirects=False) as response:
                content = await response.read()
        except TimeoutError:
            return Failure(f"no reply within {self.options.timeout_seconds:g} s", "raise the teacher's timeout_seconds")
        except (aiohttp.ClientError, OSError) as error:
            return Failure(_without(self._key, f"{type(error).__name__}: {error}"))
        if response.status == 200:
            return self._read(content)
        return self._failure(response.status, content, _retry_after(response.headers))

    def _open(self) -> "aiohttp.ClientSession":
        import aiohttp

        if self._session is None:
            self._key = os.environ.get(self.options.key_variable, "").strip()
            if not (self._key.isascii() and self._key.isprintable()):
                raise ZephyrError(
                    f"the environment variable {self.options.key_variable} holds no key: it has several lines, "
                    "or letters that no key has",
                    "put the key alone into it",
                )
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
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
        }

    def _read(self, content: bytes) -> Reply | Failure:
        """The reply in a body; one that is broken or has no choice may be whole at the next try."""
        try:
            answer = json.loads(content)
            choice, usage = answer["choices"][0], answer.get("usage") or {}
            return Reply(
                _text(choice["message"]["content"]),
                model=str(answer.get("model") or self.options.model),
                prompt_tokens=int(usage.get("prompt_tokens") or 0),
                completion_tokens=int(usage.get("completion_tokens") or 0),
                finish_reason=str(choice.get("finish_reason") or "stop"),
            )
        except (json.JSONDecodeError, UnicodeDecodeError):
            problem = "an answer that is no JSON"
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            problem = "an answer without a choice in the OpenAI form"
        said = _reason(content, self._key)
        return Failure(f"{problem} ({said})" if said else problem, "check the teacher's base_url and model")

    def _failure(self, status: int, content: bytes, wait: float | None) -> Failure:
        """What a status other than 200 means. Of a refused key nothing is quoted: servers repeat parts of it."""
        said = f"{status} {_reason(content, self._key)}".strip()
        if status in RETRIED:
            return Failure(said, wait=wait)
        remedies = {
            401: f"put a valid key into the environment variable {self.options.key_variable}",
            403: f"put a key with access to {self.options.model!r} into {self.options.key_variable}",
            404: "check base_url (it ends on /v1) and the model's name",
        }
        if status in (401, 403):
            state = "is not accepted" if self._key else "is empty"
            said = f"{status}, the key in {self.options.key_variable} {state}"
        remedy = remedies.get(status, "check the teacher's options" if status >= 400 else remedies[404])
        rejects = content.decode(errors="replace") if status in REJECTED else None
        return Failure(said, remedy, may_pass=False, rejects=rejects)


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its words repeat the URL
        return False


def _text(content: Any) -> str:
    """The text of a message: none at all where the model only refused; some servers send a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    if content is not None and not isinstance(content, str):
        raise TypeError("content that is no text")
    return content or ""


def _reason(content: bytes, key: str) -> str:
    """The server's own sentence, shortened, in one line; never the key, should the server repeat it."""
    try:
        answer = json.loads(content)
        error = answer.get("error") or answer.get("message") or answer.get("detail")
    except (ValueError, AttributeError):
        return ""
    said = error.get("message") if isinstance(error, dict) else error
    return _without(key, " ".join(str(said or "").split()))[:QUOTED_CHARACTERS]


def _without(key: str, text: str) -> str:
    return text.replace(key, "...") if key else text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that Retry-After asks for, in seconds or as a date, within bounds; None where it says nothing."""
    stated = headers.get("Retry-After", "")
    try:
        seconds = float(stated)
    except ValueError:
        try:
            moment = parsedate_to_datetime(stated)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(0.0, seconds), LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else None


def _backoff(attempt: int) -> float:
    """Twice as long each time, and spread, so that calls which failed together do not come back together."""
    return min(LONGEST_BACKOFF_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1)) * random.uniform(0.75, 1.25)
