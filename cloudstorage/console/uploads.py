"""Refuses files in forms: no page takes one, and Django would write them to the disk before it asks who sends them."""

from __future__ import annotations

from typing import Any, NoReturn

from django.core.files.uploadhandler import FileUploadHandler
from django.http.multipartparser import MultiPartParserError


class NoFiles(FileUploadHandler):
    """Ends the reading of a form where a file begins in it."""

    def new_file(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Answered with 400."""
        raise MultiPartParserError("No form here takes a file.")

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        """Never asked: no file is begun."""

    def file_complete(self, file_size: int) -> None:
        """Never asked."""
