"""Conversations are rendered as transformers renders them, by templates of the kinds that models come with, and templates are kept in their box."""
from __future__ import annotations

import pytest

from labkernels.errors import ArgumentError
from labkernels.llm.data import chat
from labkernels.llm.data.tokenizer import Tokenizer

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if loop.first and tools is not none %}
        {%- for t in tools %}
            {{- t | tojson(indent=4) }}
            {{- "\\n\\n" }}
        {%- endfor %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + ('!' if loop.index0 == ns.last else '') + '<|im_end|>' + '\\n' }}
    {%- else %}
        {%- for part in message.content if part.type == "text" %}{{- part.text }}{%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MARKED = """
{% for message in messages %}
    {% if message['role'] == 'assistant' %}
    {% generation %}
{{ message['content'] }}{{ eos_token }}
    {% endgeneration %}
    {% else %}
<|{{ message['role'] }}|>
{{ message['content'] }}
    {% endif %}
{% endfor %}
"""
TEMPLATES = {"chatml": chat.CHATML, "llama_2": LLAMA_2, "llama_3": LLAMA_3, "qwen": QWEN, "marked": MARKED}
CONVERSATIONS = [
    [{"role": "user", "content": "Hi there, <b>é</b> & 'you'?"}],
    [{"role": "system", "content": "  Be brief. \n"}, {"role": "user", "content": "1+1? <|im_end|>"}, {"role": "assistant", "content": "2"},
     {"role": "user", "content": "日本 🦊\n\n"}],
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "wetter", "description": "Wo? <Köln> & 'Ulm'", "parameters": {"b": 1, "a": [None, True]}}}]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [message["content"] for messages in CONVERSATIONS for message in messages] * 10
    return Tokenizer.train(texts, 300)


def theirs(tokenizer: Tokenizer, template: str):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>", chat_template=template)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["short", "long"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers_renders_it(tokenizer, name, messages, tools, prompt):
    ours = Tokenizer(tokenizer.backend, tokenizer.settings | {"chat_template": TEMPLATES[name]})
    peer, variables = theirs(tokenizer, TEMPLATES[name]), {"tools": tools, "enable_thinking": False, "date_string": "1 May 2026"}
    want = peer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, **variables)
    assert ours.render_chat(messages, prompt, **variables) == want
    assert any(message["content"].strip() in want for message in messages)
    ids = peer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False, **variables)
    assert ours.apply_chat_template(messages, prompt, **variables) == ids


def test_templates_by_name_and_in_a_file_of_their_own(tokenizer, tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].type }}"}]
    ours = Tokenizer(tokenizer.backend, {"chat_template": named})
    assert ours.render_chat(CONVERSATIONS[0]) == "plain" and ours.render_chat(CONVERSATIONS[0], tools=TOOLS) == "function"
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("of {{ messages[0].role }}")
    assert Tokenizer.load(tmp_path).render_chat(CONVERSATIONS[1]) == "of system"


def test_the_template_s_own_complaint_is_told(tokenizer):
    ours = Tokenizer(tokenizer.backend, {"chat_template": LLAMA_2, "bos_token": "<|endoftext|>"})
    with pytest.raises(ArgumentError, match="roles must alternate"):
        ours.apply_chat_template([{"role": "assistant", "content": "me first"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tokenizer, template):
    ours = Tokenizer(tokenizer.backend, {"chat_template": template})
    with pytest.raises(ArgumentError, match="apply_chat_template"):
        ours.render_chat(CONVERSATIONS[0])
    assert chat.render("{{ strftime_now.__code__ }}{{ messages.__class__ }}", CONVERSATIONS[0]) == ""


def test_mistakes_are_named(tokenizer):
    with pytest.raises(ArgumentError, match="no chat template"):
        Tokenizer(tokenizer.backend).apply_chat_template(CONVERSATIONS[0])
    with pytest.raises(ArgumentError, match="must be a list of dicts"):
        tokenizer.apply_chat_template("hello")
    with pytest.raises(ArgumentError, match="no jinja"):
        Tokenizer(tokenizer.backend, {"chat_template": "{% for %}"}).render_chat(CONVERSATIONS[0])
    with pytest.raises(ArgumentError, match="fails on these messages|refuses"):
        tokenizer.apply_chat_template([{"role": "user", "content": None}])
    assert tokenizer.has_chat_template and not Tokenizer(tokenizer.backend).has_chat_template
