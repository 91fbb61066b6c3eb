"""An item's bytes over REST: ranges, conditions and a hold on the copy while it is read, in bounded memory."""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from cloudstorage.rest.views import ServiceView, operation
from stores.api.items import item_of
from stores.models import Kind
from stores.services.inventory import Content, open_content

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_FILE = OpenApiParameter("path", str, description="A file of the item, by its `path`; needed where it has several.")
_HEADERS = [
    OpenApiParameter("Range", str, "header", description="One range, as `bytes=0-99`, `bytes=100-` or `bytes=-100`."),
    OpenApiParameter("If-Range", str, "header", description="Answer the range only while the ETag is this one."),
]


class Streamed:
    """The bytes of a range for a response; closing it, which Django does whatever happens, releases the copy."""

    def __init__(self, content: Content, offset: int, length: int) -> None:
        self._content = content
        self._chunks = content.chunks(offset, length)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        """Release the copy."""
        self._content.close()


def requested_range(header: str, size: int) -> tuple[int, int] | None:
    """(first, length) of a Range header; None where it is to be ignored (RFC 9110 section 14.2: malformed, or several ranges).

    Raises ValueError for a range that the content does not have.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise ValueError(header)
        return size - length, length
    start, end = int(first), int(last) if last else size - 1
    if last and end < start:
        return None
    if start >= size:
        raise ValueError(header)
    return start, min(end, size - 1) - start + 1


def _matches(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in re.split(r"\s*,\s*", header.strip())


def respond(request: HttpRequest, content: Content) -> HttpResponseBase:
    """The answer to GET or HEAD of an open content, which it closes, at the latest when the answer has been sent."""
    etag = f'"{content.etag}"'
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    if content.sha256:
        digest = base64.b64encode(bytes.fromhex(content.sha256)).decode()
        headers["Repr-Digest"] = f"sha-256=:{digest}:"
    disposition = content_disposition_header(True, content.filename)
    if disposition:
        headers["Content-Disposition"] = disposition
    asked = request.headers
    answer = _refuse_by_condition(asked, etag, headers)
    start, length, status = 0, content.size, 200
    if answer is None and "Range" in asked and asked.get("If-Range", etag).strip() == etag:
        try:
            found = requested_range(asked["Range"], content.size)
        except ValueError:
            headers["Content-Range"] = f"bytes */{content.size}"
            answer = HttpResponse(status=416, headers=headers)
        else:
            if found is not None:
                start, length = found
                status = 206
                headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{content.size}"
    if answer is None:
        headers |= {"Content-Length": str(length), "Content-Type": "application/octet-stream"}
        if request.method == "GET" and length:
            return StreamingHttpResponse(Streamed(content, start, length), status=status, headers=headers)
        answer = HttpResponse(status=status, headers=headers)
    content.close()
    return answer


def _refuse_by_condition(asked: Any, etag: str, headers: dict[str, str]) -> HttpResponse | None:
    if "If-Match" in asked and not _matches(asked["If-Match"], etag):
        return HttpResponse(status=412, headers=headers)
    if "If-None-Match" in asked and _matches(asked["If-None-Match"].replace("W/", ""), etag):
        return HttpResponse(status=304, headers=headers)
    return None


def content_view(kind: Kind) -> Any:
    """The view of a kind's content."""
    binary = {(200, "application/octet-stream"): OpenApiTypes.BINARY, (206, "application/octet-stream"): OpenApiTypes.BINARY}

    class ItemContent(ServiceView):
        query = {"GET": ("path",)}

        @operation(
            f"{kind}s_content",
            status=304,
            more={**binary, 412: None, 416: None},
            parameters=[_FILE, *_HEADERS],
        )
        def get(self, request: Request, id: uuid.UUID) -> HttpResponseBase:  # noqa: A002 - the name in the address
            """Read an item's bytes from its best copy, wherever that is now. ETag is the SHA-256 where it is known."""
            path = request.query_params.get("path")
            content = open_content(actor=self.actor, kind=kind, item=item_of(kind, id), path=path)
            try:
                return respond(request._request, content)  # noqa: SLF001 - Django's own request, for its headers
            except BaseException:
                content.close()
                raise

    ItemContent.__name__ = f"{kind.capitalize()}Content"
    return ItemContent
