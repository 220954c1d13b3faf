"""What a user finds in report.html and in the cards."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest
import yaml

from bezoar_ray.data.schema import Sample, Verdict, row_id
from bezoar_ray.recipe import Recipe, Rm, load_recipe
from bezoar_ray.report.cards import write_cards
from bezoar_ray.report.content import choose, gather
from bezoar_ray.report.page import render
from bezoar_ray.report.report_stage import run
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.schemes import SCHEMES
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.end_to_end import CHECKPOINTS, TRAINED
from tests.rows_on_disk import write_samples

ATTACK = "<script>document.title = 'owned'</script>"
GATES = ("judge", "duplicate", "truncated: 160 tokens")


@pytest.fixture
def recipe() -> Recipe:
    """The tiny recipe, with two harness tasks."""
    tasks = (
        "[{task: tiny_facts, metric: acc}, {task: tiny_answers, metric: exact_match}]"
    )
    return load_recipe("tiny", [f"evaluate.harness.tasks={tasks}"])


@pytest.fixture
def context(tmp_path, recipe) -> StageContext:
    """A finished run: 12 accepted and 15 rejected rows of each scheme, all checkpoints, all results."""
    store = Store(tmp_path / "run")
    for scheme in SCHEMES:
        write_samples(
            store,
            scheme,
            "accepted",
            [sample(scheme, number, "accepted", "") for number in range(12)],
        )
        write_samples(
            store,
            scheme,
            "rejected",
            [sample(scheme, n, "rejected", GATES[n % 3]) for n in range(15)],
        )
    for name in CHECKPOINTS:
        store.replace_json(
            f"checkpoints/{name}/lineage.json", {"name": name, "fingerprint": "f"}
        )
    for stage in ("generate", "filter", "sft", "hh-sft", "align", "evaluate"):
        store.replace_json(
            f"manifests/{stage}.json",
            {"fingerprint": "f", "seconds": 61.0, "files": [], "summary": {}},
        )
    store.replace_json("summary.json", summary())
    return StageContext(recipe, store, "session", Progress())


def sample(scheme: str, number: int, status: str, reason: str) -> Sample:
    """One row, with a judge's verdict."""
    found = Sample(
        id=row_id(scheme, status, number),
        scheme=scheme,
        operation="deepen",
        instruction=f"Task {number} of {scheme}",
        response=f"Answer {number} {status}",
        finish_reason="stop",
        seed_ids=["s"],
        seed_sources=["tiny"],
        seed_licenses=["Apache-2.0 (embedded)"],
        teacher="tiny-teacher",
        teacher_license="Apache-2.0",
        verdicts=[
            Verdict(
                "tiny-judge",
                status,
                5.0 if status == "accepted" else 2.0,
                f"because of {number}",
            )
        ],
    )
    return replace(found, status=status, reason=reason)


def summary() -> dict:
    """summary.json as the contract has it."""
    counts = {
        "seeds": 40,
        "seeds_failed": 1,
        "generated": 29,
        "accepted": 12,
        "rejected": 15,
        "failed": 2,
        "reasons": {"judge": 5, "duplicate": 5, "truncated": 5, "missing": 2},
    }
    calls = {
        "attempts": 705,
        "sent": 700,
        "from_ledger": 3,
        "tokens_in": 1234,
        "tokens_out": 567,
        "usd": 1.25,
        "by_model": {"tiny-teacher": {}},
        "last_run": {"sent": 700},
    }
    return {
        "run": {
            "recipe": "tiny",
            "status": "running",
            "seconds": 512.3,
            "versions": {"python": "3.11.9"},
            "hardware": {"cores": 2, "memory_gib": 8.0},
            "git": "abc123",
        },
        "stages": {},
        "data": dict.fromkeys(SCHEMES, counts),
        "judge": {
            "tiny-judge": {
                "rated": 51,
                "unrated": 0,
                "known": 50,
                "precision": 0.96,
                "recall": 0.875,
            }
        },
        "calls": {
            "teacher": calls,
            "candidate": {"attempts": 0, "sent": 0, "usd": 0.0},
        },
        "train": {"base": {"heldout_accuracy": 0.515}}
        | {
            name: {
                "rows": 36,
                "left_out": 0,
                "steps": 9,
                "loss_first": 3.1,
                "loss_last": 1.2,
                "tokens_per_s": 5000.0,
                "of_peak": 0.412,
                "time_shares": {
                    "data": 0.02,
                    "passes": 0.9,
                    "optimiser": 0.05,
                    "checkpoints": 0.03,
                },
                "passes": {
                    "layout": "padded",
                    "size": "16,384 tokens",
                    "gradient_checkpointing": True,
                    "compiled": False,
                    "because": ["rows are padded: falcon does not run flat"],
                },
                "heldout_accuracy": 0.5,
                "by_step": [
                    {
                        "step": n,
                        "loss": 3 - n / 5,
                        "dataset": "lamini" if n < 5 else "orca",
                    }
                    for n in range(1, 10)
                ],
            }
            for name in TRAINED
        },
        "eval": {
            "harness": {
                name: {
                    "tiny_facts": {"acc": {"value": 0.3 + place / 10, "stderr": 0.03}},
                    "tiny_answers": {
                        "exact_match": {"value": 0.1 + place / 5, "stderr": 0.04}
                    },
                }
                for place, name in enumerate(CHECKPOINTS)
            },
            "served": {
                name: "joined" if place else "base"
                for place, name in enumerate(CHECKPOINTS)
            },
            "mt_bench": {
                name: {
                    "score": 2.0 + place,
                    "ci95": [1.5 + place, 2.5 + place],
                    "scored": 31,
                    "unscored": 1,
                    "bias": {
                        "flip_rate": 0.129,
                        "compared": 31,
                        "longer_wins": 0.68,
                        "decided": 25,
                        "by_turn": {"1": 2.5 + place, "2": 1.5 + place},
                        "judges": {},
                    },
                    "by_category": dict.fromkeys(
                        ("coding", "math", "roleplay", "writing"), 2.0 + place
                    ),
                }
                for place, name in enumerate(CHECKPOINTS)
            },
        },
    }


class Tags(HTMLParser):
    """The tags and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "href", "xlink:href", "data")
        ]

    def handle_data(self, data):
        self.text += f"{data} "


def page_of(context) -> str:
    run(context)
    return context.store.read("report.html").decode()


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", Tags(page).text)


def test_the_report_lists_its_files_and_opens_offline(context):
    outcome = run(context)
    assert outcome.files == [
        "report.html",
        "cards/sft.md",
        "cards/hh-sft.md",
        "cards/dpo.md",
        "cards/dataset.md",
        "cards/training-content.md",
    ]
    assert all(map(context.store.exists, outcome.files))
    found = Tags(context.store.read("report.html").decode())
    assert [address for address in found.addresses if not address.startswith("#")] == []
    assert not {"link", "img", "iframe", "script"} & set(found.tags)
    assert found.tags.count("svg") == 4


def test_the_same_run_gives_the_same_report(context):
    assert page_of(context) == page_of(context)


def test_the_four_checkpoints_stand_side_by_side_with_their_errors_and_mean(context):
    text = text_of(page_of(context))
    assert "tiny_facts acc 30.0 ± 3.0 40.0 ± 3.0 50.0 ± 3.0 60.0 ± 3.0" in text
    assert "mean 20.0 ± 2.5 35.0 ± 2.5 50.0 ± 2.5 65.0 ± 2.5" in text
    assert "dpo 5.00 4.50 to 5.50" in text


def test_report_and_dataset_card_show_the_groups_that_rows_mention(context):
    asked = [
        replace(
            sample("orca", 100 + number, status, ""),
            instruction=f"Tam of the {home} asks: Where is the {number}th moss?",
        )
        for number, (home, status) in enumerate(
            [("caves", "accepted")] * 6 + [("marsh", "rejected")] * 6
        )
    ]
    write_samples(context.store, "orca", "accepted", asked[:6])
    write_samples(context.store, "orca", "rejected", asked[6:])
    text = text_of(page_of(context))
    assert "home uplands 6 9.1 %" in text and "home lowlands 6 9.1 %" in text
    assert "no group 54" in text
    assert "100.0 % 61.0 to 100.0 2.00" in text  # the lowlands are all rejected
    card = context.store.read("cards/dataset.md").decode()
    assert "| home: lowlands | 6 | 9.1 %" in card
    assert "| no group | 54 |" in card


def test_report_and_card_show_how_ratings_change_with_the_group(context):
    assert "filter.counterfactuals is 0" in text_of(page_of(context))
    change = {"difference": -0.25, "difference_ci95": [-0.4, -0.1]}
    found = summary()
    found["counterfactuals"] = {
        "pairs": 120,
        "decided": 118,
        "decision_changed": 0.0339,
        "decision_changed_ci95": [0.0133, 0.084],
        "judges": {
            "tiny-judge": {"rated": 119, "changed": 0.042, "changed_ci95": None}
            | change
        },
        "groups": [
            {"category": "home", "first": "lowlands", "second": "uplands", "rated": 119}
            | change
        ],
    }
    context.store.replace_json("summary.json", found)
    text = text_of(page_of(context))
    assert "The decision changed in 3.4 % (1.3 to 8.4) of 118 pairs." in text
    assert "tiny-judge 119 4.2 % -0.25 -0.40 to -0.10" in text
    assert "home lowlands uplands 119 -0.25 -0.40 to -0.10" in text
    card = context.store.read("cards/dataset.md").decode()
    assert "rated 120 rows a second time" in card and "(-0.40 to -0.10)" in card


def test_social_bias_of_the_checkpoints_stands_in_its_own_section(context, recipe):
    task = recipe.evaluate.harness.tasks[0].model_dump()
    task |= {"bias": [{"metric": "acc", "ideal": 0.5, "meaning": "likelier"}]}
    tasks = [task, recipe.evaluate.harness.tasks[1].model_dump()]
    context = replace(
        context,
        recipe=load_recipe(
            "tiny", [f"evaluate.harness.tasks={orjson.dumps(tasks).decode()}"]
        ),
    )
    text = text_of(page_of(context))
    assert "tiny_facts acc 0.5 likelier 0.300 ± 0.030 0.400 ± 0.030 +0.100" in text
    assert "+0.100 (+0.017 to +0.183)" in text
    assert "tiny_facts acc 30.0" not in text  # the table of the mean
    assert "mean 10.0 ± 4.0" in text
    card = context.store.read("cards/dpo.md").decode()
    assert "| tiny_facts | acc | 0.5 | likelier | 0.300 | 0.400 (+0.100, +0.017" in card


def test_the_share_of_held_out_pairs_stands_with_its_interval_where_there_is_one(
    context,
):
    assert "50.0 % –" in text_of(page_of(context))  # of an earlier version
    found = summary()
    found["train"]["dpo"] |= {
        "heldout_accuracy": 0.81,
        "heldout_ci95": [0.7222, 0.8749],
    }
    context.store.replace_json("summary.json", found)
    text, card = text_of(page_of(context)), context.store.read("cards/dpo.md").decode()
    assert "81.0 % 72.2 to 87.5" in text
    assert "is the likelier one in 81.0 % (95 % interval 72.2 to 87.5) of" in card
    assert (
        "is the likelier one in 50.0 % of"
        in context.store.read("cards/sft.md").decode()
    )


def reward_bench(place: int) -> dict:
    """One model's results of RewardBench 1, as summary.json has them."""
    score = 0.5 + place / 10
    part = {"score": score, "ci95": [score - 0.05, score + 0.05], "items": 358}
    sections = dict.fromkeys(("Chat", "Chat Hard", "Safety", "Reasoning"), part)
    return {"overall": score, "sections": sections, "subsets": {}, "left_out": place}


def with_reward_bench(context) -> dict:
    found = summary()
    found["eval"]["reward_bench"] = {
        "weights": {"helpfulness": 0.5, "verbosity": -0.25},
        "one": reward_bench(4),
        "implicit": {
            "sft": {"one": reward_bench(0)},
            "dpo": {"one": reward_bench(1)},
        },
    }
    context.store.replace_json("summary.json", found)
    return found


def test_the_reward_model_stands_beside_the_checkpoints_implicit_rewards(context):
    with_reward_bench(context)
    text = text_of(page_of(context))
    assert "Reward model Share of prompts" in text
    assert "benchmark section items rm sft dpo" in text
    row = "90.0 85.0 to 95.0 50.0 45.0 to 55.0 60.0 55.0 to 65.0"
    assert f"RewardBench 1 Chat 358 {row}" in text
    assert "RewardBench 1 overall 90.0 50.0 60.0" in text
    assert "rm left out 4 items of RewardBench 1" in text
    assert "sft left out" not in text
    card = context.store.read("cards/dpo.md").decode()
    assert "| RewardBench 1 | Chat | 358 | 90.0 (85.0 to 95.0) | 50.0 (45.0 to" in card
    assert "| RewardBench 1 | overall |  | 90.0 | 50.0 | 60.0 |" in card
    # hh-sft has no result here, and its card has no table.
    assert "RewardBench" not in context.store.read("cards/hh-sft.md").decode()


def test_the_report_says_how_the_weights_of_the_attributes_were_chosen(context):
    found = with_reward_bench(context)
    text = text_of(page_of(context))
    assert "score: helpfulness 0.5, verbosity -0.25. They are the recipe's own" in text
    found["eval"]["reward_bench"]["weights"] = dict(Rm().weights)
    context.store.replace_json("summary.json", found)
    text = text_of(page_of(context))
    assert "complexity 0.55, verbosity -0.4. HelpSteer2's authors searched" in text
    assert "on RewardBench 1 itself" in text


def test_without_a_reward_model_implicit_rewards_stand_alone(context):
    found = with_reward_bench(context)
    del found["eval"]["reward_bench"]["weights"], found["eval"]["reward_bench"]["one"]
    context.store.replace_json("summary.json", found)
    text = text_of(page_of(context))
    assert "Implicit rewards Share of prompts" in text
    assert "benchmark section items sft dpo" in text
    assert "Weights of the attributes" not in text


def test_every_score_stands_beside_its_bias_and_how_it_was_served(context):
    text, card = text_of(page_of(context)), context.store.read("cards/dpo.md").decode()
    assert "dpo 12.9 % of 31 68.0 % of 25 5.50 / 4.50" in text
    assert (
        "| dpo | 5.00 | 4.50 to 5.50 | 31 | 1 | 5.50 / 4.50 | 12.9 % | 68.0 % |" in card
    )
    assert "dpo joined" in text and "served joined" in card


def test_the_page_says_what_was_called_paid_judged_and_allowed(context):
    text = text_of(page_of(context))
    assert "teacher tiny-teacher 705 700 3 1,234 567 $1.25 700" in text
    assert "tiny-judge 51 0 – – – 50 96.0 % 87.5 %" in text
    assert "May the result be used commercially? yes" in text
    assert "python 3.11.9" in text


def test_the_page_says_how_passes_were_made_and_where_training_spent_its_time(context):
    text = text_of(page_of(context))
    assert (
        "sft padded 16,384 tokens recomputed no 41.2 % 2.0 % 90.0 % 5.0 % 3.0 %" in text
    )
    assert "sft: rows are padded: falcon does not run flat." in text


def test_ten_samples_of_each_end_are_shown_with_the_judges_reasons(context):
    text = text_of(page_of(context))
    assert text.count(": 10 accepted") == text.count(": 10 rejected") == 3
    assert "tiny-judge rejected 2.0 because of" in text


def test_rejected_samples_come_from_every_gate_in_turn():
    rows = [sample("orca", number, "rejected", "judge") for number in range(50)]
    rows.append(sample("orca", 99, "rejected", "empty"))
    shown = choose(rows, 3)
    assert sorted(row.reason for row in shown) == ["empty", "judge", "judge"]
    assert choose(list(reversed(rows)), 3) == shown


def test_text_from_models_and_data_is_shown_and_does_nothing(context):
    clean = page_of(context)
    bad = replace(
        sample("lamini", 0, "accepted", ""),
        instruction=ATTACK,
        response=f"{ATTACK} $x^2$ ]]> <!--",
        system=ATTACK,
    )
    write_samples(context.store, "lamini", "accepted", [bad])
    found = summary()
    found["data"]["orca"] = found["data"]["orca"] | {
        "reasons": {ATTACK: 3, "$\\frac": 1}
    }
    found["eval"]["mt_bench"]["sft"]["by_category"] |= {ATTACK: 3.0}
    found["run"]["versions"] = {ATTACK: ATTACK}
    context.store.replace_json("summary.json", found)
    page = page_of(context)
    assert ATTACK not in page
    assert Tags(page).text.count(ATTACK) >= 5
    assert "script" not in Tags(page).tags
    assert Tags(page).tags.count("svg") == Tags(clean).tags.count("svg")
    assert "default-src 'none'" in page


def test_a_failed_run_says_what_is_missing_and_which_gate_took_the_rows(
    tmp_path, context
):
    store = Store(tmp_path / "failed")
    rows = [
        sample("lamini", n, "rejected", "judge" if n else "truncated: 160 tokens")
        for n in range(20)
    ]
    write_samples(store, "lamini", "generated", rows)
    write_samples(store, "lamini", "rejected", rows)
    store.replace_json(
        "manifests/generate.json",
        {"fingerprint": "f", "seconds": 9.0, "files": [], "summary": {}},
    )
    failed = {
        "run": {"status": "failed", "error": "no row was accepted"},
        "calls": {},
        "stages": {"filter": {"status": "failed", "seconds": 3.0}},
    }
    store.replace_json("summary.json", failed)
    outcome = run(replace(context, store=store))
    text = text_of(store.read("report.html").decode())
    assert outcome.files == [
        "report.html",
        "cards/dataset.md",
        "cards/training-content.md",
    ]
    for said in (
        "This run failed.",
        "filter: failed",
        "sft: not run",
        "no row was accepted",
        "Nothing was trained",
        "none of 20 rows was accepted. Reasons: judge 19, truncated 1",
        "No checkpoint was evaluated",
    ):
        assert said in text


def test_an_empty_run_directory_still_gives_a_report(tmp_path, context):
    store = Store(tmp_path / "empty")
    assert run(replace(context, store=store)).files == ["report.html"]
    assert "No row was generated" in store.read("report.html").decode()


@pytest.mark.parametrize("name", ["openbezoar-3b", "modern"])
def test_the_big_recipes_report_names_the_obligations(context, name):
    page = page_of(replace(context, recipe=load_recipe(name)))
    assert "share-alike" in text_of(page)
    assert "with obligations" in text_of(page)


def test_cards_carry_front_matter_results_and_hh_rlhfs_warning(context):
    run(replace(context, recipe=load_recipe("openbezoar-3b")))
    cards = {
        name: context.store.read(f"cards/{name}.md").decode()
        for name in ("sft", "hh-sft", "dpo", "dataset")
    }
    front = {
        name: yaml.safe_load(text.split("---\n")[1]) for name, text in cards.items()
    }
    assert front["dpo"]["base_model"] == "openlm-research/open_llama_3b_v2"
    assert front["dpo"]["datasets"] == ["Anthropic/hh-rlhf"]
    assert front["dataset"]["license"] == "other"
    assert (
        "datasets/Anthropic/hh-rlhf" in cards["dpo"]
        and "datasets/Anthropic/hh-rlhf" in cards["hh-sft"]
    )
    assert "A warning" not in cards["sft"]
    assert "| dpo | 5.00 | 4.50 to 5.50 | 31 | 1 |" in cards["dpo"]
    assert "| tiny | Apache-2.0 (embedded) | 36 |" in cards["dataset"]


def test_huggingface_hub_reads_the_cards_with_their_results(context):
    from huggingface_hub import DatasetCard, ModelCard

    found = with_reward_bench(context)
    found["eval"]["mt_bench"]["dpo"]["score"] = 4.25
    context.store.replace_json("summary.json", found)
    run(context)
    card = ModelCard(context.store.read("cards/dpo.md").decode())
    assert card.data.model_name == "tiny-dpo"
    assert card.data.base_model == "tiny-base" and card.data.license == "apache-2.0"
    results = {
        (entry.dataset_name, entry.metric_type): entry.metric_value
        for entry in card.data.eval_results
    }
    assert results["tiny_facts", "acc"] == 0.6
    assert results["tiny_answers", "exact_match"] == 0.7
    assert results["RewardBench 1 overall", "accuracy"] == 0.6
    assert 4.25 in results.values()
    assert all(" " not in entry.dataset_type for entry in card.data.eval_results)
    dataset = DatasetCard(context.store.read("cards/dataset.md").decode())
    assert dataset.data.size_categories == ["n<1K"]


def test_a_checkpoint_without_results_has_no_model_index(context):
    from huggingface_hub import ModelCard

    context.store.replace_json("summary.json", summary() | {"eval": {}})
    run(context)
    card = ModelCard(context.store.read("cards/dpo.md").decode())
    assert card.data.eval_results is None
    assert "This checkpoint was not evaluated." in card.text


def headings(text: str) -> list[str]:
    code_free = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.+)$", code_free, re.MULTILINE)


@pytest.mark.parametrize(
    ("card", "template"),
    [("dpo", "modelcard_template.md"), ("dataset", "datasetcard_template.md")],
)
def test_cards_have_the_sections_of_the_hubs_template_in_its_order(
    context, card, template
):
    import huggingface_hub

    run(context)
    ours = headings(context.store.read(f"cards/{card}.md").decode())
    folder = Path(huggingface_hub.__file__).parent / "templates"
    theirs = headings((folder / template).read_text())
    shared = [title for title in ours if title in theirs]
    assert shared == [title for title in theirs if title in shared]
    needed = {
        "Uses",
        "Direct Use",
        "Out-of-Scope Use",
        "Bias, Risks, and Limitations",
        "Recommendations",
    }
    assert needed <= set(shared)


def test_the_summary_of_training_content_follows_the_eus_template(context):
    run(context)
    text = context.store.read("cards/training-content.md").decode()
    assert headings(text)[1:] == [
        "1. General information",
        "1.1 Provider",
        "1.2 Model",
        "1.3 Modalities, size and characteristics of the training data",
        "2. Data sources",
        "2.1 Publicly available datasets",
        "2.2 Private datasets obtained from third parties",
        "2.3 Data crawled and scraped from online sources",
        "2.4 User data",
        "2.5 Synthetic data",
        "2.6 Other sources",
        "3. Data processing",
        "3.1 Respect of reservations of rights from the exception for text and data mining",
        "3.2 Removal of illegal content",
        "3.3 Other information",
    ]
    assert "36 accepted synthetic rows" in text
    assert "- tiny-teacher (license Apache-2.0; run by the provider)" in text
    assert "| tiny | Apache-2.0 (embedded) | 36 |" in text
    assert text.count("- the embedded world of bezoar_ray") == 3
    assert "less than 1 billion tokens" in text


def test_the_summary_of_training_content_names_public_sets_and_files(context, tmp_path):
    file = tmp_path / "mine.jsonl"
    settings = [f"sft.data={{mine: {{source: {file}, license: MIT}}}}"]
    run(replace(context, recipe=load_recipe("openbezoar-3b", settings)))
    text = context.store.read("cards/training-content.md").decode()
    public = text[text.index("### 2.1") : text.index("### 2.2")]
    assert "- Anthropic/hh-rlhf (Hugging Face hub, revision " in public
    assert "license CC-BY-SA-3.0" in public
    private = text[text.index("### 2.2") : text.index("### 2.3")]
    assert f"- {file}, custom rows, license MIT. **The run cannot tell" in private
    assert "None." in text[text.index("### 2.6") : text.index("## 3.")]


def test_the_card_of_a_permissive_run_is_apache(context):
    run(context)
    card = context.store.read("cards/sft.md").decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "apache-2.0"
    assert (
        "| tiny_facts | acc | 30.0 ± 3.0 | 40.0 ± 3.0 | 50.0 ± 3.0 | 60.0 ± 3.0 |"
        in card
    )
    assert "| **mean** | | 20.0 | 35.0 | 50.0 | 65.0 |" in card


def test_the_mean_is_left_out_for_a_checkpoint_that_lacks_a_task(context):
    found = summary()
    del found["eval"]["harness"]["dpo"]["tiny_facts"]
    context.store.replace_json("summary.json", found)
    table = gather(context.recipe, context.store).harness
    assert list(table.mean) == ["base", "sft", "hh-sft"]


def with_metric(context, task: str, metric: str, values: list[float], **more) -> None:
    """The finished run, where each checkpoint has another value of one metric."""
    found = context.store.read_json("summary.json")
    for name, value in zip(CHECKPOINTS, values, strict=True):
        found["eval"]["harness"][name][task][metric] = {
            "value": value,
            "stderr": 0.01,
            **more,
        }
    context.store.replace_json("summary.json", found)


def test_what_is_no_share_stands_apart_and_enters_no_mean(context):
    with_metric(context, "tiny_answers", "exact_match", [12.5] * 4)
    text = text_of(page_of(context))
    assert "tiny_answers exact_match higher is better 12.500 ± 0.010 12.500" in text
    assert "mean 30.0 ± 3.0 40.0" in text
    card = context.store.read("cards/dpo.md").decode()
    assert (
        "tiny_answers, exact_match (higher is better): base 12.500, sft 12.500" in card
    )


BITS = [0.9, 0.7, 0.6, 0.8]  # between 0 and 1, as accuracies are


@pytest.mark.parametrize(
    "direction", [{"higher_is_better": False}, {}]
)  # by its name in an earlier version's summary
def test_the_lowest_is_the_best_of_what_is_better_the_lower_and_enters_no_mean(
    context, direction
):
    recipe = load_recipe(
        "tiny",
        [
            "evaluate.harness.tasks=[{task: tiny_facts}, {task: wiki, metric: bits_per_byte}]"
        ],
    )
    found = summary()
    for name in CHECKPOINTS:
        found["eval"]["harness"][name]["wiki"] = {}
    context.store.replace_json("summary.json", found)
    with_metric(context, "wiki", "bits_per_byte", BITS, **direction)
    table = gather(recipe, context.store).harness
    assert [row.task for row in table.rows] == ["tiny_facts"]
    assert table.mean["base"].value == pytest.approx(0.3)
    assert [(row.task, row.direction, row.best) for row in table.others] == [
        ("wiki", "lower is better", 0.6)
    ]
    page = page_of(replace(context, recipe=recipe))
    assert (
        '<span class="best">0.600</span>' in page
        and '<span class="best">0.900</span>' not in page
    )
    assert (
        "wiki, bits_per_byte (lower is better): base 0.900"
        in context.store.read("cards/dpo.md").decode()
    )


def test_further_metrics_of_a_task_are_shown_and_enter_no_mean(context):
    with_metric(
        context, "tiny_facts", "acc_norm", [0.1, 0.2, 0.4, 0.3], higher_is_better=True
    )
    page = page_of(context)
    assert "tiny_facts acc_norm higher is better 0.100 ± 0.010" in text_of(page)
    assert '<span class="best">0.400</span>' in page
    assert "mean 20.0 ± 2.5 35.0 ± 2.5 50.0 ± 2.5 65.0 ± 2.5" in text_of(page)


def test_where_lm_eval_knows_no_direction_none_is_best_and_none_enters_the_mean(
    context,
):
    with_metric(context, "tiny_answers", "exact_match", BITS, higher_is_better=None)
    page = page_of(context)
    assert "tiny_answers exact_match direction unknown 0.900" in text_of(page)
    assert not re.search(r'class="best">0\.\d{3}<', page)
    assert "mean 30.0 ± 3.0 40.0" in text_of(page)


def test_a_checkpoint_below_its_base_is_warned_of_where_its_results_stand(
    context, capsys
):
    summary = context.store.read_json("summary.json")
    for metrics in summary["eval"]["harness"]["dpo"].values():
        for metric in metrics.values():
            metric["value"] = 0.02
    summary["eval"]["mt_bench"]["sft"]["versus_base"] = {
        "difference": -1.25,
        "ci95": [-2.0, -0.5],
    }
    summary["eval"]["mt_bench"]["dpo"]["versus_base"] = {
        "difference": -0.2,
        "ci95": [-0.9, 0.5],
    }  # within its errors
    context.store.replace_json("summary.json", summary)
    outcome = run(context)
    harness, mt_bench = outcome.summary["warnings"]
    assert (
        harness.startswith("dpo is below base in the harness: ")
        and "the mean of base 20.0 %" in harness
    )
    assert mt_bench == "sft is below base in MT-Bench, by 1.25"
    printed = capsys.readouterr().out
    assert f"warning: {harness}" in printed and f"warning: {mt_bench}" in printed
    card, page = (
        context.store.read("cards/dpo.md").decode(),
        text_of(context.store.read("report.html").decode()),
    )
    for warning in (harness, mt_bench):
        assert f"**Warning: {warning}.**" in card and warning in page


def test_results_that_are_better_or_within_the_error_bars_warn_of_nothing(context):
    assert run(context).summary["warnings"] == []
    summary = context.store.read_json("summary.json")
    for metrics in summary["eval"]["harness"]["sft"].values():
        for metric in metrics.values():
            metric["value"] = 0.15
    context.store.replace_json("summary.json", summary)
    assert (
        run(context).summary["warnings"] == []
    )  # base has 20 %, each with errors of 3 to 4 %


@pytest.mark.parametrize(
    ("ids", "questions", "name"),
    [
        (range(81, 161), "question.jsonl", "MT-Bench"),
        (range(81, 91), "question.jsonl", "MT-Bench (10 of its 80 questions)"),
        (range(1, 17), "tiny", "embedded questions (16, in MT-Bench's form)"),
        (["a", "b"], "lists/mine.jsonl", "mine.jsonl (2, in MT-Bench's form)"),
    ],
)
def test_only_mt_benchs_own_questions_are_called_so(context, ids, questions, name):
    lines = b"".join(orjson.dumps({"question_id": id}) + b"\n" for id in ids)
    context.store.replace("eval/mt_bench/question.jsonl", lines)
    recipe = load_recipe("tiny", [f"evaluate.mt_bench.questions={questions}"])
    content = gather(recipe, context.store)
    write_cards(content, context.store)
    for text in (text_of(render(content)), context.store.read("cards/dpo.md").decode()):
        assert name.replace("'", "&#39;") in text or name in text
        assert "cannot be compared with published ones" in " ".join(text.split())


def test_scores_by_fastchats_prompts_and_without_disputed_questions_are_shown_as_such(
    context,
):
    summary = context.store.read_json("summary.json")
    for part in summary["eval"]["mt_bench"].values():
        part |= {
            "prompts": "FastChat's",
            "without_skipped": {"score": 6.54, "ci95": [6.1, 7.0]},
        }
    context.store.replace_json("summary.json", summary)
    content = gather(
        load_recipe("tiny", ["evaluate.mt_bench.references_skip=[104, 105]"]),
        context.store,
    )
    write_cards(content, context.store)
    for text in (text_of(render(content)), context.store.read("cards/dpo.md").decode()):
        said = " ".join(text.split()).replace("&#39;", "'")
        assert (
            "The judge's prompts are FastChat's: the scores can be compared with published ones"
            in said
        )
        assert "of 2 questions are disputed (104, 105)" in said and "6.54" in said


@pytest.mark.parametrize(
    ("ids", "can"), [(range(81, 161), True), (range(81, 91), False), (["a"], False)]
)
def test_only_grades_of_all_of_mt_benchs_questions_are_called_comparable(
    context, ids, can
):
    lines = b"".join(orjson.dumps({"question_id": id}) + b"\n" for id in ids)
    context.store.replace("eval/mt_bench/question.jsonl", lines)
    summary = context.store.read_json("summary.json")
    for part in summary["eval"]["mt_bench"].values():
        part["prompts"] = "FastChat's"
    context.store.replace_json("summary.json", summary)
    content = gather(
        load_recipe("tiny", ["evaluate.mt_bench.questions=mine.jsonl"]), context.store
    )
    assert (
        f"are FastChat's: the scores {'can' if can else 'cannot'} be compared"
        in content.judge_prompts
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "PPO (arXiv 1707.06347) with the resets of DR-PO (arXiv 2404.08495)"),
        (["align.ppo.reset=0"], "PPO (arXiv 1707.06347) by the score of `rm`"),
        (
            ["align.ppo.reset=0", "align.ppo.advantage=rloo", "align.ppo.group=4"],
            "RLOO (arXiv 2402.14740) by the score of `rm`",
        ),
    ],
)
def test_the_card_of_ppo_names_its_estimator_and_the_reward_models_data(
    tmp_path, settings, expected
):
    ratings = "seeds.helpsteer=[{source: hub:some/ratings}]"
    recipe = load_recipe("tiny-rm", ["align.method=ppo", ratings, *settings])
    store = Store(tmp_path)
    store.replace_json("checkpoints/ppo/lineage.json", {"fingerprint": "0" * 16})
    write_cards(gather(recipe, store), store)
    card = store.read("cards/ppo.md").decode()
    assert expected in card and "some/ratings" in card
