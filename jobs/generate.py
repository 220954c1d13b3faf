"""A Ray job that generates rows and filters them.

ray job submit --working-dir . -- python jobs/generate.py RECIPE --run-dir DIR
"""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:], "--stages", "generate,filter"]))
