"""Hashes that are remembered, refs that move in one step, garbage that nobody needs, events that are whole."""

import json
import os
import shutil
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.core import hashes as hashes_module
from tunesmith.core.disk import is_locked, lock
from tunesmith.core.events import EventFile, Silent, StageVoice, plain, read_events
from tunesmith.core.gc import Why, delete, find_garbage
from tunesmith.core.hashes import HashCache
from tunesmith.core.plan import make_plan
from tunesmith.core.recipe import load_recipe
from tunesmith.core.refs import move_ref, previous, read_ref, ref_artifact, ref_history, ref_names
from tunesmith.core.run import Machine, execute, in_use
from tunesmith.core.spec import content_sha256
from tunesmith.errors import RecipeError, StoreError


def run(path, toys, store, *overrides):
    plan = make_plan(load_recipe(path, toys, overrides=overrides), store)
    return execute(plan, store, listener=Silent(), machine=Machine(device="cpu", workers=1))


# ----------------------------------------------------------------------------------------------------------- hashes


@pytest.fixture
def counted(monkeypatch):
    """How often a file was really read."""
    reads = []
    original = hashes_module.file_sha256

    def counting(path):
        reads.append(path.name)
        return original(path)

    monkeypatch.setattr(hashes_module, "file_sha256", counting)
    return reads


def old(path):
    """Let a file be older than the time within which it is not remembered."""
    long_ago = path.stat().st_mtime_ns - 10**10
    os.utime(path, ns=(long_ago, long_ago))


@pytest.fixture
def settled(monkeypatch):
    """ctime cannot be set back: files count as settled at once."""
    monkeypatch.setattr(hashes_module, "_SETTLED_NS", -(10**12))


def test_a_big_file_is_read_once_and_again_when_it_changes(tmp_path, counted, settled):
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(2 << 20))
    for _ in range(2):
        cache = HashCache(tmp_path / "cache.json")
        assert cache.sha256_of(big) == content_sha256(big)
        cache.save()
    assert counted == ["big.bin"]
    stat = big.stat()
    big.write_bytes(b"1" + bytes((2 << 20) - 1))
    os.utime(big, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same mtime: ctime tells
    assert HashCache(tmp_path / "cache.json").sha256_of(big) == content_sha256(big)
    assert counted == ["big.bin", "big.bin"]


def test_a_fresh_file_is_not_remembered(tmp_path, counted):
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(2 << 20))
    cache = HashCache(tmp_path / "cache.json")
    cache.sha256_of(big)
    cache.sha256_of(big)
    assert counted == ["big.bin", "big.bin"]


def test_a_small_file_is_always_read(tmp_path, counted, settled):
    small = tmp_path / "small.txt"
    small.write_text("1")
    cache = HashCache(tmp_path / "cache.json")
    cache.sha256_of(small)
    cache.sha256_of(small)
    assert counted == ["small.txt", "small.txt"]


def test_a_folder_is_what_its_files_are_called_and_hold(tmp_path):
    cache = HashCache(tmp_path / "cache.json")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "sub" / "b").write_text("2")
    first = cache.sha256_of(folder)
    assert first == cache.sha256_of(shutil.copytree(folder, tmp_path / "elsewhere"))
    (folder / "sub" / "b").rename(folder / "sub" / "c")
    assert cache.sha256_of(folder) != first


def test_a_damaged_or_unwritable_cache_costs_only_time(tmp_path, settled):
    (tmp_path / "cache.json").write_text("{half")
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(2 << 20))
    cache = HashCache(tmp_path / "cache.json")
    assert cache.sha256_of(big) == content_sha256(big)
    (tmp_path / "blocked").write_text("")
    blocked = HashCache(tmp_path / "blocked" / "cache.json")
    blocked.sha256_of(big)
    blocked.save()


def test_a_missing_path_has_no_hash(tmp_path):
    with pytest.raises(RecipeError, match="cannot read"):
        content_sha256(tmp_path / "none")


# ------------------------------------------------------------------------------------------------------------ locks


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path):
    path = tmp_path / "x.lock"
    order = []
    inside = threading.Event()
    leave = threading.Event()

    def holder():
        with lock(path, on_wait=lambda who: None):
            order.append("first")
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=holder)
    thread.start()
    inside.wait(10)
    assert is_locked(path)

    def on_wait(who):
        assert who == str(os.getpid())
        order.append("waits")
        leave.set()

    with lock(path, on_wait=on_wait):
        order.append("second")
    thread.join()
    assert order == ["first", "waits", "second"]
    assert not path.exists()
    assert not is_locked(path)


# ------------------------------------------------------------------------------------------------------------- refs


def test_a_ref_moves_in_one_step_and_remembers_where_it_was(recipe_file, toys, store):
    bundles = []
    for value in (1, 2):
        record = run(recipe_file, toys, store, f"number.value={value}")
        bundles.append(store.find("sum", record.stages["add"].fingerprint))
    assert read_ref(store, "production") is None
    for bundle in (*bundles, bundles[0]):
        move_ref(store, "production", bundle, who="ada", report="r1", note="because")
        assert ref_artifact(store, "production").fingerprint == bundle.fingerprint
    history = ref_history(store, "production")
    assert [entry.fingerprint for entry in history] == [b.fingerprint for b in (*bundles, bundles[0])]
    assert history[0].who == "ada"
    assert history[0].report == "r1"
    assert previous(store, "production").fingerprint == bundles[1].fingerprint
    assert ref_names(store) == ["production"]


def test_a_move_that_died_halfway_is_in_the_history(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    bundle = store.find("sum", record.stages["add"].fingerprint)
    first = move_ref(store, "staging", bundle, who="ada")
    (store.refs / "staging.jsonl").write_text("")
    assert ref_history(store, "staging") == (first,)
    second = move_ref(store, "staging", bundle, who="bob")
    lines = (store.refs / "staging.jsonl").read_text().splitlines()
    assert [json.loads(line)["who"] for line in lines] == [first.who, second.who]


def test_a_ref_without_its_artifact_or_name_is_refused(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    bundle = store.find("sum", record.stages["add"].fingerprint)
    with pytest.raises(StoreError, match="there is no ref"):
        ref_artifact(store, "production")
    with pytest.raises(StoreError, match="not a name"):
        move_ref(store, "../escape", bundle, who="ada")
    move_ref(store, "production", bundle, who="ada")
    shutil.rmtree(bundle.root)
    with pytest.raises(StoreError, match="is gone"):
        ref_artifact(store, "production")
    (store.refs / "production").write_text("{half")
    with pytest.raises(StoreError, match="cannot read the ref"):
        read_ref(store, "production")


# --------------------------------------------------------------------------------------------------------------- gc


def test_what_a_run_or_a_ref_needs_is_no_garbage(recipe_file, toys, store):
    first = run(recipe_file, toys, store)
    second = run(recipe_file, toys, store, "number.value=9")
    assert find_garbage(store) == ()
    bundle = store.find("sum", first.stages["add"].fingerprint)
    move_ref(store, "production", bundle, who="ada")
    shutil.rmtree(store.runs / first.run)
    assert find_garbage(store) == ()  # the ref holds the bundle, and the bundle all that it was made from
    shutil.rmtree(store.runs / second.run)
    garbage = find_garbage(store)
    assert {item.path.name for item in garbage} == {stage.fingerprint for stage in second.stages.values()}
    assert {item.why for item in garbage} == {Why.UNREACHABLE}
    expected = sum(f.stat().st_size for item in garbage for f in item.path.rglob("*") if f.is_file())
    assert delete(store, garbage) == expected == sum(item.num_bytes for item in garbage)
    assert {artifact.fingerprint for artifact in store.all()} == {s.fingerprint for s in first.stages.values()}


def test_what_a_dead_run_left_is_garbage_and_what_a_living_one_holds_is_not(recipe_file, toys, store):
    with pytest.raises(ValueError):
        run(recipe_file, toys, store, "double.fail=error")
    partials = [item for item in find_garbage(store) if item.why is Why.PARTIAL]
    assert partials
    fingerprint = partials[0].path.name.split(".")[0]
    with lock(store.partials / f"{fingerprint}.lock", on_wait=lambda who: None):
        assert not [item for item in find_garbage(store) if item.why is Why.PARTIAL]
    delete(store, partials)
    assert not [path for path in store.partials.iterdir() if path.is_dir()]


def test_a_deletion_that_was_killed_leaves_no_artifact_with_files_missing(recipe_file, toys, store, monkeypatch):
    record = run(recipe_file, toys, store)
    shutil.rmtree(store.runs / record.run)
    garbage = find_garbage(store)

    def killed(path):
        (path / "data" / next(iter(os.listdir(path / "data")))).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.core.gc.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        delete(store, garbage)
    monkeypatch.undo()
    for artifact in store.all():
        assert store.find(artifact.kind, artifact.fingerprint)
    assert len(list(store.all())) == 2
    delete(store, find_garbage(store))
    assert find_garbage(store) == ()
    assert not list(store.partials.iterdir())


def test_nothing_is_deleted_while_a_run_is_at_work(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    shutil.rmtree(store.runs / record.run)
    garbage = find_garbage(store)
    with in_use(store), pytest.raises(StoreError, match="a run is at work"):
        delete(store, garbage)
    assert len(list(store.all())) == 3


def test_what_came_into_use_after_it_was_listed_is_kept(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    shutil.rmtree(store.runs / record.run)
    garbage = find_garbage(store)
    run(recipe_file, toys, store)
    assert delete(store, garbage) == 0
    assert len(list(store.all())) == 3


def test_a_folder_without_manifest_is_garbage_and_no_artifact(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    root = store.place("sum", record.stages["add"].fingerprint)
    (root / "manifest.json").unlink()
    assert [item.why for item in find_garbage(store)] == [Why.DAMAGED]
    assert store.find("sum", root.name) is None


def test_a_damaged_manifest_names_its_file(recipe_file, toys, store):
    record = run(recipe_file, toys, store)
    path = store.place("sum", record.stages["add"].fingerprint) / "manifest.json"
    for text in ("{", "[]", '{"outputs": []}', '{"outputs": [{}]}'):
        path.write_text(text)
        with pytest.raises(StoreError, match="manifest is damaged") as caught:
            store.find("sum", path.parent.name)
        assert caught.value.where == str(path)


# ----------------------------------------------------------------------------------------------------------- events

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(st.text(min_size=1).filter(lambda key: key not in ("time", "event")), json_values))
def test_an_event_is_read_as_it_was_written(fields, tmp_path):
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    events = EventFile(path)
    events.write("thing", fields)
    events.close()
    (event,) = read_events(path)
    assert {key: value for key, value in event.items() if key not in ("time", "event")} == fields


def test_numbers_of_any_library_are_plain_and_what_is_no_number_says_so():
    value = {"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True), "d": float("nan"), "e": (1, {2})}
    assert plain(value) == {"a": 0.5, "b": 3, "c": True, "d": "nan", "e": [1, [2]]}
    with pytest.raises(TypeError, match="plain JSON form"):
        plain({"a": object()})


def test_a_line_torn_by_a_crash_is_cut_off_and_the_rest_kept(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b')
    assert [event["event"] for event in read_events(path)] == ["a"]
    events = EventFile(path)
    events.write("c", {})
    events.close()
    assert [event["event"] for event in read_events(path)] == ["a", "c"]


def test_threads_never_mix_their_lines(tmp_path):
    events = EventFile(tmp_path / "events.jsonl")

    def write(name):
        for number in range(200):
            events.write(name, {"number": number, "filler": "x" * 200})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events.close()
    found = list(read_events(tmp_path / "events.jsonl"))
    for name in "abcd":
        assert [event["number"] for event in found if event["event"] == name] == list(range(200))


def test_progress_reaches_the_watcher_each_time_and_the_file_at_the_end(tmp_path):
    seen = []

    class Watcher(Silent):
        def stage_progress(self, table, *, done, total, note, fields):
            seen.append((done, fields))

    events = EventFile(tmp_path / "events.jsonl")
    voice = StageVoice("t", events=events, listener=Watcher())
    for step in range(1, 101):
        voice.progress(step, 100, loss=1.0)
    events.close()
    assert len(seen) == 100
    written = list(read_events(tmp_path / "events.jsonl"))
    assert len(written) < 100
    assert written[-1]["done"] == 100
    assert written[-1]["loss"] == 1.0
