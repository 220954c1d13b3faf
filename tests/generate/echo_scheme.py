"""A scheme of one call. A test registers it, and also hands its `run` to a recipe as a custom scheme."""

from dataclasses import replace

from bezoar_ray.generate.task import answered, one_for_each


def plan(name, section, recipe_seed, seeds):
    return one_for_each(name, recipe_seed, seeds, section.seeds)


async def run(task, chat, section):
    (seed,) = task.seeds
    sample = task.sample("echo", instruction=f"Repeat: {seed.task}")
    messages = [{"role": "user", "content": sample.instruction}]
    reply = await chat(messages, step="answer")
    yield replace(sample, **answered(messages, reply))
