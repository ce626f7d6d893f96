import os
from pathlib import Path

import pytest

from tunesmith import memory
from tunesmith.memory import release_free_memory


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(memory._trim() is None, reason="the C library is not glibc")
def test_free_memory_between_blocks_in_use_goes_back_to_the_system():
    size, number = 64 * 1024, 3000
    blocks = [bytearray(size) for _ in range(number)]
    kept = blocks[::50]
    del blocks
    before = resident_bytes()
    release_free_memory()
    assert resident_bytes() < before - 0.5 * size * number
    assert all(len(block) == size for block in kept)


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory, "_trim", lambda: None)
    release_free_memory()
