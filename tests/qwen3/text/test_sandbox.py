"""What a chat template may cost and reach: bombs end early, in one line, and in the same place on every machine."""

import pytest

from qwen3.errors import Qwen3Error
from qwen3.text.sandbox import Sandbox
from qwen3.text.template import ChatTemplate

from .folders import QWEN3, one_line
from .test_messages import HI, render

GROW = "{% set n = namespace(x='ab', l=[1], d=9) %}{% for i in range(26) %}"
LISTS = GROW + "{% set n.l = [n.l, n.l] %}{% endfor %}"
# Without a bound each takes seconds or hundreds of megabytes, and not more: a bound that is lost is seen, not suffered.
COSTLY = {
    "loops": "{% for i in range(99999) %}{% for j in range(999) %}{% endfor %}{% endfor %}",
    "loops that skip": "{% for i in range(9999) %}{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "long text in a loop": f"{{% for i in range(9999) %}}{'y' * 9999}{{% endfor %}}",
    "recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "recursive loop in layers": "{% for i in [1] recursive %}{% if loop.depth < 4 %}{{ loop(range(199)) }}{% endif %}"
    "{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(17) }}",
    "doubled by +": GROW + "{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled by ~": GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled by a block": GROW + "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "doubled by join": GROW + "{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "doubled by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + GROW + "{% set n.x = f(n.x) %}{% endfor %}",
    "squared": GROW + "{% set n.d = n.d * n.d if n.d < 9 ** 9999 else n.d %}{% endfor %}",
    "squared further": "{% set x = 9 ** 4999 %}{% set x = x * x %}{% set x = x * x %}",
    "power": "{{ 9 ** 99999 > 1 }}",
    "power of a power": "{{ (9 ** 999) ** 99 > 1 }}",
    "repeated text": "{{ 'a' * 10 ** 8 }}",
    "repeated constant": "{{ 'a' * 100000000 }}",
    "repeated from the right": "{{ 10 ** 8 * 'a' }}",
    "repeated list": "{{ ([1] * 10 ** 7) | length }}",
    "repeated bytes": "{{ ('a'.encode() * 10 ** 8) | length }}",
    "lists of lists, printed": LISTS + "{{ n.l }}",
    "lists of lists, as JSON": LISTS + "{{ n.l | tojson }}",
    "lists of lists, joined": LISTS + "{{ ','.join([n.l]) }}",
    "lists of lists, ~": LISTS + "{% set x = n.l ~ '' %}",
    "lists of lists, formatted": LISTS + "{{ '%s' % [n.l] }}",
    "lists of lists, compared": LISTS + "{{ n.l == [n.l] }}",
    "lists of lists, tested": LISTS + "{{ n.l is eq([n.l]) }}",
    "lists of lists, as a key": LISTS + "{{ {}[n.l] + 1 }}",
    "lists of lists, text": LISTS + "{{ n.l | string | length }}",
    "lists in objects": GROW + "{% set n.l = {'a': n.l, 'b': n.l} %}{% endfor %}{{ n.l.values() }}",
    "format %": "{{ '%99999999d' % 1 }}",
    "format % of a width": "{{ '%*d' % (10 ** 8, 1) }}",
    "format filter": "{{ '%99999999d' | format(1) }}",
    "format method": "{{ '{:99999999}'.format(1) }}",
    "format of a width": "{{ '{:{}}'.format(1, 10 ** 8) }}",
    "format by another way": "{{ ('{:99999999}' | attr('format'))(1) }}",
    "format_map": "{{ '{a:99999999}'.format_map({'a': 1}) }}",
    "center": "{{ 'a' | center(10 ** 8) }}",
    "zfill": "{{ 'a'.zfill(10 ** 8) }}",
    "ljust": "{{ 'a'.ljust(10 ** 8) }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(9999) }}",
    "to_bytes": "{{ (1).to_bytes(10 ** 8, 'big') | length }}",
    "slice": "{{ [1] | slice(10 ** 7) | list | length }}",
    "batch": "{{ [1] | batch(10 ** 7, 'x') | list | length }}",
    "round": "{{ 1.5 | round(10 ** 6) }}",
    "indent": "{{ ('a\n' * 9999) | indent(9999) }}",
    "indent of JSON": "{{ range(9999) | list | tojson(indent=9999) }}",
    "wordwrap": "{{ ('a ' * 9999) | wordwrap(1, wrapstring='b' * 9999) }}",
    "replace": "{% set x = 'a' * 9999 %}{{ x.replace('a', x) | length }}",
    "replace filter": "{% set x = 'a' * 9999 %}{{ x | replace('a', x) | length }}",
    "join": "{{ range(2000) | map('string') | join('a' * 99999) }}",
    "join method": "{{ ('a' * 99999).join(range(2000) | map('string')) }}",
    "center of each": "{{ range(9999) | map('string') | map('center', 9999) | join }}",
    "translate": "{{ ('a' * 9999).translate({97: 'b' * 9999}) }}",
    "sum of lists": "{{ (([[1]] * 29999) | sum(start=[])) | length }}",
    "slices": "{% set x = 'a' * 999999 %}{% for i in range(999) %}{% set y = x[1:] %}{% endfor %}",
    "searches": "{% set x = 'a' * 999999 %}{% for i in range(999) %}{% set y = 'b' in x %}{% endfor %}",
    "equal texts": "{% set x = 'a' * 999999 %}{% for i in range(999) %}{% if x == x ~ '' %}{% endif %}{% endfor %}",
    "searches by a method": "{% set x = 'a' * 999999 %}{% for i in range(999) %}{% set y = x.find('b') %}{% endfor %}",
    "filters": "{% for i in range(99) %}{% set x = range(20000) | sort %}{% endfor %}",
    "escapes": "{% autoescape true %}{{ '<' * 9999999 }}{{ '<' * 9999999 }}{{ '<' * 9999999 }}{% endautoescape %}",
    "too long": "x" * 100_001,
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_takes_too_long_or_grows_too_large_is_refused(name):
    message = one_line(lambda: render([HI], "{{ messages[0].content }}" + COSTLY[name]))
    assert "cannot render these messages" in message and "Error" not in message


REACHING = [
    "{{ messages.__class__.__mro__ }}", "{{ ''['__class__'] }}", "{{ messages | attr('__class__') }}",
    "{{ raise_exception.__globals__ }}", "{{ strftime_now.__globals__ }}", "{{ cycler.__init__.__globals__ }}",
    "{{ namespace.__init__ }}", "{{ self.__init__ }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}",
    "{{ '{0.__class__}'.format(1) }}", "{{ ('{0.__class__}' | attr('format'))(1) }}", "{{ lipsum() }}",
    "{% include 'default' %}", "{% import 'default' as x %}", "{% extends 'default' %}", "{{ [1] | map('x') | list }}",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% if x %}" * 2000, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]  # fmt: skip


@pytest.mark.parametrize("template", REACHING, ids=range(len(REACHING)))
def test_nothing_of_python_is_reached(template):
    try:
        text = render([HI], "{{ messages[0].content }}" + template)
    except Qwen3Error as error:
        text = str(error).replace("m: the chat template cannot render these messages", "Hi")[:2]
    assert text == "Hi", "an attribute that is not reached has no text"


def test_lipsum_is_gone():
    assert "'lipsum' is undefined" in one_line(lambda: render([HI], "{{ messages[0].content }}{{ lipsum() }}"))


ORDINARY = {
    "{{ range(99999) | list | length }}": "99999",
    "{{ '%5.1f' % 2.25 ~ '%d' | format(1700000000) ~ '{:>3}'.format('a') ~ '{}'.format(17) }}": "  2.21700000000  a17",
    "{{ (range(3) | map('string') | join(', ')) ~ ','.join(range(2) | map('string')) }}": "0, 1, 20,1",
    "{{ ('a\nb' | indent(2)) ~ ('ab' | replace('a', 'xyz')) ~ ('ab' | center(6)) }}": "a\n  bxyzb  ab  ",
    "{{ [3, 1, 2] | sort | first }}{{ [1, 2] | sum }}{{ [1, 1] | unique | list | length }}{{ 2 ** 10 }}": "1311024",
    "{{ [{'a': 1}, {'a': 2}] | selectattr('a', 'gt', 1) | map(attribute='a') | list }}": "[2]",
    "{% for i in [[1, [2]], [3]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}": "123",
    "{% macro f(n) %}{% if n %}{{ n }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(9) }}": "987654321",
    "{% set n = namespace(a=1) %}{% set n.a = n.a + 1 %}{{ n.a }}{{ namespace(b=[1]) }}": "2<Namespace>",
    "{% for m in messages %}{{ loop.length }}{{ loop.last }}{{ loop.previtem is defined }}{% endfor %}": "1TrueFalse",
    "{% macro g() %}{{ caller(1) }}{% endmacro %}{% call(x) g() %}{{ x }}{% endcall %}": "1",
    "{% filter upper %}a{% endfilter %}": "A",
    "{{ 'a' in 'abc' }}{{ 1 < 2 < 3 }}{{ [1] == [1] }}{{ 'abc'[1:] }}{{ 'abc'[-1] }}{{ 7 // 2 }}{{ 7 % 4 }}": (
        "TrueTrueTruebcc33"
    ),
    "{{ {'b': 1, 'a': 2} | dictsort }}{{ dict(a=1) | items | list }}": "[('a', 2), ('b', 1)][('a', 1)]",
}


@pytest.mark.parametrize("template", ORDINARY, ids=range(len(ORDINARY)))
def test_ordinary_templates_give_what_jinja_gives(template):
    assert render([HI], template + "|{{ messages[0].content }}") == ORDINARY[template] + "|Hi"


def test_a_long_conversation_is_not_too_much():
    """What a template may cost grows with the conversation, and what it costs does not grow faster."""
    turn = [HI | {"content": "x" * 30}, {"role": "assistant", "content": "<think>\na\n</think>\n\nok"}]
    assert len(render(turn * 500 + [HI], QWEN3)) > 30_000
    assert len(render([HI | {"content": "x" * 2_000_000}], QWEN3)) > 2_000_000


def test_looking_for_what_is_lost_is_bounded_too():
    """A template that is cheap with the conversation and costly with anything else in its place."""
    from qwen3.text.sandbox import Budget

    other = "{% if messages | map(attribute='content') | list != ['Hi'] * (messages | length) %}"
    bomb = other + COSTLY["searches by a method"]
    budgets, make = [], Budget.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "__init__", lambda *arguments: (budgets.append(1), make(*arguments))[1])
        text = render([HI] * 200, bomb + "{% endif %}{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    assert text == "HI" * 200 and len(budgets) < 12


def test_one_template_renders_in_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    chat = ChatTemplate({"default": "{% for m in messages %}{{ m.content }}{% endfor %}"}, {}, "m")
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda i: chat.render([HI | {"content": str(i)}], None, {}), range(100)))
    assert texts == [str(i) for i in range(100)]


def test_every_filter_and_test_of_jinja_pays():
    from jinja2 import defaults

    sandbox = Sandbox()
    for ours, theirs in ((sandbox.filters, defaults.DEFAULT_FILTERS), (sandbox.tests, defaults.DEFAULT_TESTS)):
        assert theirs.keys() <= ours.keys() and not any(ours[name] is theirs[name] for name in theirs)
