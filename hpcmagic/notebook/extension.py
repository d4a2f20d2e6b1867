"""What the extension adds to a shell, and takes away again: magics, what Tab offers on their lines, the hint."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from hpcmagic.notebook.completion import Completion
from hpcmagic.notebook.magics import MAGICS, HpcMagics
from hpcmagic.notebook.outgrown import Watch
from hpcmagic.notebook.view import draw_all

_added: WeakKeyDictionary[Any, tuple[Watch, Completion]] = WeakKeyDictionary()  # by shell


def load(shell: Any) -> None:
    """Add everything, once; magics that were there before a reload still hold their sessions."""
    unload(shell)
    magics = shell.magics_manager.registry.get(HpcMagics.__name__) or HpcMagics(shell)
    shell.register_magics(magics)
    if magics not in shell.configurables:
        shell.configurables.append(magics)  # for %config
    watch, completion = _added[shell] = Watch(magics), Completion(magics)
    shell.events.register("pre_run_cell", watch.begin)
    shell.events.register("post_run_cell", watch.over)
    shell.events.register("post_run_cell", draw_all)
    shell.Completer.custom_matchers.append(completion.match)
    shell.input_transformers_cleanup.insert(0, with_a_body)


def unload(shell: Any) -> None:
    """Take everything away that was added; sessions run on."""
    for kind, names in MAGICS.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    magics = shell.magics_manager.registry.get(HpcMagics.__name__)
    if magics in shell.configurables:
        shell.configurables.remove(magics)
    if shell not in _added:
        return
    watch, completion = _added.pop(shell)
    shell.events.unregister("pre_run_cell", watch.begin)
    shell.events.unregister("post_run_cell", watch.over)
    shell.events.unregister("post_run_cell", draw_all)
    shell.Completer.custom_matchers.remove(completion.match)
    shell.input_transformers_cleanup.remove(with_a_body)
    watch.close()


def with_a_body(lines: list[str]) -> list[str]:
    """Let a cell be nothing but `%%remote -h`, or `--dry-run`: IPython itself refuses a cell magic without a body."""
    words = lines[0].split() if lines else []
    if words[:1] != ["%%remote"] or any(line.strip() for line in lines[1:]):
        return lines
    return [lines[0].rstrip("\n") + "\n", "\n"] if {"-h", "--help", "--dry-run"} & set(words) else lines
