"""generate and filter as one graph, against an endpoint that fails in every way."""

import os
import random

import orjson
import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.errors import BezoarError
from bezoar_ray.llm.ledger import accounts
from bezoar_ray.recipe import load_recipe, parse_recipe
from bezoar_ray.runs.generate_and_filter import run
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from tests.faulty import FAULTS, FOR_GOOD, WHOLE, Faulty, serving
from tests.scripted import says

KEY = os.environ["CANARY_KEY"]
YIELD = {
    "lamini": 4 * 5,
    "evol_instruct": 8 * 2,
    "orca": 20,
}  # rows that the works of each scheme give


def recipe(url):
    """A recipe whose teacher and judge are at an address."""
    tree = load_recipe("tiny").model_dump(mode="json")
    lamini, evol_instruct = {"calls": 4, "per_call": 5}, {"seeds": 8, "epochs": 2}
    tree["generate"] |= {
        "lamini": lamini,
        "evol_instruct": evol_instruct,
        "orca": {"rows": 20},
    }
    model = {
        "model": "m",
        "base_url": url,
        "api_key_env": "CANARY_KEY",
        "timeout": 1.0,
        "retries": 1,
    }
    return parse_recipe(tree | {"teachers": [model], "judges": [model]}, "test")


def test_whatever_an_endpoint_answers_every_row_ends_with_its_reason_and_the_key_is_nowhere(
    ray_session, tmp_path, capsys
):
    faults = [fault for fault in FAULTS if fault != "good"]

    def fate(prompt, times):
        """A third of the prompts meet faults, the same in every run."""
        rng = random.Random(prompt)
        drawn = rng.choices(faults, k=9) if rng.random() < 1 / 3 else []
        return drawn[times - 1] if times <= len(drawn) else "good"

    store, faulty = Store(tmp_path / "run"), Faulty(fate, says)
    with serving(faulty) as url:
        outcomes = dict(run(StageContext(recipe(url), store, "s", Progress())))
    data = outcomes["filter"].summary["data"]
    for scheme, rows in YIELD.items():
        ends = {
            status: read_samples(store, scheme, status)
            for status in ("accepted", "rejected", "failed")
        }
        assert {status: len(samples) for status, samples in ends.items()} == {
            s: data[scheme][s] for s in ends
        }
        assert sum(len(samples) for samples in ends.values()) == rows
        assert (
            len({sample.id for samples in ends.values() for sample in samples}) == rows
        )
        assert all(
            sample.reason
            for status in ("rejected", "failed")
            for sample in ends[status]
        )
        assert all(sample.finish_reason == "stop" for sample in ends["accepted"])
    assert (
        sum(data[scheme]["failed"] for scheme in YIELD)
        > 0
        < sum(data[scheme]["accepted"] for scheme in YIELD)
    )
    calls = accounts(store.root, "s")  # a request that was cut off may not have arrived
    assert calls["teacher"]["attempts"] + calls["judge"]["attempts"] >= sum(
        faulty.asked.values()
    )
    printed = capsys.readouterr()
    said = (
        orjson.dumps(
            {name: outcome.summary for name, outcome in outcomes.items()}
        ).decode()
        + printed.out
    )
    written = b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    )
    assert KEY.encode() not in written and KEY not in said + printed.err


NO_CREDIT = {
    "type": "error",
    "error": {
        "type": "invalid_request_error",
        "message": "Your credit balance is too low",
    },
}


def test_a_run_whose_account_is_empty_goes_on_after_a_top_up_and_loses_no_row(
    ray_session, tmp_path
):
    asked, empty = [], [True]

    def fate(prompt, times):
        asked.append(prompt)
        return (
            (400, orjson.dumps(NO_CREDIT)) if empty[0] and len(asked) > 30 else "good"
        )

    store, faulty = Store(tmp_path / "run"), Faulty(fate, says)
    with serving(faulty) as url:
        with pytest.raises(
            BezoarError, match="the account is empty.* Your credit balance is too low"
        ) as caught:
            dict(run(StageContext(recipe(url), store, "first", Progress())))
        assert caught.value.exit_code == 3
        paid = accounts(store.root, "first")
        empty[0] = False
        outcomes = dict(run(StageContext(recipe(url), store, "second", Progress())))
    data = outcomes["filter"].summary["data"]
    for scheme, rows in YIELD.items():
        assert (
            data[scheme]["accepted"] + data[scheme]["rejected"] == rows
            and data[scheme]["failed"] == 0
        )
    calls = accounts(store.root, "second")
    for role in ("teacher", "judge"):
        again = calls[role]["last_run"]
        assert again["from_ledger"] >= paid[role]["sent"]  # none is paid for again
        assert calls[role]["sent"] == paid[role]["sent"] + again["sent"]
    assert paid["teacher"]["sent"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_row_fails_through_a_fault_that_passes_and_the_budget_holds(
    ray_session, tmp_path, seed
):
    """Every fault at every twentieth prompt, the passing ones once."""
    passing = [fault for fault in FAULTS if fault not in (*WHOLE, *FOR_GOOD)]

    def fate(prompt, times):
        rng = random.Random(f"{seed} {prompt}")
        drawn = rng.random()
        if drawn < 0.05 * len(passing):
            return passing[int(drawn / 0.05)] if times == 1 else "good"
        return (
            rng.choice(FOR_GOOD)
            if drawn > 0.97
            else "in parts"
            if drawn > 0.92
            else "good"
        )

    store, faulty, budget = Store(tmp_path / "run"), Faulty(fate, says), 0.5
    with serving(faulty) as url:
        tree = recipe(url).model_dump(mode="json") | {"budget_usd": budget}
        for model in (*tree["teachers"], *tree["judges"]):
            model |= {"prices": {"input": 1.0, "output": 1.0}, "retries": 3}
        outcomes = dict(
            run(StageContext(parse_recipe(tree, "test"), store, "s", Progress()))
        )
    data = outcomes["filter"].summary["data"]
    failed = [
        sample for scheme in YIELD for sample in read_samples(store, scheme, "failed")
    ]
    assert sum(
        sum(data[scheme][status] for status in ("accepted", "rejected", "failed"))
        for scheme in YIELD
    ) == sum(YIELD.values())
    for sample in failed:  # by its own prompt, or by that of the call before it
        why = sample.reason + " ".join(verdict.reason for verdict in sample.verdicts)
        assert any(
            said in why for said in ("bad prompt", "moderation", "too long", "missing")
        ), why
    calls = accounts(store.root, "s")
    assert 0 < sum(calls[role]["usd"] for role in ("teacher", "judge")) <= budget
    assert calls["teacher"]["attempts"] + calls["judge"]["attempts"] >= sum(
        faulty.asked.values()
    )
    print(
        f"\nseed {seed}: {sum(faulty.asked.values())} requests, {len(failed)} rows failed for good"
    )
