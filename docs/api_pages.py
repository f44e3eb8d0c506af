"""The page of the Python API, from the docstrings of what is public.

Modules are parsed and not imported: an adapter is described where its engine is not installed. The result is Markdown
that is kept in the repository, so that it can be read there too.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What is public: of each module, the names in its `__all__` or else all without an underscore; or those named here.
PUBLIC: dict[str, tuple[str, ...] | None] = {
    "prod_decode": None,
    "prod_decode.hf": ("Ban",),
    "prod_decode.blocklist.blocklist": ("CompileReport",),
    "prod_decode.blocklist.entries": ("EntryInfo",),
    "prod_decode.storage.models": ("load_model", "load_tokenizer"),
    "prod_decode.tokens.tokenizer_bytes": ("byte_level_bytes",),
    "prod_decode.vllm": None,
    "prod_decode.sglang": None,
    "prod_decode.llama_cpp": None,
    "prod_decode.mlx_lm": None,
    "prod_decode.tensorrt_llm": None,
    "prod_decode.masking": (
        "mask_prohibited_",
        "mask_padding_",
        "prod_distribution",
        "nucleus_support",
        "renormalize_log_probs_",
    ),
    "prod_decode.device": None,
    "prod_train": None,
    "prod_train.method": ("Method", "Recipe", "Example", "Reference", "Teacher"),
}

HEAD = """# Python

Made by `make docs` from the docstrings; a test keeps it true. What is not on this page is not public, and may change in
any release. `import prod_decode` and `import prod_train` load neither torch nor an engine; names are loaded when they
are first used. A mistake raises `ProdError`, whose text says what was expected, what came, and what to do.
"""

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
_ITEM = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)", re.DOTALL)
_TITLES = {"Args": "Arguments", "Attributes": "Attributes", "Raises": "Errors"}
_WIDTH = 96

Definition = ast.ClassDef | ast.FunctionDef


def page() -> str:
    """The whole page."""
    parts = [HEAD, *(line for module in PUBLIC for line in _contents(module))]
    for module, names in PUBLIC.items():
        parts += _module(module, names)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _contents(module: str) -> Iterator[str]:
    links = (f"[`{name}`](#{_anchor(_short(module, name))})" for name in _names(module))
    yield _wrapped(f"- `{module}`: {', '.join(links)}")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower())


def _short(module: str, name: str) -> str:
    return f"{module}.{name}".removeprefix("prod_decode.")


def _module(module: str, names: Sequence[str] | None) -> Iterator[str]:
    yield f"\n## {module}\n"
    if names is None:
        yield _markdown(ast.get_docstring(_tree(module)) or "")
    for name in _names(module):
        yield from _described(_definition(module, name), _short(module, name))


def _names(module: str) -> list[str]:
    """The public names of a module, in the order in which it lists or defines them."""
    if (chosen := PUBLIC[module]) is not None:
        return list(chosen)
    body = _tree(module).body
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    return [node.name for node in body if isinstance(node, Definition) and not node.name.startswith("_")]


@cache
def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text(encoding="utf-8"))


def _definition(module: str, name: str) -> Definition:
    """Where a name is defined, by the imports of the modules on the way."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, Definition) and node.name == name:
            return node
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return _definition(node.module or "", name)
    raise LookupError(f"{module}: expected a class or function {name}, got none: see PUBLIC in {Path(__file__).name}")


def _described(node: Definition, heading: str) -> Iterator[str]:
    """A class with its methods, or a function."""
    yield f"\n### `{heading}`\n"
    yield f"```python\n{_signature(node, heading.rpartition('.')[2])}\n```\n"
    yield _markdown(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        return
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or not (text := ast.get_docstring(method)):
            continue
        if method.name == "__init__":
            yield f"\n**Construction**\n\n{_markdown(text)}"
        elif method.name == "__call__" or not method.name.startswith("_"):
            yield f"\n#### `{heading}.{method.name}`\n"
            yield f"```python\n{_signature(method, method.name)}\n```\n"
            yield _markdown(text)


def _signature(node: Definition, name: str) -> str:
    if isinstance(node, ast.ClassDef):
        return "\n".join(_class_signature(node, name))
    kinds = [ast.unparse(decorator) for decorator in node.decorator_list]
    lines = [f"@{kind}" for kind in kinds if kind in ("classmethod", "property", "abstractmethod")]
    returned = f" -> {ast.unparse(node.returns)}" if node.returns and name != "__init__" else ""
    bound = "staticmethod" not in kinds and node.args.args[:1] and node.args.args[0].arg in ("self", "cls")
    return "\n".join([*lines, _call(f"def {name}", _arguments(node.args, bound=bool(bound)), returned)])


def _class_signature(node: ast.ClassDef, name: str) -> Iterator[str]:
    """How a class is called, if its docstrings say so; a record's fields."""
    made = next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
    is_record = any("dataclass" in ast.unparse(one) for one in node.decorator_list) or any(
        ast.unparse(base) == "NamedTuple" for base in node.bases
    )
    if made is not None and ast.get_docstring(made):
        yield _call(f"class {name}", _arguments(made.args, bound=True), "")
    elif is_record:
        fields = [_field(item) for item in node.body if isinstance(item, ast.AnnAssign)]
        yield _call(f"class {name}", fields, "")
    else:
        bases = [ast.unparse(base) for base in node.bases]
        yield f"class {name}" + (f"({', '.join(bases)})" if bases else "")


def _field(item: ast.AnnAssign) -> str:
    """A record's field as a parameter."""
    said = f"{ast.unparse(item.target)}: {ast.unparse(item.annotation)}"
    if isinstance(item.value, ast.Call) and ast.unparse(item.value.func) == "field":
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in item.value.keywords}
        return f"{said} = {given['default'] if 'default' in given else given['default_factory'] + '()'}"
    return f"{said} = {ast.unparse(item.value)}" if item.value else said


def _call(begin: str, arguments: Sequence[str], end: str) -> str:
    arguments = [argument for argument in arguments if not argument.startswith("_")]
    line = f"{begin}({', '.join(arguments)}){end}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join([f"{begin}(", *(f"    {argument}," for argument in arguments), f"){end}"])


def _arguments(given: ast.arguments, *, bound: bool) -> list[str]:
    """The parameters, without `self` or `cls`."""
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    found = [_argument(one, default) for one, default in zip(plain, defaults, strict=True)][bound:]
    if given.vararg:
        found.append(f"*{_argument(given.vararg, None)}")
    elif given.kwonlyargs:
        found.append("*")
    found += [_argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return [*found, f"**{_argument(given.kwarg, None)}"] if given.kwarg else found


def _argument(one: ast.arg, default: ast.expr | None) -> str:
    said = one.arg + (f": {ast.unparse(one.annotation)}" if one.annotation else "")
    if default is None:
        return said
    return f"{said} = {ast.unparse(default)}" if one.annotation else f"{said}={ast.unparse(default)}"


def _markdown(docstring: str) -> str:
    """A docstring in Google's style as Markdown: its sections become lists."""
    lines: list[str] = []
    section: list[str] | None = None
    name = ""
    for line in [*docstring.splitlines(), "end"]:
        if section is not None and (not line.strip() or line.startswith(" ")):
            section.append(line)
            continue
        if section is not None:
            lines += ["", *_section(name, inspect.cleandoc("\n" + "\n".join(section))), ""]
            section = None
        if found := _SECTION.fullmatch(line):
            name, section = found[1], []
        else:
            # A literal block of reStructuredText, which Markdown knows by its indentation.
            lines.append(line.removesuffix(":") if line.endswith("::") else line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines[:-1])).strip() + "\n"


def _section(name: str, text: str) -> Iterator[str]:
    if name in ("Returns", "Yields"):
        yield _wrapped(f"**{name}** {text}", indent="")
        return
    yield f"**{_TITLES[name]}**\n"
    # An item begins at the margin, and goes on where lines are indented.
    for item in re.split(r"\n(?=\S)", text):
        found = _ITEM.fullmatch(" ".join(item.split()))
        yield _wrapped(f"- `{found[1]}`: {found[2]}" if found else f"- {item}")


def _wrapped(text: str, indent: str = "  ") -> str:
    """A paragraph or an item in lines of at most 120 characters, none of which begins like another item."""
    glued = re.sub(r" (?=[-+*#>]|\d+[.)])", "\0", " ".join(text.split()).replace("- ", "-\0", 1))
    lines = textwrap.wrap(glued, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")
