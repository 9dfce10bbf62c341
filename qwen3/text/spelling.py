"""Tool calls as a chat template reads them: where clients say a thing in two ways, templates differ."""

import json
from collections.abc import Callable


def spelled(
    render: Callable[[list[dict]], str], messages: list[dict], with_texts: Callable[[], list[dict]]
) -> tuple[list[dict], str]:
    """Returns the messages in the first spelling of tool calls that the template reads, and their prompt.

    Arguments of a call are an object or its JSON text; no content beside calls is null or an empty text. A template
    does not read a spelling where it fails, or prints {'a': 1} or None, as Python does.

    messages: with objects and nulls. with_texts: returns the same messages with the arguments as texts.
    """
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    objects = [a for call in calls if isinstance(a := call.get("function", call)["arguments"], dict)]
    no_content = any(message["content"] is None for message in messages)
    # An object that Python and JSON write alike says nothing.
    printed = ["None"] * no_content + [str(a) for a in objects if str(a) != json.dumps(a, ensure_ascii=False)]
    found: list[tuple[int, list[dict], str]] = []
    errors: list[Exception] = []
    for texts in (False, True)[: 1 + bool(objects)]:
        pairs = zip(messages, with_texts() if texts else messages)
        attempt = [m | {"tool_calls": t["tool_calls"]} if "tool_calls" in m else m for m, t in pairs]
        for empty in (False, True)[: 1 + no_content]:
            if empty:
                attempt = [m | {"content": ""} if m["content"] is None else m for m in attempt]
            try:
                text = render(attempt)
            except Exception as error:  # a template is a program: it can raise anything
                errors.append(error)
                continue
            found.append((sum(map(text.count, printed)), attempt, text))
            if not found[-1][0]:
                return attempt, text
    if not found:
        # What objects and an empty text meet is the template's own word.
        raise errors[no_content]
    return min(found, key=lambda entry: entry[0])[1:]
