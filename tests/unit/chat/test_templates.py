"""The environment of templates: what they may do, what they may not, and what is found out about them."""

import datetime

import pytest
from chat_world import family_renderer

from tunesmith.chat.families import family_names, family_template
from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.chat.render import Renderer
from tunesmith.chat.template import ChatTemplate, find_templates, normalise
from tunesmith.chat.traits import ArgumentsForm, ContentForm
from tunesmith.errors import RecipeError
from tunesmith.types import sha256_hex

USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{% set n = namespace(__x=1) %}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ dict.__init__.__globals__ }}",
    ],
)
def test_templates_cannot_reach_python_or_change_their_input(source):
    with pytest.raises(Refused) as caught:
        ChatTemplate(source).render(normalise(USER))
    assert caught.value.kind is RefusalKind.TEMPLATE_ERROR


def test_json_is_written_without_html_escapes_and_in_order():
    template = ChatTemplate("{{ tools[0] | tojson }}|{{ tools[0] | tojson(indent=1) }}")
    text = template.render([], tools=[{"b": "<é>", "a": 1}])
    assert text == '{"b": "<é>", "a": 1}|{\n "b": "<é>",\n "a": 1\n}'


def test_the_generation_tag_renders_its_body():
    template = ChatTemplate("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    assert template.render(USER) == "Hi"


def test_loop_controls_work():
    template = ChatTemplate(
        "{% for m in messages %}{% if loop.index0 %}{% break %}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert template.render([*USER, *USER]) == "Hi"


def test_null_keys_never_reach_a_template():
    message = {"role": "assistant", "content": None, "tool_calls": None, "thinking": "t"}
    assert normalise([message]) == [{"role": "assistant", "thinking": "t", "reasoning_content": "t"}]


def test_a_syntax_error_names_the_line():
    with pytest.raises(Refused) as caught:
        ChatTemplate("ok\n{% if %}", name="mine.jinja")
    assert "line 2" in str(caught.value)


def test_the_hash_is_the_sha256_of_the_text():
    assert ChatTemplate("a{# b #}").sha256 == sha256_hex("a{# b #}")


def test_the_jinja_file_wins_over_the_config(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "default", "template": "old"}]}')
    assert find_templates(tmp_path) == {"default": "old"}
    (tmp_path / "chat_template.jinja").write_text("new")
    assert find_templates(tmp_path) == {"default": "new"}


def test_the_date_is_the_contracts_not_the_machines():
    renderer = Renderer(
        ChatTemplate("{{ strftime_now('%Y-%m-%d') }}{{ messages[0].content }}"), date=datetime.date(2020, 1, 2)
    )
    assert renderer.now("%Y-%m-%d") == "2020-01-02"


def test_traits_are_found_by_rendering():
    qwen = family_renderer("qwen3").traits
    assert qwen.stops == ("<|im_end|>",)
    assert qwen.generation_prompt == "<|im_start|>assistant\n"
    assert qwen.arguments is ArgumentsForm.EITHER
    assert qwen.renders_tools
    assert qwen.renders_reasoning
    assert family_renderer("harmony").traits.stops == ("<|return|>", "<|call|>")
    assert family_renderer("harmony").traits.reads_clock
    assert family_renderer("llama3.1").traits.arguments is ArgumentsForm.OBJECT
    assert not family_renderer("gemma2").traits.takes_system
    assert family_renderer("smollm2").traits.default_system.startswith("You are a helpful AI assistant named SmolLM")
    assert family_renderer("chatml").traits.default_system is None
    assert family_renderer("phi3").traits.stops == ("<|end|>",)


def test_templates_that_take_parts_only_get_parts():
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{{ p.text }}{% endfor %}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    renderer = Renderer(ChatTemplate(source))
    assert renderer.traits.content is ContentForm.PARTS
    assert renderer.full(USER).text == "<|user|>Hi<|end|>"


def test_a_template_that_acts_on_a_control_string_in_content_is_refused():
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('<|im_end|>')[0] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = Renderer(ChatTemplate(source), {}, family_renderer("chatml").tokenizer)
    with pytest.raises(Refused) as caught:
        renderer.prompt([{"role": "user", "content": "a<|im_end|>b"}])
    assert caught.value.kind is RefusalKind.CONTROL_STRING


def test_an_unknown_family_names_the_nearest():
    with pytest.raises(RecipeError, match="qwen3"):
        family_template("qwen-3")


def test_every_family_compiles_and_says_what_it_is():
    for name in family_names():
        template = family_template(name)
        assert template.text.startswith("{#-"), name
        assert "#}" in template.text, name
