"""Learning from the reward model's score: what moves, what does not, and what changes nothing."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bezoar_ray import layout
from bezoar_ray.errors import BezoarError
from bezoar_ray.recipe import Align, Recipe, parse_recipe
from bezoar_ray.runtime.progress import Progress
from bezoar_ray.stages import StageContext
from bezoar_ray.store import Store
from bezoar_ray.train import (
    heldout_answers,
    online,
    online_model,
    pairs,
    rollouts,
)
from bezoar_ray.train.launcher import Job
from bezoar_ray.train.learner import Experience, Learner, NotFinite
from bezoar_ray.train.online_model import CRITIC, POLICY, REFERENCE, REWARD
from bezoar_ray.train.packing import Layout
from bezoar_ray.train.pass_size import PassSize
from bezoar_ray.train.rollouts import Episode, PromptSchedule, Sampler, prompts_of
from bezoar_ray.train.training_stages import training_stage
from tests.end_to_end import begun
from tests.train.conftest import in_process, up_to_rm, with_rm
from tests.train.stage_process import command
from tests.train.test_launcher import kill, until

FLAT = Layout("flat")
ENDS = (1, *range(250, 400))
ADAPTER = layout.checkpoint("ppo").adapter
WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"


def with_ppo(recipe: Recipe, align: dict[str, Any], **ppo: Any) -> Recipe:
    """The recipe with the method ppo."""
    tree = recipe.model_dump(mode="json")
    tree["align"] |= {
        "method": "ppo",
        "learning_rate": 0.003,
        "beta": 0.05,
        "batch": 8,
        "max_grad_norm": 1.0,
        **align,
    }
    tree["align"]["ppo"] |= {"max_tokens": 12, "passes": 2, "temperature": 1.0, **ppo}
    return parse_recipe(tree, "tests")


@pytest.fixture(scope="module")
def base_recipe(
    recipe: Recipe, rated: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """With a reward model whose adapter has other layers and another rank."""
    lora = {"targets": ["q_proj", "v_proj", "down_proj"], "r": 4, "dropout": 0.1}
    # Trained until most answers end.
    update = {
        "sft": recipe.sft.model_copy(update={"epochs": 40.0}),
        "hh_sft": recipe.hh_sft.model_copy(update={"epochs": 20.0}),
    }
    folder = tmp_path_factory.mktemp("rated")
    return with_rm(recipe.model_copy(update=update), folder, rated, lora=lora)


@pytest.fixture(scope="module")
def after_rm(
    ray_session: None, base_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """A run directory with the checkpoints sft, hh-sft and rm."""
    return up_to_rm(base_recipe, tmp_path_factory.mktemp("after-rm"))


@pytest.fixture
def run(after_rm: Store, tmp_path: Path) -> Store:
    """A copy of it, in which ppo can be trained."""
    shutil.copytree(after_rm.root, tmp_path / "run")
    return Store(tmp_path / "run")


@pytest.fixture(scope="module")
def job(after_rm: Store, base_recipe: Recipe) -> Job:
    """The job of ppo, as its workers get it."""
    recipe = with_ppo(base_recipe, {})
    context = StageContext(recipe, after_rm, "test", Progress())
    data = tuple(training_stage(recipe, "align").prepare(context))
    return Job(str(after_rm.root), recipe, "align", "test", data)


def align_of(job: Job) -> Align:
    assert isinstance(job.section, Align)
    return job.section


def learner_of(
    job: Job,
    align: Align | None = None,
    size: PassSize | None = None,
    row_layout: Layout = FLAT,
) -> Learner:
    """A learner with the run's adapters, as each worker has one."""
    peft_model, head = online_model.load(job)
    reward_head = online_model.RewardHead.of(
        head, {"helpfulness": 1.0, "correctness": 0.5}, mean=3.0, sd=2.0
    )
    align = align or align_of(job)
    model = online_model.OnlineModel(
        peft_model,
        reward_head,
        row_layout,
        align.ppo.temperature,
        lambda: torch.autocast("cpu", enabled=False),
    )
    return Learner(model, align, 10, size or PassSize(rows=4), row_layout)


def episodes_of(
    job: Job, learner: Learner, group: int = 1, reset: float = 1.0
) -> list[Episode]:
    """Eight episodes; many tokens end an answer, so that some are finished."""
    rows = job.data[0].open(job.store)
    schedule = PromptSchedule(len(rows), 8 // group, 1.0, seed=0)
    prompts = prompts_of(0, schedule, rows, reset)
    sampler = Sampler(0, 1.0, 12, 256, ENDS, 2)
    learner.model.activate(POLICY)
    learner.model.model.eval()
    return sampler.episodes(learner.model.base, prompts, 0, group)


def copied(learner: Learner, adapter: str) -> dict[str, torch.Tensor]:
    weights = learner.model.adapter_weights(adapter)
    assert weights
    return {name: weight.detach().clone() for name, weight in weights.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_before_the_first_step_the_policy_is_its_reference(job: Job) -> None:
    learner = learner_of(job)
    episodes = episodes_of(job, learner)
    seen = learner.observe(episodes)
    assert torch.allclose(seen.log_probs, seen.reference, atol=1e-6)
    assert (seen.log_probs * seen.answer < 0).any()
    assert not (seen.log_probs * (1 - seen.answer)).any()
    # Exactly, so that the ratio of the first pass is 1.
    again = learner.observe(episodes)
    for name in ("log_probs", "reference", "values", "scores", "entropy"):
        assert torch.equal(getattr(seen, name), getattr(again, name)), name
    for row, episode in enumerate(episodes):
        assert seen.own[row].sum() == len(episode.own_ids)
        assert seen.answer[row].sum() == len(episode.forced_ids + episode.own_ids)
    one_pass = align_of(job).ppo.model_copy(update={"passes": 1})
    learner._align = align_of(job).model_copy(update={"ppo": one_pass})
    point = learner.learn(seen)
    assert point["kl"] == pytest.approx(0, abs=1e-4)
    assert point["clipped"] == 0


def test_log_probabilities_and_values_are_those_of_each_episode_alone(job: Job) -> None:
    whole = learner_of(job)
    with torch.no_grad():  # a critic that says something
        whole.model.value_head.weight.normal_(
            generator=torch.Generator().manual_seed(0)
        )
    episodes = episodes_of(job, whole, reset=0.5)
    expected = whole.observe(episodes)
    assert expected.values.any() and len(set(expected.scores.tolist())) > 1

    def check(found: Experience, order: list[int]) -> None:
        for name in ("log_probs", "reference", "values", "entropy", "scores"):
            wanted = getattr(expected, name)[order]
            got = getattr(found, name)
            if got.dim() > 1:
                wanted = wanted[:, : got.shape[1]]
            assert torch.allclose(got, wanted, atol=2e-5), name

    backwards = list(range(8))[::-1]
    check(whole.observe(episodes[::-1]), backwards)
    for size in (PassSize(rows=1), PassSize(tokens=100), PassSize(rows=8)):
        for row_layout in (FLAT, Layout("padded")):
            whole._pass_size = size
            whole._layout = whole.model._layout = row_layout
            check(whole.observe(episodes), list(range(8)))
    for number, episode in enumerate(episodes):
        check(whole.observe([episode]), [number])


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
def test_a_step_moves_the_policy_and_only_with_gae_the_critic(
    job: Job, advantage: str
) -> None:
    group = 1 if advantage == "gae" else 4
    ppo = align_of(job).ppo.model_copy(update={"advantage": advantage, "group": group})
    learner = learner_of(job, align_of(job).model_copy(update={"ppo": ppo}))
    before = {
        name: copied(learner, name) for name in (POLICY, REFERENCE, REWARD, CRITIC)
    }
    frozen = {
        name: weight.clone()
        for name, weight in learner.model.model.named_parameters()
        if "lora" not in name
    }
    episodes = episodes_of(job, learner, group)
    learner.check_gradients(episodes[:1])
    for name, weights in before.items():
        assert same(copied(learner, name), weights)
    for _ in range(2):
        point = learner.learn(learner.observe(episodes))
    assert not same(copied(learner, POLICY), before[POLICY])
    assert same(copied(learner, REFERENCE), before[REFERENCE])
    assert same(copied(learner, REWARD), before[REWARD])
    assert same(copied(learner, CRITIC), before[CRITIC]) == (advantage != "gae")
    after = dict(learner.model.model.named_parameters())
    assert all(torch.equal(weight, after[name]) for name, weight in frozen.items())
    assert bool(learner.model.value_head.weight.any()) == (advantage == "gae")
    assert ("explained_variance" in point) == (advantage == "gae")
    if group > 1:
        for begin in (0, 4):
            members = episodes[begin : begin + 4]
            assert len({tuple(e.prompt_ids + e.forced_ids) for e in members}) == 1


def test_the_size_of_a_pass_changes_no_step(job: Job) -> None:
    found = []
    for size in (PassSize(rows=8), PassSize(rows=3), PassSize(tokens=60)):
        learner = learner_of(job, size=size)
        episodes = episodes_of(job, learner)
        learner.learn(learner.observe(episodes))
        found.append(copied(learner, POLICY) | copied(learner, CRITIC))
    for other in found[1:]:
        for name, weight in found[0].items():
            assert torch.allclose(weight, other[name], atol=1e-5), name


def test_the_score_is_that_of_the_reward_models_checkpoint(job: Job) -> None:
    import transformers

    whole = align_of(job).model_copy(update={"load_in_4bit": False})
    recipe = job.recipe.model_copy(update={"align": whole})
    learner = learner_of(replace(job, recipe=recipe))
    episodes = episodes_of(job, learner)
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(
        job.store.path(layout.checkpoint("rm").merged)
    ).eval()
    seen = learner.observe(episodes)
    for row, episode in enumerate(episodes):
        outputs = merged(torch.tensor([episode.ids])).logits[0]
        expected = (outputs[0] + 0.5 * outputs[1] - 3) / 2
        if not episode.ended:
            expected = torch.tensor(align_of(job).ppo.unfinished_score)
        assert seen.scores[row].item() == pytest.approx(expected.item(), abs=1e-4)


def test_an_adapter_that_gets_no_gradient_is_found_before_the_first_step(
    job: Job,
) -> None:
    learner = learner_of(job)
    episodes = episodes_of(job, learner)
    with torch.no_grad():
        for weight in learner.model.adapter_weights(CRITIC).values():
            weight.zero_()
    with pytest.raises(BezoarError, match="gradient of critic's adapter is zero"):
        learner.check_gradients(episodes[:1])


def test_numbers_that_are_not_finite_change_no_weight(job: Job) -> None:
    learner = learner_of(job)
    episodes = episodes_of(job, learner)
    seen = learner.observe(episodes)
    before = copied(learner, POLICY)
    scores = seen.scores.clone()
    scores[3] = torch.nan
    with pytest.raises(NotFinite) as error:
        learner.learn(replace(seen, scores=scores))
    assert error.value.rows == [episodes[3].id]
    assert same(copied(learner, POLICY), before)


def test_a_state_continues_to_the_bit(job: Job, tmp_path: Path) -> None:
    straight = learner_of(job)
    episodes = episodes_of(job, straight)
    for number in range(4):
        if number == 2:
            torch.save(straight.state(), tmp_path / "state")
        straight.learn(straight.observe(episodes))
    resumed = learner_of(job)
    resumed.load_state(torch.load(tmp_path / "state"))
    for _ in range(2):
        resumed.learn(resumed.observe(episodes))
    for adapter in (POLICY, CRITIC):
        assert same(copied(resumed, adapter), copied(straight, adapter))


def test_it_learns_what_is_scored(job: Job) -> None:
    """A score for each token of one kind: the policy writes more of them."""
    align = align_of(job).model_copy(update={"learning_rate": 0.01})
    learner = learner_of(job, align)
    written = Counter(
        token
        for episode in episodes_of(job, learner, reset=0.0)
        for token in episode.own_ids
    )
    wanted = written.most_common(1)[0][0]

    def score(episodes: list[Episode]) -> torch.Tensor:
        return torch.tensor([float(e.own_ids.count(wanted)) for e in episodes])

    learner._score = score

    def likelihood(episodes: list[Episode]) -> float:
        seen = learner.observe(episodes)
        ids = [torch.tensor(e.forced_ids + e.own_ids) == wanted for e in episodes]
        is_wanted = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return float((seen.log_probs.exp() * is_wanted).sum())

    episodes = [
        replace(episode, ended=True) for episode in episodes_of(job, learner, reset=0.0)
    ]
    before = likelihood(episodes)
    for _ in range(6):
        learner.learn(learner.observe(episodes))
    assert likelihood(episodes) > 1.2 * before


def trained(store: Store, recipe: Recipe, name: str = "test") -> dict[str, Any]:
    """The metrics of the stage."""
    context = StageContext(recipe, store, "test", Progress())
    return in_process(context, "align", name)["ppo"]


def test_it_leaves_a_checkpoint_and_its_history(
    run: Store, base_recipe: Recipe
) -> None:
    rm = layout.checkpoint("rm").folder
    before = run.digest(rm)
    recipe = with_ppo(base_recipe, {"epochs": 1.0}, reset=0.5)
    found = trained(run, recipe)
    assert run.digest(rm) == before
    assert found["steps"] == 2 and found["rows"] == 20
    for folder in ("adapter", "merged", "joined"):
        assert run.exists(f"{layout.checkpoint('ppo').folder}/{folder}")
    lineage = run.read_json(layout.checkpoint("ppo").lineage)
    assert lineage["parent"] == "../hh-sft" and lineage["joined_rank"]
    assert found["heldout_accuracy"] is not None
    assert [point["step"] for point in found["by_step"]] == [1, 2]
    first, second = found["by_step"]
    assert first["kl"] == pytest.approx(0, abs=1e-4) and second["kl"] != 0
    expected = {
        "step",
        "dataset",
        "loss",
        "policy_loss",
        "value_loss",
        "clipped",
        "score",
        "score_sd",
        "kl",
        "kl_all",
        "entropy",
        "length",
        "ended",
        "forced",
        "explained_variance",
    }
    assert set(first) == expected
    assert 0 < first["forced"] < 1 and first["entropy"] > 0
    assert not same(
        load_file(run.path(WEIGHTS)),
        load_file(
            run.path(f"{layout.checkpoint('hh-sft').adapter}/adapter_model.safetensors")
        ),
    )


def test_the_policy_answers_held_out_prompts_before_and_after(
    run: Store, base_recipe: Recipe
) -> None:
    found = trained(run, with_ppo(base_recipe, {"epochs": 4.0}, reset=0.5))
    looks = found["heldout_answers"]
    steps = [look["step"] for look in looks]
    assert steps == sorted(heldout_answers.steps(found["steps"]))
    assert looks[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert looks[-1]["kl"] != 0

    rows = heldout_answers.read(run, "ppo")
    heldout = pairs.read(run, "heldout")
    assert [row["id"] for row in rows] == [pair.id for pair in heldout]
    assert [row["prompt"] for row in rows] == [pair.prompt for pair in heldout]
    for number, look in enumerate(looks):
        answers = [row["answers"][number] for row in rows]
        assert {answer["step"] for answer in answers} == {look["step"]}
        scores = [answer["score"] for answer in answers]
        assert look["score"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
    first, last = [[row["answers"][n]["text"] for row in rows] for n in (0, -1)]
    assert first != last

    questions = [pair.prompt[-1]["content"] for pair in heldout]

    def truth(instruction: str, response: str) -> bool | None:
        number = questions.index(instruction)
        return response == first[number] if number else None

    heldout_answers.count_right(run, "ppo", looks, truth)
    assert {look["known"] for look in looks} == {len(rows) - 1}
    assert looks[0]["right"] == len(rows) - 1 > looks[-1]["right"]


def test_without_resets_it_is_the_loop_without_the_reset_path(
    run: Store, base_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = with_ppo(base_recipe, {}, reset=0.0)
    trained(run, recipe, "reset0")
    adapter = run.read(WEIGHTS)

    def plain(
        iteration: int, schedule: PromptSchedule, rows: Any, reset: float
    ) -> Iterator[rollouts.Prompt]:
        found = []
        for epoch, index in schedule.positions(iteration):
            row = rows[index]
            draw = f"{row['id']}.{epoch}"
            found.append(rollouts.Prompt(row["id"], draw, row["prompt_ids"], []))
        return found

    monkeypatch.setattr(online, "prompts_of", plain)
    trained(run, recipe, "plain")
    assert run.read(WEIGHTS) == adapter
    monkeypatch.undo()
    trained(run, with_ppo(base_recipe, {}, reset=1.0), "reset1")
    assert run.read(WEIGHTS) != adapter


def test_where_forced_tokens_count_nowhere_another_adapter_results(
    run: Store, base_recipe: Recipe
) -> None:
    adapters = set()
    for mask in ("policy", "all"):
        found = trained(run, with_ppo(base_recipe, {}, mask_forced=mask), mask)
        assert found["by_step"][0]["forced"] > 0
        adapters.add(run.read(WEIGHTS))
    assert len(adapters) == 2


def test_it_ends_at_a_limit_and_says_so(run: Store, base_recipe: Recipe) -> None:
    recipe = with_ppo(base_recipe, {"epochs": 4.0}, stop_at={"kl": 1e-6})
    found = trained(run, recipe)
    assert 1 <= found["steps"] < 10
    (reason,) = found["passes"]["because"]
    assert "stop_at.kl 1e-06" in reason
    recipe = with_ppo(base_recipe, {"epochs": 4.0}, stop_at={"score": -50.0})
    assert trained(run, recipe, "score")["steps"] == 1


def test_a_reward_model_of_another_base_is_refused(job: Job, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    shutil.copytree(job.store.path(layout.checkpoint("rm").adapter), folder)
    weights = load_file(folder / "adapter_model.safetensors")
    renamed = {name.replace("layers.1", "layers.7"): w for name, w in weights.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    model, _ = online_model.load(job)
    with pytest.raises(BezoarError, match="does not fit merged sft.*stage rm again"):
        online_model.add_reward_adapter(model, str(folder), "other")


def trained_in_process(store: Store, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The adapter that Ray's workers train."""
    run = command(store, recipe, "align")
    subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
    return load_file(store.path(WEIGHTS))


@pytest.fixture(scope="module")
def long_recipe(base_recipe: Recipe) -> Recipe:
    """Sixty iterations, of which every tenth leaves a checkpoint."""
    return with_ppo(base_recipe, {"epochs": 24.0, "checkpoint_every": 10}, reset=0.5)


@pytest.fixture(scope="module")
def undisturbed(
    after_rm: Store, long_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Their adapter if nothing happens to the training."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(after_rm.root, folder)
    return trained_in_process(Store(folder), long_recipe)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_killed_or_stopped_and_resumed_it_ends_with_the_same_adapter(
    run: Store, long_recipe: Recipe, undisturbed: dict[str, torch.Tensor], how: str
) -> None:
    """To the bit; at most `checkpoint_every` iterations are repeated."""
    run.remove("train/dpo")
    first = subprocess.Popen(
        command(run, long_recipe, "align"), stdout=subprocess.DEVNULL
    )

    def step() -> int:
        return (run.read_json("train/dpo/progress.json") or {"step": 0})["step"]

    until(lambda: step() >= 25 or first.poll() is not None)
    assert first.poll() is None
    if how == "killed":
        kill(first)
    else:
        first.terminate()
        assert first.wait(timeout=100) != 0
    found = trained_in_process(run, long_recipe)
    ((begins, resumes),) = begun(run.root, "align").values()
    assert begins == ("training begins", 0) and resumes[0] == "training resumes"
    assert resumes[1] >= 20
    by_step = run.read_json("train/dpo/result.json")["ppo"]["by_step"]
    assert [point["step"] for point in by_step] == list(range(1, 61))
    assert same(found, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_two_workers_train_what_one_does(
    after_rm: Store, base_recipe: Recipe, tmp_path: Path, advantage: str
) -> None:
    adapters = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        shutil.copytree(after_rm.root, folder)
        align = {"epochs": 1.0, "workers": workers}
        group = 1 if advantage == "gae" else 2
        recipe = with_ppo(base_recipe, align, advantage=advantage, group=group)
        adapters.append(trained_in_process(Store(folder), recipe))
    one, two = adapters
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=1e-5), name
