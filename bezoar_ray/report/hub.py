"""A run's results on the Hugging Face hub: checkpoints, adapters and accepted rows, each with its card."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bezoar_ray import layout
from bezoar_ray.data.sample_io import sample_files
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.stages import checkpoint_names
from bezoar_ray.store import Store

PARTS = (*checkpoint_names()[1:], "dataset")


@dataclass(frozen=True)
class Upload:
    """One repository of the hub: its files by their path there."""

    repository: str
    kind: str  # the hub's: model or dataset
    files: dict[str, Path]

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.files.values())
        return f"{self.kind} {self.repository}: {len(self.files)} files, {size / 1e6:,.1f} MB"


def uploads(
    recipe: Recipe, store: Store, owner: str, parts: list[str] | None = None
) -> list[Upload]:
    """What would be pushed: for each checkpoint the merged model and its adapter, and the accepted rows.

    Raises:
        RecipeError: an unknown part; or the run has none of the parts, or one without its card.
    """
    parts = parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise RecipeError(
            f"--only {unknown[0]}: no such part; there are {', '.join(PARTS)}"
        )
    found = [
        upload
        for part in parts
        for upload in _uploads(recipe, store, f"{owner}/{recipe.name}-{part}", part)
    ]
    if not found:
        raise RecipeError(
            f"{store.root} holds nothing of {', '.join(parts)}: run the stages that make it"
        )
    return found


def push(found: list[Upload], private: bool) -> None:
    """Create the repositories where they are missing, and upload each as one commit; the token is the hub's own.

    Raises:
        BezoarError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    for upload in found:
        adds = [
            CommitOperationAdd(name, str(path)) for name, path in upload.files.items()
        ]
        name, kind = upload.repository, upload.kind
        try:
            api.create_repo(
                repo_id=name, repo_type=kind, private=private, exist_ok=True
            )
            api.create_commit(
                repo_id=name,
                repo_type=kind,
                operations=adds,
                commit_message="Made with bezoar_ray",
            )
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            raise BezoarError(
                f"{upload.repository}: {str(error).strip().splitlines()[0]}. `hf auth login` gives a token that may "
                "write; HF_HUB_OFFLINE must not be set"
            ) from error


def _uploads(
    recipe: Recipe, store: Store, repository: str, part: str
) -> Iterator[Upload]:
    if part == "dataset":
        files = {
            f"{scheme}/{Path(name).name}": store.path(name)
            for scheme in recipe.schemes
            for name in sample_files(store, scheme, "accepted")
        }
        if files:
            yield Upload(repository, "dataset", files | _card(store, part))
        return
    # What was trained lies on other checkpoints' weights, in this run directory; the joined one fits the base itself.
    for kind, suffix in (("merged", ""), ("joined", "-adapter")):
        folder = f"{layout.checkpoint(part).folder}/{kind}"
        files = {
            str(Path(name).relative_to(folder)): store.path(name)
            for name in store.list(folder)
        }
        if files:
            yield Upload(repository + suffix, "model", files | _card(store, part))


def _card(store: Store, part: str) -> dict[str, Path]:
    if not store.exists(layout.card(part)):
        raise RecipeError(
            f"{store.root}/cards/{part}.md: missing. `bezoar report {store.root}` writes it"
        )
    return {"README.md": store.path(layout.card(part))}
