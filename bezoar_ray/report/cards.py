"""Model and dataset cards: Markdown, with the front matter that the hub reads."""

import re
from collections.abc import Iterator

import yaml
from markupsafe import Markup

from bezoar_ray import layout
from bezoar_ray.data.attribute_line import attribute_line
from bezoar_ray.data.schema import ATTRIBUTES
from bezoar_ray.licenses import YES, sources_in_use
from bezoar_ray.recipe import Align, SourceSection, Steer
from bezoar_ray.report.content import Content
from bezoar_ray.report.page import environment
from bezoar_ray.stages import BASE, checkpoint_of, stage_of, trained_checkpoint_names
from bezoar_ray.store import Store

_METHODS = {
    "dpo": "direct preference optimization (DPO, arXiv 2305.18290)",
    "kto": "KTO (arXiv 2402.01306)",
    "orpo": "ORPO (arXiv 2403.07691)",
    "asft": "Aligned SFT (ASFT, arXiv 2409.10571)",
}
_POLICY_GRADIENTS = {
    "gae": "PPO (arXiv 1707.06347)",
    "rloo": "RLOO (arXiv 2402.14740)",
    "grpo": "GRPO (arXiv 2402.03300)",
}
# The hub's categories of data set size: each with its limit in rows, left out of it.
_SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (float("inf"), "1M<n<10M"),
)


def write_cards(content: Content, store: Store) -> list[str]:
    """Write a card for each trained checkpoint.

    Two more are written if there are rows: on the rows, and on all training content.

    Returns:
        The names of the files.
    """
    cards = {}
    for name in trained_checkpoint_names():
        if name not in content.checkpoints:
            continue
        if checkpoint_of(name).is_reward_model:
            cards[name] = reward_model_card(content, name)
        else:
            cards[name] = model_card(content, name)
    if content.schemes:
        cards["dataset"] = dataset_card(content)
        cards["training-content"] = training_content(content)
    for name, text in cards.items():
        store.replace(layout.card(name), text)
    return [layout.card(name) for name in cards]


def model_card(content: Content, name: str) -> str:
    """Render one checkpoint's card: training, results, warnings and license."""
    recipe = content.recipe
    front: dict[str, object] = {
        "language": "en",
        "base_model": recipe.base.model,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["bezoar-ray", name, "synthetic-data"],
    }
    method = _describe_method(recipe.align)
    goal = recipe.align.goal if name == recipe.align.method else None
    stage = stage_of(name).name
    sources: list[SourceSection] = []
    if name != "sft":
        sources.extend(recipe.seeds.hh_rlhf)
    # A method that uses the reward model learned from its data, too.
    if "rm" in recipe.stages_before(stage):
        sources += [*recipe.seeds.helpsteer, *recipe.seeds.preferences]
    hub_datasets = _hub_datasets(*sources)
    if hub_datasets:
        front["datasets"] = hub_datasets
    section = recipe.training(stage)
    return _render(
        "model_card.md",
        front | _license(content) | _model_index(content, name),
        content,
        name=name,
        trained=checkpoint_of(name).trained.format(method=method),
        section=section,
        system=attribute_line(goal) if goal else "",
        # align continues hh-sft's adapter.
        lora=getattr(section, "lora", recipe.hh_sft.lora),
    )


def _describe_method(align: Align) -> str | None:
    """Name the method of align, with its paper; None where it has none."""
    if align.steer and align.method == "steer":
        return _describe_steer(align.steer)
    if align.method in _METHODS:
        return f"{_METHODS[align.method]} on the same pairs"
    if align.method != "ppo":
        return None
    name = _POLICY_GRADIENTS[align.ppo.advantage]
    if align.ppo.reset:
        resets = "with the resets of DR-PO (arXiv 2404.08495)"
        return f"{name} {resets} by the score of `rm`, on the same pairs"
    return f"{name} by the score of `rm`, on the same pairs"


def _describe_steer(steer: Steer) -> str:
    rated = "SteerLM (arXiv 2310.05344) on rated answers"
    if not steer.iterations:
        return rated
    noun = "round" if steer.iterations == 1 else "rounds"
    return (
        f"{rated} and {steer.iterations} {noun} of SteerLM 2.0 (arXiv 2406.08673) on "
        "its own answers to the prompts of HH-RLHF, rated by `rm`"
    )


def reward_model_card(content: Content, name: str) -> str:
    """Render the card of a reward model: use, training, results and license."""
    recipe = content.recipe
    section = recipe.rm
    assert section  # the checkpoint exists
    front: dict[str, object] = {
        "language": "en",
        "base_model": recipe.base.model,
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["bezoar-ray", "reward-model"],
    }
    hub_datasets = _hub_datasets(*recipe.seeds.helpsteer, *recipe.seeds.preferences)
    if hub_datasets:
        front["datasets"] = hub_datasets
    return _render(
        "reward_model_card.md",
        front | _license(content) | _model_index(content, name),
        content,
        name=name,
        attributes=ATTRIBUTES,
        trained=checkpoint_of(name).trained,
        section=section,
        lora=section.lora,
    )


def _hub_datasets(*sources: SourceSection) -> list[str]:
    """Return the names of the data sets on the hub, without repetitions."""
    names = []
    for source in sources:
        if source.source.startswith("hub:"):
            names.append(source.source.removeprefix("hub:").partition(":")[0])
    return list(dict.fromkeys(names))


def dataset_card(content: Content) -> str:
    """Render the card of the accepted rows: origin, selection and license."""
    rows = sum(scheme.accepted for scheme in content.schemes)
    size = next(name for limit, name in _SIZES if rows < limit)
    front: dict[str, object] = {
        "language": "en",
        "task_categories": ["text-generation"],
        "tags": ["bezoar-ray", "synthetic"],
        "size_categories": [size],
    }
    return _render("dataset_card.md", front | _license(content), content, rows=rows)


def training_content(content: Content) -> str:
    """Render the summary of training content, in the form of the EU's template.

    Template of the AI Office for Article 53(1)(d) of Regulation (EU) 2024/1689, July
    2025.
    """
    recipe = content.recipe
    sources = []
    for kind, of_kind in sources_in_use(recipe):
        sources += [(kind, source) for source in of_kind]
    rows = sum(scheme.accepted for scheme in content.schemes)
    tokens = 0
    for name, part in content.train.items():
        if part.get("rows"):
            section = recipe.training(stage_of(name).name)
            tokens += part["rows"] * section.max_length
    text = (
        environment()
        .get_template("training_content.md")
        .render(
            content=content,
            recipe=recipe,
            sources=sources,
            rows=rows,
            tokens=tokens,
            checkpoints=[name for name in content.checkpoints if name != BASE],
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text) + "\n"


def _model_index(content: Content, name: str) -> dict[str, object]:
    """Return the front matter's evaluation results of one model; empty without any.

    The format is the hub's: https://huggingface.co/docs/hub/model-cards.
    """
    results = []
    for benchmark, metric, value in _results(content, name):
        dataset = {
            # The hub allows no blanks and commas here.
            "type": re.sub(r"[^A-Za-z0-9_./-]+", "-", benchmark).strip("-"),
            "name": benchmark,
        }
        entry = {
            "task": {"type": "text-generation"},
            "dataset": dataset,
            "metrics": [{"type": metric, "value": value}],
        }
        results.append(entry)
    if not results:
        return {}
    model = {"name": f"{content.recipe.name}-{name}", "results": results}
    return {"model-index": [model]}


def _results(content: Content, name: str) -> Iterator[tuple[str, str, float]]:
    """Yield benchmark, metric and value of all results of one model."""
    table = content.harness
    for row in (*table.rows, *table.others, *(bias.scores for bias in table.bias)):
        if name in row.scores:
            yield row.task, row.metric, round(row.scores[name].value, 4)
    scores = content.mt_bench.get(name, {})
    if scores.get("score") is not None:
        yield content.bench_name, "score", round(scores["score"], 4)
    for section in content.reward_bench.rows:
        if name in section.scores:
            benchmark = f"{section.title} {section.section}"
            yield benchmark, "accuracy", round(section.scores[name].value, 4)


def _license(content: Content) -> dict[str, object]:
    """Return the front matter's license.

    It is Apache-2.0 if every part is permissive. Otherwise it refers to the card's own
    section on licenses.
    """
    if content.commercial_use["verdict"] == YES:
        return {"license": "apache-2.0"}
    return {"license": "other", "license_name": "see-the-section-on-licenses"}


def _render(
    template: str, front: dict[str, object], content: Content, **values: object
) -> str:
    # The front matter is YAML, which the templates' HTML escapes would break.
    head = Markup(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))
    return (
        environment()
        .get_template(template)
        .render(front=head, content=content, recipe=content.recipe, **values)
    )
