"""What routers are tried on: a bit of everything that language models read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.tokenizer import Tokenizer

_MAX_TOKENS = 1024
_RANDOM_TOKENS = 512

SAMPLE_TEXT = """\
The ferry left the island at half past six, while the lamps along the quay were still burning. Anna
stood at the rail with her collar turned up and counted the windows of the houses, as she had done
every autumn since she was a child. There were forty-one of them. "You always count," said her
brother, who had come up the stairs with two cups of tea. "What do you do when one of them is dark?"
"Then I remember who lived there," she answered, and took the cup that was less full.

Question: How do plants make their food?
Answer: Plants make food by photosynthesis. Their leaves take in carbon dioxide from the air, and
their roots bring water from the soil. With the energy of sunlight, which chlorophyll absorbs, they
turn both into sugar and oxygen. The sugar feeds the plant; the oxygen is released into the air.

user
Can you give me three tips for learning a new language?
assistant
Of course! Here are three tips:
1. **Practise every day.** Ten minutes each morning are better than two hours on Sunday.
2. **Listen a lot.** Songs, radio and films teach you how words really sound.
3. **Don't be afraid of mistakes.** Each of them shows you what to learn next.

def count_words(path, smallest=1):
    \"\"\"Returns how often each word occurs in a file.\"\"\"
    counts = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            for word in line.lower().split():
                counts[word] = counts.get(word, 0) + 1
    return {word: n for word, n in counts.items() if n >= smallest}

for (int i = 0; i < n; i++) { sum += values[i] * values[i]; }  // squared length

{"id": 1042, "name": "Oak table", "price": 349.5, "tags": ["wood", "kitchen"], "sold": false}

In 1969, after a journey of about 384,000 kilometres, two astronauts landed on the Moon; the third
stayed in orbit. The treaty of 1648 ended a war that had lasted thirty years. Let x be the solution
of 3x + 7 = 22; then x = (22 - 7) / 3 = 5. Since the triangle has a right angle, c^2 = a^2 + b^2,
and with a = 6 and b = 8 the longest side is 10.

Dear Mr. Osei,
thank you for your letter of 12 March. We are sorry that your order arrived late and have asked the
carrier to explain the delay. Please find enclosed a refund of £18.40. Yours sincerely, J. Whitfield

Der Zug nach Hamburg fährt heute von Gleis neun. La bibliothèque ouvre à dix heures, sauf le lundi.
El perro duerme debajo de la mesa. 今日はとても良い天気ですね。 Москва — столица России.

BREAKING: Markets fell sharply on Tuesday, with the main index down 2.3% at the close, as investors
weighed higher interest rates against strong earnings. "Nobody was expecting this," one trader said.

Soft falls the snow on field and hill, / the brook lies under ice, and still
the robin on the garden wall / sings as if spring were in it all.
"""


def sample_ids(source: Path, vocab_size: int) -> Tensor:
    """int64 [T], T ≤ 1024: the text in a checkpoint's tokens; random ones where a directory has no
    tokenizer. Raises ModelError for a tokenizer that is damaged or of another model.
    """
    if source.is_dir() and not (source / "tokenizer.json").is_file():
        return torch.randint(
            vocab_size, (_RANDOM_TOKENS,), generator=torch.Generator().manual_seed(0)
        )
    ids = Tokenizer.load(source).encode(SAMPLE_TEXT)[:_MAX_TOKENS]
    if max(ids) >= vocab_size:
        raise ModelError(f"{source}: its tokenizer knows id {max(ids)}, its model {vocab_size} ids")
    return torch.tensor(ids)
