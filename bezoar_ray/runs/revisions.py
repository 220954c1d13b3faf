"""Pin branches and tags of the hub to the commits that they named when a run began.

A branch moves on, and a commit stays. So all commands of a run directory, and all
trials of a sweep, use the same weights and data.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bezoar_ray import layout
from bezoar_ray.recipe import Recipe, Section, SourceSection
from bezoar_ray.recipe.model_sections import COMMIT
from bezoar_ray.runtime.caches import hub_cache
from bezoar_ray.store import Store

_MAIN = "main"
_SECONDS = 10.0  # that the hub may take for one answer


@dataclass(frozen=True)
class Branch:
    """A branch or tag of a repository of the hub."""

    kind: str
    """`model` or `dataset`."""
    repository: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.repository}@{self.name}"

    def commit(self) -> str | None:
        """Return its commit; None if neither the hub nor the local cache knows it."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        try:
            info = api.repo_info(
                self.repository,
                repo_type=self.kind,
                revision=self.name,
                timeout=_SECONDS,
            )
        except Exception:  # the client's errors have no common class
            return self._cached_commit()
        return info.sha or self._cached_commit()

    def _cached_commit(self) -> str | None:
        folder = f"{self.kind}s--{self.repository.replace('/', '--')}"
        reference = hub_cache() / folder / "refs" / self.name
        try:
            return reference.read_text().strip() or None
        except OSError:
            return None


def pinned(recipe: Recipe, store: Store, say: Callable[[str], None]) -> Recipe:
    """Return the recipe with commits in place of branches and tags.

    The commits are those that the first command of the run directory looked up. A run
    that began with a name keeps the name: the hub did not answer then, or the run is
    older than this function.
    """
    return pinned_together([recipe], store, say)[0]


def pinned_together(
    recipes: Sequence[Recipe], store: Store, say: Callable[[str], None]
) -> list[Recipe]:
    """Pin several recipes of one run directory: a branch has the same commit in all."""
    commits = store.read_json(layout.REVISIONS) or {}
    if not store.exists(layout.RECIPE):
        branches = chain.from_iterable(map(_branches, recipes))
        commits = _resolve(branches, commits, say)
        if commits:
            store.replace_json(layout.REVISIONS, commits)
    return [_with_commits(recipe, commits) for recipe in recipes]


def _resolve(
    branches: Iterable[Branch], known: dict[str, str], say: Callable[[str], None]
) -> dict[str, str]:
    """Look up the commits of branches; warn of those that cannot be found."""
    commits = {}
    unresolved = []
    # Each one once: a hub out of reach costs its time limit forevery question.
    for branch in dict.fromkeys(branches):
        name = str(branch)
        commit = known.get(name) or branch.commit()
        if commit:
            commits[name] = commit
        else:
            unresolved.append(name)
    if unresolved:
        say(
            f"warning: the commit of {', '.join(unresolved)} is not known: the hub "
            "does not give it, and its cache does not have it. The run keeps the name, "
            "which may point to another commit tomorrow. Set `revision` to a commit"
        )
    return commits


def _branches(value: object) -> Iterator[Branch]:
    """Yield the branches in a recipe, a section, or a collection of sections."""
    if isinstance(value, Section):
        branch = _branch(value)
        if branch:
            yield branch
        for name in type(value).model_fields:
            yield from _branches(getattr(value, name))
    elif isinstance(value, dict):
        for item in value.values():
            yield from _branches(item)
    elif isinstance(value, tuple):
        for item in value:
            yield from _branches(item)


def _with_commits(value: Any, commits: dict[str, str]) -> Any:
    """Copy a value of a recipe, with commits in place of branches."""
    if isinstance(value, Section):
        fields = {}
        for name in type(value).model_fields:
            fields[name] = _with_commits(getattr(value, name), commits)
        commit = commits.get(str(_branch(value)))
        if commit:
            fields["revision"] = commit
        return value.model_copy(update=fields)
    if isinstance(value, dict):
        return {key: _with_commits(item, commits) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_with_commits(item, commits) for item in value)
    return value


def _branch(section: Section) -> Branch | None:
    """Return the branch that a section reads from the hub; None if it reads no branch.

    A model without a revision reads `main`. A data set has to name its revision.
    """
    revision = getattr(section, "revision", None)
    if COMMIT.fullmatch(revision or ""):
        return None
    if isinstance(section, SourceSection):
        if not revision or not section.source.startswith("hub:"):
            return None
        repository = section.source.removeprefix("hub:").partition(":")[0]
        return Branch("dataset", repository, revision)
    model = getattr(section, "model", "")
    has_revision = "revision" in type(section).model_fields
    is_endpoint = bool(getattr(section, "base_url", None))
    if not has_revision or is_endpoint or not _is_on_hub(model):
        return None
    return Branch("model", model, revision or _MAIN)


def _is_on_hub(model: str) -> bool:
    """Whether a model's name is OWNER/NAME, and not a folder."""
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        return False
    return not os.path.exists(model)
