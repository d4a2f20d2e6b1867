"""What a user calls to move data and functions: push, pull, scatter, gather, map, call, vars; a part of `Session`."""

from __future__ import annotations

import contextlib
import keyword
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hpcmagic.errors import DataError
from hpcmagic.files import File
from hpcmagic.notebook.mapping import Mapped, call_on_all
from hpcmagic.notebook.perrank import PerRank
from hpcmagic.notebook.variables import Variables, variables_of

if TYPE_CHECKING:
    from hpcmagic.notebook.data import Data
    from hpcmagic.notebook.session import Session


class DataVerbs:
    """The verbs of a session that move data, or show it."""

    if TYPE_CHECKING:
        data: Data

        def chosen(self, ranks: Any) -> tuple[int, ...]:
            """Give the ranks that a user's words name."""

        def noted_errors(self) -> contextlib.AbstractContextManager[None]:
            """Keep an error that passes through for `why`."""

    def push(self, values: Mapping[str, Any] | None = None, /, ranks: Any = None, **named: Any) -> None:
        """Bind names on the ranks to values, each rank's a copy of its own.

        Parameters
        ----------
        values, **named
            By name; a name that is one of ours (``ranks``) stands in the mapping.
        ranks
            Ranks as a sequence of numbers, a number, or text like ``"0,2-3"``; None = all.

        Raises
        ------
        DataError
            A value that cannot be pickled; the path to the culprit inside it is named.
        """
        with self.noted_errors():
            given = _by_name("push", values, named)
            self.data.push(given, self.chosen(ranks))

    def pull(self, *names: str, ranks: Any = None) -> Any:
        """Fetch values of names from ranks: a PerRank, or for several names one each, in a tuple.

        Raises
        ------
        RankError
            A name that a rank does not have.
        """
        with self.noted_errors():
            _require_names("pull", names)
            per_rank = self.data.pull(names, self.chosen(ranks))
        return per_rank[0] if len(names) == 1 else per_rank

    def scatter(self, values: Mapping[str, Any] | None = None, /, axis: int = 0, **named: Any) -> None:
        """Cut values over the ranks, in order: each rank then holds its own rows under the name.

        Parameters
        ----------
        axis
            Of arrays: along which they are cut. Rank r gets the r-th of `size` nearly equal parts, as
            `numpy.array_split` cuts; with fewer rows than ranks the last ones get none.
        values, **named
            By name: NumPy arrays, pandas, Polars or Arrow tables, lists and other sequences; or a `File`, of which
            each rank reads its own rows.

        Raises
        ------
        DataError
            A value that has no rows, or cannot be pickled; a file of a kind that ranks do not read.
        """
        with self.noted_errors():
            given = _by_name("scatter", values, named)
            for value in given.values():
                if isinstance(value, File):
                    value.require_known(str(Path.cwd()))
            self.data.scatter(given, axis)

    def gather(self, *names: str, axis: int | None = None, to: str | File | None = None) -> Any:
        """Join what the ranks hold under a name, in order; of several names a tuple.

        Parameters
        ----------
        axis
            Along which arrays are joined; None = as they were scattered, else the first.
        to
            A file that the ranks write it into, each its own rows: nothing comes here, and nothing is returned.

        Raises
        ------
        RankError
            A rank has no such name.
        DataError
            The shards do not fit each other, or the kind of file is none that ranks write.
        """
        with self.noted_errors():
            _require_names("gather", names)
            if to is not None:
                file = to if isinstance(to, File) else File(to)
                file.require_known(str(Path.cwd()))
                self.data.gather_to(names, file, axis)
                return None
            joined = self.data.gather(names, axis)
        return joined[0] if len(names) == 1 else joined

    def vars(self, ranks: Any = None, *, everything: bool = False) -> Variables:
        """Ask ranks what variables they hold; they answer while a cell runs, too.

        Parameters
        ----------
        everything
            Modules, functions and what IPython itself has put there as well.
        """
        session = cast("Session", self)
        with self.noted_errors():
            session.require_alive()
            return variables_of(session.control_path(), self.chosen(ranks), everything=everything)

    def map(self, function: Callable[[Any], Any], sequence: Iterable[Any]) -> list[Any]:
        """Call a function with each item, on whichever rank is free; give the results in order.

        Raises
        ------
        RankError
            The function raised; the item's number is named.
        DataError
            The function or an item cannot be pickled.
        """
        with self.noted_errors():
            return Mapped(cast("Session", self), function, sequence, self.data.channels.next_transfer()).run()

    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> PerRank:
        """Call a function once on every rank, with the same arguments; give what it returns on each.

        `rank`, `size` and `comm` are there for it as they are in a cell. If it raises on some ranks while others wait
        for these in MPI, the line below says so; Ctrl-C then ends it with the error.

        Raises
        ------
        RankError
            It raised.
        DataError
            It, or an argument, cannot be pickled.
        """
        with self.noted_errors():
            return call_on_all(cast("Session", self), function, args, kwargs)


def _by_name(verb: str, values: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """Give the values that a call names.

    Raises
    ------
    DataError
        A value came without its name, or a name is none.
    """
    if values is not None and not isinstance(values, Mapping):
        raise DataError(
            f"{verb} was given {reprlib.repr(values)} without a name.",
            f"Name it: `session.{verb}(x=value)`, or give a dictionary.",
        )
    given = {**(values or {}), **named}
    for name in given:
        _require_name(name, f"session.{verb}(x=value)")
    return given


def _require_names(verb: str, names: Sequence[Any]) -> None:
    """Refuse to fetch what has no name."""
    if not names:
        raise DataError(f"{verb} needs the name of a variable.", f"Write e.g. `session.{verb}('x')`.")
    for name in names:
        _require_name(name, f"session.{verb}('x')")


def _require_name(name: Any, right: str) -> None:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise DataError(f"{reprlib.repr(name)} is not a name for a variable.", f"Write e.g. `{right}`.")
