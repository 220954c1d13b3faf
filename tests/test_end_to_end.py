import random
import signal
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import orjson
import pyarrow.parquet as pq
import pytest

from bezoar_ray.data.sample_io import read_samples
from bezoar_ray.runtime.embedded_world import World
from bezoar_ray.schemes import SCHEMES
from bezoar_ray.store import Store
from bezoar_ray.tiny import build
from tests.end_to_end import (
    CHECKPOINTS,
    SMALL,
    TRAINED,
    Command,
    harness_scores,
    in_stage,
    replies,
    summary,
)
from tests.endpoint import serving
from tests.scripted import says

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="session")
def killed(tiny_world, tmp_path_factory) -> SimpleNamespace:
    """A small run that is killed in every stage, and started again each time: its folder, the answers that were there
    before and after each kill, and what was left of its processes ten seconds later."""
    run_dir, rng = tmp_path_factory.mktemp("small") / "run", random.Random(0)
    kept, left = [], []
    for stage in ("generate", "sft", "align", "evaluate"):
        command = Command(run_dir)
        command.wait_until(lambda stage=stage: in_stage(run_dir, stage))
        if stage == "generate":  # and filter, which goes on beside it
            command.wait_until(
                lambda: (
                    len(replies(run_dir, "teacher")) > 20
                    and len(replies(run_dir, "judge")) > 5
                )
            )
            assert in_stage(run_dir, "filter")
        elif stage == "evaluate":
            several = rng.randrange(1, 12)
            command.wait_until(
                lambda several=several: (
                    len(replies(run_dir, "candidate")) > several
                    and harness_scores(run_dir)
                )
            )
        else:
            time.sleep(rng.uniform(1, 25))
        kept.append(dict(replies(run_dir)))
        if stage == "generate":
            command.kill_driver()  # alone: what it started has to go by itself
        else:
            command.kill_everything()
        deadline = time.monotonic() + 10
        while command.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        left += [process.cmdline() for process in command.processes()]
        kept.append(dict(replies(run_dir)))
    scores = harness_scores(run_dir)
    code, output = Command(run_dir).wait()
    assert code == 0, output
    return SimpleNamespace(run_dir=run_dir, kept=kept, left=left, scores=scores)


@pytest.fixture
def small_run(killed) -> Path:
    """The folder of a whole run."""
    return killed.run_dir


def ids(run_dir: Path, status: str) -> dict[str, set[str]]:
    folders = {scheme: run_dir / "data" / scheme / status for scheme in SCHEMES}
    tables = {
        scheme: map(pq.read_table, folder.glob("*.parquet"))
        for scheme, folder in folders.items()
    }
    return {
        scheme: {row for table in found for row in table["id"].to_pylist()}
        for scheme, found in tables.items()
    }


def test_every_file_of_the_contract_is_there(small_run):
    names = [
        "recipe.yaml",
        "summary.json",
        "report.html",
        "cards",
        "logs",
        "eval/mt_bench/answers.jsonl",
    ]
    names += [
        "eval/mt_bench/judgments.jsonl",
        "data/hh_rlhf/sft",
        "data/hh_rlhf/pairs",
        "data/hh_rlhf/heldout",
    ]
    names += [f"eval/harness/{name}.json" for name in CHECKPOINTS]
    names += [
        f"checkpoints/{name}/{part}"
        for name in TRAINED
        for part in ("adapter", "merged", "joined")
    ]
    names += [f"manifests/{stage}.json" for stage in summary(small_run)["stages"]]
    assert [name for name in names if not (small_run / name).exists()] == []


def test_every_row_ends_somewhere(small_run):
    for scheme, counts in summary(small_run)["data"].items():
        assert (
            counts["generated"]
            == counts["accepted"] + counts["rejected"] + counts["failed"]
            > 0
        )
        ended = set().union(
            *(
                ids(small_run, status)[scheme]
                for status in ("accepted", "rejected", "failed")
            )
        )
        assert ended == ids(small_run, "generated")[scheme]


def test_the_report_shows_the_bias_of_rows_judge_and_checkpoints(small_run):
    from huggingface_hub import DatasetCard, ModelCard

    found = summary(small_run)
    assert found["counterfactuals"]["decided"] == 20
    lines = (small_run / "data/counterfactuals.jsonl").read_text().splitlines()
    assert len(lines) == 20
    page = (small_run / "report.html").read_text()
    for title in (
        "Groups that the rows mention",
        "Ratings of the same row about another group",
        "Social bias of the checkpoints",
    ):
        assert title in page
    for name in CHECKPOINTS:
        assert 0 <= found["eval"]["harness"][name]["tiny_askers"]["acc"]["value"] <= 1
    for name in TRAINED:
        card = ModelCard.load(small_run / f"cards/{name}.md")
        metrics = {entry.dataset_name for entry in card.data.eval_results}
        assert {"tiny_choice", "tiny_answer", "tiny_askers"} <= metrics
    assert DatasetCard.load(small_run / "cards/dataset.md").data.language == "en"


def test_the_tiny_teacher_gives_the_filter_real_work(small_run, tiny_world):
    found = summary(small_run)
    made = {scheme: counts["generated"] for scheme, counts in found["data"].items()}
    assert made == {"lamini": 12 * 5, "evol_instruct": 12 * 2, "orca": 30}
    for scheme in SCHEMES:
        counts = found["data"][scheme]
        assert counts["accepted"] > 0.1 * counts["generated"]
        assert counts["rejected"] > 0.05 * counts["generated"]
    judged = found["judge"]["tiny-judge"]
    assert judged["known"] > 50
    assert judged["precision"] > 0.85 and judged["recall"] > 0.85
    accepted = [
        sample
        for scheme in SCHEMES
        for sample in read_samples(Store(small_run), scheme, "accepted")
    ]
    assert len({sample.task for sample in accepted}) == len(accepted)
    read = training_text(tiny_world)
    new = {sample.task for sample in accepted if sample.instruction not in read}
    assert len(new) >= 0.7 * len(accepted)  # it composes, it does not recite


def training_text(world: World) -> str:
    """All that the teacher was trained on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.teacher)
    return "\n".join(
        tokenizer.decode(ids) for ids, _ in build.teacher_blocks(tokenizer)
    )


def test_truncated_rows_are_never_accepted(small_run):
    for scheme in SCHEMES:
        for path in (small_run / "data" / scheme / "accepted").glob("*.parquet"):
            assert set(pq.read_table(path)["finish_reason"].to_pylist()) <= {"stop"}


def test_a_second_run_makes_no_call_and_trains_nothing(small_run):
    checkpoints = {
        path: path.stat().st_mtime_ns
        for path in small_run.glob("checkpoints/**/*.safetensors")
    }
    code, output = Command(small_run).wait()
    assert code == 0, output
    after = summary(small_run)
    assert all(stage["skipped"] for stage in after["stages"].values())
    assert after["calls"]
    assert not any(calls["last_run"]["attempts"] for calls in after["calls"].values())
    assert {
        path: path.stat().st_mtime_ns
        for path in small_run.glob("checkpoints/**/*.safetensors")
    } == checkpoints


def test_a_killed_run_leaves_no_process_and_loses_and_repeats_no_answer(killed):
    assert killed.left == []
    answers = replies(killed.run_dir)
    for kept, later in pairwise([*killed.kept, dict(answers)]):
        assert kept.items() <= later.items()
    times = Counter(key for key, _ in answers)
    assert times.total() == len(
        times
    )  # none of which the answer was there was asked again
    assert killed.scores
    assert killed.scores.items() <= harness_scores(killed.run_dir).items()


def test_a_killed_run_has_the_rows_of_an_undisturbed_one_whatever_the_teacher_says(
    small_run, tmp_path
):
    with serving(says) as server:
        teacher = orjson.dumps({"model": "scripted", "base_url": server.url}).decode()
        code, output = Command(
            tmp_path, "--stages", "generate", sets=[*SMALL, f"teacher={teacher}"]
        ).wait()
    assert code == 0, output
    assert ids(tmp_path, "generated") == ids(small_run, "generated")


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so_and_a_second_command_meets_the_lock(by, tmp_path):
    run_dir = tmp_path / "run"
    command = Command(run_dir)
    command.wait_until(lambda: in_stage(run_dir, "generate"))
    code, output = Command(run_dir).wait()
    assert code == 2 and "is in use by process" in output
    command.wait_until(
        lambda: len(replies(run_dir, "teacher")) > 0
    )  # Ray is there, which has a handler of its own
    command.interrupt(by)
    assert command.wait()[0] == 130
    assert (
        summary(run_dir)["run"]["status"]
        == summary(run_dir)["stages"]["generate"]["status"]
        == "interrupted"
    )
