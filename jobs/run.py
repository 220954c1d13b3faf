"""A Ray job that carries out a whole recipe.

ray job submit --working-dir . -- python jobs/run.py RECIPE --run-dir DIR
"""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
