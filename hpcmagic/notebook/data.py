"""Values to the ranks and back: scatter, gather, push, pull; cut, send, join.

scatter  x ─► shards.cut ─► one a rank ─┐                   small ─► with the request (control path)
push     x ─────────────────► to all ───┴─► parcels ─► else ─► bulk channel
pull     what ranks offer ─► values ─► PerRank
gather   what ranks offer ─► received in place (arrays), or joined (shards.join)
"""

from __future__ import annotations

import contextlib
import functools
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hpcmagic import shards
from hpcmagic.errors import DataError, HpcMagicError
from hpcmagic.files import File
from hpcmagic.notebook import output
from hpcmagic.notebook.channels import Channels
from hpcmagic.notebook.perrank import PerRank
from hpcmagic.notebook.pickling import cannot_be_loaded, cannot_be_pickled
from hpcmagic.notebook.progress import nbytes_in_words
from hpcmagic.notebook.rows import gather_file, require_heads_alike, scatter_file
from hpcmagic.wire.bulk import TO_ALL, Channel, Invitation, Kind, bound_to
from hpcmagic.wire.crypto import Sealer, make_frame_key
from hpcmagic.wire.messages import (
    Cut,
    Give,
    Link,
    Offer,
    Offered,
    Parcel,
    Pickled,
    Push,
    Spread,
    Take,
)
from hpcmagic.wire.moving import Moving
from hpcmagic.wire.parcels import Room, blocks, is_plain_array, landing, order_of, packed, pickled_small

if TYPE_CHECKING:
    from hpcmagic.notebook.session import Session

P = ParamSpec("P")
T = TypeVar("T")

WITH_REQUEST_NBYTES = 32 << 10  # what each rank gets: up to this size it travels with the request …
EAGER_NBYTES = 256 << 10  # … and up to this size over the bulk channel at the same time
SPREAD_NBYTES = 2 << 20  # what all ranks get: above this size it leaves the notebook once, and ranks pass it on
MUCH_NBYTES = 1_000_000_000  # coming to the notebook: worth a word before


@dataclass(frozen=True, slots=True)
class _Packed:
    """A value, ready to travel."""

    parcel: Parcel
    parts: list[Any]


def _keeps_nothing(method: Callable[P, T]) -> Callable[P, T]:
    """Let an error leave without the frames that it has come through.

    Who keeps it, as IPython and a session's `why` do, would keep with them what had come so far.
    """

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except HpcMagicError as error:
            error.__cause__ = error.__context__ = None
            raise error.with_traceback(None) from None

    return wrapped


class Data:
    """Moves values between the notebook and the ranks of one session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.channels = Channels(session)

    @_keeps_nothing
    def push(self, values: Mapping[str, Any], ranks: Sequence[int]) -> None:
        """Bind names on ranks to the same values."""
        ready = {name: _pack(name, value) for name, value in values.items()}
        nbytes = sum(one.parcel.nbytes for one in ready.values())
        if nbytes <= WITH_REQUEST_NBYTES:
            push = Push({name: _pack_small(name, value) for name, value in values.items()})
            self.session.ask(dict.fromkeys(ranks, push))
        elif nbytes > SPREAD_NBYTES and len(ranks) == self.session.size > 1 and not self.channels.all_here():
            self._spread(ready)
        else:
            self._send("push", dict.fromkeys(ranks, ready), {})

    @_keeps_nothing
    def scatter(self, values: Mapping[str, Any], axis: int) -> None:
        """Cut values over all ranks; of a file each rank reads its own rows."""
        files: dict[File, list[str]] = {}
        for name, value in values.items():
            if isinstance(value, File):
                files.setdefault(value, []).append(name)
        for file, names in files.items():
            transfer = self.channels.next_transfer()
            with self.channels.kept(transfer, range(self.session.size)):
                scatter_file(self.session, names, file, axis, transfer)
        values = {name: value for name, value in values.items() if not isinstance(value, File)}
        if not values:
            return
        by_rank: list[dict[str, Any]] = [{} for _ in range(self.session.size)]
        cuts: dict[str, Cut] = {}
        for name, value in values.items():
            shards.count_rows(name, value, axis)
            for own, shard in zip(by_rank, shards.cut(name, value, self.session.size, axis), strict=True):
                own[name] = shard
            cuts[name] = Cut(axis, order_of(value) if is_plain_array(value) else "")
        ready = {
            rank: {name: _pack(name, shard, cuts[name].order, values[name]) for name, shard in own.items()}
            for rank, own in enumerate(by_rank)
        }
        if max(sum(one.parcel.nbytes for one in own.values()) for own in ready.values()) <= WITH_REQUEST_NBYTES:
            self.session.ask(
                {
                    rank: Push(
                        {name: _pack_small(name, shard, cuts[name].order) for name, shard in own.items()}, cuts
                    )
                    for rank, own in enumerate(by_rank)
                }
            )
        else:
            self._send("scatter", ready, cuts)

    def _send(self, verb: str, ready: Mapping[int, Mapping[str, _Packed]], cuts: dict[str, Cut]) -> None:
        """Send each rank its values over the bulk channel; names are bound once all have theirs."""
        transfer = self.channels.next_transfer()
        parcels = {rank: {name: one.parcel for name, one in own.items()} for rank, own in ready.items()}
        nbytes = sum(parcel.nbytes for own in parcels.values() for parcel in own.values())

        eager = max(sum(parcel.nbytes for parcel in own.values()) for own in parcels.values()) <= EAGER_NBYTES

        def send(rank: int, channel: Channel) -> Moving:
            for one in ready[rank].values():
                yield from channel.send_blocks(transfer, blocks(one.parts), one.parcel.frames)

        def send_and_hear(rank: int, channel: Channel) -> Moving:
            yield from send(rank, channel)
            yield from channel.receive(Kind.DONE, transfer)

        phases = (
            lambda _, channel: channel.receive(Kind.READY, transfer),
            send_and_hear,
            lambda _, channel: channel.send(Kind.COMMIT, transfer),
        )
        with self.channels.lock:
            self.channels.move(
                f"{verb} {', '.join(next(iter(ready.values())))}",
                nbytes,
                tuple(ready),
                lambda names: {
                    rank: Take(name, transfer, parcels[rank], cuts, eager=eager) for rank, name in names.items()
                },
                *((send,) if eager else phases),
                together=not eager,
                ahead=eager,
                left="Ranks that have got it keep it" if eager else "Nothing was bound",
            )

    def _spread(self, ready: Mapping[str, _Packed]) -> None:
        """Send all ranks the same values: one sealed copy to rank 0, which is passed on."""
        transfer = 0
        parcels = {name: one.parcel for name, one in ready.items()}
        count = sum(parcel.frames for parcel in parcels.values())
        key = make_frame_key()
        sealer = Sealer(key, bound_to(self.session.request.server_public, TO_ALL))

        def send_and_hear(rank: int, channel: Channel) -> Moving:
            if rank == 0:
                everything = [part for one in ready.values() for part in one.parts]
                yield from channel.send_blocks(transfer, blocks(everything), count, sealer)
            yield from channel.receive(Kind.DONE, transfer)

        def ask(names: Mapping[int, str]) -> dict[int, Take]:
            nonlocal transfer  # another each time: ranks may still have word of the last one
            transfer = self.channels.next_transfer()
            ways = self._ways(key.hex())
            return {rank: Take(name, transfer, parcels, {}, ways[rank]) for rank, name in names.items()}

        with self.channels.lock:
            self.channels.move(
                f"push {', '.join(ready)}",
                sum(parcel.nbytes for parcel in parcels.values()),
                tuple(range(self.session.size)),
                ask,
                lambda _, channel: channel.receive(Kind.READY, transfer),
                lambda _, channel: channel.send(Kind.READY, transfer),
                send_and_hear,
                lambda _, channel: channel.send(Kind.COMMIT, transfer),
                together=True,
            )

    def _ways(self, key: str) -> dict[int, Spread]:
        """Give, by rank, how what comes to rank 0 is passed on: by MPI, or from one rank to the next."""
        ranks = range(self.session.size)
        if self.session.keeper_state().world:
            return dict.fromkeys(ranks, Spread(key))
        links = self.channels.invite({rank: Invitation.fresh() for rank in ranks[1:]})
        ways = {}
        for rank in ranks:
            link = links.get(rank + 1)
            onward = None
            if link is not None:
                to_next = link.invitation
                onward = Link(link.host, link.port, to_next.channel, to_next.to_rank, to_next.from_rank)
            source = links[rank].invitation.channel if rank in links else ""
            ways[rank] = Spread(key, source, onward, by_mpi=False)
        return ways

    @_keeps_nothing
    def pull(self, names: Sequence[str], ranks: Sequence[int]) -> tuple[PerRank, ...]:
        """Fetch values from ranks, for each name one a rank."""
        with self.channels.lock, self._offered(names, ranks) as (transfer, offered):
            rooms = {
                (rank, name): Room(one.parcel)
                for rank, own in offered.items()
                for name, one in own.items()
                if not one.small
            }
            self._warn("pull", names, offered)
            self._receive("pull", transfer, offered, {key: room.blocks() for key, room in rooms.items()})
        return tuple(
            PerRank({rank: _value(name, rank, offered[rank][name], rooms.get((rank, name))) for rank in ranks})
            for name in names
        )

    @_keeps_nothing
    def gather(self, names: Sequence[str], axis: int | None) -> tuple[Any, ...]:
        """Join what all ranks hold."""
        with self.channels.lock, self._offered(names, range(self.session.size)) as (transfer, offered):
            self._warn("gather", names, offered)
            joins = {name: _Join(name, {rank: own[name] for rank, own in offered.items()}, axis) for name in names}
            room = {(rank, name): room for name, join in joins.items() for rank, room in join.room()}
            orders = {name: join.order for name, join in joins.items()}
            self._receive("gather", transfer, offered, room, orders)
        joined = {name: join.joined() for name, join in joins.items()}
        return tuple(joined[name] for name in names)

    def gather_to(self, names: Sequence[str], file: File, axis: int | None) -> None:
        """Let the ranks write what they hold under one name into a file."""
        if len(names) != 1:
            raise DataError(f"{file} can hold one variable, not {len(names)}.", "Gather them one by one.")
        (name,) = names
        with self._offered([name], range(self.session.size), whole=True) as (transfer, offered):
            own = {rank: one[name] for rank, one in offered.items()}
            gather_file(self.session, name, file, own, axis=_axis_of(own, axis), transfer=transfer)

    @contextlib.contextmanager
    def _offered(
        self, names: Sequence[str], ranks: Sequence[int], *, whole: bool = False
    ) -> Iterator[tuple[int, dict[int, dict[str, Offered]]]]:
        """Ask ranks what names are bound to; what is not fetched in here they let go of."""
        transfer = self.channels.next_transfer()
        with self.channels.kept(transfer, ranks, whole=whole):
            replies = self.session.ask(dict.fromkeys(ranks, Offer(transfer, tuple(names), whole)))
            yield transfer, {reply.rank: reply.offered for reply in replies}

    def _receive(
        self,
        verb: str,
        transfer: int,
        offered: Mapping[int, Mapping[str, Offered]],
        room: Mapping[tuple[int, str], Iterator[memoryview]],
        orders: Mapping[str, str] | None = None,
    ) -> None:
        """Receive over the bulk channel what was offered and is not here yet."""
        wanted = {
            rank: {name: one for name, one in own.items() if one.small is None} for rank, own in offered.items()
        }
        wanted = {rank: own for rank, own in wanted.items() if own}
        if not wanted:
            return
        orders = orders or {}

        def moving(rank: int, channel: Channel) -> Moving:
            for name, one in wanted[rank].items():
                yield from channel.receive_blocks(transfer, room[rank, name], one.parcel.frames)

        self.channels.move(
            f"{verb} {', '.join(dict.fromkeys(name for own in wanted.values() for name in own))}",
            sum(one.parcel.nbytes for own in wanted.values() for one in own.values()),
            tuple(wanted),
            lambda names: {
                rank: Give(channel, transfer, {name: orders.get(name, "") for name in wanted[rank]})
                for rank, channel in names.items()
            },
            moving,
        )

    @staticmethod
    def _warn(verb: str, names: Sequence[str], offered: Mapping[int, Mapping[str, Offered]]) -> None:
        """Say how large it is before much comes to the notebook."""
        sizes = {name: sum(own[name].parcel.nbytes for own in offered.values()) for name in names}
        if sum(sizes.values()) > MUCH_NBYTES:
            listed = ", ".join(f"{name} {nbytes_in_words(nbytes)}" for name, nbytes in sizes.items())
            output.quiet(f"{verb}: {nbytes_in_words(sum(sizes.values()))} come to this notebook ({listed})")


class _Join:
    """Joins the shards of one name: plain arrays where they arrive, anything else afterwards."""

    def __init__(self, name: str, offered: Mapping[int, Offered], axis: int | None) -> None:
        self.name = name
        self.offered = offered
        self.axis = _axis_of(offered, axis)
        cannot = [rank for rank, one in offered.items() if not one.kind]
        if cannot:
            holds = "holds" if len(cannot) == 1 else "hold"
            raise DataError(
                f"`{name}` cannot be joined: {output.ranks_in_words(cannot)} {holds} {offered[cannot[0]].described}.",
                f"`%pull {name}` gives each rank's own.",
            )
        self._require_one_kind()
        heads = [one.parcel.array for one in offered.values()]
        self.array: Any = None
        self.order = ""
        if all(head is not None for head in heads):
            self._make_array()
        self._rooms = (
            {}
            if self.array is not None
            else {rank: Room(one.parcel) for rank, one in offered.items() if one.small is None}
        )

    def _require_one_kind(self) -> None:
        """Refuse a table here and a list there before either moves."""
        first, *others = self.offered
        other = [rank for rank in others if self.offered[rank].kind != self.offered[first].kind]
        if other:
            raise DataError(
                f"`{self.name}` cannot be joined: rank {first} holds {self.offered[first].described}; "
                f"{output.ranks_in_words(other)}: {self.offered[other[0]].described}.",
                f"`%pull {self.name}` gives each rank's own.",
            )

    def _make_array(self) -> None:
        try:
            import numpy as np
        except ImportError:
            raise DataError(
                f"`{self.name}` is a NumPy array, and NumPy is not here.", "Install it: `pip install numpy`."
            ) from None

        heads = [one.parcel.array for one in self.offered.values() if one.parcel.array is not None]
        require_heads_alike(self.name, heads, self.axis)
        self.axis %= len(heads[0].shape)
        rows = [head.shape[self.axis] for head in heads]
        shape = (*heads[0].shape[: self.axis], sum(rows), *heads[0].shape[self.axis + 1 :])
        lie = {head.order for head in heads if sum(length != 1 for length in head.shape) > 1 and 0 not in head.shape}
        cut = next(iter(self.offered.values())).cut
        self.order = "F" if lie == {"F"} or (not lie and cut is not None and cut.order == "F") else "C"
        self.array = np.empty(shape, heads[0].dtype, order="F" if self.order == "F" else "C")
        self._views = np.split(self.array, np.cumsum(rows)[:-1], self.axis)

    def room(self) -> Iterator[tuple[int, Iterator[memoryview]]]:
        """Give, by rank, room for what is to come."""
        for rank, one in self.offered.items():
            if one.small is None:
                room = self._rooms[rank].blocks() if self.array is None else landing(self._views[rank], self.order)
                yield rank, room

    def joined(self) -> Any:
        """Give the whole, once all has come."""
        values = {
            rank: _value(self.name, rank, one, self._rooms.get(rank))
            for rank, one in self.offered.items()
            if self.array is None or one.small is not None
        }
        if self.array is None:
            return shards.join(self.name, list(values.values()), self.axis)
        for rank, value in values.items():
            self._views[rank][...] = value
        return self.array


def _axis_of(offered: Mapping[int, Offered], axis: int | None) -> int:
    """Give the axis to join along: as asked for, else as it was cut, else the first."""
    cut = next(iter(offered.values())).cut
    return axis if axis is not None else cut.axis if cut is not None else 0


def _pack(name: str, value: Any, order: str = "", whole: Any = None) -> _Packed:
    """Make a value ready, or a shard of a whole; in that the culprit is looked for."""
    try:
        return _Packed(*packed(value, order))
    except pickle.PicklingError as error:
        raise cannot_be_pickled(name, value if whole is None else whole, error) from error


def _pack_small(name: str, value: Any, order: str = "") -> Pickled:
    try:
        return pickled_small(value, order)
    except pickle.PicklingError as error:
        raise cannot_be_pickled(name, value, error) from error


def _value(name: str, rank: int, offered: Offered, room: Room | None) -> Any:
    """Give a value that has come, with the offer or over the bulk channel."""
    try:
        return offered.small.load() if offered.small is not None else room.value() if room is not None else None
    except pickle.UnpicklingError as error:
        raise cannot_be_loaded(name, rank, error) from error
