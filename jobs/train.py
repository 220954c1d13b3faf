"""A Ray job that trains the checkpoints, with rows that are already filtered.

ray job submit --working-dir . -- python jobs/train.py RECIPE --run-dir DIR
"""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--stages", "sft,hh-sft,align"]))
