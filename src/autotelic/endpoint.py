"""Ask a server with OpenAI's interface: vLLM's, SGLang's, llama.cpp's, a provider's.

What samples (`autotelic.lm.engines`) and what judges (`autotelic.answers.backends`) asks through this. What may pass is
tried again: no connection, a timeout, a reply that is cut, HTTP 408, 429 and 500 to 599. All else is refused at once.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from autotelic.errors import UserError

RETRIES, PAUSE = 3, 1.0
"""Attempts after a failure, and seconds before the first of them; then doubled."""


class NoAnswerError(UserError):
    """The server gave no answer, the last attempt included; it may come back."""


class Endpoint:
    """The address of a server, and how it is asked.

    Args:
        url: such as ``http://localhost:8000``; ``/v1`` is added where the address has no path.
        key_variable: environment variable that holds the key, where the server wants one.
        retries: attempts after a failure.
        pause: seconds before the first of them, then doubled.
        timeout: seconds for an answer.

    Raises:
        UserError: no http or https address.
    """

    def __init__(
        self,
        url: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        retries: int | None = None,
        pause: float | int | None = None,
        timeout: float | int = 3600.0,
    ) -> None:
        self.url = url.rstrip("/")
        if not is_address(self.url):
            raise UserError(f"{url!r} is no address of a server: it is written as http://HOST:PORT or https://HOST")
        self.url += "" if urlsplit(self.url).path else "/v1"
        self.key_variable, self.timeout = key_variable, timeout
        self.retries = RETRIES if retries is None else retries
        self.pause = PAUSE if pause is None else pause

    def ask(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | int | None = None
    ) -> dict[str, Any]:
        """Return the answer to a request: GET without a body.

        Args:
            path: below the address, such as ``chat/completions``.
            body: of the request, in OpenAI's terms.
            timeout: seconds for the answer to this request, where not that of the others.

        Raises:
            NoAnswerError: there was none.
            UserError: the server refused.
        """
        where, headers = f"{self.url}/{path}", {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request, reason = urllib.request.Request(where, data, headers), ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=timeout or self.timeout) as reply:
                    found = json.loads(reply.read())
                if isinstance(found, dict):
                    return found
                reason = "the reply is no JSON object"
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code} {error.read(2000).decode(errors='replace').strip()[:300] or error.reason}"
                if error.code not in (408, 429) and error.code < 500:
                    key_hint = f"; the key is read from {self.key_variable}" if error.code in (401, 403) else ""
                    raise UserError(f"the server at {where} refused: {reason}{key_hint}") from error
            except (json.JSONDecodeError, UnicodeDecodeError):
                reason = "the reply is no JSON"
            except (http.client.HTTPException, OSError) as error:  # a timeout and URLError are OSErrors
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise NoAnswerError(f"the server at {where} gives no answer: {reason}")

    def models(self) -> dict[str, dict[str, Any]]:
        """Return what the server says of its models, by name; nothing where it does not tell."""
        rows = self.ask("models", timeout=30.0).get("data")
        rows = rows if isinstance(rows, list) else []
        return {str(row["id"]): row for row in rows if isinstance(row, dict) and "id" in row}


def is_address(url: str) -> bool:
    """Return whether this is an http or https address with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, an IPv6 address that is none
        return False
