"""lm-eval's results: which are kept, and what of them is compared."""

import json

import pytest
from transformers import AutoTokenizer

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate import harness
from bezoar_ray.evaluate.harness import ResultCache, compact
from bezoar_ray.evaluate.served_endpoint import Endpoint
from bezoar_ray.recipe import Harness, HarnessTask, load_recipe
from bezoar_ray.store import Store
from tests.train.test_tokenizer import byte_level

RESULT = {
    "results": {
        "t": {
            "alias": "t",
            "acc,none": 0.25,
            "acc_stderr,none": 0.02,
            "f1,strict": 0.5,
            "f1_stderr,strict": "N/A",
        }
    }
}


def test_all_metrics_are_taken_with_their_errors_from_results_without_directions_too():
    acc, f1 = {"value": 0.25, "stderr": 0.02}, {"value": 0.5, "stderr": None}
    assert compact(RESULT, HarnessTask(task="t")) == {"acc": acc, "f1,strict": f1}


@pytest.mark.parametrize("metric", ["f1", "f1,strict"])
def test_the_recipes_metric_has_the_name_that_the_recipe_gives_it(metric):
    assert set(compact(RESULT, HarnessTask(task="t", metric=metric))) == {"acc", metric}


def test_the_first_of_two_filters_is_the_recipes_metric_and_the_other_keeps_its_name():
    values = {
        "exact_match,strict-match": 0.1,
        "exact_match,flexible-extract": 0.3,
        "sample_len": 20,
    }
    found = compact(
        {"results": {"t": values}}, HarnessTask(task="t", metric="exact_match")
    )
    assert (
        found["exact_match"]["value"] == 0.1
        and found["exact_match,flexible-extract"]["value"] == 0.3
    )
    assert len(found) == 2


def test_directions_are_lm_evals_own_and_none_where_it_knows_none():
    directions = {"higher_is_better": {"t": {"acc": True, "f1": None}}}
    found = compact(RESULT | directions, HarnessTask(task="t"))
    assert (
        found["acc"]["higher_is_better"] is True
        and found["f1,strict"]["higher_is_better"] is None
    )
    assert (
        compact(RESULT | {"higher_is_better": {}}, HarnessTask(task="t"))["acc"][
            "higher_is_better"
        ]
        is None
    )


def test_lm_eval_says_of_a_real_task_that_lower_is_better(tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one two three"}\n{"text": "four five"}\n')
    task = {
        "task": "our_text",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(texts)}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    }
    (tmp_path / "our_text.yaml").write_text(json.dumps(task))
    result = simple_evaluate(
        model="dummy",
        tasks=["our_text"],
        task_manager=TaskManager(include_path=str(tmp_path)),
    )
    found = compact(result, HarnessTask(task="our_text", metric="bits_per_byte"))
    assert set(found) == {"bits_per_byte", "word_perplexity"}
    assert {metric["higher_is_better"] for metric in found.values()} == {False}


def test_what_is_no_number_is_none_the_first_time_and_when_it_is_read_again():
    for number in (float("inf"), float("nan"), None):
        found = {"results": {"t": {"acc,none": number, "acc_stderr,none": number}}}
        assert compact(found, HarnessTask(task="t")) == {
            "acc": {"value": None, "stderr": None}
        }


def test_an_unknown_metric_is_answered_with_the_known_ones():
    with pytest.raises(RecipeError, match="no metric 'bleu'. It has: acc, f1"):
        compact(RESULT, HarnessTask(task="t", metric="bleu"))


def test_tasks_of_both_groups_stand_once_for_each_number_of_examples():
    part = Harness(groups=("openllama", "leaderboard-v1"))
    names = [part.name_of(task) for task in part.all_tasks]
    assert len(set(names)) == len(names)
    assert {
        "truthfulqa_mc2",
        "arc_challenge, 0-shot",
        "arc_challenge, 25-shot",
        "mmlu",
    } <= set(names)
    assert not {"arc_challenge", "truthfulqa_mc2, 0-shot"} & set(names)


def test_one_task_with_two_metrics_is_refused():
    with pytest.raises(ValueError, match="t, default-shot appears twice"):
        Harness(tasks=(HarnessTask(task="t"), HarnessTask(task="t", metric="f1")))


@pytest.fixture
def task_folder(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "t.yaml").write_text("task: t")
    return folder


def found(tmp_path, folder, *, mark="a", chat=False, **settings) -> bool:
    part = Harness(include_path=str(folder), apply_chat_template=chat)
    return (
        ResultCache(part, Store(tmp_path), {"sft": mark}).get(
            "sft", HarnessTask(task="t", **settings)
        )
        is not None
    )


def test_a_result_is_found_again_for_the_same_weights_and_settings_only(
    tmp_path, task_folder
):
    part = Harness(include_path=str(task_folder))
    ResultCache(part, Store(tmp_path), {"sft": "a"}).put(
        "sft", HarnessTask(task="t"), RESULT
    )
    assert found(tmp_path, task_folder)
    assert found(tmp_path, task_folder, metric="f1")
    assert not found(tmp_path, task_folder, mark="retrained")
    assert not found(tmp_path, task_folder, limit=5)
    assert not found(tmp_path, task_folder, num_fewshot=3)
    assert not found(tmp_path, task_folder, chat=True)
    ResultCache(part, Store(tmp_path), {"sft": "a"}).put(
        "sft", HarnessTask(task="t", limit=5), RESULT
    )
    assert found(tmp_path, task_folder, limit=5) and found(
        tmp_path, task_folder
    )  # both are kept
    (task_folder / "t.yaml").write_text("task: t\nchanged: true")
    assert not found(tmp_path, task_folder)


@pytest.mark.parametrize("chat", [True, False])
def test_control_tokens_of_a_task_are_text_under_the_chat_template_alone(
    tmp_path, chat
):
    tokenizer = AutoTokenizer.from_pretrained(
        byte_level(tmp_path / "base", "PreTrainedTokenizerFast")
    )
    tokenizer.chat_template = load_recipe("tiny").template
    tokenizer.save_pretrained(tmp_path / "saved")
    settings = {"chat": chat, "concurrency": 1}
    client = harness.client(
        settings, "sft", Endpoint("http://127.0.0.1:9/v1", str(tmp_path / "saved"), 512)
    )
    prompt, answer = "<|begin|>Which?", " <|end|>"
    prompt = (
        client.apply_chat_template([{"role": "user", "content": prompt}])
        if chat
        else prompt
    )
    ids = [
        *client._encode_pair(prompt, answer)[0],
        *client._encode_pair(prompt, answer)[1],
    ]
    assert [ids.count(number) for number in tokenizer.all_special_ids] == (
        [1, 0] if chat else [1, 1]
    )
    assert tokenizer.decode(ids).endswith(
        "<|begin|>Which?\n\n### Response:\n <|end|>" if chat else "Which? <|end|>"
    )


def test_a_metric_of_bias_that_the_task_lacks_is_named():
    task = HarnessTask(task="t", bias=[{"metric": "pct_stereotipe", "ideal": 0.5}])
    with pytest.raises(RecipeError, match="t has no metric 'pct_stereotipe'.*acc, f1"):
        compact(RESULT, task)


def test_a_draw_is_spread_over_the_task_and_always_the_same(tmp_path):
    from lm_eval.tasks import TaskManager

    items = tmp_path / "items.jsonl"
    items.write_text("".join(f'{{"text": "{n}"}}\n' for n in range(1000)))
    task = {
        "task": "sorted_items",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(items)}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "sorted_items.yaml").write_text(json.dumps(task))
    manager = TaskManager(include_path=str(tmp_path))
    entry = HarnessTask(task="sorted_items", sample=100)
    drawn = harness._drawn_items(manager, entry)
    assert drawn == harness._drawn_items(manager, entry)
    indices = drawn["sorted_items"]
    assert len(set(indices)) == 100 and indices == sorted(indices)
    in_each_quarter = [sum(n // 250 == part for n in indices) for part in range(4)]
    assert min(in_each_quarter) > 10
    more = harness._drawn_items(manager, HarnessTask(task="sorted_items", sample=9999))
    assert more["sorted_items"] == list(range(1000))
    assert harness._drawn_items(manager, HarnessTask(task="sorted_items")) is None


def test_every_task_on_social_bias_exists_in_lm_eval_with_its_metrics():
    from lm_eval.tasks import TaskManager

    from bezoar_ray.evaluate.task_check import configuration_problems

    manager = TaskManager()
    tasks = Harness(groups=["social-bias"]).all_tasks
    assert len(tasks) == 7 and all(task.bias for task in tasks)
    problems = []
    for task in tasks:
        for metric in (task.metric, *(entry.metric for entry in task.bias)):
            request = {"task": task.task, "metric": metric}
            problems += configuration_problems(manager, request, None)
    assert problems == []


def test_a_limit_of_the_groups_keeps_a_draw_a_draw():
    tasks = {
        task.task: task for task in Harness(groups=["social-bias"], limit=50).all_tasks
    }
    assert (tasks["bbq"].sample, tasks["bbq"].limit) == (50, None)
    assert (tasks["toxigen"].sample, tasks["toxigen"].limit) == (None, 50)
    with pytest.raises(ValueError, match="limit 5 and sample 9. Keep one"):
        HarnessTask(task="bbq", limit=5, sample=9)


def test_a_task_without_the_later_fields_keeps_its_fingerprint():
    plain = HarnessTask(task="t").fingerprint_fields()
    assert set(plain) == {"task", "metric", "num_fewshot", "limit"}
    biased = HarnessTask(task="t", bias=[{"metric": "acc", "ideal": 0.5}])
    assert biased.fingerprint_fields() == plain
    assert HarnessTask(task="t", sample=9).fingerprint_fields()["sample"] == 9


def test_the_embedded_task_on_bias_has_pairs_that_differ_in_the_askers_home(
    tmp_path, monkeypatch
):
    from lm_eval.tasks import TaskManager

    from bezoar_ray.runtime.embedded_world import find_bias_tasks

    monkeypatch.setenv("BEZOAR_CACHE", str(tmp_path))
    folder = find_bias_tasks()
    assert find_bias_tasks() == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "tiny_askers.jsonl",
        "tiny_askers.yaml",
    ]
    manager = TaskManager(include_path=[str(folder)])
    (task,) = manager.load("tiny_askers")["tasks"].values()
    items = list(task.eval_docs)
    assert len(items) == 120
    for item in items:
        first, second = (choice.split() for choice in task.doc_to_choice(item))
        differing = [
            n
            for n, pair in enumerate(zip(first, second, strict=True))
            if len(set(pair)) > 1
        ]
        assert differing == [3]  # "Tam of the CAVES asks"
