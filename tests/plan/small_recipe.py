"""A recipe with small numbers, by which plans are checked by hand."""

from bezoar_ray.recipe import parse_recipe

TREE = {
    "name": "small",
    "teacher": {
        "model": "org/teacher-10b",
        "num_gpus": 1,
        "prices": {"input": 1, "output": 2},
    },
    "judges": [
        {"model": "one", "prices": {"input": 1, "output": 10}},
        {"model": "two"},
    ],
    "base": {"model": "org/base-2b"},
    "seeds": {
        "dolly": [{"source": "dolly.jsonl", "limit": 50}],
        "flan": [{"source": "flan.jsonl", "limit": 100}],
        "hh_rlhf": [{"source": "hh.jsonl", "limit": 300}],
    },
    "generate": {
        "lamini": {"calls": 10, "per_call": 20},
        "evol_instruct": {"seeds": 80, "epochs": 3},
        "orca": {"mixtures": {"CoT": {"rows": 30}, "T0": {"rows": 40}}},
    },
    "hh_sft": {"limit": 150, "gpus_per_worker": 1},
    "evaluate": {
        "harness": {"tasks": [{"task": "a", "limit": 100}]},
        "mt_bench": {"questions": "q.jsonl", "limit": 10},
        "heldout_pairs": 100,
    },
}


RECIPE = parse_recipe(TREE, "test")
