"""Answers as tokens: the template's, with one beginning and the answer's own end."""

from bezoar_ray.evaluate.reward_bench.items import BenchItem
from bezoar_ray.evaluate.reward_bench.tokenized_items import tokenize
from bezoar_ray.recipe import load_recipe
from tests.train.test_tokenizer import byte_level


def test_each_answer_follows_its_prompt_and_ends_the_conversation(tmp_path):
    from transformers import AutoTokenizer

    folder = byte_level(tmp_path / "tokenizer", "PreTrainedTokenizerFast")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = load_recipe("tiny").template
    prompt = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1."},
        {"role": "user", "content": "Two?"},
    ]
    # A control token in an answer is text, and does not end it.
    answers = ("    2.", f"Not {tokenizer.eos_token} 3.")
    item = BenchItem("0", "math-prm", prompt, answers, right=1)
    ((first, second),) = tokenize([item], tokenizer)
    for answer, text in ((first, answers[0]), (second, answers[1])):
        rendered = tokenizer.decode(answer.ids)
        assert rendered.startswith(f"{tokenizer.bos_token}### System:")
        assert answer.ids.count(tokenizer.bos_token_id) == 1
        # This tokenizer has a token for a line break and spaces, so the first answer
        # begins with the line break before it. Then so does the second.
        scored = tokenizer.decode(answer.ids[answer.answer])
        assert scored == f"\n{text}{tokenizer.eos_token}"
        assert answer.answer.stop == len(answer.ids)
        assert answer.ids[-1] == tokenizer.eos_token_id
        assert answer.ids.count(tokenizer.eos_token_id) == 2  # and the first turn's


def test_what_a_template_writes_after_an_answer_is_cut(tmp_path):
    """A reward model reads the last token, which ends the answer."""
    from transformers import AutoTokenizer

    folder = byte_level(tmp_path / "tokenizer", "PreTrainedTokenizerFast")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = load_recipe("tiny").template + "{{- '\\nBye.' -}}"
    prompt = [{"role": "user", "content": "One?"}]
    ((answer,),) = tokenize([BenchItem("0", "s", prompt, ("1.",), 1)], tokenizer)
    assert answer.ids[-1] == tokenizer.eos_token_id
    assert answer.ids.count(tokenizer.eos_token_id) == 1
