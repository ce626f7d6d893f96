"""Run a recipe of toy stages in a process of its own: `python toy_run.py RECIPE STORE [KEY=VALUE ...]`.

Prints `waits` when it waits for another process. Tests kill it, starve it of disk, and run two of it at once.
"""

import importlib.util
import sys
from pathlib import Path

from tunesmith.core.events import Silent
from tunesmith.core.plan import make_plan
from tunesmith.core.recipe import load_recipe
from tunesmith.core.run import Machine, execute
from tunesmith.core.stage import registered
from tunesmith.core.store import Store
from tunesmith.errors import TunesmithError


class Loud(Silent):
    def stage_waits(self, table, *, holder):
        print("waits", holder, flush=True)


def main(recipe: str, store: str, *overrides: str) -> None:
    spec = importlib.util.spec_from_file_location("toys", Path(__file__).with_name("conftest.py"))
    toys = importlib.util.module_from_spec(spec)
    sys.modules["toys"] = toys
    spec.loader.exec_module(toys)
    toys.register()
    place = Store(Path(store))
    try:
        plan = make_plan(load_recipe(Path(recipe), registered(), overrides=overrides), place)
        record = execute(plan, place, listener=Loud(), machine=Machine(device="cpu", workers=1))
    except TunesmithError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print({name: stage.status for name, stage in record.stages.items()}, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
