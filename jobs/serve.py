"""The endpoint of a run's checkpoints, as a Ray job: `ray job submit -- python jobs/serve.py DIR`."""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
