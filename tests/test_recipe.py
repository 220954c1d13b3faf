import json

import pytest
import yaml

from bezoar_ray.errors import RecipeError
from bezoar_ray.recipe import Filter, Sft, load_recipe, parse_recipe
from bezoar_ray.runs import manifest, sweep
from bezoar_ray.runs.manifest import fingerprint
from bezoar_ray.schemes import SCHEMES
from bezoar_ray.store import Store

SMALL = {
    "name": "x",
    "teacher": {"model": "t"},
    "judges": [{"model": "j"}],
    "base": {"model": "b"},
    "seeds": {},
}


def refusal(**change) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe(SMALL | change, "mine.yaml")
    return str(error.value)


def test_an_unknown_key_is_named_with_the_nearest_valid_one():
    assert (
        refusal(sft={"lora": {"alhpa": 3}})
        == "mine.yaml: sft.lora.alhpa: unknown key. Did you mean 'alpha'?"
    )
    assert refusal(sseds={}) == "mine.yaml: sseds: unknown key. Did you mean 'seeds'?"


def test_a_wrong_type_is_named_with_the_value_found():
    assert "sft.lora.r" in refusal(
        sft={"lora": {"r": "big"}}
    ) and "found 'big'" in refusal(sft={"lora": {"r": "big"}})


def test_4bit_with_zero_3_is_refused_with_the_reason():
    assert "ZeRO-3 cannot shard" in refusal(sft={"zero_stage": 3})
    assert (
        parse_recipe(
            SMALL | {"sft": {"zero_stage": 3, "load_in_4bit": False}}, "x"
        ).sft.zero_stage
        == 3
    )


def test_a_name_cannot_lead_out_of_the_folder_of_runs():
    with pytest.raises(RecipeError, match="name: .*'../x'"):
        load_recipe("tiny", ["name=../x"])


def test_remote_code_needs_a_pinned_revision():
    for pin in ({}, {"revision": "main"}):
        assert "pin the commit" in refusal(
            teacher={"model": "t", "trust_remote_code": True} | pin
        )


@pytest.mark.parametrize(
    "name",
    [
        "trust_remote_code",
        "trust-remote-code",
        "load_format",
        "worker_cls",
        "middleware",
    ],
)
def test_an_engine_argument_that_could_load_or_run_anything_is_refused(name):
    said = refusal(teacher={"model": "t", "engine": {name: "x", "max_model_len": 9}})
    assert said.startswith(
        f"mine.yaml: teacher.engine: {name!r} would load weights or run code that `bezoar plan` does not list"
    )
    assert "serve.engine" in refusal(serve={"engine": {name: "x"}})


@pytest.mark.parametrize(
    "engine",
    [
        {"structured_outputs_config": {"reasoning_parser_plugin": "x.py"}},
        {"structured-outputs-config.reasoning_parser_plugin": 1},
        {"compilation_config": '{"inductor_passes": {"a": "os.system"}}'},
        {"speculative_config": {"method": "ngram", "model": "other"}},
        {"distributed_executor_backend": "mine.Executor"},
        {"distributed-executor-backend": "mine.Executor"},
        {"generation_config": "some/folder"},
        {"anything_new": ["mine.Code"]},
    ],
)
def test_a_text_that_vllm_might_run_is_refused_wherever_it_stands(engine):
    assert "holds text, which may name code" in refusal(
        teacher={"model": "t", "engine": engine}
    )


def test_engine_arguments_that_are_numbers_switches_or_vllms_own_words_pass():
    engine = {
        "max_model_len": 9,
        "enable-prefix-caching": True,
        "quantization": "fp8",
        "kv_cache_dtype": "auto",
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 4},
        "generation_config": "vllm",
        "data_parallel_backend": "ray",
        "mamba_ssm_cache_dtype": "float32",
        "hf_overrides": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    }
    assert load_recipe("tiny", [f"teacher.engine={json.dumps(engine)}"]).teachers[
        0
    ].engine == ({name.replace("-", "_"): value for name, value in engine.items()})


def test_set_overrides_values_in_sections_and_lists():
    recipe = load_recipe(
        "tiny",
        [
            "align.beta=0.5",
            "judges.0.model=other",
            "seeds.dolly=[{source: a.jsonl, limit: 3}]",
        ],
    )
    assert recipe.align.beta == 0.5
    assert recipe.judges[0].model == "other"
    assert recipe.seeds.dolly[0].limit == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("align.beta", "expected key.path=value"),
        ("judges.7.model=x", "not an index"),
        ("name.x=1", "is a value"),
        ("judges=[1,", "not valid YAML"),
        ("judges=[]", "judges: .*at least 1"),
        ("filter.accept_rating=9", "accept_rating"),
        ("generate.evol_instruct.operations={}", "operations"),
        ("sft.workers=3", "batch 16 cannot be shared by 3 workers"),
        ("sft.schedule=nope", "sft.schedule: .*constant_with_warmup"),
        ("sft.epochs=-1", "sft.epochs: .*greater than 0"),
        ("teacher.temperature=-3", "temperature: .*greater than or equal to 0"),
        (
            "sft.report_to=wandb",
            r"report_to: expected a list, as in \[a, b\] \(found 'wandb'\)",
        ),
        ("generate=7", "generate: expected a section with keys"),
        ("dpo.beta=1", "dpo: unknown key. Did you mean 'align'?"),
        (
            "evaluate.mt_bench={limit: 3}",
            "evaluate.mt_bench.questions: missing; add it",
        ),
        (
            "evaluate.mt_bench.pairwise=[[dpo,dpo2]]",
            "'dpo2' is none of base, sft, hh-sft, dpo, kto, orpo, asft",
        ),
        (
            "evaluate.reward_bench={limit: 3}",
            "evaluate.reward_bench: neither `one` nor `two` is given. Name a file",
        ),
        (
            "evaluate.reward_bench.one={source: a.parquet, limit: 9}",
            "one.limit 9: the first rows .* Use reward_bench.limit",
        ),
    ],
)
def test_a_wrong_set_is_explained(override, says):
    with pytest.raises(RecipeError, match=says):
        load_recipe("tiny", [override])


def test_the_one_teacher_can_be_set_as_the_first_of_several():
    assert load_recipe("tiny", ["teachers.0.model=other"]).teachers[0].model == "other"


@pytest.mark.parametrize("text", [b"", b"- a list", b"caf\xe9: 1"])
def test_a_file_that_holds_no_recipe_is_named(tmp_path, text):
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(RecipeError, match="mine.yaml.*(not a recipe|not UTF-8 text)"):
        load_recipe(str(tmp_path / "mine.yaml"), ["align.beta=1"])


def test_a_missing_recipe_names_the_packaged_ones():
    with pytest.raises(RecipeError, match="tiny"):
        load_recipe("nope")


def marks(*overrides):
    recipe = load_recipe("tiny", overrides)
    return {
        s: fingerprint(recipe, s)
        for s in ("generate", "filter", "sft", "align", "evaluate")
    }


def changed(*overrides):
    before, after = marks(), marks(*overrides)
    return [stage for stage in before if before[stage] != after[stage]]


def test_how_fields_redo_nothing():
    assert (
        changed(
            "sft.workers=4",
            "judges.0.base_url=http://x",
            "teacher.actors=3",
            "serve.port=9",
            "teacher.engine={max_num_seqs: 8}",
        )
        == []
    )
    assert changed("teacher.engine={quantization: fp8}")[0] == "generate"


def test_a_run_that_an_earlier_version_has_measured_is_not_measured_again():
    """Its fingerprint knew only these fields of MT-Bench."""
    bench = load_recipe("tiny").evaluate.mt_bench
    assert set(bench.fingerprint_fields()) == {
        "questions",
        "references",
        "judges",
        "pairwise",
        "temperatures",
        "max_tokens",
        "limit",
        "answers",
        "judgments",
    }


def test_an_evaluation_without_reward_bench_keeps_its_fingerprint(tmp_path):
    fields = load_recipe("tiny").evaluate.fingerprint_fields()
    assert set(fields) == {"harness", "mt_bench", "heldout_pairs"}
    bench = tmp_path / "filtered.jsonl"
    bench.write_text("one")
    assert changed(f"evaluate.reward_bench.one={bench}") == ["evaluate"]
    before = marks(f"evaluate.reward_bench.one={bench}")
    bench.write_text("two")
    assert before != marks(f"evaluate.reward_bench.one={bench}")


def test_a_source_of_reward_bench_may_be_its_name_alone():
    recipe = load_recipe(
        "tiny",
        [
            "evaluate.reward_bench.one=a.parquet",
            "evaluate.reward_bench.two={source: 'hub:allenai/reward-bench-2', revision: main}",
        ],
    )
    bench = recipe.evaluate.reward_bench
    assert (bench.one.source, bench.one.split) == ("a.parquet", "filtered")
    assert (bench.two.revision, bench.two.split) == ("main", "test")
    again = parse_recipe(recipe.model_dump(mode="json"), "recipe.yaml")
    assert again.evaluate.reward_bench == bench


def test_skipped_references_and_prompts_redo_the_evaluation(tmp_path):
    prompts = tmp_path / "judge_prompts.jsonl"
    prompts.write_text("one")
    assert changed("evaluate.mt_bench.references_skip=[104]") == ["evaluate"]
    assert changed(f"evaluate.mt_bench.prompts={prompts}") == ["evaluate"]
    before = marks(f"evaluate.mt_bench.prompts={prompts}")
    prompts.write_text("two")
    assert before != marks(f"evaluate.mt_bench.prompts={prompts}")


def test_a_changed_rubric_redoes_the_filter_and_what_follows(tmp_path):
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("one")
    first = marks(f"filter.rubrics={{orca: {rubric}}}")
    rubric.write_text("two")
    second = marks(f"filter.rubrics={{orca: {rubric}}}")
    assert [stage for stage in first if first[stage] != second[stage]] == [
        "filter",
        "sft",
        "align",
        "evaluate",
    ]


def test_a_changed_beta_redoes_align_and_what_follows():
    assert changed("align.beta=0.3") == ["align", "evaluate"]


def test_a_changed_file_behind_a_glob_redoes_what_reads_it(tmp_path):
    (tmp_path / "a.jsonl").write_text("one")
    first = marks(f"seeds.flan=[{{source: {tmp_path}/*.jsonl}}]")
    (tmp_path / "b.jsonl").write_text("two")
    assert (
        first["generate"]
        != marks(f"seeds.flan=[{{source: {tmp_path}/*.jsonl}}]")["generate"]
    )


def test_a_model_in_a_folder_counts_by_what_lies_in_it(tmp_path):
    (tmp_path / "weights").write_text("one")
    first = marks(f"base.model={tmp_path}")
    assert marks(f"base.model={tmp_path}") == first
    (tmp_path / "more").write_text("two")
    second = marks(f"base.model={tmp_path}")
    assert [stage for stage in first if first[stage] != second[stage]] == [
        "sft",
        "align",
        "evaluate",
    ]


def test_a_folder_that_is_called_like_a_value_changes_nothing(tmp_path, monkeypatch):
    before = marks()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()  # the split of a source is called so, too
    (tmp_path / "train/file").write_text("x")
    assert marks() == before


def test_an_unknown_operation_is_refused():
    assert "deepn" in refusal(generate={"evol_instruct": {"operations": {"deepn": 1}}})


def test_sft_trains_on_every_packaged_scheme_by_default():
    assert set(Sft().order) == set(SCHEMES)


def test_rubrics_are_packaged_and_replaceable(tmp_path):
    path = tmp_path / "rubric.txt"
    path.write_text("Mine.")
    assert len({Filter().rubric(scheme) for scheme in SCHEMES}) == len(SCHEMES)
    assert Filter(rubrics={"orca": str(path)}).rubric("orca") == "Mine."
    with pytest.raises(RecipeError, match=r"filter\.rubrics\.orca: cannot read"):
        Filter(rubrics={"orca": str(tmp_path / "none")}).rubric("orca")


def test_one_teacher_may_stand_alone_and_several_in_a_list():
    assert [part.model for part in parse_recipe(SMALL, "test").teachers] == ["t"]
    several = {key: value for key, value in SMALL.items() if key != "teacher"}
    several["teachers"] = [{"model": "a", "weight": 3}, {"model": "b"}]
    recipe = parse_recipe(several, "test")
    assert [(part.model, part.weight) for part in recipe.teachers] == [
        ("a", 3.0),
        ("b", 1.0),
    ]
    assert parse_recipe(recipe.model_dump(mode="json"), "again") == recipe
    with pytest.raises(RecipeError, match="teachers"):
        parse_recipe(several | {"teachers": []}, "test")


def test_judges_of_one_name_are_refused_unless_their_revisions_differ():
    judge = {"model": "j", "base_url": "http://a/v1"}
    with pytest.raises(
        RecipeError, match=r"judges: entry 1: duplicate judge 'j'.*`revision`"
    ):
        parse_recipe(
            SMALL | {"judges": [judge, judge | {"base_url": "http://b/v1"}]}, "test"
        )
    told_apart = [judge, judge | {"base_url": "http://b/v1", "revision": "int8"}]
    assert len(parse_recipe(SMALL | {"judges": told_apart}, "test").judges) == 2


def test_a_recipe_that_was_written_down_is_the_same_recipe(tmp_path):
    """Its stages are done, then, as they were."""
    recipe = load_recipe("tiny")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    again = load_recipe(str(path))
    for stage in ("generate", "filter", "align", "evaluate"):
        assert fingerprint(again, stage) == fingerprint(recipe, stage)


def test_a_loss_that_needs_smoothing_says_so():
    align = {"align": {"loss_type": ["exo_pair"]}}
    with pytest.raises(
        RecipeError, match=r"align: .*exo_pair needs label_smoothing above 0"
    ):
        parse_recipe(SMALL | align, "test")
    align["align"]["label_smoothing"] = 0.001
    assert parse_recipe(SMALL | align, "test").align.loss_type == ("exo_pair",)


@pytest.mark.parametrize("part", ["teacher", "serve"])
def test_an_engine_over_more_gpus_than_its_actor_has_is_refused(part):
    two = f"{part}.engine.tensor_parallel_size=2"
    with pytest.raises(RecipeError, match="it spreads over 2 GPUs, and num_gpus is 1"):
        load_recipe("tiny", [two, f"{part}.num_gpus=1"])
    load_recipe("tiny", [two, f"{part}.num_gpus=2"])
    load_recipe(
        "tiny",
        [two, f"{part}.num_gpus=1", f"{part}.engine.distributed_executor_backend=ray"],
    )


@pytest.mark.parametrize("part", ["teacher", "serve"])
def test_an_engine_that_takes_more_memory_than_its_share_of_a_gpu_is_refused(part):
    half, most = f"{part}.num_gpus=0.5", f"{part}.engine.gpu_memory_utilization"
    with pytest.raises(
        RecipeError,
        match=r"engine.gpu_memory_utilization 0.9 with num_gpus 0.5: .*set at most 0.5",
    ):
        load_recipe("tiny", [half, f"{most}=0.9"])
    load_recipe("tiny", [half, f"{most}=0.4"])
    load_recipe("tiny", [f"{part}.num_gpus=1", f"{most}=0.95"])


@pytest.mark.parametrize("part", ["teacher", "serve"])
def test_engine_arguments_may_be_written_as_flags_and_null_is_the_default(part):
    with pytest.raises(RecipeError, match="it spreads over 4 GPUs, and num_gpus is 1"):
        load_recipe(
            "tiny", [f"{part}.engine={{tensor-parallel-size: 4}}", f"{part}.num_gpus=1"]
        )
    with pytest.raises(RecipeError, match="takes more of the GPU's memory"):
        load_recipe(
            "tiny",
            [f"{part}.engine={{gpu-memory-utilization: 0.9}}", f"{part}.num_gpus=0.5"],
        )
    nulls = "{tensor_parallel_size: null, gpu_memory_utilization: null, max_model_len: null}"
    recipe = load_recipe("tiny", [f"{part}.engine={nulls}"])
    assert (recipe.serve if part == "serve" else recipe.teachers[0]).engine == {}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("max_model_len: [0]", r"max_model_len \[0\]: expected tokens"),
        (
            "tensor_parallel_size: 0",
            "tensor_parallel_size 0: expected a whole number of at least 1",
        ),
        (
            "tensor_parallel_size: true",
            "tensor_parallel_size True: expected a whole number",
        ),
        (
            "pipeline_parallel_size: 1.5",
            "pipeline_parallel_size 1.5: expected a whole number",
        ),
        (
            "gpu_memory_utilization: 90",
            "gpu_memory_utilization 90: expected a share of the GPU",
        ),
    ],
)
def test_engine_numbers_that_are_none_are_refused(argument, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe("tiny", [f"serve.engine={{{argument}}}"])


def test_fewer_replicas_at_most_than_at_least_are_refused():
    with pytest.raises(RecipeError, match="max_replicas is 2, less than replicas, 3"):
        load_recipe("tiny", ["serve.replicas=3", "serve.max_replicas=2"])


@pytest.mark.parametrize(
    "field", ["teacher.num_gpus", "serve.num_gpus", "sft.gpus_per_worker"]
)
def test_gpus_that_ray_cannot_give_are_refused(field):
    for number in (0, 0.25, 1, 2):
        load_recipe("tiny", ["sft.workers=1", f"{field}={number}"])
    for number in (-1, 1.5):
        with pytest.raises(
            RecipeError,
            match=rf"{field.partition('.')[2]}: {number} GPUs. Ray gives an actor a share",
        ):
            load_recipe("tiny", [f"{field}={number}"])


def test_two_workers_on_one_gpu_are_refused():
    with pytest.raises(
        RecipeError, match="gpus_per_worker 0.5 with 2 workers: NCCL does not connect"
    ):
        load_recipe("tiny", ["sft.workers=2", "sft.gpus_per_worker=0.5"])


def test_an_override_may_name_one_teacher_or_several():
    assert [
        t.model
        for t in load_recipe("tiny", ["teachers=[{model: a}, {model: b}]"]).teachers
    ] == ["a", "b"]
    assert (
        load_recipe("tiny", ["teachers.0.temperature=0.5"]).teachers[0].temperature
        == 0.5
    )
    sets = ["teachers=[{model: a}]", "teacher.temperature=0.5"]
    assert load_recipe("tiny", sets).teachers[0].temperature == 0.5


def test_the_embedded_ratings_enter_the_fingerprint_of_those_that_read_them(
    monkeypatch,
):
    recipe = load_recipe("tiny", ["rm={}", "seeds.helpsteer=[{source: tiny}]"])
    others = load_recipe("tiny", ["rm={}", "seeds.helpsteer=[{source: hub:a/b}]"])
    stages = ("generate", "sft", "rm", "align", "evaluate")
    before = {stage: fingerprint(recipe, stage) for stage in stages}
    before_others = {stage: fingerprint(others, stage) for stage in stages}
    monkeypatch.setattr(manifest, "ratings_fingerprint", lambda: "changed")
    changed = {stage for stage in stages if fingerprint(recipe, stage) != before[stage]}
    assert changed == {"rm", "evaluate"}
    for stage in stages:
        assert fingerprint(others, stage) == before_others[stage]


def test_a_reward_model_is_a_judge_by_its_folder_and_changes_no_other_fingerprint():
    plain = parse_recipe(SMALL, "test")
    judges = [*SMALL["judges"], {"reward": "runs/one/checkpoints/rm"}]
    recipe = parse_recipe(SMALL | {"judges": judges}, "test")
    assert recipe.judges[1].model == "runs/one/checkpoints/rm/merged"
    assert "reward" not in plain.judges[0].fingerprint_fields()
    again = parse_recipe(recipe.model_dump(mode="json"), "test")
    assert again == recipe


@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ({"reward": "r", "model": "gpt"}, "model 'gpt' and reward 'r'"),
        ({"reward": "r", "base_url": "http://x"}, "base_url of reward 'r'"),
        ({"reward": "r", "structured": True}, "structured of reward 'r'"),
        ({"reward": "r", "chat_template": "t.jinja"}, "chat_template of reward 'r'"),
        ({"reward": "r", "mode": "batch"}, "mode batch"),
        ({}, "judges.0.model: missing"),
    ],
)
def test_a_judge_that_is_two_things_or_none_is_refused(judge, says):
    assert says in refusal(judges=[judge])


def test_a_reward_model_does_not_grade_mt_bench():
    said = refusal(judges=[{"reward": "r"}], evaluate={"mt_bench": {"questions": "q"}})
    assert "evaluate.mt_bench.judges: missing" in said


PPO = ["rm={}", "seeds.helpsteer=[{source: tiny}]", "align.method=ppo"]


def test_ppo_without_a_reward_model_is_refused():
    with pytest.raises(RecipeError, match=r"ppo .*Add a section `rm`"):
        load_recipe("tiny", ["align.method=ppo"])
    assert load_recipe("tiny", PPO).checkpoint("align") == "ppo"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("align.zero_stage=2", r"align: zero_stage 2 with method ppo.*zero_stage 0"),
        ("align.ppo.advantage=rloo", r"align.ppo: group 1 with advantage rloo"),
        ("align.ppo.advantage=grpo", r"align.ppo: group 1 with advantage grpo"),
        ("align.ppo.group=3", r"batch 16 .* 2 workers in groups of 3.*multiple of 6"),
        ("align.ppo.top_p=0.9", r"align.ppo.top_p: unknown key"),
        ("align.ppo.reset=1.5", r"align.ppo.reset: .*1"),
        ("align.ppo.clip=1", r"align.ppo.clip: .*1"),
        ("align.ppo.engine=sglang", r"align.ppo.engine: .*'vllm'"),
    ],
)
def test_settings_of_ppo_that_cannot_work_are_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", [*PPO, setting])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            [
                "align.gpus_per_worker=1",
                "align.ppo.engine_arguments={tensor_parallel_size: 2}",
            ],
            r"spreads over 2 GPUs",
        ),
        (
            ["align.ppo.engine=vllm", "hh_sft.lora={dora: true}"],
            r"align.ppo.engine vllm: .*hh_sft.lora.dora is true.*transformers",
        ),
    ],
)
def test_an_engine_that_cannot_run_beside_the_worker_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("tiny", [*PPO, *settings])


def test_only_an_engine_that_answers_otherwise_changes_what_is_trained():
    ppo = load_recipe("tiny", PPO)
    assert "engine" not in ppo.align.ppo.fingerprint_fields()
    vllm = load_recipe("tiny", [*PPO, "align.ppo.engine=vllm"])
    assert fingerprint(vllm, "align") != fingerprint(ppo, "align")
    smaller = [*PPO, "align.ppo.engine_arguments={gpu_memory_utilization: 0.3}"]
    assert fingerprint(load_recipe("tiny", smaller), "align") == fingerprint(
        ppo, "align"
    )


def test_align_uses_the_reward_model_for_ppo_only():
    dpo, ppo = load_recipe("tiny", PPO[:2]), load_recipe("tiny", PPO)
    assert "rm" not in dpo.stages_before("align")
    assert dpo.stages_before("align") == load_recipe("tiny").stages_before("align")
    assert ppo.stages_before("align")[-2:] == ("hh-sft", "rm")
    assert "rm" in dpo.stages_before("evaluate") and "rm" in sweep._stages(dpo, ppo)
    assert "rm" not in sweep._stages(dpo)

    slower = [*PPO, "rm.learning_rate=1e-5"]
    for recipe, settings in ((dpo, slower[:2] + slower[3:]), (ppo, slower)):
        changed_recipe = load_recipe("tiny", settings)
        same = fingerprint(changed_recipe, "align") == fingerprint(recipe, "align")
        assert same == (recipe is dpo)
        assert fingerprint(changed_recipe, "hh-sft") == fingerprint(recipe, "hh-sft")


def test_settings_of_ppo_change_nothing_for_another_method():
    reset = "align.ppo.reset=0"
    found = {
        tuple(s): fingerprint(load_recipe("tiny", s), "align") for s in ([], [reset])
    }
    assert len(set(found.values())) == 1
    ppo = [fingerprint(load_recipe("tiny", [*PPO, *s]), "align") for s in ([], [reset])]
    assert len({*ppo, *found.values()}) == 3


def test_a_new_reward_model_redoes_align_if_that_learned_from_it(tmp_path):
    for method, redone in (("dpo", False), ("ppo", True)):
        store = Store(tmp_path / method)
        for stage, checkpoint in (("rm", "rm"), ("align", method)):
            file = f"checkpoints/{checkpoint}/lineage.json"
            store.replace(file, b"{}")
            manifest.save(store, stage, manifest.StageManifest("x", 0.0, [file]))
        manifest.forget(store, "rm")
        assert manifest.exists(store, "align") != redone
        assert store.exists(f"checkpoints/{method}/lineage.json") != redone


STEER = [
    "rm={}",
    "seeds.helpsteer=[{source: tiny}]",
    "align.method=steer",
    "align.steer={goals: [{verbosity: 2}, {verbosity: 4}]}",
]


def test_steer_needs_its_goals_a_reward_model_and_rated_answers():
    assert load_recipe("tiny", STEER).checkpoint("align") == "steer"
    faults = {
        3: r"align: method steer needs the section `steer` with its goals",
        1: r"begins with rated answers, and seeds.helpsteer is empty",
        0: r"align.method steer learns .*Add a section `rm`",
    }
    for left_out, message in faults.items():
        settings = [s for number, s in enumerate(STEER) if number != left_out]
        with pytest.raises(RecipeError, match=message):
            load_recipe("tiny", settings)


def test_a_batch_of_prompts_is_shared_by_all_workers():
    with pytest.raises(RecipeError, match=r"steer.batch 3 .* 2 workers"):
        load_recipe("tiny", [*STEER, "align.steer.batch=3"])


def test_steer_uses_the_reward_model_and_changes_no_other_method():
    found = load_recipe("tiny", STEER)
    assert found.stages_before("align")[-2:] == ("hh-sft", "rm")
    with_section = [*STEER[:2], STEER[3]]
    for settings in (STEER[:2], with_section):
        other = load_recipe("tiny", settings)
        assert fingerprint(other, "align") == fingerprint(load_recipe("tiny"), "align")
        assert other.align.goal is None
    longer = load_recipe("tiny", [*STEER, "align.steer.max_tokens=64"])
    faster = load_recipe("tiny", [*STEER, "align.steer.sampler.num_cpus=2"])
    assert fingerprint(longer, "align") != fingerprint(found, "align")
    assert fingerprint(faster, "align") == fingerprint(found, "align")
    assert found.align.goal == {"verbosity": 2}


def test_the_sampler_is_counted_among_the_engines_of_align():
    found = load_recipe("tiny", [*STEER, "align.steer.sampler.num_gpus=1"])
    (_, sampler) = found.scheduled("align")
    assert (sampler.temperature, sampler.top_p, sampler.num_gpus) == (0.7, 0.9, 1)
    alone = load_recipe("tiny", [*STEER, "align.steer.iterations=0"])
    assert len(alone.scheduled("align")) == 1
