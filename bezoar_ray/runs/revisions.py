"""Branches and tags of the hub, as the commits that they stood for when a run began: names move on, commits stay."""

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
    """A branch or tag of a repository of the hub; `kind` is `model` or `dataset`."""

    kind: str
    repository: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.repository}@{self.name}"

    def commit(self) -> str | None:
        """Its commit, by the hub or else by the hub's cache on this machine; None where neither knows it."""
        from huggingface_hub import HfApi

        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        try:
            found = api.repo_info(
                self.repository,
                repo_type=self.kind,
                revision=self.name,
                timeout=_SECONDS,
            ).sha
        except Exception:  # the client's errors have no common class
            found = None
        return found or self._cached()

    def _cached(self) -> str | None:
        reference = (
            hub_cache()
            / f"{self.kind}s--{self.repository.replace('/', '--')}/refs/{self.name}"
        )
        try:
            return reference.read_text().strip() or None
        except OSError:
            return None


def pinned(recipe: Recipe, store: Store, say: Callable[[str], None]) -> Recipe:
    """The recipe with commits in place of branches and tags, always those that the run directory's first command found.

    A run that has begun with a name keeps it: so have runs that are older than this, and those without a hub.
    """
    return pinned_together([recipe], store, say)[0]


def pinned_together(
    recipes: Sequence[Recipe], store: Store, say: Callable[[str], None]
) -> list[Recipe]:
    """The same for several recipes of one run directory: a branch is the same commit, or the same name, in all."""
    commits = store.read_json(layout.REVISIONS) or {}
    if not store.exists(layout.RECIPE):
        commits = _resolved(chain.from_iterable(map(_branches, recipes)), commits, say)
        if commits:
            store.replace_json(layout.REVISIONS, commits)
    return [_with(recipe, commits) for recipe in recipes]


def _resolved(
    branches: Iterable[Branch], known: dict[str, str], say: Callable[[str], None]
) -> dict[str, str]:
    found = {
        str(branch): known.get(str(branch)) or branch.commit()
        for branch in dict.fromkeys(branches)
    }
    if lost := [branch for branch, commit in found.items() if not commit]:
        say(
            f"warning: the commit of {', '.join(lost)} is not known: the hub does not say, and its cache has none. The "
            "run keeps the name, which may stand for another commit tomorrow. Give a commit as `revision`"
        )
    return {branch: commit for branch, commit in found.items() if commit}


def _branches(value: object) -> Iterator[Branch]:
    if isinstance(value, Section):
        if branch := _branch(value):
            yield branch
        for name in type(value).model_fields:
            yield from _branches(getattr(value, name))
    elif isinstance(value, dict | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _branches(item)


def _with(value: Any, commits: dict[str, str]) -> Any:
    if isinstance(value, Section):
        fields = {
            name: _with(getattr(value, name), commits)
            for name in type(value).model_fields
        }
        commit = commits.get(str(_branch(value)))
        return value.model_copy(
            update=fields | ({"revision": commit} if commit else {})
        )
    if isinstance(value, dict):
        return {key: _with(item, commits) for key, item in value.items()}
    return (
        tuple(_with(item, commits) for item in value)
        if isinstance(value, tuple)
        else value
    )


def _branch(part: Section) -> Branch | None:
    """What a part takes from the hub by a name that can move; a data set has to name one."""
    revision = getattr(part, "revision", None)
    if COMMIT.fullmatch(revision or ""):
        return None
    if isinstance(part, SourceSection):
        repository = part.source.removeprefix("hub:").partition(":")[0]
        return (
            Branch("dataset", repository, revision)
            if part.source.startswith("hub:") and revision
            else None
        )
    model = getattr(part, "model", "")
    if (
        "revision" not in type(part).model_fields
        or getattr(part, "base_url", None)
        or not _is_on_hub(model)
    ):
        return None
    return Branch("model", model, revision or _MAIN)


def _is_on_hub(model: str) -> bool:
    """Whether a model's name is OWNER/NAME, and no folder's."""
    return model.count("/") == 1 and model[0] not in "/.~" and not os.path.exists(model)
