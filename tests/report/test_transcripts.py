"""The page on which MT-Bench's conversations can be read."""

import pytest

from bezoar_ray.evaluate.mt_bench.answers import Answer
from bezoar_ray.evaluate.mt_bench.fastchat_files import save
from bezoar_ray.evaluate.mt_bench.judging import Judgment
from bezoar_ray.evaluate.mt_bench.pairwise import Comparison, Game
from bezoar_ray.layout import CONVERSATIONS
from bezoar_ray.report.transcripts import write_conversations
from bezoar_ray.sources.mt_bench_files import Question
from bezoar_ray.store import Store

ATTACK = "<script>document.title = 'owned'</script>"
QUESTION = Question(81, "math", ("What is 2+2?", ATTACK), ("4", "8"))
PLAIN = Question(82, "writing", ("Write.",))


@pytest.fixture
def page(tmp_path) -> str:
    answers = [
        Answer(QUESTION, "base", ("5", ATTACK)),
        Answer(QUESTION, "sft", ("four",)),
    ]
    answers += [Answer(PLAIN, name, ("Once.",)) for name in ("base", "sft")]
    judgments = [
        Judgment(81, "math", "base", "j", 1, 2.0, "wrong"),
        Judgment(81, "math", "sft", "j", 1, None, ATTACK),
    ]
    comparisons = [
        Comparison(
            81, "math", ("sft", "base"), "j", 1, (Game("sft", "a"), Game("tie", "b"))
        )
    ]
    save(Store(tmp_path), [QUESTION, PLAIN], answers, judgments, comparisons)
    assert write_conversations(Store(tmp_path)) == [CONVERSATIONS]
    return Store(tmp_path).read(CONVERSATIONS).decode()


def test_questions_answers_grades_and_comparisons_stand_together(page):
    for said in (
        "What is 2+2?",
        "four",
        "j <b>2.0</b> wrong",
        "unread",
        "sft versus base: sft; in reverse order: tie",
    ):
        assert said in page
    assert page.count("no answer") == 1


def test_text_from_models_does_nothing(page):
    assert ATTACK not in page and page.count("&lt;script&gt;") == 3


def test_without_conversations_there_is_no_page(tmp_path):
    assert write_conversations(Store(tmp_path)) == []
