"""Train from a recipe without the command-line extras: ``python -m deltamem_agents.training RECIPE --out FOLDER``."""

import argparse
import sys

from ..errors import DeltaMemError
from .build import STAGES, build
from .recipe import load_recipe, parse_changes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--out", required=True)
    parser.add_argument("--stage", choices=STAGES, action="append", help="only this stage (repeatable)")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="adapter.train.steps=100")
    parser.add_argument("--time-limit", type=float, help="seconds; a checkpoint is written, run again to go on")
    args = parser.parse_args()
    try:
        recipe = load_recipe(args.recipe, parse_changes(args.set))
        build(recipe, args.out, stages=tuple(args.stage or STAGES), time_limit=args.time_limit)
    except DeltaMemError as error:
        sys.exit(" ".join(str(error).split()))
    except KeyboardInterrupt:  # build has said where to go on
        sys.exit(130)


if __name__ == "__main__":
    main()
