"""Where chat templates run: they come from a hub and are programs, so what they reach and what they cost is bounded.

Cost is counted, not timed: a unit is about one character that is read or written. Each loop is paid for before it
begins, each value when it is made into text or handed on, and what could grow past the budget is refused before it is
made. So a template ends in the same place on every machine, in whichever thread it runs.
"""

import json
import re
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from datetime import datetime
from functools import wraps
from typing import Any, NamedTuple, cast

import jinja2
import jinja2.utils
from jinja2 import meta, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import Qwen3Error

# About half a second of work; the second is for each character of the conversation.
_UNITS, _UNITS_PER_CHARACTER = 10_000_000, 100
# What an iteration, a call or a filter costs beside the characters that it touches.
_STEP = 100
_MAX_TEMPLATE = 100_000
# Widths, indents and counts that a template may name, and the digits of its numbers.
_MAX_WIDTH, _MAX_DIGITS = 100_000, 10_000
# fmt: off
# Filters and methods whose result can have the product of the sizes that go in, and those that take a width.
_GROWING = frozenset(("format", "format_map", "join", "replace", "sum", "translate", "xmlattr"))
_WIDE = frozenset((
    "batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice", "to_bytes", "tojson", "truncate",
    "wordwrap", "zfill",
))
# Filters that take longer for an item than others do.
_SLOW = frozenset(("dictsort", "groupby", "pprint", "sort", "unique", "urlize", "wordwrap"))
# Filters and tests that do not look into the items of a list.
_SHALLOW_FILTERS = frozenset((
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random", "reject",
    "rejectattr", "reverse", "select", "selectattr", "slice",
))
_SHALLOW_TESTS = frozenset((
    "boolean", "callable", "defined", "even", "false", "float", "integer", "iterable", "mapping", "none", "number",
    "odd", "sameas", "sequence", "string", "true", "undefined",
))
# fmt: on
_TOO_MUCH = "it takes too much time or memory"
_BUDGET = "the budget of this rendering"


class Budget:
    """What one rendering may still cost; the rendering is the only writer."""

    def __init__(self, values: dict[str, Any], further: int) -> None:
        # By id, with the value itself, so that no other one gets its id.
        self._sizes: dict[int, tuple[Any, int]] = {}
        self.total = self.left = _UNITS + _UNITS_PER_CHARACTER * self.size(values) + further

    def charge(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise Qwen3Error(_TOO_MUCH)

    def size(self, value: Any) -> int:
        """How many characters and items a value has, each time counted that a list holds the same one.

        A template cannot change a list, so each is counted once.
        """
        if isinstance(value, str | bytes | range):
            return len(value)
        if isinstance(value, int):
            return 1 + value.bit_length() // 3
        if isinstance(value, KeysView | ValuesView | ItemsView):
            return sum(1 + self.size(part) for part in value)
        if not isinstance(value, list | tuple | dict):
            return 1
        if id(value) not in self._sizes:
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            self._sizes[id(value)] = value, 1 + sum(1 + self.size(part) for part in parts)
        return self._sizes[id(value)][1]

    def length(self, value: Any) -> int:
        """How many characters or items a value has, without what the items hold."""
        return len(value) if hasattr(value, "__len__") else self.size(value)

    def call(self, name: str, deep: bool, subject: Any, arguments: tuple, function: Callable[[], Any]) -> Any:
        """Pays for a filter, a test or a function before it runs, and for what it returns.

        deep: it looks into the items of lists.
        """
        measure = self.size if deep else self.length
        size, extra = measure(subject), sum(map(measure, arguments))
        self.charge(_STEP + extra + size * (60 if name in _SLOW else 1))
        growth = 0
        if name in _GROWING:
            growth = extra + _widths(subject) * name.startswith("format")
            if name == "sum" and not all(isinstance(number, int | float) for number in arguments):
                growth += size  # the running total is copied at each step
        elif name in _WIDE:
            widths = [abs(number) for number in arguments if isinstance(number, int | float)]
            if max(widths, default=0) > _MAX_WIDTH:
                raise Qwen3Error(f"{name} with a number beyond {_MAX_WIDTH}")
            growth = extra + int(sum(widths))
        # Checked only: the real result is paid for below.
        if (1 + size) * (1 + growth) > self.left:
            raise Qwen3Error(_TOO_MUCH)
        made = function()
        if isinstance(made, Iterator):
            return self._counted(made)
        self.charge(self.length(made))
        return made

    def _counted(self, items: Iterator) -> Iterator:
        for item in items:
            self.charge(_STEP + self.length(item))
            yield item


def _widths(pattern: Any) -> int:
    """The sum of all widths that a format names; a width that is an argument is refused."""
    if not isinstance(pattern, str):
        return 0
    if re.search(r"%[^a-zA-Z%]*\*|:[^{}]*\{", pattern):
        raise Qwen3Error("a format whose width is an argument")
    return sum(int(digits[:9]) for digits in re.findall(r"[0-9]+", pattern))


def _listed(name: str, value: Any) -> Any:
    """What a growing filter is given, as a list where it is an iterator: it must be known before it grows."""
    return list(value) if name in _GROWING and isinstance(value, Iterator) else value


class _Namespace(jinja2.utils.Namespace):
    """`namespace()`, whose text does not hold its values: they change, and a size is counted once."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Compiled(NamedTuple):
    """A template, the names of the variables that it reads, the strings that stand in its code, and its length."""

    template: jinja2.Template
    variables: frozenset[str]
    strings: frozenset[str]
    length: int


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of chat templates, with the helpers that they expect."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=_weigh,
        )
        self.filters["tojson"] = _tojson
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_raise_exception, strftime_now=None, namespace=_Namespace)
        for table, shallow in ((self.filters, _SHALLOW_FILTERS), (self.tests, _SHALLOW_TESTS)):
            for name, function in list(table.items()):
                table[name] = _paid(name, name not in shallow, function)
        self.filters |= {_WEIGH: _weigh, _SLICE: _pay_slice, _LOOP: _pay_loop}

    def compiled(self, source: str) -> Compiled:
        if len(source) > _MAX_TEMPLATE:
            raise Qwen3Error(f"it has {len(source)} characters, {_MAX_TEMPLATE} are allowed")
        tree = self.parse(source)
        strings = {part.value for part in tree.find_all(nodes.Const) if isinstance(part.value, str)}
        variables = frozenset(meta.find_undeclared_variables(tree))
        return Compiled(self.from_string(tree), variables, frozenset(strings), len(source))

    def budget(self, template: Compiled, values: dict[str, Any]) -> Budget:
        """Returns what rendering may cost, from the size of the values and the length of the template."""
        return Budget(values, len(values["messages"]) * (5000 + 5 * min(template.length, 20_000)))

    def run(self, template: Compiled, values: dict[str, Any], budget: Budget, now: datetime) -> str:
        """Renders; `now` is the time that the template sees."""
        helpers = {_BUDGET: budget, "strftime_now": lambda pattern: now.strftime(pattern)}
        return template.template.render(values | helpers)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Makes loops, slices, comparisons and `~` pay, which Jinja has no hooks for."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            constants = sum(len(part.data) for part in loop.find_all(nodes.TemplateData))
            constants += sum(len(str(part.value)) for part in loop.find_all(nodes.Const))
            loop.iter = _filtered(loop.iter, _LOOP, nodes.Const(_STEP + constants))
        for joined in tree.find_all(nodes.Concat):
            joined.nodes = [_filtered(part, _WEIGH) for part in joined.nodes]
        for compared in tree.find_all(nodes.Compare):
            compared.expr = _filtered(compared.expr, _WEIGH)
            for operand in compared.ops:
                operand.expr = _filtered(operand.expr, _WEIGH)
        for item in tree.find_all(nodes.Getitem):
            if isinstance(item.arg, nodes.Slice):
                item.node = _filtered(item.node, _SLICE)
            elif not isinstance(item.arg, nodes.Const):
                item.arg = _filtered(item.arg, _WEIGH)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget, numbers = context[_BUDGET], [n for n in (left, right) if isinstance(n, int | float)]
        if any(budget.size(number) > _MAX_DIGITS for number in numbers):
            raise Qwen3Error(f"a number of more than {_MAX_DIGITS} digits")
        size = budget.size(left) + budget.size(right)
        if operator == "**" and len(numbers) == 2 and abs(right) * budget.size(left) > _MAX_DIGITS:
            raise Qwen3Error("a power that is too large")
        if operator == "*" and len(numbers) == 1:
            size *= max(1, int(numbers[0]))
        if operator == "%" and isinstance(left, str):
            size *= 1 + _widths(left)
        budget.charge(_STEP + size)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget, name = __context[_BUDGET], getattr(__obj, "__name__", "call")
        args, subject = tuple(_listed(name, argument) for argument in args), getattr(__obj, "__self__", None)
        given = (*args, *kwargs.values())
        if isinstance(__obj, LoopContext):  # of a recursive loop: its next round
            budget.charge(_STEP * sum(map(budget.size, given)))
        if name in ("format", "format_map"):
            subject = getattr(__obj, "__wrapped__", __obj).__self__
        call = super().call
        if isinstance(__obj, Macro):  # takes longer than a filter
            budget.charge(5 * _STEP)
        # A function of the template pays for what it does itself.
        deep = not isinstance(__obj, Macro | LoopContext | type)
        return budget.call(name, deep, subject, given, lambda: call(__context, __obj, *args, **kwargs))


_WEIGH, _SLICE, _LOOP = "weigh a value", "pay for a slice", "pay for a loop"


def _filtered(node: nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, list(arguments), [], None, None, lineno=node.lineno)


@pass_context
def _weigh(context: Context, value: Any) -> Any:
    """Pays for a value that is made into text or compared."""
    budget = context[_BUDGET]
    budget.charge(budget.size(value))
    return value


@pass_context
def _pay_slice(context: Context, value: Any) -> Any:
    budget = context[_BUDGET]
    budget.charge(budget.length(value))
    return value


@pass_context
def _pay_loop(context: Context, value: Any, units: int) -> Any:
    """Pays for all iterations over a value; an iterator pays for itself, one by one."""
    try:
        count = len(value)
    except TypeError:
        return value
    context[_BUDGET].charge(units * count)
    return value


def _paid(name: str, deep: bool, function: Callable) -> Callable:
    """A filter or a test that pays; Jinja hands it what the original asks for."""
    passed = getattr(function, "jinja_pass_arg", None)

    @wraps(function)
    def paid(context: Context, value: Any = None, *args: Any, **kwargs: Any) -> Any:
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        before, value = () if passed is None else (first[passed.name],), _listed(name, value)
        given = (*args, *kwargs.values())
        return context[_BUDGET].call(name, deep, value, given, lambda: function(*before, value, *args, **kwargs))

    return pass_context(paid)


class _Generation(Extension):
    """The tag `{% generation %}`, which marks the assistant's text for training: renders its body in its own scope."""

    tags = {"generation"}  # noqa: RUF012 (as the base class declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes <, > and & for HTML; the training data did not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)
