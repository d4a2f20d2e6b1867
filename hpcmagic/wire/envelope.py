"""ipyparallel's envelope, with long frames cut: nobody is ever sent one longer than `FRAME_LIMIT_NBYTES`.

A listening socket takes one frame of any allowed size from whoever connects, before he has proved his key. So
that strangers cannot fill the keeper's memory the allowed size is small, and what is long travels in pieces:

    signature · header · parent · metadata · content · buffer …      a part that is too long becomes
    mark(its size), and its pieces: a buffer's follow at once, those of the first five follow the content

A part that looks like a mark is cut as well, so nothing is ambiguous; and since each cut buffer tells its own
size, the buffers of several messages may be strung together, as ipyparallel's broadcasts do.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from pickle import PickleBuffer
from typing import Any

from jupyter_client.session import Session

from hpcmagic.wire.crypto import FRAME_LIMIT_NBYTES

PIECE_NBYTES = FRAME_LIMIT_NBYTES - 64  # CURVE adds 33 bytes to a frame
LARGE_NBYTES = 16 << 20  # a value whose pieces are worth the trouble of giving their memory back
GIVE_BACK_S = (1.0, 10.0)  # after that long, and once more for what was on its way till then
_MARK = b"\0hpcmagic: pieces of "
_MARK_NBYTES = len(_MARK) + 8
_HEAD = 5  # signature, header, parent, metadata, content


class Envelope(Session):
    """Signs messages as jupyter_client does, cuts what is too long for a frame, and joins it again."""

    joins_buffers = True

    def serialize(self, msg: Any, ident: Any = None) -> list[Any]:
        """Give a message's frames without its buffers; the signature is that of the whole parts."""
        cut = [list(pieces(frame)) for frame in super().serialize(msg, ident)]
        return [first for first, *_ in cut] + [piece for _, *rest in cut for piece in rest]

    def send(  # noqa: PLR0917  # the stock signature
        self,
        stream: Any,
        msg_or_type: Any,
        content: Any = None,
        parent: Any = None,
        ident: Any = None,
        buffers: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Send a message, its buffers cut."""
        if not buffers and isinstance(msg_or_type, dict):
            buffers = msg_or_type.get("buffers")
        cut = [piece for buffer in buffers or () for piece in pieces(buffer)]
        _give_memory_back_soon(len(cut))
        return super().send(stream, msg_or_type, content, parent, ident, cut, **kwargs)

    def deserialize(
        self,
        msg_list: Sequence[Any],
        content: bool = True,
        copy: bool = True,  # noqa: ARG002  # the stock signature
    ) -> Any:
        """Give a message, joined; one that is only peeked at (`content` false) keeps its buffers cut."""
        rest = iter(msg_list[_HEAD:])
        head = [bytes(joined(frame, rest)) for frame in msg_list[:_HEAD]]
        whole = content and self.joins_buffers
        buffers = [joined(frame, rest) if whole else frame for frame in rest]
        _give_memory_back_soon(len(msg_list))
        return super().deserialize([*head, *buffers], content=content, copy=True)


class RelayEnvelope(Envelope):
    """The keeper's: it reads what a message is about, and passes buffers on as they came."""

    joins_buffers = False


def pieces(part: Any) -> Iterator[Any]:
    """Give a part as it is, or its mark and its pieces: views, not copies."""
    view = PickleBuffer(part).raw()
    if view.nbytes <= PIECE_NBYTES and not _is_mark(view):
        yield part
        return
    yield _MARK + view.nbytes.to_bytes(8, "big")
    for start in range(0, view.nbytes, PIECE_NBYTES):
        yield view[start : start + PIECE_NBYTES]


def joined(frame: Any, rest: Iterator[Any]) -> Any:
    """Give a frame as it is, or, of a mark, what the pieces make up that are the next of `rest`.

    Raises
    ------
    ValueError
        The pieces are not of the size that the mark says.
    """
    if not _is_mark(frame):
        return frame
    left = int.from_bytes(bytes(frame)[len(_MARK) :], "big")
    parts = []
    while left > 0 and (piece := next(rest, None)) is not None:
        parts.append(piece)
        left -= len(piece)
    if left:
        raise ValueError(f"a frame's pieces do not fit: {left} bytes are missing")
    return memoryview(b"".join(parts))


def whole(frames: Sequence[Any]) -> list[Any]:
    """Give the buffers of a message that was passed on unread, joined."""
    rest = iter(frames)
    return [joined(frame, rest) for frame in rest]


def _is_mark(frame: Any) -> bool:
    return len(frame) == _MARK_NBYTES and bytes(frame).startswith(_MARK)


def _give_memory_back_soon(frames: int) -> None:
    if frames * PIECE_NBYTES >= LARGE_NBYTES:
        for delay_s in GIVE_BACK_S:
            timer = threading.Timer(delay_s, give_memory_back)
            timer.daemon = True
            timer.start()


def give_memory_back() -> None:
    """Let the system have what pieces that were here have left free: glibc would keep such small blocks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
