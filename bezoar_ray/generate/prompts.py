"""The teacher's prompts for the three schemes, in our own words after the papers.

The text of a prompt is part of the ledger's keys and of a row's `prompt_hash`: after a
change of one word, the calls are made and paid for again.
"""

from bezoar_ray.llm.chat import Messages


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


# LaMini (arXiv 2304.14402, section 3).


def new_instructions_prompt(
    examples: list[str],
    topics: list[str],
    count: int,
) -> Messages:
    """Ask for `count` instructions like the examples, or about the topics."""
    shown = "\n".join(f"<example>{example}</example>" for example in examples)
    about = " that are similar to the examples"
    if topics:
        about = f" that are about these topics: {', '.join(topics)}"
    return _user(
        f"{shown}\n\nWrite {count} new and different instructions{about}. "
        "Put each one between <example> and </example>, like the examples above. "
        "Write the instructions only, not their answers."
    )


def concise_answer_prompt(instruction: str) -> Messages:
    """Ask for the answer to a new instruction."""
    system = "You are a helpful assistant. Answer helpfully but concisely."
    return [{"role": "system", "content": system}, *_user(instruction)]


# Evol-Instruct (arXiv 2304.12244, section 3.1 and appendices A to F).

IN_DEPTH = {
    "constraints": "Add one more constraint or requirement to it.",
    "deepen": "If it asks about some matter, ask about that matter in more depth and "
    "breadth.",
    "concretise": "Replace its general notions by more specific ones.",
    "reasoning": "If it can be solved in a few simple steps, change it so that it "
    "explicitly asks for several steps of reasoning.",
    # In the paper only: the authors' public script lacks it.
    "complicate_input": "Add input data in a structured form, such as a table, a list "
    "or code, that the task must work on.",
}


def evolution_prompt(operation: str, instruction: str) -> Messages:
    """Ask for an evolution: `breadth` makes a new instruction, others a harder one."""
    if operation == "breadth":
        return _user(
            "Take the #Given Prompt# below as inspiration for a brand-new prompt. "
            "It must belong to the same domain, be rarer, have a similar length and "
            "difficulty, be reasonable, and be something that people understand and "
            "can answer.\n"
            "Reply with the new prompt alone.\n\n"
            f"#Given Prompt#:\n{instruction}\n\n"
            "#Created Prompt#:"
        )
    # The 10 to 20 words, and tables and code left as they are, are the paper's.
    return _user(
        "Rewrite the #Given Prompt# below into a more complex version that people "
        "still understand and can answer. Keep every table, piece of code and input in "
        "it as it is.\n"
        f"{IN_DEPTH[operation]}\n"
        "Add only 10 to 20 words. Reply with the rewritten prompt alone.\n\n"
        f"#Given Prompt#:\n{instruction}\n\n"
        "#Rewritten Prompt#:"
    )


def evolved_answer_prompt(instruction: str) -> Messages:
    """Ask for the answer to an evolved instruction."""
    return _user(instruction)


def comparison_prompt(parent: str, child: str) -> Messages:
    """Ask whether an evolved instruction asks for the same as its parent.

    This is elimination rule 1. The reply starts with "Equal" or "Not equal".
    """
    return _user(
        "Compare the two instructions below. They are equal if they have the same "
        "constraints and requirements and ask for the same depth and breadth.\n\n"
        f"First:\n{parent}\n\n"
        f"Second:\n{child}\n\n"
        "Reply with 'Equal' or 'Not equal' alone."
    )


# Orca (arXiv 2306.02707, table 2): 16 system messages, by the paper's numbers.

ORCA_SYSTEM = {
    1: "",
    2: "You are an assistant. Give an answer so detailed that the user does not have "
    "to look anything up elsewhere.",
    3: "You are an assistant. You are given a task. Write a long and detailed answer.",
    4: "You are a helpful assistant, and you always explain. Imagine that you answer a "
    "five-year-old.",
    5: "You are an assistant who follows instructions extremely well. Help as fully as "
    "you can.",
    6: "You are an assistant who helps people find information. Give a detailed "
    "answer, so that the user need not search on.",
    7: "You are an assistant. Do the user's task as faithfully as you can. Think step "
    "by step, and justify your steps.",
    8: "Describe the task first. If it has choices, give the right answer first, then "
    "say why each other one is wrong. Use words that a five-year-old understands.",
    9: "Explain how you used the definition that you were given to reach the answer.",
    10: "Describe the task first. If it has choices, give the right answer first, then "
    "say why each other one is wrong. Use words that a five-year-old understands, and "
    "any further knowledge that helps.",
    11: "You are an assistant who helps people find information. Reason step by step, "
    "and justify your answer.",
    12: "Follow the user's instruction as well as you can, reasoning step by step.",
    13: "You are a teacher. In simple steps, explain what the task asks, which "
    "guidelines it gives, and how they lead to the answer.",
    14: "You are a teacher who knows every language. In simple steps, explain what the "
    "task asks and which guidelines it gives, then solve it and show how the "
    "guidelines lead to the answer.",
    15: "You are given the definition of a task and an input. Break the definition "
    "into parts and show each part on an example, in this form:\n"
    "Part #: (a part of the definition)\n"
    "Usage: (an example of that part)",
    16: "You are an assistant who helps people find information.",
}
ORCA_MESSAGES = {
    "CoT": (6, 11, 16),
    "NIV2": (1, 2, 5, 7, 9, 12, 13, 14, 15),
    "Flan2021": (3, 4, 7),
    "T0": (1, 2, 3, 5, 7),
}
"""The system messages of each sub-mixture."""
ORCA_MULTIPLE_CHOICE = {"Flan2021": (8, 10)}
"""System messages that are added where the query has choices."""


def explanation_prompt(system: str, query: str) -> Messages:
    """Ask a FLAN query under a system message, or without one where it is empty."""
    messages = _user(query)
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return messages
