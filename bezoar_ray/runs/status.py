"""How far a run is, from its summary alone."""

from bezoar_ray import layout
from bezoar_ray.errors import RecipeError
from bezoar_ray.runtime.progress import duration
from bezoar_ray.store import Store


def render(store: Store) -> str:
    """A line per stage, then rows and calls.

    Raises:
        RecipeError: the directory holds no run.
    """
    summary = store.read_json(layout.SUMMARY)
    if not summary:
        raise RecipeError(f"{store.root} is no run directory: it holds no summary.json")
    run = summary["run"]
    lines = [f"{run['recipe']}: {run['status']} after {duration(run['seconds'])}"]
    for name, stage in summary["stages"].items():
        done = "already done" if stage["skipped"] else stage["status"]
        lines.append(f"  {name:<9} {done:<12} {duration(stage['seconds'])}")
    for scheme, counts in summary["data"].items():
        numbers = ", ".join(
            f"{value} {key}" for key, value in counts.items() if isinstance(value, int)
        )
        lines.append(f"  {scheme}: {numbers}")
    for role, calls in summary["calls"].items():
        lines.append(
            f"  {role}: {calls['sent']} calls sent, {calls['from_ledger']} from the ledger, ${calls['usd']:.2f}"
        )
    return "\n".join(lines)
