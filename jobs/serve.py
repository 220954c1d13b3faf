"""A Ray job that serves the checkpoints of a run.

ray job submit --working-dir . -- python jobs/serve.py DIR
"""

import sys

from bezoar_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
