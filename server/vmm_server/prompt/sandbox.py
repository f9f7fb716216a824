"""Jinja for chat templates that nobody has read: what they may do, and how much of it.

A template is a program that came with a model, or in a request. Jinja's sandbox keeps it away from Python's insides
and from changing what it is given; `ChatEnvironment` also bounds what one rendering may use (`budget.py`):

* `MAX_TEXT` characters in any one text, and in the result;
* `MAX_WORK` characters and list items (an item counts as 16) in everything built on the way;
* `MAX_CPU_S` seconds of processor time, looked at in every turn of a loop and in every call;
* `range` up to 100,000 (Jinja's own bound), whole numbers up to `MAX_BITS` bits out of `*` and `**`;
* no width of more than three digits in formats, and none of `_NO_METHODS` and `_NO_FILTERS`, which pad or repeat.

The bounds are checked before an operator, filter or method multiplies its input, so that nothing large is ever
allocated. Time inside one such operation is not interrupted; the size of its inputs bounds it, except in
comparisons of lists that hold the same list many times over.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from vmm_server.prompt.budget import (
    ITEM_SIZE,
    RESULT_SIZES,
    Budget,
    check_bits,
    join_size,
    measure,
    num_bits,
    replace_size,
)

_MAX_FIELD = 999  # the widest field that `_WIDE_FIELD` lets through
_MAX_INDENT = 32
_WIDE_FIELD = re.compile(r"\d{4}|\*|\{[^{}]*\{")
_NO_METHODS = frozenset(("center", "encode", "expandtabs", "ljust", "rjust", "to_bytes", "translate", "zfill"))
_NO_FILTERS = frozenset(("batch", "center", "pprint", "slice", "urlize", "wordwrap", "xmlattr"))
_LAZY_FILTERS = frozenset(("count", "default", "d", "first", "items", "last", "length", "list", "map", "reject"))
_LAZY_FILTERS |= {"rejectattr", "reverse", "select", "selectattr", "attr"}


def _turn(num_literal: int) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute("turn"), [nodes.Const(num_literal)], [], None, None)


class _Code(CodeGenerator):
    """Adds the bookkeeping that Jinja has no hook for: turns of a loop, `~` and slices."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        literal = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.body.insert(0, nodes.ExprStmt(_turn(literal)).set_lineno(node.lineno))
        if node.test is not None:  # `for … if …` runs through what it leaves out before the body sees a turn
            node.test = nodes.And(_turn(0), node.test).set_lineno(node.lineno)
        super().visit_For(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concatenate((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        is_slice = isinstance(node.arg, nodes.Slice)
        self.write("environment.spent(" if is_slice else "")
        super().visit_Getitem(node, frame)
        self.write(")" if is_slice else "")


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks the assistant's words for training, is transparent."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class _PlainNamespace(Namespace):
    """`namespace()` without attributes that begin with an underscore, which Python gives a meaning."""

    def __init__(self, /, *args: Any, **attributes: Any) -> None:
        content = dict(*args, **attributes)
        for name in content:
            _check_attribute(name)
        super().__init__(content)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders chat templates as transformers does, within bounds. Rendering is thread-safe."""

    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._rendering = threading.local()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # constants are computed when rendering, under the bounds
            finalize=self._finalize,
            extensions=[_Generation, loopcontrols],
        )
        originals = {name: self.filters[name] for name in self.filters if name not in _NO_FILTERS}
        self.filters = {name: self._bounded(name, original) for name, original in originals.items()}
        self.filters["tojson"] = self._tojson
        self.tests = {name: self._ticking(test) for name, test in self.tests.items()}
        del self.globals["lipsum"]
        self.globals["namespace"] = _PlainNamespace
        self.globals["dict"] = lambda *args, **items: dict(*args, **items)  # a plain function has no class methods

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Give the rendering inside a fresh budget."""
        self._rendering.budget = Budget(self._clock)
        try:
            yield
        finally:
            del self._rendering.budget

    @property
    def _budget(self) -> Budget:
        budget: Budget = self._rendering.budget
        return budget

    def turn(self, num_literal: int) -> bool:
        """One turn of a loop whose body holds `num_literal` characters of plain text; always true."""
        self._budget.tick()
        self._budget.spend(num_literal)
        return True

    def spent(self, value: Any) -> Any:
        """`value`, after its size was taken off the budget."""
        if isinstance(value, str | bytes):
            self._budget.spend(len(value))
        elif isinstance(value, list | tuple | dict | set):
            self._budget.spend(len(value) * ITEM_SIZE)
        return value

    def concatenate(self, parts: tuple[Any, ...]) -> str:
        """Jinja's `~`."""
        self._budget.spend(sum(map(measure, parts)))
        return "".join(map(str, parts))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, after what it would build was found to be small enough."""
        if operator == "%" and isinstance(left, str):
            self._check_format(left, left.count("%"), right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    self._budget.check(len(sequence) * times * (1 if isinstance(sequence, str) else ITEM_SIZE))
            check_bits(num_bits(left) + num_bits(right))
        elif operator == "**":
            check_bits(num_bits(left) * abs(right) if isinstance(right, int) else 0)
        return self.spent(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call of anything: a macro, a method of a text, one of our functions."""
        self._budget.tick()
        name, owner = getattr(function, "__name__", ""), getattr(function, "__self__", None)
        if name in _NO_METHODS and isinstance(owner, str | int):
            raise SecurityError(f"the method {name!r} is not offered to chat templates")
        if isinstance(owner, str):
            args = self._check_text_method(owner, name, args)
        return self.spent(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with bounded fields."""
        formatting = super().wrap_str_format(value)
        if formatting is None:
            return None
        template: str = value.__self__

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            self._check_format(template, template.count("{"), (*args, *kwargs.values()))
            return formatting(*args, **kwargs)

        return bounded_format

    def _check_text_method(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if name == "join" and len(args) == 1 and isinstance(args[0], Iterable):
            args = (list(args[0]),)
            self._budget.check(measure(args[0]) + join_size(args[0], text))
        elif name == "replace" and len(args) >= 2:
            self._budget.check(replace_size(text, *args))
        return args

    def _check_format(self, template: str, num_fields: int, values: tuple[Any, ...]) -> None:
        if _WIDE_FIELD.search(template):
            raise SecurityError("a format's field is wider than three digits, or has a computed width")
        self._budget.check(len(template) + num_fields * max((_MAX_FIELD, *map(measure, values))))

    def _bounded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that looks at what it is given and at what it makes."""
        num_passed = int(hasattr(original, "jinja_pass_arg"))  # Jinja's own environment or context, put first

        @wraps(original)  # keeps that mark
        def filtered(*args: Any, **kwargs: Any) -> Any:
            self._budget.tick()
            if name not in _LAZY_FILTERS:
                values = [list(arg) if isinstance(arg, Iterator) else arg for arg in args[num_passed:]]
                self._budget.check(measure([*values, *kwargs.values()]))
                if name == "format":
                    self._check_format(str(values[0]), str(values[0]).count("%"), (*values[1:], *kwargs.values()))
                elif name in RESULT_SIZES:
                    self._budget.check(RESULT_SIZES[name](*values, **kwargs))
                args = (*args[:num_passed], *values)
            return self.spent(original(*args, **kwargs))

        return filtered

    def _ticking(self, original: Any) -> Callable[..., Any]:
        @wraps(original)
        def test(*args: Any, **kwargs: Any) -> Any:
            self._budget.tick()
            return original(*args, **kwargs)

        return test

    @pass_context
    def _finalize(self, _context: Context, value: Any) -> Any:
        self._budget.spend(measure(value))
        return value

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as transformers writes it: not escaped for HTML, and laid out as asked."""
        width = indent if isinstance(indent, int) else len(indent or "")
        if width > _MAX_INDENT or any(len(separator) > _MAX_INDENT for separator in separators or ()):
            raise SecurityError(f"tojson indents by at most {_MAX_INDENT}")
        self._budget.check(measure(value) * (1 + width))
        text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        self.spent(text)
        return text
