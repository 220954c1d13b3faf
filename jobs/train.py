"""The training stages as a Ray job: `ray job submit -- python jobs/train.py RECIPE --run-dir DIR`."""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--stages", "sft,hh-sft,align"]))
