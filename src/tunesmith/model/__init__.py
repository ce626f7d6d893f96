"""Models and their tensors: loading, adapters, attention over flat batches, generation. torch begins here."""

import logging
import os

# PEFT imports bitsandbytes where it is installed, whose CPU part looks for one more kernel on a hub that nobody asked
# for, and warns that it cannot.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# oneDNN keeps what it compiled for the last 1,024 shapes of products, and torch's bridge to it as many again, about
# 1.5 MB a shape. Batches without padding bring new shapes in every step: a run of 270 steps grew by 1.1 GB that way. A
# step of SmolLM2 needs fewer than these; in turns, 128 and more were equally fast, 64 was 2 to 4% slower. Both are read
# once, at the first product.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "128")
