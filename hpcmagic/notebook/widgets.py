"""Widgets that are never displayed: the comm alone brings their code into the page, which finds a place by itself."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from hpcmagic.notebook import frontend, output


def installed() -> bool:
    """Whether there is anywidget."""
    return importlib.util.find_spec("anywidget") is not None


def can_be_shown() -> bool:
    """Whether there is a notebook that shows widgets, and a person before it."""
    return output.in_notebook() and not frontend.unattended() and installed()


class Unseen:
    """One widget of that kind. It sends from any thread that runs in the context of a cell.

    Parameters
    ----------
    name
        Of the kind; one name, one code.
    code
        An ES module as anywidget wants it.
    place
        What the page knows it by.
    """

    def __init__(self, name: str, code: str, place: str) -> None:
        self._widget = _kind(name, code)(place=place)
        comm = self._widget.comm
        if hasattr(comm, "_reply_subshell_for"):  # ipykernel ≥ 7.4 answers where was published last: behind a cell
            comm._reply_subshell_for = lambda _data, default: default  # noqa: SLF001  # there is no public way

    def listen(self, receive: Callable[[Mapping[str, Any]], None]) -> None:
        """Have messages from the pages taken; then ask them to say that they are there."""
        self._widget.on_msg(lambda _widget, content, _buffers: receive(content))
        self._widget.send({"kind": "ready"})

    def send(self, message: dict[str, Any], buffers: list[Any] | None = None) -> None:
        """Tell the pages something."""
        self._widget.send(message, buffers)

    def close(self) -> None:
        """Take it away."""
        self._widget.close()


@functools.cache
def _kind(name: str, code: str) -> Any:
    """Make a widget's class."""
    import anywidget
    import traitlets

    traits = {"_esm": code, "place": traitlets.Unicode().tag(sync=True), "__module__": __name__}
    return type(name, (anywidget.AnyWidget,), traits)
