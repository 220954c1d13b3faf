"""Upload of a run's results to the Hugging Face hub, each with its card.

The results are checkpoints, adapters and accepted rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bezoar_ray import layout
from bezoar_ray.data.sample_io import sample_files
from bezoar_ray.errors import BezoarError, RecipeError
from bezoar_ray.recipe import Recipe
from bezoar_ray.stages import trained_checkpoint_names
from bezoar_ray.store import Store

PARTS = (*trained_checkpoint_names(), "dataset")


@dataclass(frozen=True)
class Upload:
    """One repository on the hub."""

    repository: str
    kind: str
    """The hub's type of repository: `model` or `dataset`."""
    files: dict[str, Path]
    """The local files, by their path in the repository."""

    def __str__(self) -> str:
        sizes = [path.stat().st_size for path in self.files.values()]
        megabytes = sum(sizes) / 1e6
        return f"{self.kind} {self.repository}: {len(sizes)} files, {megabytes:,.1f} MB"


def uploads(
    recipe: Recipe, store: Store, owner: str, parts: list[str] | None = None
) -> list[Upload]:
    """List the repositories to push.

    For a checkpoint these are the merged model and its adapter. A reward model has no
    joined adapter, and a second model with the score as its only output.

    Args:
        recipe: the run's recipe.
        store: the run directory.
        owner: user or organization on the hub.
        parts: checkpoints, or `dataset` for the accepted rows; all by default.

    Raises:
        RecipeError: a part is unknown, a part has no card, or the run has none of the
            parts.
    """
    parts = parts or list(PARTS)
    for part in parts:
        if part not in PARTS:
            raise RecipeError(
                f"--only {part}: unknown part. Use one of {', '.join(PARTS)}"
            )
    repositories: list[Upload] = []
    for part in parts:
        name = f"{owner}/{recipe.name}-{part}"
        if part == "dataset":
            repositories += _dataset_upload(recipe, store, name)
        else:
            repositories += _model_uploads(store, name, part)
    if not repositories:
        raise RecipeError(
            f"{store.root} has no files of {', '.join(parts)}. Run the stages that make them"
        )
    return repositories


def push(repositories: list[Upload], private: bool) -> None:
    """Create the repositories that do not exist, and upload each one as one commit.

    The token is the one that the hub's own tools use.

    Raises:
        BezoarError: the hub refuses the upload, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi()
    for upload in repositories:
        operations = []
        for name, path in upload.files.items():
            operations.append(CommitOperationAdd(name, str(path)))
        try:
            api.create_repo(
                repo_id=upload.repository,
                repo_type=upload.kind,
                private=private,
                exist_ok=True,
            )
            api.create_commit(
                repo_id=upload.repository,
                repo_type=upload.kind,
                operations=operations,
                commit_message="Made with bezoar_ray",
            )
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise BezoarError(
                f"{upload.repository}: {first_line}. The upload needs a token with write access (`hf auth login`), and "
                "HF_HUB_OFFLINE must not be set"
            ) from error


def _dataset_upload(recipe: Recipe, store: Store, repository: str) -> Iterator[Upload]:
    files = {}
    for scheme in recipe.schemes:
        for name in sample_files(store, scheme, "accepted"):
            files[f"{scheme}/{Path(name).name}"] = store.path(name)
    if files:
        yield Upload(repository, "dataset", files | _card(store, "dataset"))


def _model_uploads(store: Store, repository: str, checkpoint: str) -> Iterator[Upload]:
    # The folder `adapter` stays here: it needs the weights of other checkpoints of this
    # run directory. The joined LoRA needs only the base.
    folders = (("merged", ""), ("joined", "-adapter"), ("scalar", "-scalar"))
    for folder_name, suffix in folders:
        folder = f"{layout.checkpoint(checkpoint).folder}/{folder_name}"
        files = {}
        for name in store.list(folder):
            in_repository = Path(name).relative_to(folder)
            files[str(in_repository)] = store.path(name)
        if files:
            files |= _card(store, checkpoint)
            yield Upload(repository + suffix, "model", files)


def _card(store: Store, part: str) -> dict[str, Path]:
    name = layout.card(part)
    if not store.exists(name):
        raise RecipeError(
            f"{store.root}/{name}: missing. `bezoar report {store.root}` writes it"
        )
    return {"README.md": store.path(name)}
