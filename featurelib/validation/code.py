"""Rules for user code that arrives as text."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from featurelib.definitions import PyCode


def code_mistakes(code: PyCode) -> Iterator[str]:
    """What keeps a function's text from being loaded."""
    try:
        body = ast.parse(code.source).body
    except (SyntaxError, ValueError) as error:
        yield f"the text of the function is not Python: {error}"
        return
    if not any(isinstance(node, ast.FunctionDef) and node.name == code.entry_point for node in body):
        yield f"the text defines no function `{code.entry_point}`"


def looked_up(code: PyCode) -> set[str]:
    """What the text calls ``.lookup(…)`` of, by name; nothing of a text that is not Python."""
    try:
        nodes = list(ast.walk(ast.parse(code.source)))
    except (SyntaxError, ValueError):
        return set()
    read = (node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr == "lookup")
    return {owner.id for owner in read if isinstance(owner, ast.Name)}
