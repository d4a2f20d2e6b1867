"""The rank's side of what passes over the bulk channel: in the main thread, between cells, like any other request.

    Take    READY ─►  ◄═ data ═  DONE ─►  ◄─ COMMIT    then names are bound: on all ranks, or on none
    Offer   what a name is bound to, by the control path; small values at once
    Give    ═ data ═►

If the connection is cut meanwhile, what had come is forgotten and no name is bound.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcmagic import shards
from hpcmagic.engine.fanout import Fanout, Words
from hpcmagic.engine.port import BulkPort
from hpcmagic.errors import DataError
from hpcmagic.files import begin_writing, finish_writing, give_up, look, read_rows, write_rows
from hpcmagic.rendezvous import Request
from hpcmagic.wire.bulk import Channel, Invitation, Kind, connect
from hpcmagic.wire.messages import (
    SMALL_NBYTES,
    Apply,
    Bind,
    Call,
    Cut,
    Forget,
    Give,
    Link,
    LookAt,
    Offer,
    Offered,
    Parcel,
    Push,
    ReadRows,
    Reply,
    Spread,
    Take,
    Write,
)
from hpcmagic.wire.moving import Moving, run_one
from hpcmagic.wire.parcels import Room, blocks, is_plain_array, packed, pickled_small

OFFERS_KEPT = 4  # of notebooks that asked and did not come for it
FUNCTIONS_KEPT = 4  # of maps at the same time; more of them send theirs again


@dataclass(frozen=True, slots=True)
class _Kept:
    """A value that was offered."""

    value: Any
    parcel: Parcel
    parts: list[Any]


class Transfers:
    """Takes and gives values; remembers which names are shards."""

    def __init__(
        self, request: Request, rank: int, comm: Any, namespace: dict[str, Any], describe: Callable[[Any], str]
    ) -> None:
        self.port = BulkPort(request)
        self.session = request.server_public
        self.rank = rank
        self._words = None if comm is None else Words(comm.Dup())  # ours alone: no message of the user's meets ours
        self.cuts: dict[str, Cut] = {}
        self.interruptible = False  # reads or writes a file, or calls a function of the user's
        self._namespace = namespace
        self._describe = describe
        self._offers: OrderedDict[int, dict[str, _Kept]] = OrderedDict()
        self._read: OrderedDict[int, Any] = OrderedDict()  # rows of files that not all ranks have read yet
        self._steps: dict[type, Callable[[Any], None]] = {
            Push: self.push, Take: self.take, Give: self.give, ReadRows: self.read, Bind: self.bind_read,
            Write: self.write, Forget: self.forget,
        }  # fmt: skip
        self._functions: OrderedDict[int, Any] = OrderedDict()  # of `Session.map`

    def answer(self, message: Any, namespace: Mapping[str, Any]) -> Reply:
        """Do what a message asks; `namespace` is what names are bound to, builtins included."""
        match message:
            case Offer():
                return Reply(self.rank, offered=self.offer(message, namespace))
            case LookAt():
                return Reply(self.rank, seen=look(message.file))
        self._steps[type(message)](message)
        return Reply(self.rank)

    def push(self, message: Push) -> None:
        """Bind names to values that came with the request."""
        self.bind({name: _load(name, value.load) for name, value in message.values.items()}, message.cuts)

    def bind(self, values: Mapping[str, Any], cuts: Mapping[str, Cut]) -> None:
        """Bind names; those with a cut are shards from now on."""
        for name, value in values.items():
            self._namespace[name] = value
            self.cuts.pop(name, None)
        self.cuts.update(cuts)

    def take(self, message: Take) -> None:
        """Receive values and bind them; large ones only if all ranks have got theirs."""
        if message.eager:
            self._take_eager(message)
            return
        with self._promised(message), self._using(message.channel) as channel:
            rooms = {name: Room(parcel) for name, parcel in message.parcels.items()}
            fanout = None if message.spread is None else self._fanout(message, message.spread, rooms)
            run_one(channel, channel.send(Kind.READY, message.transfer))
            if fanout is None:
                for room in rooms.values():
                    run_one(channel, channel.receive_blocks(message.transfer, room.blocks(), room.parcel.frames))
            else:
                run_one(channel, channel.receive(Kind.READY, message.transfer))
                self._take_spread(channel, fanout)
            values = {name: _load(name, room.value) for name, room in rooms.items()}
            run_one(channel, channel.send(Kind.DONE, message.transfer))
            run_one(channel, channel.receive(Kind.COMMIT, message.transfer))
        self.bind(values, message.cuts)

    def _take_eager(self, message: Take) -> None:
        """Receive what is on its way already."""
        with self._using(message.channel) as channel:
            rooms = {name: Room(parcel) for name, parcel in message.parcels.items()}
            for room in rooms.values():
                run_one(channel, channel.receive_blocks(message.transfer, room.blocks(), room.parcel.frames))
            values = {name: _load(name, room.value) for name, room in rooms.items()}
        self.bind(values, message.cuts)

    def _promised(self, message: Take) -> contextlib.AbstractContextManager[None]:
        """Have rank 0 tell the others in any case whether it begins, where they wait for that."""
        by_mpi = message.spread is not None and message.spread.by_mpi
        return self._words.promised(message.transfer) if by_mpi and self._words else contextlib.nullcontext()

    def _fanout(self, message: Take, spread: Spread, rooms: Mapping[str, Room]) -> Fanout:
        blocks = [block for room in rooms.values() for block in room.blocks()]
        return Fanout(spread, self.session, message.transfer, blocks)

    def _take_spread(self, channel: Channel, fanout: Fanout) -> None:
        """Receive what all ranks get, and pass it on."""
        spread = fanout.spread
        if spread.by_mpi and self._words is not None:
            self._words.begin(fanout.transfer, channel)
            fanout.by_mpi(self._words.comm, channel if self.rank == 0 else None)
            return
        with contextlib.ExitStack() as links:
            onward = None if spread.onward is None else links.enter_context(self._linked(spread.onward))
            source = channel if not spread.source else links.enter_context(self._using(spread.source))
            links.callback(self.port.drop, source) if spread.source else None
            fanout.by_chain(source, onward)

    @contextlib.contextmanager
    def _linked(self, link: Link) -> Iterator[Channel]:
        """Connect to the next rank, for one transfer."""
        invitation = Invitation(link.channel, link.to_rank, link.from_rank)
        onward = connect(link.host, link.port, invitation, self.session)
        try:
            yield onward
        finally:
            onward.close()

    def offer(self, message: Offer, namespace: Mapping[str, Any]) -> dict[str, Offered]:
        """Say what names are bound to."""
        offered: dict[str, Offered] = {}
        kept: dict[str, _Kept] = {}
        for name in message.names:
            if name not in namespace:
                raise NameError(f"name {name!r} is not defined")
            offered[name], kept[name] = self._offer(name, namespace[name])
        if waiting := {name: one for name, one in kept.items() if offered[name].small is None or message.whole}:
            self._offers[message.transfer] = waiting
        while len(self._offers) > OFFERS_KEPT:
            self._offers.popitem(last=False)
        return offered

    def _offer(self, name: str, value: Any) -> tuple[Offered, _Kept]:
        described = self._describe(value)
        try:
            parcel, parts = packed(value)
            small = pickled_small(value) if parcel.nbytes <= SMALL_NBYTES else None
        except pickle.PicklingError as error:
            raise TypeError(f"`{name}` is a {described}, which cannot be pickled ({error})") from None
        offered = Offered(parcel, shards.kind(value), described, self.cuts.get(name), small)
        return offered, _Kept(value, parcel, parts)

    def give(self, message: Give) -> None:
        """Send what was offered."""
        kept = self._offers.pop(message.transfer, {})
        with self._using(message.channel) as channel:
            run_one(channel, self._send(channel, message, kept))

    def forget(self, message: Forget) -> None:
        """Let go of what was offered, or read."""
        self._offers.pop(message.transfer, None)
        self._read.pop(message.transfer, None)

    def _send(self, channel: Channel, message: Give, kept: Mapping[str, _Kept]) -> Moving:
        for name, order in message.orders.items():
            if name not in kept:
                raise DataError(f"`{name}` is not kept ready any more: others have asked meanwhile.", "Ask again.")
            held = kept[name]
            parcel, parts = packed(held.value, order) if is_plain_array(held.value) else (held.parcel, held.parts)
            yield from channel.send_blocks(message.transfer, blocks(parts), parcel.frames)

    def read(self, message: ReadRows) -> None:
        """Read own rows of a file; all ranks bind theirs once all have read."""
        with self._interruptible():
            rows = read_rows(message.file, message.begin, message.end, message.axis, message.expected)
        self._read[message.transfer] = rows
        while len(self._read) > OFFERS_KEPT:
            self._read.popitem(last=False)

    def bind_read(self, message: Bind) -> None:
        """Bind names to what was read; several names are bound to rows of their own."""
        rows = self._read.pop(message.transfer)
        first, *others = message.names
        self.bind(
            {first: rows, **{name: copy.copy(rows) for name in others}},
            dict.fromkeys(message.names, Cut(message.axis)),
        )

    def write(self, message: Write) -> None:
        """Do one step of writing a file."""
        match message.step:
            case "begin" if message.whole is not None:
                begin_writing(message.file, message.whole)
            case "rows" | "chunks" | "edges" as step:
                kept = self._offers[message.transfer][message.name]
                with self._interruptible():
                    write_rows(message.file, kept.value, message.begin, self.rank, message.axis, step=step)
            case "finish":
                finish_writing(message.file)
            case _:
                give_up(message.file)

    def lacks(self, message: Apply) -> bool:
        """Whether a function has neither come nor been kept: other maps needed the room."""
        return message.function is None and message.key not in self._functions

    def apply(self, message: Apply) -> list[Any]:
        """Call a function with each item."""
        if message.function is not None:
            self._functions[message.key] = message.function.load()
        self._functions.move_to_end(message.key)
        while len(self._functions) > FUNCTIONS_KEPT:
            self._functions.popitem(last=False)
        function, results = self._functions[message.key], []
        for number, item in enumerate(message.items.load(), message.first):
            try:
                with self._interruptible():
                    results.append(function(item))
            except BaseException as error:
                error.add_note(f"item {number}")
                raise
        return results

    def call(self, message: Call) -> Any:
        """Call a function once."""
        function, (args, kwargs) = message.function.load(), message.arguments.load()
        with self._interruptible():
            return function(*args, **kwargs)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let an interrupt raise here, as in a cell's own code."""
        self.interruptible = True
        try:
            yield
        finally:
            self.interruptible = False

    @contextlib.contextmanager
    def _using(self, name: str) -> Iterator[Channel]:
        """Use a channel; after whatever goes wrong it is of no use any more."""
        channel = self.port.channel(name)
        try:
            yield channel
        except BaseException:
            self.port.drop(channel)
            raise


def _load(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except pickle.UnpicklingError as error:
        raise TypeError(f"`{name}` cannot be loaded on the rank: {error}") from None
