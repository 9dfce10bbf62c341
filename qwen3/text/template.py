"""Chat templates: render a conversation as the model was trained on it, and refuse what the template would drop."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import product
from string import ascii_lowercase
from typing import Any

from ..config.values import flag
from ..errors import Qwen3Error, brief, closest, one_line
from .messages import REASONING_KEYS, SILENT_KEYS, map_text, normalize, plain, tool_schemas
from .sandbox import Compiled, Sandbox
from .spelling import spelled

# Options of transformers' apply_chat_template that are no variables, each with the values that ask for what is done.
_OPTIONS: dict[str, tuple] = {
    "chat_template": (None,),
    "max_length": (None,),
    "padding": (False,),
    "return_assistant_tokens_mask": (False,),
    "return_dict": (False,),
    "return_tensors": (None,),
    "sanitize_control_tokens": (False,),
    "tokenizer_kwargs": (None,),
    "truncation": (False,),
}
_TAIL = "end"
# The search for lost text may cost this many renderings.
_CHECKS = 5


@dataclass(frozen=True)
class _Prompt:
    """The input of one rendering."""

    messages: list[dict]
    tools: list[dict] | None
    variables: dict[str, Any]
    add_generation_prompt: bool


class _Runs:
    """Renders what one call needs, all at one time of day, and counts what that costs.

    budgets: how many times the budget of a rendering was spent.
    """

    def __init__(self, sandbox: Sandbox, template: Compiled, named_tokens: dict[str, str]) -> None:
        self._sandbox, self._template, self._named_tokens = sandbox, template, named_tokens
        self._now, self.budgets = datetime.now(), 0.0

    def __call__(self, prompt: _Prompt) -> str:
        values = {**self._named_tokens, "documents": None, **prompt.variables, "messages": prompt.messages}
        values |= {"tools": prompt.tools, "add_generation_prompt": prompt.add_generation_prompt}
        budget = self._sandbox.budget(self._template, values)
        try:
            return self._sandbox.run(self._template, values, budget, self._now)
        finally:
            self.budgets += 1 - budget.left / budget.total


class ChatTemplate:
    """The chat templates of one model.

    templates: by name, of which "default" and "tool_use" are used. named_tokens: tokens by their name in templates:
    `eos_token`, `pad_token` and so on. source: the name for error messages.
    """

    def __init__(self, templates: dict[str, str], named_tokens: dict[str, str], source: str):
        self.templates, self._named_tokens, self._source = templates, named_tokens, source
        self._sandbox = Sandbox()
        self._compiled: dict[str, Compiled] = {}

    def render(
        self,
        messages: list[dict],
        tools: list[dict] | None,
        variables: dict[str, Any],
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        tokenize: bool = False,
        protect: Callable[[str, bool], str] | None = None,
    ) -> str:
        """Renders one conversation; see `Tokenizer.apply_chat_template`.

        tokenize: what the caller makes of the text; the option of this name may say so. protect: changes each text that
        the template is given; it is told whether the text is the assistant's.
        """
        template = self._compile(self._name(tools))
        adds = _adds_prompt(add_generation_prompt, continue_final_message)
        self._check_variables(variables, template.variables, tokenize)
        prompt = _Prompt(
            normalize(messages, template.strings), tool_schemas(tools), plain("a template variable", variables), adds
        )

        run, marker = _Runs(self._sandbox, template, self._named_tokens), _marker(prompt)
        try:
            prompt = replace(prompt, messages=_join_parts(run, prompt, marker, joined=protect is not None))
            messages, text = spelled(
                lambda messages: run(replace(prompt, messages=messages)),
                prompt.messages,
                partial(normalize, messages, template.strings, argument_texts=True),
            )
            prompt = replace(prompt, messages=messages)
        except Exception as error:  # a template is a program: it can raise anything
            raise self._refusal(error) from None
        _require_shown(run, prompt, text, marker)
        if protect is not None:
            prompt = _protected(prompt, protect)
        if continue_final_message:
            prompt = _continued(prompt, continue_final_message, marker)
        try:
            text = run(prompt) if continue_final_message or protect is not None else text
        except Exception as error:
            raise self._refusal(error) from None
        return _cut_after(text, marker) if continue_final_message else text

    def literals(self) -> str:
        """All templates, one after the other."""
        return "\n".join(self.templates.values())

    def after_answers(self) -> Iterator[str]:
        """What the template writes after an answer, in conversations of more than one kind.

        Some templates end the last answer otherwise than others, or insist on a system text or on another last role.
        """
        system, user = {"role": "system", "content": "a"}, {"role": "user", "content": "a"}
        for before, then in (([user], []), ([user], [user]), ([system, user], []), ([system, user], [user])):
            marker = _marker(_Prompt([*before, *then], None, {}, False))
            answer = {"role": "assistant", "content": marker}
            try:
                text = self.render([*before, answer, *then], None, {}, add_generation_prompt=False)
            except Qwen3Error:
                continue
            yield text.partition(marker)[2]

    def _name(self, tools: Any) -> str:
        name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if not self.templates:
            raise Qwen3Error(f"{self._source}: this model has no chat template: use raw text (--raw)")
        if name not in self.templates:
            raise Qwen3Error(f"{self._source}: no chat template is named 'default', only {', '.join(self.templates)}")
        return name

    def _compile(self, name: str) -> Compiled:
        if name not in self._compiled:
            try:
                self._compiled[name] = self._sandbox.compiled(self.templates[name])
            except Exception as error:
                raise self._refusal(error) from None
        return self._compiled[name]

    def _refusal(self, error: Exception) -> Qwen3Error:
        reason = str(error) if isinstance(error, Qwen3Error) else one_line(error)
        refusal = f"the chat template cannot render these messages: {reason}"
        return Qwen3Error(f"{self._source}: {refusal}: change them or use raw text (--raw)")

    def _check_variables(self, variables: dict[str, Any], read: frozenset[str], tokenize: bool) -> None:
        """Refuses a variable that the template does not read, and an option of transformers that is not done here."""
        done = _OPTIONS | {"tokenize": (tokenize,)}
        for name, value in list(variables.items()):
            if value is None:  # not said
                del variables[name]
            elif name in read and name not in ("messages", "tools", "add_generation_prompt"):
                if name == "enable_thinking":
                    flag(value, name)
            elif name in done:
                if not any(value is neutral for neutral in done[name]):
                    raise Qwen3Error(f"{name} is {brief(value)}: only {done[name][0]} is done here")
                del variables[name]
            elif name == "enable_thinking":
                raise Qwen3Error(
                    f"{self._source}: the chat template has no switch for thinking: leave out enable_thinking"
                    " (--no-thinking)"
                )
            else:
                known = sorted(read - {"messages", "tools", "add_generation_prompt"} - self._named_tokens.keys())
                close = closest(name, known)
                advice = f"did you mean {close!r}?" if close else f"it reads {', '.join(known) or 'none'}"
                raise Qwen3Error(f"{self._source}: the chat template has no variable {brief(name)}: {advice}")


def _adds_prompt(add_generation_prompt: Any, continue_final_message: Any) -> bool:
    if add_generation_prompt is not None:
        flag(add_generation_prompt, "add_generation_prompt")
    if not isinstance(continue_final_message, str) or not continue_final_message:
        flag(continue_final_message, "continue_final_message")
    if continue_final_message and add_generation_prompt:
        raise Qwen3Error("add_generation_prompt opens a new message, continue_final_message the last: give one of them")
    return not continue_final_message if add_generation_prompt is None else add_generation_prompt


def _marker(prompt: _Prompt) -> str:
    """A word that is nowhere in the conversation, and that no template changes."""
    text = json.dumps([prompt.messages, prompt.tools, prompt.variables])
    # A look-ahead: words may overlap. One pass, for a text may hold a million of them.
    there = set(re.findall("(?=marker([a-z]{5}))", text))
    return "marker" + next(word for word in map("".join, product(ascii_lowercase, repeat=5)) if word not in there)


def _join_parts(run: _Runs, prompt: _Prompt, marker: str, joined: bool) -> list[dict]:
    """Returns messages whose lists of texts are joined by line ends, unless the template goes through such lists.

    It does if each text reaches the prompt, and a key that templates do not know does not: then it prints the list.
    """
    lists = [i for i, message in enumerate(prompt.messages) if isinstance(message["content"], list)]
    if not lists:
        return prompt.messages

    def typed(i: int, message: dict, mark: bool) -> dict:
        if not isinstance(message["content"], list):
            return message
        parts: list[dict] = [{"type": "text", "text": text} for text in message["content"]]
        if mark:
            parts = [{"type": "text", "text": f"{marker}{i}a{j}{_TAIL}", marker: ""} for j in range(len(parts))]
        return message | {"content": parts}

    plain_text = [m | {"content": "\n".join(m["content"])} if i in lists else m for i, m in enumerate(prompt.messages)]
    if joined:
        return plain_text
    try:
        text = run(replace(prompt, messages=[typed(i, m, True) for i, m in enumerate(prompt.messages)]))
    except Exception:  # most templates add the content to a text
        return plain_text
    marks = {f"{i}a{j}" for i in lists for j in range(len(prompt.messages[i]["content"]))}
    found = re.findall(rf"{marker}(\d+a\d+){_TAIL}", text)
    if not marks <= set(found) or text.count(marker) > len(found):
        return plain_text
    return [typed(i, message, False) for i, message in enumerate(prompt.messages)]


def _require_shown(run: _Runs, prompt: _Prompt, text: str, marker: str) -> None:
    """Raises Qwen3Error for the first thing that does not reach the prompt: a message's text, a call, a key, a tool.

    All are replaced by markers in one rendering; what is not found there is replaced alone, and is lost if the text
    stays as it is. So templates may strip texts, cut them, and drop reasoning that is old.
    """
    marked, changes = list(prompt.messages), list[tuple[int, str, dict]]()
    for i, message in enumerate(prompt.messages):
        for name in _parts(message):
            change = _changed(message, name, f"{marker}{len(changes)}{_TAIL}")
            marked[i] = marked[i] | change
            changes.append((i, name, change))
    tools = [_with(tool, name=f"{marker}{len(changes)}{_TAIL}") for tool in prompt.tools or ()] or prompt.tools
    text_of_marks = _rendered(run, replace(prompt, messages=marked, tools=tools)) or ""
    seen = set(map(int, re.findall(rf"{marker}(\d+){_TAIL}", text_of_marks)))
    for number, (i, name, change) in enumerate(changes):
        if number in seen or run.budgets > _CHECKS:
            continue
        alone = [message | change if i == j else message for j, message in enumerate(prompt.messages)]
        if _rendered(run, replace(prompt, messages=alone)) == text:
            what, role = _WHAT.get(name, f"the key {brief(name)}"), brief(prompt.messages[i]["role"])
            lost = f"{what} of messages[{i}], whose role is {role}, does not reach the prompt"
            raise Qwen3Error(f"{lost}: this model's chat template leaves it out")
    if tools and len(changes) not in seen and _rendered(run, replace(prompt, tools=None)) == text:
        raise Qwen3Error("tools do not reach the prompt: this model's chat template has no place for them")
    if prompt.add_generation_prompt and prompt.variables.get("enable_thinking") is False:
        thinking = replace(prompt, variables=prompt.variables | {"enable_thinking": True})
        if _rendered(run, thinking) == text:
            raise Qwen3Error("the chat template has no switch for thinking: leave out enable_thinking (--no-thinking)")


_WHAT = {"content": "the text", "tool_calls": "the tool call"}


def _rendered(run: _Runs, prompt: _Prompt) -> str | None:
    try:
        return run(prompt)
    except Exception:  # markers are not what the template expects
        return None


def _parts(message: dict) -> list[str]:
    """The keys of a message that say something to the model; not reasoning, for templates drop what is old."""
    parts = [key for key in ("content", "tool_calls") if message.get(key)]
    if isinstance(message["content"], str) and message["content"].isspace():
        parts.remove("content")
    further = message.keys() - {"role", "content", "tool_calls", *REASONING_KEYS} - SILENT_KEYS
    return parts + [key for key in sorted(further) if message[key] not in ("", [], {}, False)]


def _changed(message: dict, name: str, mark: str) -> dict:
    """The new value of a key of a message: the same as before with a marker in it."""
    if name == "tool_calls":
        return {name: [_with(call, name=mark, arguments=_marked_arguments(call, mark)) for call in message[name]]}
    if name == "content" and isinstance(message[name], list):
        return {name: [{"type": "text", "text": mark}]}
    return {name: mark}


def _marked_arguments(call: dict, mark: str) -> Any:
    return {mark: mark} if isinstance(call.get("function", call)["arguments"], dict) else mark


def _with(call: dict, **changes: Any) -> dict:
    """A tool call, or the schema of a tool, whose function has other values."""
    if isinstance(call.get("function"), dict):
        return call | {"function": call["function"] | changes}
    return call | changes


def _protected(prompt: _Prompt, protect: Callable[[str, bool], str]) -> _Prompt:
    def changed(value: Any, assistant: bool = False) -> Any:
        return map_text(value, lambda text: protect(text, assistant))

    messages = [changed(message, message["role"] == "assistant") for message in prompt.messages]
    return replace(prompt, messages=messages, tools=changed(prompt.tools), variables=changed(prompt.variables))


def _continued(prompt: _Prompt, field: bool | str, marker: str) -> _Prompt:
    """Ends the field of the last message that is to be continued, its content for True, with a marker and a space."""
    last, name = prompt.messages[-1], "content" if field is True else str(field)
    if last.get("tool_calls"):
        raise Qwen3Error("continue_final_message: the last message ends with tool calls, which cannot be continued")
    keys = REASONING_KEYS if name in REASONING_KEYS else (name,)
    text = next((last[key] for key in keys if key in last), None)
    if isinstance(text, list):
        changed: Any = [*text[:-1], text[-1] | {"text": text[-1]["text"] + marker + " "}]
    elif isinstance(text, str):
        changed = text + marker + " "
    else:
        raise Qwen3Error(f"continue_final_message: the last message has no {brief(name)} to continue")
    return replace(prompt, messages=[*prompt.messages[:-1], last | {key: changed for key in keys if key in last}])


def _cut_after(text: str, marker: str) -> str:
    """Returns what stands before the marker; spaces before it go where the template strips texts."""
    before, found, after = text.rpartition(marker)
    if not found:
        raise Qwen3Error("continue_final_message: the last message does not reach the prompt")
    return before if after.startswith(" ") else before.rstrip()
