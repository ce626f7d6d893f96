import json
import shutil

import pytest

from tunesmith.errors import ContractError, ServeError, TunesmithError
from tunesmith.serve.bundle import REQUIRED_FILES, check_base, load_bundle, write_checksums


def test_a_whole_bundle_loads_and_knows_what_it_is(made):
    bundle = load_bundle(made.root)
    check_base(bundle, made.base)
    assert bundle.name == "tiny-tuned"
    assert bundle.promotable
    assert bundle.fingerprint == f"{bundle.contract.sha256[:8]}-{bundle.adapter_sha256[:8]}"
    assert [golden.ids for golden in bundle.golden] == [vector.ids for vector in bundle.contract.golden]


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_named(copy, name):
    (copy.root / name).unlink()
    with pytest.raises(ServeError, match="not complete") as caught:
        load_bundle(copy.root)
    assert name in caught.value.found


@pytest.mark.parametrize(
    "name",
    [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "contract/tokenizer/chat_template.jinja",
        "contract/tokenizer/tokenizer.json",
        "contract/tokenizer/generation_config.json",
        "golden.jsonl",
        "README.md",
    ],
)
def test_a_file_changed_by_hand_is_named(copy, name):
    path = copy.root / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ServeError, match="changed by hand") as caught:
        load_bundle(copy.root)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("chat_template.jinja", "template"),
        ("tokenizer_config.json", "tokenizer"),
        ("generation_config.json", "decoding"),
    ],
)
def test_a_part_changed_with_its_checksum_is_still_refused_by_name(copy, name, part):
    path = copy.root / "contract" / "tokenizer" / name
    if name.endswith(".json"):
        value = json.loads(path.read_text())
        value["eos_token" if "eos_token" in value else "max_new_tokens"] = (
            "<|endoftext|>" if "eos_token" in value else 7
        )
        path.write_text(json.dumps(value))
    else:
        path.write_text(path.read_text() + "!")
    write_checksums(copy.root)
    with pytest.raises(ContractError, match=part):
        load_bundle(copy.root)


def test_an_adapter_of_another_bundle_is_refused_though_its_checksum_fits(copy):
    path = copy.root / "adapter" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    write_checksums(copy.root)
    with pytest.raises(ServeError, match="the adapter is not the one"):
        load_bundle(copy.root)


def test_a_file_put_in_by_hand_is_refused(copy):
    (copy.root / "adapter" / "extra.bin").write_bytes(b"x")
    with pytest.raises(ServeError, match=r"extra\.bin was added by hand"):
        load_bundle(copy.root)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_another_base_is_refused_by_file(made, tmp_path, name):
    base = tmp_path / "base"
    shutil.copytree(made.base, base)
    (base / name).write_bytes((base / name).read_bytes() + b" ")
    with pytest.raises(ServeError, match=f"{name} of the base model"):
        check_base(load_bundle(made.root), base)


def test_a_base_with_one_shard_more_or_less_is_refused(made, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(made.base, base)
    shutil.copyfile(base / "model.safetensors", base / "more.safetensors")
    with pytest.raises(ServeError, match=r"more\.safetensors"):
        check_base(load_bundle(made.root), base)
    (base / "more.safetensors").unlink()
    (base / "model.safetensors").unlink()
    with pytest.raises(ServeError, match="holds no model"):
        check_base(load_bundle(made.root), base)


@pytest.mark.parametrize("content", ["[1]", "{", "\xff"])
def test_a_broken_bundle_file_is_the_users_error_and_no_traceback(copy, content):
    (copy.root / "bundle.json").write_bytes(content.encode("latin-1"))
    write_checksums(copy.root)
    with pytest.raises(TunesmithError, match="of the bundle"):
        load_bundle(copy.root)


def test_a_folder_that_is_no_bundle_says_so(tmp_path):
    with pytest.raises(ServeError, match="no bundle here"):
        load_bundle(tmp_path / "nothing")
