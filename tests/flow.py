"""Two scripted stages that flow into one another."""

from tests import stages


def run(context):
    yield "generate", stages.run(context)
    yield "filter", stages.run(context)
