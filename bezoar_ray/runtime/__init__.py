"""The machine and the cluster: Ray session, capacity, caches, logs, metrics, progress."""
