"""A cell's syntax, checked here before any rank is bothered."""

from __future__ import annotations

import ast
import inspect
import warnings

from hpcmagic.errors import CellError
from hpcmagic.wire.messages import RunCell


def check_syntax(cell: RunCell) -> bool:
    """Find a syntax error before any rank is bothered; give whether the cell has a top-level `await`.

    Raises
    ------
    CellError
        With the line as the notebook's cell counts it.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said where the cell runs
            code = compile(
                TransformerManager().transform_cell(cell.numbered()), "cell", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            )
    except SyntaxError as error:
        text = (error.text or "").strip()
        raise CellError(
            f"{type(error).__name__} in line {error.lineno}: {error.msg}{f':  {text}' if text else ''}",
            "No rank was bothered; mend the cell and run it again.",
        ) from None
    except (ValueError, MemoryError, RecursionError, OverflowError) as error:
        why = str(error) or f"{type(error).__name__}, it may be nested too deeply"
        raise CellError(f"The cell cannot be compiled: {why}.", "Mend the cell and run it again.") from None
    return bool(code.co_flags & inspect.CO_COROUTINE)
