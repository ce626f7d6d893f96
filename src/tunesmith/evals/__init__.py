"""Evaluation: scorers, statistics, gates, red-team sets, judges, memorisation.

Nothing here loads a model: generation is handed in as a `tunesmith.types.Generate`.
"""
