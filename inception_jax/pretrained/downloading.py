"""Downloads a published file on an explicit request: `convert --download`, or a published name."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.pretrained.records import WeightRecord
from inception_jax.weight_files.atomic_write import atomic_write

LIMIT = 1 << 30  # bytes; the largest published file of the family has about a quarter of it
_CHUNK = 1 << 20
_SECONDS = 60.0


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that `download` would accept."""

    def __init__(self, remedy: str) -> None:
        """Keeps the remedy, for messages."""
        self._remedy = remedy

    def redirect_request(self, request: Any, response: Any, code: int, message: str, headers: Any, url: str) -> Any:
        """Checks the new address, then does what urllib does."""
        _check_address(url, self._remedy)
        return super().redirect_request(request, response, code, message, headers, url)


def download(
    record: WeightRecord, output: str | os.PathLike, *, limit: int = LIMIT, remedy: str = "import it with --weights"
) -> str:
    """Downloads a record's file.

    Args:
      record: with an address.
      output: path of the file; it appears when it is complete and its hash, where that is known, matches.
      limit: maximum size in bytes.
      remedy: what to do with a file that was downloaded otherwise, for messages.

    Returns:
      A message about what was checked: that a published hash such as `sha256 1378be20…` matches, or that none is known.

    Raises:
      UserError: no address, no https, `output` exists already, no connection, too large, a page of text instead of
        the file, or another hash.
    """
    if record.url is None:
        raise UserError(f"{record.name}: the address of this file is not known")
    _check_address(record.url, remedy)
    output = Path(output)
    if output.exists():
        raise UserError(f"--output={output}: the file exists already; name a new one")
    digest = record.digest if record.digest and record.digest.of == record.file else None
    hashing = hashlib.new(digest.algorithm if digest else "sha256")
    with atomic_write(output) as part:
        _fetch(record.url, part, hashing, limit, remedy)
        if digest and not digest.matches(digest.algorithm, hashing.hexdigest()):
            raise UserError(
                f"{record.url}: the {digest.algorithm} of the download is {hashing.hexdigest()}, that of "
                f"{record.file} is {digest}; the download was deleted"
            )
    if digest:
        return f"{digest}: matches"
    known = f" (only of {record.digest.of} inside it: {record.digest})" if record.digest else ""
    return f"sha256 {hashing.hexdigest()}; not verified: the publisher gives no hash of this file{known}"


def _fetch(url: str, part: Path, hashing: Any, limit: int, remedy: str) -> None:
    opener = urllib.request.build_opener(_SafeRedirects(remedy))
    try:
        with opener.open(url, timeout=_SECONDS) as response:
            _receive(response, part, hashing, limit, url, remedy)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot download {url}: {reason}; download it where there is a network, and {remedy}"
        ) from None


def _receive(response: Any, part: Path, hashing: Any, limit: int, url: str, remedy: str) -> None:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "text/plain", "application/xhtml+xml"):
        raise UserError(
            f"{url}: the server sent {kind}, not a file of weights; download it with a browser, and {remedy}"
        )
    declared = response.headers.get("Content-Length", "")
    expected = int(declared) if declared.isdecimal() else None
    received = 0
    too_large = UserError(f"{url}: more than {limit:,} bytes; no published file is so large")
    if expected is not None and expected > limit:
        raise too_large
    with open(part, "wb") as file:
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if received > limit:
                raise too_large
            hashing.update(chunk)
            file.write(chunk)
    if expected is not None and received != expected:
        raise UserError(f"{url}: received {received:,} of {expected:,} bytes; try again")


def _check_address(url: str, remedy: str) -> None:
    """Raises UserError unless the transfer is safe from changes on the way: https, or this machine itself."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        return
    raise UserError(f"{url}: only https is downloaded; download it yourself, and {remedy}")
