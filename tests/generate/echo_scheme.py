"""A scheme of one call. A test registers it, and also hands its `run` to a recipe as a custom scheme."""

from bezoar_ray.generate.task import fill_answer, one_task_per_seed


def plan(name, section, recipe_seed, seeds):
    return one_task_per_seed(name, recipe_seed, seeds, section.seeds)


async def run(task, chat, section):
    (seed,) = task.seeds
    sample = task.sample("echo", instruction=f"Repeat: {seed.task}")
    messages = [{"role": "user", "content": sample.instruction}]
    reply = await chat(messages, step="answer")
    yield fill_answer(sample, messages, reply)
