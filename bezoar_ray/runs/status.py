"""The progress of a run, read from its summary.json alone."""

from bezoar_ray import layout
from bezoar_ray.errors import RecipeError
from bezoar_ray.runtime.progress import duration
from bezoar_ray.store import Store


def render(store: Store) -> str:
    """Describe a run as text: a line for each stage, then rows and calls.

    Raises:
        RecipeError: The folder is not a run directory.
    """
    summary = store.read_json(layout.SUMMARY)
    if not summary:
        raise RecipeError(
            f"{store.root} is not a run directory: it has no summary.json. "
            "Give the directory that `bezoar run` printed"
        )
    run = summary["run"]
    lines = [f"{run['recipe']}: {run['status']} after {duration(run['seconds'])}"]
    for name, stage in summary["stages"].items():
        status = "already done" if stage["skipped"] else stage["status"]
        lines.append(f"  {name:<9} {status:<12} {duration(stage['seconds'])}")
    for scheme, counts in summary["data"].items():
        numbers = [
            f"{count} {name}"
            for name, count in counts.items()
            if isinstance(count, int)
        ]
        lines.append(f"  {scheme}: {', '.join(numbers)}")
    for role, calls in summary["calls"].items():
        sent = f"{calls['sent']} calls sent"
        from_ledger = f"{calls['from_ledger']} from the ledger"
        lines.append(f"  {role}: {sent}, {from_ledger}, ${calls['usd']:.2f}")
    return "\n".join(lines)
