"""The evaluation of trained checkpoints as a Ray job: `ray job submit -- python jobs/evaluate.py RECIPE ...`."""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--stages", "evaluate,report"]))
