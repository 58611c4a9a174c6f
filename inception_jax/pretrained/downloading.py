"""Fetching a published file, because a person asked for it in so many words: never at import, never by the way."""

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

from inception_jax.errors import UserError, write_error
from inception_jax.pretrained.records import WeightRecord

LIMIT = 1 << 30  # bytes; the largest published file of the family has about a quarter of it
_CHUNK = 1 << 20
_SECONDS = 60.0


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to an address that would have been taken itself."""

    def redirect_request(self, request: Any, response: Any, code: int, message: str, headers: Any, url: str) -> Any:
        _check_address(url)
        return super().redirect_request(request, response, code, message, headers, url)


def download(record: WeightRecord, output: str | os.PathLike, *, limit: int = LIMIT) -> str:
    """Fetches a record's file.

    Args:
      record: with an address.
      output: the file; it appears when it is whole and its hash, where that is known, is right.
      limit: bytes that it may have at most.

    Returns:
      What was checked, in words: `sha256 1378be20…`, or that no hash is known.

    Raises:
      UserError: no address, no https, something is at `output` already, no connection, too large, a page of text in
        the file's place, or another hash.
    """
    if record.url is None:
        raise UserError(f"{record.name}: it is not known where this file is")
    _check_address(record.url)
    output = Path(output)
    if output.exists():
        raise UserError(f"--output={output}: there is a file already")
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    digest = record.digest if record.digest and record.digest.of == record.file else None
    hashing = hashlib.new(digest.algorithm if digest else "sha256")
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        with opener.open(record.url, timeout=_SECONDS) as response:
            _receive(response, part, hashing, limit, record.url)
        if digest and not digest.matches(digest.algorithm, hashing.hexdigest()):
            raise UserError(
                f"{record.url}: the {digest.algorithm} of what came is {hashing.hexdigest()}, that of "
                f"{record.file} is {digest}; nothing was kept"
            )
        part.rename(output)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"cannot fetch {record.url}: {reason}; fetch it where there is a network, and give the file to --weights"
        ) from None
    except OSError as error:
        raise write_error(output, error) from None
    finally:
        part.unlink(missing_ok=True)
    if digest:
        return f"{digest}: right"
    known = f" (that of {record.digest.of} in it is: {record.digest})" if record.digest else ""
    return f"sha256 {hashing.hexdigest()}; the publisher gives no hash of this file{known}, so nothing was compared"


def _receive(response: Any, part: Path, hashing: Any, limit: int, url: str) -> None:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "text/plain", "application/xhtml+xml"):
        raise UserError(
            f"{url}: {kind} came, not a file of weights; open the address in a browser, and give what you "
            "get there to --weights"
        )
    declared = response.headers.get("Content-Length", "")
    expected = int(declared) if declared.isdecimal() else None
    received = 0
    too_large = UserError(f"{url}: more than {limit:,} bytes; that is none of these files")
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
        raise UserError(f"{url}: {received:,} of {expected:,} bytes came; try again")


def _check_address(url: str) -> None:
    """Raises UserError unless what comes from there cannot be changed on the way: https, or this machine itself."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        return
    raise UserError(f"{url}: only https is fetched; fetch this one yourself, and give the file to --weights")
