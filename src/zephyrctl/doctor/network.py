"""Whether the package index and the Hub are in reach, and who one is there; the token goes to the Hub alone, unseen."""

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
    """The package index, the Hub, and the Hub's login; all are asked at once."""
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
    """Whether packages can be installed."""
    failure = reach(url)
    if failure:
        return note(
            "package index", f"{shown(url)}: {failure}", "install from a machine that has a network, or a mirror"
        )
    return ok("package index", f"{shown(url)} answers")


def the_hub(url: str, environment: Mapping[str, str]) -> Finding:
    """Whether models and data can be fetched, and results published."""
    if is_offline(environment):
        return note("hub", "HF_HUB_OFFLINE forbids it", "unset HF_HUB_OFFLINE to fetch or publish")
    if failure := reach(url):
        return note("hub", f"{shown(url)}: {failure}", "the recipe tiny needs none; a mirror is named by HF_ENDPOINT")
    return ok("hub", f"{shown(url)} answers")


def login(url: str, token: str | None, environment: Mapping[str, str]) -> Finding:
    """Whether there is a token, and whose the Hub says it is."""
    if not token:
        return note("hub login", "no token: gated models and push need one", LOG_IN)
    if is_offline(environment):
        return ok("hub login", "a token is there, not tried")
    asked = urllib.request.Request(f"{url}/api/whoami-v2", headers={"authorization": f"Bearer {token.strip()}"})
    try:
        with _opener().open(asked, timeout=SECONDS) as response:
            name = json.load(response).get("name")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return note("hub login", "a token is there, and the Hub refuses it", LOG_IN)
        return note("hub login", f"a token is there; the Hub answers {error.code}", "try again later")
    except (OSError, ValueError, AttributeError):
        return note("hub login", "a token is there; the Hub cannot be asked whose", "try again with a network")
    return ok("hub login", f"as {str(name).encode('ascii', 'replace').decode()[:60]!r}")


def hub_token() -> str | None:
    """The token that huggingface_hub would use; None where there is none, or where it cannot be read."""
    from huggingface_hub import get_token

    try:
        return get_token()
    except OSError:
        return None


def is_offline(environment: Mapping[str, str]) -> bool:
    """True where huggingface_hub was told to fetch nothing."""
    return environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def reach(url: str) -> str:
    """Why an address does not answer; empty where it does, whatever it says. A name and password in it are not sent."""
    try:
        with _opener().open(urllib.request.Request(shown(url), method="HEAD"), timeout=SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return f"answers {error.code}" if error.code >= 500 else ""
    except ValueError:
        return "is no address"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return "no answer in time" if isinstance(reason, TimeoutError) else f"cannot be reached ({_words(reason)})"


def shown(url: str) -> str:
    """An address without a name and password."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _opener() -> urllib.request.OpenerDirector:
    """One that follows no redirection: a token must not be carried elsewhere."""
    return urllib.request.build_opener(_Stay)


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """No further request."""


def _words(reason: object) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return (str(reason) or type(reason).__name__)[:120]


def environment() -> dict[str, str]:
    """This process's."""
    return dict(os.environ)
