"""Models and their tensors: loading, adapters, attention over flat batches, generation. torch begins here."""
