"""Digests (SHA-256) of data, of nested content such as a checkpoint's, and of the code of functions."""

import ast
import functools
import inspect
import textwrap
from hashlib import sha256
from types import FunctionType, ModuleType


def digest(*parts):
    """The first 16 hexadecimal digits of the digest of bytes, or tensors on the CPU, one after the other."""
    sums = sha256()
    for part in parts:
        sums.update(part if isinstance(part, bytes) else _bytes_of(part))
    return sums.hexdigest()[:16]


def content_digest(content):
    """The digest of nested dicts, lists, tensors, numbers and strings: 64 hexadecimal digits."""
    sums = sha256()
    _add_to(sums, content)
    return sums.hexdigest()


def _add_to(sums, content):
    if hasattr(content, "numpy"):
        sums.update(f"{content.dtype} {tuple(content.shape)}".encode())
        sums.update(_bytes_of(content))
    elif isinstance(content, dict):
        sums.update(f"dict {len(content)}".encode())
        for key, value in content.items():
            sums.update(repr(key).encode())
            _add_to(sums, value)
    elif isinstance(content, (list, tuple)):
        sums.update(f"list {len(content)}".encode())
        for value in content:
            _add_to(sums, value)
    else:
        sums.update(repr(content).encode())


def _bytes_of(tensor):
    return tensor.detach().cpu().contiguous().numpy()


def code_digest(*functions):
    """The first 16 hexadecimal digits of the SHA-256 of the code of functions, and of everything that they refer to.

    These are functions and classes of this project, and constants of their modules: numbers, strings and tuples. For
    functions of libraries only the name counts. Docstrings and comments do not count.
    """
    found = {}
    for function in functions:
        _collect(function, found)
    return sha256("\n".join(f"{name} {text}" for name, text in sorted(found.items())).encode()).hexdigest()[:16]


def _collect(value, found, name=""):
    """Adds to `found`, {name: text}, the code of a value and of everything that it refers to."""
    if isinstance(value, functools.partial):
        _collect(value.func, found)
        found[f"{value.func.__qualname__} of partial"] = repr((value.args, value.keywords))
        return
    value = inspect.unwrap(value) if callable(value) else value
    if not isinstance(value, (FunctionType, type)):
        if isinstance(value, (int, float, str, tuple)):
            found[name] = repr(value)
        return
    name = f"{value.__module__}.{value.__qualname__}"
    if name in found or not _is_ours(value):
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    found[name] = ast.unparse(_Plain().visit(tree))
    module = inspect.getmodule(value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and hasattr(module, node.id):
            if not isinstance(vars(module)[node.id], ModuleType):
                _collect(vars(module)[node.id], found, f"{module.__name__}.{node.id}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = vars(module).get(node.value.id)
            if isinstance(owner, ModuleType) and hasattr(owner, node.attr) and _is_ours(owner):
                _collect(getattr(owner, node.attr), found, f"{owner.__name__}.{node.attr}")


def _is_ours(value):
    """True if the code is of this project, a script or a notebook; False if it is of an installed package."""
    try:
        file = inspect.getsourcefile(value)
    except TypeError:  # built in
        return False
    return (
        file is not None
        and "-packages" not in file
        and not file.startswith(inspect.getsourcefile(ast)[: -len("ast.py")])
    )


class _Plain(ast.NodeTransformer):
    """Removes docstrings."""

    def visit(self, node):
        self.generic_visit(node)
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:] or [ast.Pass()]
        return node
