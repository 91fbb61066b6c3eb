"""Keys as S3 can carry them, given back exactly as they were; and the folders that a sorted listing walks through."""

from __future__ import annotations

import re
from collections.abc import Callable

# Bytes that S3 cannot carry in a key: what is no UTF-8 (kept as surrogates) and what XML cannot hold. They are written %XX;
# a name that looks so already gets one more "25", which makes the rule reversible for every name.
_ESCAPED = r"(?:[01][0-9A-F]|7F|[89A-F][0-9A-F])"
_TO_ESCAPE = re.compile(rf"[\x00-\x1f\x7f\udc80-\udcff]|%(?=(?:25)*{_ESCAPED})")
_TO_UNESCAPE = re.compile(rf"%(?:25(?=(?:25)*{_ESCAPED})|({_ESCAPED}))")


def escape(key: str) -> str:
    """The key with everything that S3 cannot carry written %XX; `unescape` gives it back."""
    return _TO_ESCAPE.sub(lambda match: "%25" if match[0] == "%" else f"%{ord(match[0]) & 0xFF:02X}", key)


def escaped_prefix(prefix: str) -> str:
    """How the escaped form of every key beginning with `prefix` begins; shorter where the escaping depends on what follows."""
    return escape(re.sub(r"%(?:25)*2?[0-9A-F]?$", "", prefix))


def unescape(key: str) -> str:
    def char(match: re.Match[str]) -> str:
        if match[1] is None:
            return "%"
        code = int(match[1], 16)
        return chr(code if code < 0x80 else 0xDC00 + code)

    return _TO_UNESCAPE.sub(char, key)


def is_safe(key: str) -> bool:
    """Whether the key is a relative path that no client or server on the way would rewrite."""
    return all(part not in {"", ".", ".."} for part in key.split("/")) and not re.search("[\0\ud800-\udc7f\udd00-\udfff]", key)


def shown(key: str) -> str:
    text = escape(key)
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


class Pruning:
    """Asks about each folder once, as a sorted listing enters it."""

    def __init__(self, prune: Callable[[str], bool], prefix: str) -> None:
        """Folders above `prefix` were chosen by whoever asked for it."""
        self._prune = prune
        self._above = len(prefix)
        self._entered: list[str] = []
        self._hidden = ""

    def hides(self, key: str) -> bool:
        if self._hidden and key.startswith(self._hidden):
            return True
        folders = key.split("/")[:-1]
        shared = 0
        for old, new in zip(self._entered, folders, strict=False):
            if old != new:
                break
            shared += 1
        for depth in range(shared, len(folders)):
            folder = "/".join(folders[: depth + 1]) + "/"
            if len(folder) >= self._above and self._prune(folder):
                self._hidden = folder
                self._entered = folders[:depth]
                return True
        self._entered = folders
        return self._prune(key)
