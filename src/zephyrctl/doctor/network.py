"""Check the package index, the Hub and its login. The token is sent to the Hub only and never printed."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit

from zephyrctl.doctor.finding import Finding, note, ok

SECONDS = 3.0
INDEX = "https://pypi.org/simple/"
HUB = "https://huggingface.co"
LOG_IN = "hf auth login"


def network(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Findings about the package index, the Hub and its login, checked at the same time."""
    index = environment.get("PIP_INDEX_URL") or INDEX
    hub = (environment.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = hub_token()
    with ThreadPoolExecutor() as pool:
        findings = [
            pool.submit(package_index, index),
            pool.submit(the_hub, hub, environment),
            pool.submit(login, hub, token, environment),
        ]
        yield from (finding.result() for finding in findings)


def package_index(url: str) -> Finding:
    """Whether the package index answers."""
    failure = reach(url)
    if failure:
        return note(
            "package index", f"{shown(url)}: {failure}", "set PIP_INDEX_URL to a mirror that this machine reaches"
        )
    return ok("package index", f"{shown(url)} answers")


def the_hub(url: str, environment: Mapping[str, str]) -> Finding:
    """Whether the Hub answers."""
    if is_offline(environment):
        return note("hub", "offline: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE to fetch or publish")
    if failure := reach(url):
        return note("hub", f"{shown(url)}: {failure}", "the recipe tiny needs no Hub; set HF_ENDPOINT to use a mirror")
    return ok("hub", f"{shown(url)} answers")


def login(url: str, token: str | None, environment: Mapping[str, str]) -> Finding:
    """Whether there is a token, and the account that the Hub reports for it."""
    if not token:
        return note("hub login", "no token; gated models and push need one", LOG_IN)
    if is_offline(environment):
        return ok("hub login", "there is a token; not checked while offline")
    request = urllib.request.Request(f"{url}/api/whoami-v2", headers={"authorization": f"Bearer {token.strip()}"})
    try:
        with _opener().open(request, timeout=SECONDS) as response:
            name = json.load(response).get("name")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return note("hub login", "the Hub refuses the token", LOG_IN)
        return note("hub login", f"the Hub answered {error.code} when asked about the token", "try again later")
    except (OSError, ValueError, AttributeError):
        return note(
            "hub login", "there is a token; the Hub could not be reached to check it", "try again with a network"
        )
    return ok("hub login", f"logged in as {str(name).encode('ascii', 'replace').decode()[:60]!r}")


def hub_token() -> str | None:
    """The token that huggingface_hub would use; None if there is none, or if it cannot be read."""
    from huggingface_hub import get_token

    try:
        return get_token()
    except OSError:
        return None


def is_offline(environment: Mapping[str, str]) -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    return environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def reach(url: str) -> str:
    """Why an address does not answer; empty if it answers anything. A name and password in it are not sent."""
    try:
        with _opener().open(urllib.request.Request(shown(url), method="HEAD"), timeout=SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return f"answers {error.code}" if error.code >= 500 else ""
    except ValueError:
        return "is not a valid address"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return "no answer in time" if isinstance(reason, TimeoutError) else f"cannot be reached ({_words(reason)})"


def shown(url: str) -> str:
    """The address without user name and password."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _opener() -> urllib.request.OpenerDirector:
    """An opener that follows no redirects, as the token must not be sent to another host."""
    return urllib.request.build_opener(_Stay)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow none."""


def _words(reason: object) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return (str(reason) or type(reason).__name__)[:120]


def environment() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)
