"""The HTTP session by which spans go to a collector: of what comes back, little is read.

The exporter looks at status and headers. The library alone would read an answer to its end, however
long it is, unpack it, and keep its cookies.
"""

from __future__ import annotations

from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests

_MOST_ANSWER_BYTES = 65_536


class CollectorSession(requests.Session):
    """A session whose answers have a status and headers, and nothing else."""

    def __init__(self, *, is_straight: bool) -> None:
        """Takes whether proxies that the environment names are passed by."""
        super().__init__()
        self.trust_env = not is_straight
        self.headers["Accept-Encoding"] = "identity"
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Returns no place: the library reads what redirects, even where it follows nothing."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Sends a request; what comes at once of the answer's body is passed over."""
        response = super().send(request, **{**kwargs, "stream": True})
        # A short answer is read so that its connection can be used again; a long one ends it.
        with suppress(Exception):  # it was answered, whatever becomes of the body
            response.raw.read1(_MOST_ANSWER_BYTES, decode_content=False)
        response.close()
        return response
