"""A running worker's HTTP side, seen from a command."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import urlencode

from streammaml.query import Query


class NoWorkerError(Exception):
    """Nothing that speaks HTTP answers there."""


class Reply(NamedTuple):
    status: int
    text: str

    @property
    def value(self) -> dict[str, Any] | None:
        """The JSON object that it is; None where it is none."""
        try:
            value = json.loads(self.text)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


def get(url: str, path: str, timeout_s: float) -> Reply:
    """GET, without a proxy, as a pod may have one; NoWorkerError, with the reason."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url.rstrip("/") + path, timeout=timeout_s) as answer:
            return Reply(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read().decode(errors="replace"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoWorkerError(f"no worker answers at {url}: {error}") from error


def listing_path(query: Query) -> str:
    values = {"sort": query.sort.value, "limit": query.limit, "filter": query.pattern}
    return "/api/contexts?" + urlencode(values, errors="surrogatepass")


def context_path(name: str) -> str:
    return "/api/context?" + urlencode({"name": name}, errors="surrogatepass")
