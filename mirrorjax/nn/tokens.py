"""Builds GPT-2's byte-pair tokenizer from a file of ranks. Nothing is downloaded."""

import base64
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import require_kind
from ..extras import needs

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
RANKS = 50_256
# The pattern by which GPT-2 cuts text into words before pairs are merged.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def gpt2_tokens(ranks: str | Path) -> "tiktoken.Encoding":
    """Returns GPT-2's tokenizer: `encode_ordinary(text)` and `decode(tokens)`; 50,257 tokens, the last one ends a text.

    **Arguments:** `ranks`: the file of ranks, `mirrorjax.data.gpt2_ranks()`.
    **Raises:** `ValueError`, in one line, for a file that is missing, truncated or in another format, and where
    tiktoken, of the extra `published`, is not installed.

    Source: Radford et al., Language models are unsupervised multitask learners (2019).
    """
    with needs("published", "GPT-2's tokenizer"):
        import tiktoken
    require_kind(ranks, (str, os.PathLike), "ranks", "the path of a file, such as mirrorjax.data.gpt2_ranks()")
    path = Path(ranks)
    if not path.is_file():
        raise ValueError(f"there is no file of ranks {path}; mirrorjax.data.gpt2_ranks() finds or downloads it")
    try:
        # tiktoken's own reader would copy the file to a folder of temporary files, and read the copy the next time.
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        merged = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise ValueError(
            f"{path} is not a file of lines `token rank`, tokens in base64 ({error}); get it again"
        ) from error
    if sorted(merged.values()) != list(range(RANKS)):
        raise ValueError(
            f"{path} is not the whole file of GPT-2's ranks: it has {len(merged)} of {RANKS}; get it again"
        )
    return tiktoken.Encoding("gpt2", pat_str=WORDS, mergeable_ranks=merged, special_tokens={END_OF_TEXT: RANKS})
