"""LLM.render and LLM.chat: every option reaches the prompt."""

import shutil

import pytest

from qwen3 import LLM, Qwen3Error, SamplingParams

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ tools | tojson if tools else '' }}{{ mood }}"
    "{% if add_generation_prompt %}<go>{% endif %}"
)
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "once"}]


@pytest.fixture(scope="module")
def llm(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(small, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return LLM(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "options, text",
    [
        ({}, "<user>hi<assistant>once<go>"),
        ({"add_generation_prompt": False}, "<user>hi<assistant>once"),
        ({"continue_final_message": True}, "<user>hi<assistant>once"),
        ({"tools": [{"name": "f"}]}, '<user>hi<assistant>once[{"name": "f"}]<go>'),
        ({"mood": "good"}, "<user>hi<assistant>oncegood<go>"),
        ({"tokenize": True, "return_dict": False}, "<user>hi<assistant>once<go>"),
    ],
    ids=str,
)
def test_options_reach_the_prompt(llm, options, text):
    ids = llm.render(TALK, **options)
    assert ids == llm.tokenizer.encode(text)
    answer = llm.chat(TALK, SamplingParams(max_new_tokens=1, temperature=0), **options)
    assert answer.prompt_token_ids == ids


@pytest.mark.parametrize("options", [{"mod": "good"}, {"tokenize": False}, {"enable_thinking": False}], ids=str)
def test_options_that_change_nothing_are_refused(llm, options):
    for method in (llm.render, llm.chat):
        with pytest.raises(Qwen3Error):
            method(TALK, **options)


def test_control_tokens_in_messages(llm, monkeypatch):
    seen = []
    monkeypatch.setattr(llm.tokenizer, "_protect", lambda text, assistant: seen.append((text, assistant)) or text)
    assert llm.render(TALK, sanitize_control_tokens=True) == llm.render(TALK)
    assert ("hi", False) in seen and ("once", True) in seen
