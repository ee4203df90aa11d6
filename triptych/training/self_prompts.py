"""Prompts that the target writes itself: what its own chat template makes it expect of a user.

After Magpie (Xu et al., arXiv 2406.08464): an instruction-tuned model that is shown the template up
to the user's first word goes on with a user's prompt. Openers spread them over the tasks that
drafts are good or bad at; texts that the model writes from nothing stand in for documents.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from triptych.errors import ModelError
from triptych.tokenizer import Tokenizer

_MARK = "\u2603"

OPENERS = (
    *("", "", "", "", "What", "How", "Why", "Who", "When", "Which", "Where", "Can you", "In"),
    *("Write", "Write a story about", "Write an email", "Write a blog post", "Compose", "Draft"),
    *("Imagine you are", "Pretend to be", "You are", "Describe", "Explain", "Compare", "Discuss"),
    *("Translate German to English:", "Translate", "Rewrite", "Edit", "Correct", "Paraphrase"),
    *("Summarize", "Summarize the following:", "Extract", "List", "Identify", "Classify", "Given"),
    *("Solve", "Calculate", "Find", "A store", "A man", "There are", "If", "Tom has", "Each"),
    *("Implement", "Write a Python", "Write a C++", "def", "Create", "Develop", "Design"),
    *("Answer the question:", "Question:", "True or false:", "Suppose", "I have", "My", "Let's"),
)
# {} is a document. Long prompts, whose answers repeat them.
DOCUMENT_TASKS = (
    "Summarize: {}",
    "Summarize: {}",
    "{}\n\nSummarize the text above.",
    "{}\n\nTL;DR:",
    "What is the main idea of this text?\n\n{}",
    "Passage: {}\n\nAnswer a question about the passage: What happened?",
    "Read the following passages and answer the question.\n\n{}\n\nQuestion: What is this about?",
    "List the key points of the following text.\n\n{}",
    "Rewrite the following text in simpler words:\n\n{}",
    "Extract all names and dates from this text:\n\n{}",
)


@dataclass(frozen=True, slots=True)
class UserTurn:
    """A chat prompt cut where the user's text begins and ends, as token ids."""

    before: tuple[int, ...]
    behind: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> UserTurn:
        """Raises ModelError when the model has no chat template that shows the user's text."""
        mark = tuple(tokenizer.encode(_MARK, add_special_tokens=False))
        ids = tuple(tokenizer.encode_chat([{"role": "user", "content": _MARK}]))
        for start in range(len(ids) - len(mark) + 1):
            if ids[start : start + len(mark)] == mark:
                return cls(ids[:start], ids[start + len(mark) :])
        raise ModelError("the chat template does not show a user's text as it is; give --data")


def opener(dice: random.Random) -> str:
    return dice.choice(OPENERS)


def about(document: str, dice: random.Random) -> str:
    """A prompt about a document."""
    return dice.choice(DOCUMENT_TASKS).format(document.strip())
