"""Conversations as text: the jinja templates that come with chat models, rendered as transformers renders them.

A template is somebody else's program: it runs in jinja's sandbox, where it can neither reach Python's internals nor change what it is
given. Templates see `messages`, `add_generation_prompt`, `tools`, the special tokens, `raise_exception`, `strftime_now` and `tojson`.
"""

from __future__ import annotations

import copy
import datetime
import functools
import json
from collections.abc import Sequence

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from labkernels.errors import ArgumentError

TOKEN_VARIABLES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def choose_template(templates: str | list[dict] | dict | None, with_tools: bool) -> str:
    """The one template of a model, or of several by name the one for tools, or the default."""
    if not templates:
        raise ArgumentError("apply_chat_template: this tokenizer has no chat template; its model was not made for conversations")
    if isinstance(templates, str):
        return templates
    if isinstance(templates, list):
        templates = {one["name"]: one["template"] for one in templates}
    name = "tool_use" if with_tools and "tool_use" in templates else "default"
    if name not in templates:
        raise ArgumentError(f"apply_chat_template: the templates are called {', '.join(templates)}, none is 'default'")
    return templates[name]


def render(template: str, messages: Sequence[dict], *, add_generation_prompt: bool = False, **variables) -> str:
    """The text of `messages`. Raises ArgumentError with the template's own words if it refuses them."""
    if isinstance(messages, (str, bytes)) or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise ArgumentError('apply_chat_template: messages must be a list of dicts like {"role": "user", "content": "..."}')
    given = {"tools": None, "documents": None} | variables
    try:
        return _compiled(template).render(
            messages=copy.deepcopy(list(messages)), add_generation_prompt=add_generation_prompt, **given
        )
    except jinja2.exceptions.SecurityError as error:
        raise ArgumentError(f"apply_chat_template: the template reaches for what a template may not: {error}") from error
    except jinja2.exceptions.TemplateError as error:
        raise ArgumentError(f"apply_chat_template: the template refuses these messages: {error}") from error
    except (TypeError, KeyError, AttributeError, ValueError) as error:  # what a template does with content it did not expect
        raise ArgumentError(f"apply_chat_template: the template fails on these messages: {error}") from error


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.exceptions.TemplateSyntaxError as error:
        raise ArgumentError(f"apply_chat_template: the template is no jinja: {error}") from error


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # jinja's own escapes < and > for web pages
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str):
    raise jinja2.exceptions.TemplateError(message)


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the assistant says, for those who train on it; here it is text like all."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller) -> str:
        return caller()
