"""Model and dataset cards in Markdown, with the front matter that model hubs read."""

import yaml
from markupsafe import Markup

from bezoar_ray import layout
from bezoar_ray.licenses import YES
from bezoar_ray.report.content import Content
from bezoar_ray.report.page import environment
from bezoar_ray.stages import checkpoint_names, checkpoint_of, stage_of
from bezoar_ray.store import Store

_METHODS = {
    "dpo": "direct preference optimisation (DPO, arXiv 2305.18290)",
    "kto": "KTO (arXiv 2402.01306)",
    "orpo": "ORPO (arXiv 2403.07691)",
    "asft": "Aligned SFT (ASFT, arXiv 2409.10571)",
}


def write_cards(content: Content, store: Store) -> list[str]:
    """A card for the data set, where there are rows, and for each trained checkpoint; the names of the files."""
    cards = {
        name: model_card(content, name)
        for name in checkpoint_names()[1:]
        if name in content.checkpoints
    }
    if content.schemes:
        cards["dataset"] = dataset_card(content)
    for name, text in cards.items():
        store.replace(layout.card(name), text)
    return [layout.card(name) for name in cards]


def model_card(content: Content, name: str) -> str:
    """The card of one checkpoint: how it was made, what it scores, what it must not be taken for."""
    recipe = content.recipe
    pairs = recipe.seeds.hh_rlhf if name != "sft" else ()
    data = [
        part.source.removeprefix("hub:")
        for part in pairs
        if part.source.startswith("hub:")
    ]
    front: dict[str, object] = {
        "language": "en",
        "base_model": recipe.base.model,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bezoar-ray", name, "synthetic-data"],
        **({"datasets": data} if data else {}),
        **_license(content),
    }
    part = recipe.training(stage_of(name).name)
    lora = recipe.sft.lora if name == "sft" else recipe.hh_sft.lora
    trained = checkpoint_of(name).trained.format(
        method=_METHODS.get(recipe.align.method)
    )
    return _render(
        "model_card.md",
        front,
        content,
        name=name,
        trained=trained,
        part=part,
        lora=lora,
    )


def dataset_card(content: Content) -> str:
    """The card of the accepted rows: where they come from, how they were chosen, what they are licensed under."""
    rows = sum(scheme.accepted for scheme in content.schemes)
    front: dict[str, object] = {
        "language": "en",
        "task_categories": ["text-generation"],
        "tags": ["bezoar-ray", "synthetic"],
        "size_categories": [next(name for limit, name in _SIZES if rows < limit)],
        **_license(content),
    }
    return _render("dataset_card.md", front, content, rows=rows)


_SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (float("inf"), "1M<n<10M"),
)


def _license(content: Content) -> dict[str, str]:
    """Where every part is permissive, Apache-2.0 is what they have in common; else the card's own words count."""
    if content.commercial_use["verdict"] == YES:
        return {"license": "apache-2.0"}
    return {"license": "other", "license_name": "see-the-section-on-licences"}


def _render(
    template: str, front: dict[str, object], content: Content, **values: object
) -> str:
    head = Markup(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))
    return (
        environment()
        .get_template(template)
        .render(front=head, content=content, recipe=content.recipe, **values)
    )
