"""Chat templates: Jinja text to rendered text, in the environment that transformers gives it.

What lives here: compiling and rendering, finding the template of a Hugging Face folder. What does not: tokens
(`tokenizer`), what a template can do (`traits`), masks (`mask`).

    ChatTemplate("{{ bos_token }}...").render([{"role": "user", "content": "Hi"}], variables={"bos_token": "<s>"})

Source of the environment: transformers 5.23, `utils/chat_template_utils.py` (immutable sandbox, `trim_blocks`,
`lstrip_blocks`, loop controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now`, the generation tag,
`dict` and `namespace` without a way to Python's internals) and `apply_chat_template` (keys whose value is null are
dropped, reasoning is offered under its three names).
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

from tunesmith.chat.refusal import RefusalKind, Refused
from tunesmith.errors import ContractError
from tunesmith.types import JSON, sha256_hex

TEMPLATE_FILE = "chat_template.jinja"
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names under which messages carry reasoning, in the order in which transformers looks for them."""

_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a template's own expressions raise while they run."""

RawMessage = Mapping[str, JSON]
"""A message as a template sees it: the OpenAI chat shape as a plain dict."""


class ChatTemplate:
    """One compiled chat template."""

    def __init__(self, text: str, *, name: str = "template") -> None:
        """Compile `text`. Raises `Refused` where it is not valid Jinja."""
        self.text = text
        self.name = name
        self._compiled = _compile(text, name)

    @property
    def sha256(self) -> str:
        """sha256 of the template's text, as lm-evaluation-harness and model signing compute it."""
        return sha256_hex(self.text)

    @functools.cached_property
    def literals(self) -> str:
        """All literal text of the template, pieces joined by NUL so that no search matches across two of them."""
        tree = _environment().parse(self.text)
        found = {node.data for node in tree.find_all(jinja2.nodes.TemplateData)}
        found |= {node.value for node in tree.find_all(jinja2.nodes.Const) if isinstance(node.value, str)}
        return "\0".join(sorted(found))

    def render(
        self,
        messages: Sequence[RawMessage],
        *,
        tools: Sequence[Mapping[str, JSON]] | None = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, JSON] | None = None,
        now: Callable[[str], str] | None = None,
    ) -> str:
        """Return the rendered text.

        `messages` are as `normalise` returns them. `variables` are the special tokens and template arguments. `now`
        formats the current time; the machine's clock where it is `None`. Raises `Refused` where the template raises.
        """
        scope: dict[str, Any] = dict(variables or {})
        if now is not None:
            scope["strftime_now"] = now
        scope.update(
            messages=messages,
            tools=list(tools) if tools else None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
        try:
            return self._compiled.render(scope)
        except _TEMPLATE_ERRORS as error:
            raise Refused(
                RefusalKind.TEMPLATE_ERROR,
                f"the chat template refuses these messages: {error}",
                where=self.name,
                found=" ".join(str(message.get("role")) for message in messages) or "no messages",
                hint="change the conversation, or choose a template that takes it",
            ) from error


def normalise(messages: Sequence[RawMessage]) -> list[dict[str, JSON]]:
    """Return messages as transformers hands them to a template: no null keys, reasoning under each of its names."""
    out: list[dict[str, JSON]] = []
    for message in messages:
        clean = {key: value for key, value in message.items() if value is not None}
        reasoning = next((clean[key] for key in REASONING_KEYS if key in clean), None)
        if reasoning is not None:
            clean = {"thinking": reasoning, **clean, "reasoning_content": reasoning}
        out.append(clean)
    return out


def find_templates(folder: Path) -> dict[str, str]:
    """Return the templates of a Hugging Face folder by name (`default`, `tool_use`, ...); empty where it has none.

    `chat_template.jinja` wins over the `chat_template` key of `tokenizer_config.json`, as in transformers.
    """
    found: dict[str, str] = {}
    config_path = folder / "tokenizer_config.json"
    if config_path.is_file():
        value = json.loads(config_path.read_text("utf-8")).get("chat_template")
        if isinstance(value, str):
            found["default"] = value
        elif isinstance(value, list):
            found.update({item["name"]: item["template"] for item in value})
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = path.read_text("utf-8")
    path = folder / TEMPLATE_FILE
    if path.is_file():
        found["default"] = path.read_text("utf-8")
    return found


def read_template(path: Path) -> ChatTemplate:
    """Compile the template in a file. Raises `ContractError` where it cannot be read."""
    try:
        return ChatTemplate(path.read_bytes().decode("utf-8"), name=path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError("the chat template cannot be read", where=str(path), found=str(error)) from error


def parse_template(text: str) -> jinja2.nodes.Template:
    """Return a template's syntax tree."""
    return _environment().parse(text)


class _Generation(jinja2.ext.Extension):
    """The `{% generation %}` tag: renders its body. It scopes like a call block, as in transformers."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads this class attribute

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict(...)` for templates, without the attributes of the class itself."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` for templates, without attributes that begin with an underscore."""

    def __init__(*args: Any, **items: Any) -> None:  # so that `namespace(self=...)` works
        self, positional = args[0], args[1:]
        values = dict(*positional, **items)
        for key in values:
            _refuse_private(key)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, key: str, value: Any) -> None:
        _refuse_private(key)
        super().__setitem__(key, value)


def _refuse_private(key: Any) -> None:
    if isinstance(key, str) and key.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a template may not store {key!r} on a namespace")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


@functools.lru_cache(maxsize=1)
def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


@functools.lru_cache(maxsize=256)
def _compile(text: str, name: str) -> jinja2.Template:
    try:
        return _environment().from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise Refused(
            RefusalKind.TEMPLATE_ERROR,
            f"the chat template is not valid: {error.message}",
            where=f"{name}, line {error.lineno}",
        ) from error
