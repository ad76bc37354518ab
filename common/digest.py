"""Digests (SHA-256) of data, of nested content such as a checkpoint's, and of the code of functions."""

import ast
import functools
import inspect
import symtable
import sys
import textwrap
from hashlib import sha256
from types import FunctionType, MethodType, ModuleType

PLAIN = (type(None), bool, int, float, complex, str, bytes)


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
    """The values of a tensor as an array in C order, which hashlib reads as bytes."""
    return tensor.detach().cpu().contiguous().numpy()


def code_digest(*functions):
    """The first 16 hexadecimal digits of the digest of what some functions do.

    That is their code without comments, docstrings and layout, and all that it refers to: functions and classes of this
    project, constants of its modules, defaults, closures. What libraries do counts by name only. Dicts, lists and sets
    of modules whose names begin with _ are taken to be caches, and do not count.
    """
    found = {}
    for number, function in enumerate(functions):
        _collect(function, f"function {number}", found)
    return digest("\n".join(f"{name} {text}" for name, text in sorted(found.items())).encode())


def _collect(value, name, found):
    """Adds to `found`, {name: text}, what a value is, or does, and all that it refers to."""
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        found[name] = type(value).__name__
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=repr)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _collect(item, f"{name}[{key!r}]", found)
    elif hasattr(value, "tobytes") or hasattr(value, "numpy"):  # arrays and tensors
        array = _bytes_of(value) if hasattr(value, "numpy") else value
        found[name] = f"{array.dtype} {array.shape} {digest(array.tobytes())}"
    elif isinstance(value, functools.partial):
        _collect((value.func, value.args, value.keywords), name, found)
    elif isinstance(value, MethodType):
        _collect((value.__func__, value.__self__), name, found)
    elif isinstance(value, (FunctionType, type)):
        _collect_code(inspect.unwrap(value), name, found)
    elif isinstance(value, ModuleType) or type(value).__module__ == "builtins" or not _is_ours(type(value)):
        found[name] = repr(value) if isinstance(value, PLAIN) else type(value).__qualname__
    elif name.count(".__dict__") < 3:  # an object of a class of ours; it may refer to itself
        _collect_code(type(value), name, found)
        _collect(getattr(value, "__dict__", {}), f"{name}.__dict__", found)


def _collect_code(value, name, found):
    """The same for a function or class."""
    own = f"{value.__module__}.{value.__qualname__}"
    found[name] = own
    if not _is_ours(value):
        return
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        if cells or value.__defaults__ or value.__kwdefaults__:
            _collect((cells, value.__defaults__, value.__kwdefaults__), f"{name} given", found)
    code = f"code of {own}"
    if "<lambda>" in own:  # a name that several have
        code += f" {digest(repr((value.__code__.co_code, value.__code__.co_consts)).encode())}"
    if code in found:
        return
    text, names, attributes = _parsed(value)
    found[code] = text or own
    module = sys.modules[value.__module__]
    for name in names:
        used = vars(module).get(name, sys)
        is_cache = name.startswith("_") and isinstance(used, (dict, list, set))
        if not isinstance(used, ModuleType) and not is_cache:
            _collect(used, f"{value.__module__}.{name}", found)
    for name, attribute in attributes:
        owner = vars(module).get(name)
        if isinstance(owner, ModuleType) and hasattr(owner, attribute) and _is_ours(owner):
            _collect(getattr(owner, attribute), f"{owner.__name__}.{attribute}", found)


@functools.cache
def _parsed(value):
    """(code of a function or class without docstrings, names of its module in it, (name, attribute) pairs in it)."""
    try:
        source = textwrap.dedent(inspect.getsource(value))
        tree = ast.parse(source)
    except (OSError, SyntaxError):  # without a source of its own, such as a lambda in a table
        bytecode = getattr(value, "__code__", None)
        if not bytecode:
            return "", (), ()
        return repr((bytecode.co_code, bytecode.co_consts)), bytecode.co_names, ()
    text = ast.unparse(_WithoutDocstrings().visit(tree))
    nodes = list(ast.walk(tree))
    ours = _global_names(symtable.symtable(source, "code", "exec"))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return (
        text,
        tuple(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name) and node.id in ours)),
        tuple(dict.fromkeys((node.value.id, node.attr) for node in attributes if node.value.id in ours)),
    )


def _global_names(table):
    """The names that mean something of the module, in a symbol table of its top level: no local variables."""
    names = {symbol.get_name() for symbol in table.get_symbols() if table.get_type() == "module" or symbol.is_global()}
    return names.union(*(_global_names(inner) for inner in table.get_children()))


@functools.cache
def _is_ours(value):
    """Is it of this project, or of a script or notebook, rather than of an installed package?"""
    try:
        file = inspect.getsourcefile(value)
    except TypeError:  # built in
        return False
    library = inspect.getsourcefile(ast).removesuffix("ast.py")
    return file is not None and "-packages" not in file and not file.startswith(library)


class _WithoutDocstrings(ast.NodeTransformer):
    """Removes docstrings."""

    def visit(self, node):
        self.generic_visit(node)
        match node:
            case (
                ast.FunctionDef(body=[ast.Expr(ast.Constant()), *body])
                | ast.ClassDef(body=[ast.Expr(ast.Constant()), *body])
            ):
                node.body = body or [ast.Pass()]
        return node
