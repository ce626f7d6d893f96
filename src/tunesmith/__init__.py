"""tunesmith: supervised fine-tuning from data to deployment and back, with nothing silently wrong.

    import tunesmith.api as tunesmith
    tunesmith.run("recipes/quickstart.yaml")

Importing this package loads no torch and no transformers; `tests/arch` holds it to that and to 0.3 s.
"""

__version__ = "0.1.0"
