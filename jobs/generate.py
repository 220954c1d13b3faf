"""Generate and filter, as a Ray job: `ray job submit -- python jobs/generate.py RECIPE --run-dir DIR`."""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--stages", "generate,filter"]))
