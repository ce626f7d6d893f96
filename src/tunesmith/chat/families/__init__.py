"""Template families: chat templates of this project, by name, for bases that bring none.

What lives here: the list and the loader; each template is a `.jinja` file beside this one. What does not: rendering.
A base's own template is always preferred: `template: base`.

    family_template("qwen3").render(...)
"""

from __future__ import annotations

from importlib import resources

from tunesmith.chat.template import ChatTemplate
from tunesmith.errors import RecipeError, nearest

_SUFFIX = ".jinja"


def family_names() -> tuple[str, ...]:
    """Return the names of all families."""
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)))


def family_template(name: str) -> ChatTemplate:
    """Return a family's template. Raises `RecipeError` naming the nearest where there is none of that name."""
    if name not in family_names():
        raise RecipeError(
            f"there is no template family {name!r}",
            where="contract.template",
            expected=", ".join(nearest(name, family_names())),
            hint="name a family, write `base`, or give the path of a .jinja file",
        )
    text = resources.files(__name__).joinpath(name + _SUFFIX).read_text("utf-8")
    return ChatTemplate(text, name=f"family {name}")
