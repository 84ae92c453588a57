"""Calls in the syntax of Python: LFM2 writes a list of them."""

import ast
import warnings
from functools import partial
from typing import Any

from edge.tool_calls.call_ends import MarkerEnd
from edge.tool_calls.call_format import CallFormat, Schemas, call
from edge.tool_calls.json_calls import listed
from edge.tool_calls.parts import ToolCall

END = "<|tool_call_end|>"
JSON_NAMES = {"true": True, "false": False, "null": None}


def pythonic(text: str, schemas: Schemas) -> list[ToolCall]:
    """The calls in a list of Python calls with keyword arguments, or of JSON objects; nothing of it is evaluated."""
    text = text.removesuffix(END).strip()
    if text.startswith(("[{", "{")):
        return listed(text, schemas)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backslash that escapes nothing
        body = ast.parse(text, mode="eval").body
    return [_call(one) for one in (body.elts if isinstance(body, ast.List) else [body])]


def _call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with keyword arguments")
    return call(ast.unparse(node.func), {_name(keyword): _value(keyword.value) for keyword in node.keywords})


def _name(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("not a keyword argument")
    return keyword.arg


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in JSON_NAMES:
        return JSON_NAMES[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(key): _value(one) for key, one in zip(node.keys, node.values, strict=True)}
    return ast.literal_eval(node)


def _key(node: ast.expr | None) -> str:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise ValueError("keys must be text")
    return node.value


LFM2 = (CallFormat("<|tool_call_start|>", partial(MarkerEnd, END), pythonic, inner=(END,)),)
