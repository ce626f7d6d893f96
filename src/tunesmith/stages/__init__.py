"""The stages: one small file each, the only place that sees both the kernel and the domain.

A module of this package registers its stage when it is imported. Heavy parts (torch, transformers, daft) are imported
inside the stage's function, so that planning and a cached run stay fast.
"""

from __future__ import annotations

import importlib
import pkgutil

from tunesmith.core.stage import Stage, registered


def load_stages() -> dict[str, Stage]:
    """Import every module of this package and return the registered stages by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return registered()
