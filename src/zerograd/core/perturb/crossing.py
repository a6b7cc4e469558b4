"""Whether a forward may be put aside where it stands, and another run meanwhile.

It may not while something is entered that it will leave: another forward would run inside it, and the two would be
left in the wrong order (a parameter that is swapped for the time of a call stays swapped), or one would wait for the
other for ever (a lock). So each function on the stack is looked up in its source: is the line that runs inside a
`with` block or a `try` with a `finally`? What is known to be kept apart for each forward does not count: gradients,
autocast, kinds of attention, function modes (see `lockstep`), context variables.
"""

import ast
import linecache
import os
import sys
from functools import lru_cache
from types import CodeType, FrameType
from typing import TypeGuard

from zerograd.core.perturb.callers import is_ours

APART = frozenset(
    "no_grad enable_grad set_grad_enabled autocast sdpa_kernel nullcontext device _pop_mode_temporarily".split()
)
ENTERS = frozenset("acquire __enter__ enter_context".split())  # entered by hand: left somewhere in the function
DECORATED = os.path.join("torch", "utils", "_contextlib.py")  # functions under @torch.no_grad() and the like
CONFIGURED = os.path.join("transformers", "utils", "generic.py")  # forwards that may change the config for a call
MOST = 1 << 16  # places to remember
_places: dict[tuple[int, int], tuple[CodeType, bool]] = {}  # with the code, so that its id stays its own
EXPRESSIONS = frozenset(("<lambda>", "<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def may_cross() -> bool:
    """Whether nothing is entered on this greenlet's stack that has to be left by the same forward first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_inside(frame) and not _is_known(frame):
            return False
        frame = frame.f_back
    return True


def _is_known(frame: FrameType) -> bool:
    """Whether what the libraries entered here is kept apart, which only the values say."""
    values = frame.f_locals
    if frame.f_code.co_filename.endswith(DECORATED):
        return type(getattr(values.get("ctx_factory"), "__self__", None)).__name__ in APART
    if frame.f_code.co_filename.endswith(CONFIGURED):
        return values.get("is_causal", True) is None and not values.get("kwargs", {}).get("debug_io")
    return False


def _is_inside(frame: FrameType) -> bool:
    """Whether the instruction that a frame is at is inside something entered."""
    place = (id(frame.f_code), frame.f_lasti)  # (code objects compare by all that they hold, and lines are counted)
    if place not in _places:
        if len(_places) > MOST:
            _places.clear()
        _places[place] = (frame.f_code, not is_ours(frame) and _look(frame.f_code, frame.f_lineno))
    return _places[place][1]


def _look(code: CodeType, line: int) -> bool:
    """The same for a line, from the source; True where that cannot be had."""
    if ENTERS & set(code.co_names):
        return True
    if code.co_name in EXPRESSIONS:
        return False  # nothing but statements enters
    function = _functions(code.co_filename).get((code.co_firstlineno, code.co_name))
    if function is None:
        return True
    inner: list[ast.AST] = [function]
    while inner:
        for node in ast.iter_child_nodes(inner.pop()):
            if isinstance(node, Function | ast.ClassDef):
                continue  # has a frame of its own
            inner.append(node)
            if _must_be_left(node) and node.lineno <= line <= (node.end_lineno or 0):
                return True
    return False


def _must_be_left(node: ast.AST) -> TypeGuard[ast.stmt]:
    """Whether a statement enters something, and leaves it at its end."""
    if isinstance(node, ast.Try):
        return not all(isinstance(s, ast.Delete) or _resets(s) for s in node.finalbody)
    return isinstance(node, ast.With) and not all(_called(item.context_expr) in APART for item in node.items)


def _resets(statement: ast.stmt) -> bool:
    """`variable.reset(token)`: each forward has context variables of its own."""
    return isinstance(statement, ast.Expr) and _called(statement.value) == "reset"


def _called(expression: ast.expr) -> str:
    if not isinstance(expression, ast.Call):
        return ""
    called = expression.func
    return called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""


@lru_cache(256)
def _functions(path: str) -> dict[tuple[int, str], ast.AST]:
    """The functions of a file by their first line, decorators included, and name."""
    source = "".join(linecache.getlines(path))
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:  # (a notebook's cell with magic commands)
        return {}
    functions = [node for node in nodes if isinstance(node, Function)]
    return {(min([f.lineno, *(d.lineno for d in f.decorator_list)]), f.name): f for f in functions}
