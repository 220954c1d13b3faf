"""The report stage: report.html and the cards, from the run directory's files alone."""

from bezoar_ray import layout
from bezoar_ray.report.cards import write_cards
from bezoar_ray.report.content import gather
from bezoar_ray.report.page import render
from bezoar_ray.report.transcripts import write_conversations
from bezoar_ray.stages import StageContext, StageResult


def run(context: StageContext) -> StageResult:
    """Write report.html, self-contained, MT-Bench's conversations to read, and a card for the rows and each checkpoint.

    A run that failed gets its report, too: it says what is missing, and which gate took the rows.
    """
    conversations = write_conversations(context.store)
    content = gather(context.recipe, context.store)
    context.store.replace(layout.REPORT, render(content))
    for warning in content.warnings:
        context.progress.say(f"warning: {warning}")
    files = [layout.REPORT, *conversations, *write_cards(content, context.store)]
    return StageResult(files, {"warnings": content.warnings})
