"""lm-eval's client for the endpoint when prompts use the chat template."""

from lm_eval.models.openai_completions import LocalCompletionsAPI

from bezoar_ray.llm.chat_tokens import control_tokens_of


class ChatCompletions(LocalCompletionsAPI):
    """lm-eval's `local-completions`; only the chat template writes control tokens.

    The control tokens of the chat template are spelled as private marks in the prompts.
    So a control token that appears in a task's own text is encoded as plain text.
    """

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render a conversation as one prompt."""
        spelling = control_tokens_of(self.tokenizer)
        messages = spelling.swap(chat_history)
        prompt = super().apply_chat_template(messages, add_generation_prompt)
        return spelling.swap(prompt)

    def tok_encode(
        self,
        string: str | list[str],
        left_truncate_len: int | None = None,
        add_special_tokens: bool = False,
        **_: object,
    ) -> list[int] | list[list[int]]:
        """Return the token ids of one prompt, or of each prompt in a list."""
        texts = [string] if isinstance(string, str) else list(string)
        add_bos = add_special_tokens or self.add_bos_token
        tokenizer = control_tokens_of(self.tokenizer).placeholder_tokenizer
        encodings = tokenizer.encode_batch(texts, add_special_tokens=add_bos)
        all_ids = [encoding.ids for encoding in encodings]
        if left_truncate_len:
            all_ids = [ids[-left_truncate_len:] for ids in all_ids]
        if isinstance(string, str):
            return all_ids[0]
        return all_ids
