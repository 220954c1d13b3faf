"""lm-eval's client of the endpoint under a chat template, which alone writes control tokens."""

from lm_eval.models.openai_completions import LocalCompletionsAPI

from bezoar_ray.llm.chat_tokens import spelling_of


class ChatCompletions(LocalCompletionsAPI):
    """`local-completions` with the control tokens of the chat template spelt by their marks in its prompts, so that
    what a task's texts spell is text."""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation."""
        spelling = spelling_of(self.tokenizer)
        return spelling.exchange(
            super().apply_chat_template(
                spelling.exchange(chat_history), add_generation_prompt
            )
        )

    def tok_encode(
        self,
        string: str | list[str],
        left_truncate_len: int | None = None,
        add_special_tokens: bool = False,
        **_: object,
    ) -> list[int] | list[list[int]]:
        """The ids of a prompt, or of each of several."""
        texts = [string] if isinstance(string, str) else list(string)
        begin = add_special_tokens or self.add_bos_token
        coded = spelling_of(self.tokenizer).twin.encode_batch(
            texts, add_special_tokens=begin
        )
        ids = [
            found.ids[-left_truncate_len:] if left_truncate_len else found.ids
            for found in coded
        ]
        return ids[0] if isinstance(string, str) else ids
