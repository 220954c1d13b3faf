"""What a run would fail on is found before anything is paid for."""

import json
import urllib.error

import pytest

from bezoar_ray.errors import RecipeError
from bezoar_ray.evaluate.task_check import configuration_problems
from bezoar_ray.recipe import load_recipe
from bezoar_ray.runs import preflight
from bezoar_ray.runs.orchestrator import run
from bezoar_ray.runs.preflight import check
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import working_stages
from bezoar_ray.store import Store
from tests.train.test_tokenizer import byte_level


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """lm-eval has the time that it takes on a busy machine."""
    monkeypatch.setattr(preflight, "_SECONDS", 300.0)


@pytest.fixture(autouse=True)
def cut_off(monkeypatch, tmp_path):
    """No hub, and nothing of it on this machine."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tiny(*sets):
    return load_recipe("tiny", sets)


def test_the_embedded_recipe_has_nothing_to_find():
    found = check(tiny(), working_stages())
    assert (found.problems, found.notes, found.unchecked) == ([], [], [])


@pytest.mark.parametrize(
    ("field", "rows", "said"),
    [
        ("seeds.dolly", [{"prompt": "Q"}], "seeds.dolly: none of the 1 rows of"),
        ("seeds.flan", [{"inputs": "Q", "targets": "A"}] * 3, "none of the 3 rows"),
        (
            "seeds.hh_rlhf",
            [{"chosen": "a", "rejected": "b"}],
            "the row has no `prompt`",
        ),
        ("seeds.hh_rlhf", [], "It is empty"),
    ],
)
def test_a_source_without_a_usable_row_is_found(tmp_path, field, rows, said):
    source = written(tmp_path / "rows.jsonl", rows)
    (problem,) = check(
        tiny(f"{field}=[{{source: {source}}}]"), working_stages()
    ).problems
    assert problem.startswith(f"{field}: none of the ") and said in problem


def test_rows_that_are_left_out_are_noted_and_only_of_stages_that_are_asked_for(
    tmp_path,
):
    rows = [{"instruction": "Q", "response": "A"}, {"instruction": ""}]
    recipe = tiny(f"sft.data.mine={{source: {written(tmp_path / 'rows.jsonl', rows)}}}")
    (note,) = check(recipe, ["sft"]).notes
    assert (
        note.startswith("sft.data.mine: 1 of the first 2 rows")
        and "empty `instruction`" in note
    )
    assert check(recipe, ["generate", "filter"]).notes == []


@pytest.mark.parametrize(
    ("field", "stage"),
    [("filter.rubrics.lamini", "filter"), ("generate.lamini.topics", "generate")],
)
def test_a_text_in_another_encoding_is_found(tmp_path, field, stage):
    (tmp_path / "text.txt").write_bytes("Caf\xe9".encode("latin-1"))
    recipe = tiny(f"{field}={tmp_path / 'text.txt'}")
    (problem,) = check(recipe, [stage]).problems
    assert problem.startswith(field) and "is not UTF-8 text" in problem


TEMPLATES = {
    "no marks": (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "not between {% generation %}",
    ),
    "no system": (
        "{{ raise_exception('System role not supported') }}",
        "System role not supported",
    ),
    "no end": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}",
        "the model does not learn to end",
    ),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_that_trains_on_nothing_or_takes_no_system_message_is_found(
    tmp_path, kind
):
    template, said = TEMPLATES[kind]
    (tmp_path / "mine.jinja").write_text(template)
    base = byte_level(tmp_path / "base", "PreTrainedTokenizerFast")
    found = check(
        tiny(f"base.model={base}", f"chat_template={tmp_path / 'mine.jinja'}"), ["sft"]
    )
    (line,) = found.notes if kind == "no end" else found.problems
    assert line.startswith("chat_template") and said in line


def test_a_teachers_template_that_takes_no_system_message_is_found(tmp_path):
    teacher = byte_level(tmp_path / "teacher", "PreTrainedTokenizerFast")
    sets = [
        f"teacher.model={teacher}",
        "teacher.chat_template=\"{{ raise_exception('System role not supported') }}\\n\"",
    ]
    (problem,) = check(tiny(*sets), ["generate"]).problems
    assert (
        "does not take a system message" in problem
        and "teacher.chat_template" in problem
    )


def test_a_base_whose_tokenizer_loses_spaces_is_found(tmp_path):
    base = byte_level(tmp_path / "base", "PreTrainedTokenizerFast", pieces="words")
    (problem,) = check(tiny(f"base.model={base}"), ["sft"]).problems
    assert "does not give a text back" in problem


BAD_TASKS = {
    "{task: winograndee}": "no task 'winograndee'; did you mean winogrande",
    "{task: truthfulqa, metric: mc2}": "is a tag and has no result of its own. List its tasks instead: truthfulqa_gen",
    "{task: pythia}": "the group 'pythia' has no common metric",
    "{task: winogrande, metric: f1}": "winogrande has no metric 'f1'. It has: acc",
    "{task: ifeval, metric: prompt_level_strict_acc}": "answers of 1,280 tokens, but serve.engine.max_model_len",
}


def test_tasks_that_could_not_be_scored_are_found():
    sets = [
        f"evaluate.harness={{tasks: [{', '.join(BAD_TASKS)}]}}",
        "serve.engine.max_model_len=1024",
    ]
    problems = check(tiny(*sets), ["evaluate"]).problems
    assert len(problems) == len(BAD_TASKS)
    for problem, said in zip(problems, BAD_TASKS.values(), strict=True):
        assert problem.startswith("evaluate.harness.tasks: ") and said in problem


def test_tasks_whose_data_are_not_here_are_named_as_not_tried():
    asked = "[{task: winogrande}, {task: gsm8k, metric: 'exact_match,strict-match'}]"
    found = check(tiny(f"evaluate.harness={{tasks: {asked}}}"), ["evaluate"])
    assert not found.problems
    assert [line.partition(" (")[0] for line in found.unchecked] == [
        "evaluate.harness.tasks: the data of winogrande",
        "evaluate.harness.tasks: the data of gsm8k",
    ]


def test_a_metric_that_a_function_names_is_not_refused():
    from lm_eval.tasks import TaskManager

    assert not list(
        configuration_problems(
            TaskManager(), {"task": "humaneval", "metric": "pass@1"}, None
        )
    )


def test_a_long_source_that_begins_badly_is_noted(tmp_path):
    rows = [{"instruction": ""}] * 120 + [{"instruction": "Q"}]
    found = check(
        tiny(f"seeds.dolly=[{{source: {written(tmp_path / 'rows.jsonl', rows)}}}]"),
        ["generate"],
    )
    assert not found.problems and found.notes[0].startswith(
        "seeds.dolly: 100 of the first 100 rows"
    )


def test_a_teacher_without_a_system_role_may_do_evol_instruct(tmp_path):
    teacher = byte_level(tmp_path / "teacher", "PreTrainedTokenizerFast")
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}\\n"
    sets = [f"teacher.model={teacher}", f'teacher.chat_template="{template}"']
    assert check(tiny(*sets), ["generate"]).problems
    without = ["generate.lamini=null", "generate.orca=null"]
    assert not check(tiny(*sets, *without), ["generate"]).problems


def test_a_model_whose_files_are_not_whole_is_not_tried(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    found = check(
        tiny(f"base.model={tmp_path / 'empty'}", "teacher.model=/on/workers/only"),
        ["generate", "sft"],
    )
    assert not found.problems
    assert [line.partition(":")[0] for line in found.unchecked] == [
        "teacher /on/workers/only",
        f"base {tmp_path / 'empty'}",
    ]


def test_questions_without_their_references_and_in_other_categories_are_noted(tmp_path):
    rows = [
        {"question_id": n, "category": category, "turns": ["a", "b"]}
        for n, category in enumerate(("math", "coding", "writing", "schreiben"))
    ]
    references = [
        {"question_id": "0", "choices": [{"turns": ["1", "2"]}]}
    ]  # an id as text
    bench = {
        "questions": written(tmp_path / "q.jsonl", rows),
        "references": written(tmp_path / "r.jsonl", references),
    }
    unguided, other = check(
        tiny(f"evaluate.mt_bench={json.dumps(bench)}"), ["evaluate"]
    ).notes
    assert (
        "1 questions about math, reasoning, coding have no whole reference answer (1)"
        in unguided
    )
    assert "no category schreiben" in other


def test_judge_prompts_of_another_form_and_skipped_questions_that_are_not_there_are_found(
    tmp_path,
):
    prompts = written(
        tmp_path / "p.jsonl",
        [{"name": "single-v1", "system_prompt": "", "prompt_template": "{answer}"}],
    )
    (problem,) = check(
        tiny(f"evaluate.mt_bench.prompts={prompts}"), ["evaluate"]
    ).problems
    assert (
        "'single-v1': its placeholders are {answer}. They must be {answer}, {question}"
        in problem
    )
    rows = [{"question_id": 1, "category": "puns", "turns": ["a", "b", "c"]}]
    long = {"questions": written(tmp_path / "q.jsonl", rows), "prompts": prompts}
    (problem,) = check(
        tiny(f"evaluate.mt_bench={json.dumps(long)}"), ["evaluate"]
    ).problems
    assert (
        "FastChat's prompts have placeholders for 2 turns, but question 1 has 3"
        in problem
    )
    skipped = {"questions": long["questions"], "references_skip": [104]}
    (problem,) = check(
        tiny(f"evaluate.mt_bench={json.dumps(skipped)}"), ["evaluate"]
    ).problems
    assert "references_skip" in problem and "has no question 104" in problem


def test_a_file_of_reward_bench_that_cannot_be_scored_is_found(tmp_path):
    row = {
        "id": 1,
        "prompt": "Q",
        "chosen": "A",
        "rejected": " ",
        "subset": "donotanswer",
    }
    source = written(tmp_path / "rows.jsonl", [row])
    recipe = tiny(f"evaluate.reward_bench.one={source}")
    (problem,) = check(recipe, ["evaluate"]).problems
    assert problem.startswith("evaluate.reward_bench.one: ")
    assert problem.endswith("rows.jsonl:1: empty `rejected`")
    assert check(recipe, ["sft"]).problems == []
    absent = tiny("evaluate.reward_bench.two=absent.parquet")
    (problem,) = check(absent, ["evaluate"]).problems
    assert "evaluate.reward_bench.two: no file 'absent.parquet'" in problem
    hub = "{source: 'hub:allenai/reward-bench-2', revision: main}"
    from_hub = check(tiny(f"evaluate.reward_bench.two={hub}"), ["evaluate"])
    assert "hub:allenai/reward-bench-2" in from_hub.problems[0]
    assert from_hub.unchecked == [
        "evaluate.reward_bench.two: hub:allenai/reward-bench-2, which comes from the hub"
    ]


def test_what_has_to_come_from_a_hub_that_is_out_of_reach_is_found(
    monkeypatch, tmp_path
):
    recipe = tiny(
        "base.model=org/base", "seeds.dolly=[{source: 'hub:org/rows', revision: main}]"
    )
    (problem,) = check(recipe, working_stages()).problems
    assert (
        problem
        == "HF_HUB_OFFLINE is set, and these are not on this machine: org/base, hub:org/rows"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(preflight, "_check_sources", lambda *_: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    (problem,) = check(recipe, working_stages()).problems
    assert (
        "the Hugging Face hub does not answer (http://127.0.0.1:1: " in problem
        and "org/base" in problem
    )
    found = check(recipe, working_stages(), offline=True)
    assert (
        not found.problems
        and "base org/base: its tokenizer, which is not on this machine"
        in found.unchecked
    )


def test_a_hub_that_answers_anything_is_in_reach(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.HTTPError("u", 403, "no", {}, None)

    monkeypatch.setattr(preflight.urllib.request, "urlopen", refuse)
    assert preflight._hub_error() == ""


def test_a_run_stops_on_it_before_anything_is_written(tmp_path):
    source = written(tmp_path / "rows.jsonl", [{"prompt": "Q"}])
    recipe = tiny(
        f"seeds.hh_rlhf=[{{source: {source}}}]", f"seeds.dolly=[{{source: {source}}}]"
    )
    store = Store(tmp_path / "run")
    with pytest.raises(
        RecipeError, match=r"(?s)seeds\.dolly: none of .*\nseeds\.hh_rlhf: none of"
    ):
        run(recipe, store, ["generate", "filter", "sft", "hh-sft"], Progress())
    assert not store.exists("summary.json") and not store.exists("ledger")


def test_the_bases_tokenizer_is_loaded_once(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    loaded, real = [], AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer,
        "from_pretrained",
        lambda *args, **said: loaded.append(args) or real(*args, **said),
    )
    folder = byte_level(tmp_path / "base", "PreTrainedTokenizerFast")
    assert (
        check(tiny(f"base.model={folder}"), ["sft"]).problems == [] and len(loaded) == 1
    )


def test_a_scheme_that_is_not_trained_on_is_noted():
    (note,) = check(tiny("sft.order=[lamini, orca]"), ["filter"]).notes
    assert "'evol_instruct'" in note and "not trained on" in note


@pytest.mark.parametrize(
    ("function", "said"),
    [("scheme.py:nope", "does not define 'nope'"), ("gone.py:haiku", "gone.py")],
)
def test_the_function_of_a_custom_scheme_is_looked_up(tmp_path, function, said):
    (tmp_path / "scheme.py").write_text("async def haiku(task, chat, settings): ...\n")
    recipe = tiny(f"generate.own.haiku.function={tmp_path}/{function}")
    (problem,) = check(recipe, ["generate"]).problems
    assert problem.startswith("generate.own") and said in problem


def test_the_reward_models_sources_are_read_only_with_a_reward_model(tmp_path):
    ratings = written(tmp_path / "a.jsonl", [{"prompt": "Q", "response": "A"}] * 2)
    pairs = written(tmp_path / "b.jsonl", [{"prompt": "Q"}])
    sets = [
        f"seeds.helpsteer=[{{source: {ratings}}}]",
        f"seeds.preferences=[{{source: {pairs}}}]",
    ]
    assert check(tiny(*sets), working_stages()).problems == []
    first, second = check(tiny("rm={}", *sets), working_stages()).problems
    assert "seeds.helpsteer: none of the 2 rows of" in first
    assert "no rating (looked for helpfulness" in first
    assert "seeds.preferences: none of the 1 rows of" in second
