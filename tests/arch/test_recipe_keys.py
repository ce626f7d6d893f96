"""Every recipe key is documented, enters identity, and is read (FAILURES.md 39).

The tests walk every registered stage and build values for every key from its type alone, so a new key is covered the
day it is written. Where a type says too little, `SAMPLES` gives values that are valid.
"""

import ast
import enum
import functools
import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from tunesmith.core.fields import KeyDoc, key_docs, nested_specs
from tunesmith.core.spec import ByContent, Circumstance, Spec, is_circumstance
from tunesmith.core.stage import Inputs, Stage
from tunesmith.core.store import fingerprint_of
from tunesmith.stages import load_stages

STAGES = load_stages()
SRC = Path(__file__).parents[2] / "src" / "tunesmith"

SAMPLES: dict[str, list[Any]] = {
    "FetchSpec.model": ["org/one", "org/two"],
    "FetchSpec.sha256": ["0" * 64, "1" * 64],
    "ContractSpec.template_date": ["2025-01-31", "2025-02-28"],
    "Source.license": ["MIT", "Apache-2.0"],
    "Source.collected_at": ["2026-01-31", "2026-02-28"],
    "SqlSource.license": ["MIT", "Apache-2.0"],
    "SqlSource.collected_at": ["2026-01-31", "2026-02-28"],
    "HubSource.license": ["MIT", "Apache-2.0"],
    "HubSource.collected_at": ["2026-01-31", "2026-02-28"],
    "TaskSpec.kind": ["code", "tools"],
    "TaskSpec.pass_at": [[1], [2]],
    "CurateSpec.licenses": [["MIT"], ["Apache-2.0"]],
    "OptOutSpec.content_hashes": [["0" * 64], ["1" * 64]],
}
"""`Owner.field` -> two or more valid values, for fields whose type does not say what is valid."""

BASES: dict[str, dict[str, Any]] = {
    "ContractSpec": {"input_render": "{{ subject }}"},
    "TaskSpec": {"answers": 2},
}
"""Owner -> keys to set in every trial, because others are valid only beside them."""

WHOLES: dict[str, list[dict[str, Any]]] = {
    "Endpoint": [
        {"name": "a", "url": "http://a/v1", "model": "m", "snapshot": "s"},
        {"name": "b", "url": "http://b/v1", "model": "n", "snapshot": "t", "system": "none"},
        {"name": "b", "url": "http://b/v1", "model": "n", "snapshot": "t", "api_key_env": "KEY", "workers": 2},
    ],
    "SharesSpec": [
        {"train": 0.8, "val": 0.1, "test": 0.1},
        {"train": 0.6, "val": 0.2, "test": 0.2},
    ],
    "AlertSpec": [
        {"kpi": "schema_adherence", "at_least": 0.9},
        {"kpi": "schema_adherence", "at_least": 0.8},
        {"kpi": "schema_adherence", "at_most": 0.5},
        {"kpi": "latency_p95_ms", "at_least": 0.9},
    ],
}
"""Owner -> valid values of the whole Spec, where its keys depend on each other."""


# ------------------------------------------------------------------------------------------- values from types alone


def values(annotation: Any, metadata: Sequence[Any], files: list[str], *, deep: bool = True) -> Iterator[Any]:
    """Yield values of an annotation in recipe form, likely ones first; not all need be valid."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        yield from values(args[0], [*args[1:], *metadata], files, deep=deep)
    elif any(isinstance(mark, ByContent) for mark in metadata):
        yield from files
    elif origin is Literal:
        yield from args
    elif origin in (typing.Union, types.UnionType):
        for arg in sorted(args, key=lambda arg: arg is type(None)):
            yield from values(arg, metadata, files, deep=deep)
    elif origin in (list, tuple, set, frozenset, Sequence):
        inner = list(itertools.islice(values(args[0] if args else str, (), files), 4))
        fixed = origin is tuple and Ellipsis not in args
        if fixed:
            yield from (
                [*combination] for combination in itertools.product(*(list(values(a, (), files))[:3] for a in args))
            )
        else:
            yield from ([item] for item in inner)
            yield inner[:2]
            yield []
    elif origin in (dict, Mapping):
        for item in itertools.islice(values(args[1], (), files), 3):
            yield {"k": item}
        yield {}
    elif annotation is type(None):
        yield None
    elif annotation is bool:
        yield from (True, False)
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        yield from (member.value for member in annotation)
    elif isinstance(annotation, type) and issubclass(annotation, Spec):
        yield from varied(annotation, files)
    elif annotation in (int, float):
        yield from numbers(metadata, annotation)
    elif annotation in (str, Any, object):
        yield from ("alpha", "beta", "0.5", "a.b", "[a-z]+")
    else:
        raise AssertionError(f"no values known for {annotation}")


def numbers(metadata: Sequence[Any], kind: type) -> Iterator[float]:
    bounds = [getattr(mark, name, None) for mark in metadata for name in ("gt", "ge", "lt", "le")]
    known = [bound for bound in bounds if bound is not None]
    steps = (0, 1, -1, 2, 0.5, -0.5, 0.25, 3, 7, 64, 100)
    for base, step in itertools.product([*known, 1], steps):
        number = base + step
        if kind is float or float(number).is_integer():
            yield kind(number)


def minimal(spec_type: type[Spec], files: list[str]) -> Iterator[dict[str, Any]]:
    """Yield recipe values that hold the required fields only, those that validate."""
    required = {name: field for name, field in spec_type.model_fields.items() if field.is_required()}
    choices = [
        SAMPLES.get(f"{spec_type.__name__}.{name}") or list(itertools.islice(field_values(field, files), 6))
        for name, field in required.items()
    ]
    for combination in itertools.islice(itertools.product(*choices), 300):
        candidate = {**BASES.get(spec_type.__name__, {}), **dict(zip(required, combination, strict=True))}
        if validates(spec_type, candidate):
            yield candidate


def varied(spec_type: type[Spec], files: list[str]) -> Iterator[dict[str, Any]]:
    """Yield minimal values, then values with one more key."""
    yield from WHOLES.get(spec_type.__name__, ())
    bases = list(itertools.islice(minimal(spec_type, files), 4))
    yield from bases
    for name, field in spec_type.model_fields.items():
        for value in itertools.islice(field_values(field, files), 4):
            if bases and name not in bases[0] and validates(spec_type, {**bases[0], name: value}):
                yield {**bases[0], name: value}


def field_values(field: Any, files: list[str]) -> Iterator[Any]:
    return values(field.annotation, field.metadata, files)


def validates(spec_type: type[Spec], value: Mapping[str, Any]) -> bool:
    try:
        spec_type.model_validate(value)
    except ValidationError:
        return False
    return True


Wrap = Callable[[dict[str, Any]], dict[str, Any]]


def flips(
    top: type[Spec], spec_type: type[Spec], wrap: Wrap, prefix: str, files: list[str]
) -> Iterator[tuple[str, Spec | None, Spec | None]]:
    """Yield for every key two specs that differ in this key only; None where no two valid values were found."""
    base = next((value for value in varied(spec_type, files) if validates(top, wrap(value))), None)
    assert base is not None, f"no valid {spec_type.__name__} was found: add its required fields to SAMPLES"
    for name, field in spec_type.model_fields.items():
        key = f"{prefix}{name}"
        if is_tag(field):
            continue
        if spec_type.__name__ in WHOLES:
            first, *others = WHOLES[spec_type.__name__]
            second = next(whole for whole in others if whole.get(name) != first.get(name))
            yield key, top.model_validate(wrap(first)), top.model_validate(wrap(second))
            continue
        found: list[Spec] = []
        for value in SAMPLES.get(f"{spec_type.__name__}.{name}") or field_values(field, files):
            candidate = wrap({**base, name: value})
            if not validates(top, candidate):
                continue
            spec = top.model_validate(candidate)
            if all(spec != other for other in found):
                found.append(spec)
            if len(found) == 2:
                break
        yield key, *(found if len(found) == 2 else (None, None))
        for inner in nested_specs(field.annotation):
            for shape in (lambda item: item, lambda item: [item], lambda item: {"k": item}):

                def deeper(item: dict[str, Any], name: str = name, shape: Any = shape) -> dict[str, Any]:
                    return wrap({**base, name: shape(item)})

                if any(validates(top, deeper(value)) for value in itertools.islice(varied(inner, files), 20)):
                    yield from flips(top, inner, deeper, f"{key}.", files)
                    break
            else:
                yield f"{key}.{inner.__name__}", None, None


def is_tag(field: Any) -> bool:
    return typing.get_origin(field.annotation) is Literal and len(typing.get_args(field.annotation)) == 1


# ---------------------------------------------------------------------------------------------------------- the laws


CIRCUMSTANCES = {"train.checkpoints", "train.parallel"}
"""Keys that say how a stage computes and not what, each with a test that what it computes stays the same."""


def unflipped(stage: Stage, files: list[str]) -> list[str]:
    """Return the keys of a stage that do not change its fingerprint, or that could not be tried.

    Circumstances must not change it.
    """
    bad = []
    for key, before, after in flips(stage.spec_type, stage.spec_type, lambda value: value, "", files):
        if before is None or after is None:
            bad.append(f"{key}: no two valid values found, add some to SAMPLES")
            continue
        same = fingerprint_of(stage, before.identity(), inputs={}) == fingerprint_of(stage, after.identity(), inputs={})
        if same != (key.partition(".")[0] in circumstances(stage)):
            bad.append(f"{key}: {before} and {after} {'share a' if same else 'have another'} fingerprint")
    return bad


def circumstances(stage: Stage) -> set[str]:
    return {name for name, field in stage.spec_type.model_fields.items() if is_circumstance(field)}


def defaulted_tags(spec_type: type[Spec]) -> list[str]:
    return [doc.key for doc in key_docs(spec_type) if is_tag(doc.field) and not doc.required]


def loose_parts(spec_type: type[Spec]) -> list[str]:
    """Return keys that hold a pydantic model that is not a Spec: its unknown keys would pass and hide from identity."""
    from pydantic import BaseModel

    bad = []
    for doc in key_docs(spec_type):
        stack = [doc.field.annotation]
        while stack:
            part = stack.pop()
            if isinstance(part, type) and issubclass(part, BaseModel) and not issubclass(part, Spec):
                bad.append(doc.key)
            stack += typing.get_args(part)
    return bad


@functools.cache
def names_read(module: Path) -> set[str]:
    """Return the attributes that a module reads outside of its Spec classes' field declarations."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@functools.cache
def parameter_names() -> set[str]:
    """Return every parameter and dataclass field of the package: what `model_dump` can be unpacked into."""
    names: set[str] = set()
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.ClassDef) and any("dataclass" in ast.dump(d) for d in node.decorator_list):
                names.update(
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                )
    return names


def unread(doc: KeyDoc, stage: Stage) -> bool:
    modules = {inspect.getsourcefile(doc.owner), inspect.getsourcefile(inspect.unwrap(stage.function))}
    read: set[str] = set()
    for module in modules:
        assert module is not None
        read |= names_read(Path(module))
    name = doc.loc[-1]
    return name not in read and not ("model_dump" in read and name in parameter_names())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("content")
    paths = [folder / name for name in ("one.jsonl", "two.jsonl")]
    for path in paths:
        path.write_text(path.name)
    return [str(path) for path in paths]


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_key_is_documented(name):
    assert [doc.key for doc in key_docs(STAGES[name].spec_type) if not doc.doc] == []


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_key_changes_the_fingerprint(name, files):
    assert unflipped(STAGES[name], files) == []


def test_few_keys_are_circumstance_and_all_of_them_are_known():
    found = {f"{name}.{key}" for name, stage in STAGES.items() for key in circumstances(stage)}
    assert found == CIRCUMSTANCES


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_key_is_read_by_its_stage(name):
    assert [doc.key for doc in key_docs(STAGES[name].spec_type) if unread(doc, STAGES[name])] == []


@pytest.mark.parametrize("name", sorted(STAGES))
def test_no_tag_of_a_union_has_a_default(name):
    assert defaulted_tags(STAGES[name].spec_type) == []


@pytest.mark.parametrize("name", sorted(STAGES))
def test_settings_are_specs_all_the_way_down(name):
    assert loose_parts(STAGES[name].spec_type) == []


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_default_is_left_out_of_identity(name, files):
    stage = STAGES[name]
    if stage.spec_type.identity is not Spec.identity:
        pytest.skip(f"{stage.spec_type.__name__} says itself what its identity is")
    base = next(minimal(stage.spec_type, files))
    identity = stage.spec_type.model_validate(base).identity()
    assert set(identity) <= set(base)


# ------------------------------------------------------------------------------------------- the checks can fail


class TaggedA(Spec):
    kind: Literal["a"] = "a"
    rank: int = Field(8, ge=1)


class Broken(Spec):
    part: TaggedA = TaggedA()
    """Fine."""
    silent: bool = False
    loud: Annotated[bool, Circumstance()] = False
    """Said to be circumstance, and yet in the identity."""

    def identity(self, sha256_of: Any = None) -> dict[str, Any]:
        kept = {name: value for name, value in super().identity(sha256_of).items() if name != "silent"}
        return {**kept, "loud": self.loud}


def broken_function(inputs: Any, spec: Broken, ctx: Any) -> dict[str, Any]:
    return {"rank": spec.part.rank}


BROKEN = Stage(
    name="broken",
    version=1,
    produces="nothing",
    function=broken_function,
    spec_type=Broken,
    inputs_type=Inputs,
    check=None,
    estimate=None,
)


def test_the_laws_can_fail(files):
    bad = unflipped(BROKEN, files)
    assert any(line.startswith("silent:") and "share a" in line for line in bad)
    assert any(line.startswith("loud:") and "have another" in line for line in bad)
    assert defaulted_tags(Broken) == ["part.kind"]
    docs = {doc.key: doc for doc in key_docs(Broken)}
    assert [key for key, doc in docs.items() if not doc.doc] == ["part.kind", "part.rank", "silent"]
    assert not unread(docs["part.rank"], BROKEN)
