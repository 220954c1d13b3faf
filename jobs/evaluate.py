"""A Ray job that evaluates the trained checkpoints and writes the report.

ray job submit --working-dir . -- python jobs/evaluate.py RECIPE --run-dir DIR
"""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--stages", "evaluate,report"]))
