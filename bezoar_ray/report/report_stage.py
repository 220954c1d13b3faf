"""The report stage: report.html, the MT-Bench page and the cards.

It reads only files of the run directory.
"""

from bezoar_ray import layout
from bezoar_ray.report.cards import write_cards
from bezoar_ray.report.content import gather
from bezoar_ray.report.page import render
from bezoar_ray.report.transcripts import write_conversations
from bezoar_ray.stages import StageContext, StageResult


def run(context: StageContext) -> StageResult:
    """Write report.html, MT-Bench's conversations, and a card for rows and checkpoints.

    A failed run gets a report, too. It lists the stages that are missing, and the
    reasons why rows were rejected.
    """
    # First, as the report links to this page if it exists.
    conversations = write_conversations(context.store)
    content = gather(context.recipe, context.store)
    context.store.replace(layout.REPORT, render(content))
    for warning in content.warnings:
        context.progress.say(f"warning: {warning}")
    cards = write_cards(content, context.store)
    files = [layout.REPORT, *conversations, *cards]
    return StageResult(files, {"warnings": content.warnings})
