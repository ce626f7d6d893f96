"""Models and their tensors: loading, adapters, attention over flat batches, generation. torch begins here."""

import logging

# PEFT imports bitsandbytes where it is installed, whose CPU part looks for one more kernel on a hub that nobody asked
# for, and warns that it cannot.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
