"""GPT-2's tokens from the file of ranks: known ids, round trips, no network, and files that are refused."""

import base64
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from mirrorjax import data
from mirrorjax.nn.tokens import END_OF_TEXT, gpt2_tokens

FOLDER = os.environ.get("MIRRORJAX_DATA")
needs_data = pytest.mark.skipif(FOLDER is None, reason="MIRRORJAX_DATA names no folder")


@pytest.fixture(scope="module")
def encoding():
    return gpt2_tokens(data.gpt2_ranks())


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@needs_data
@pytest.mark.parametrize(
    ("text", "tokens"),
    # As OpenAI's own encoder gives them; the first is in many tutorials.
    [("Hello world", [15496, 995]), (" Hello", [18435]), ("", []), ("\n\n", [628])],
)
def test_known_tokens(encoding, text, tokens):
    assert encoding.encode_ordinary(text) == tokens


@needs_data
@pytest.mark.parametrize(
    "text", ["naïve café — 東京 🙂", "I'll\t\r\n  trailing  ", "\x00\u200b", "a" * 1000, END_OF_TEXT]
)
def test_any_text_comes_back(encoding, text):
    tokens = encoding.encode_ordinary(text)
    assert encoding.decode(tokens) == text
    assert max(tokens) < 50256


@needs_data
def test_the_end_of_a_text_is_the_last_token(encoding):
    assert encoding.n_vocab == 50257
    assert encoding.encode(END_OF_TEXT, allowed_special="all") == [50256]


@needs_data
def test_shakespeare_in_tokens(encoding):
    """Against the tokens that lie beside the text, and back to its bytes."""
    characters = data.tiny_shakespeare().characters.tobytes()
    text = characters.decode()
    cut = int(0.9 * len(text))
    with np.load(Path(str(FOLDER)) / "tinyshakespeare/gpt2_bpe_tokens.npz") as file:
        np.testing.assert_array_equal(encoding.encode_ordinary(text[:cut]), file["train"])
        np.testing.assert_array_equal(encoding.encode_ordinary(text[cut:]), file["val"])
        assert encoding.decode_bytes([*file["train"], *file["val"]]) == characters


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"IQ== 0\nIg== 1\n", "is not the whole file of GPT-2's ranks: it has 2 of 50256"),
        (b"IQ== 0\nIg=", "is not a file of lines `token rank`"),
        (b"IQ== zero\n", "is not a file of lines `token rank`"),
        (b"!!!! 0\n", "is not a file of lines `token rank`"),
        (b"", "it has 0 of 50256"),
        (b"\n".join(base64.b64encode(str(i).encode()) + b" 7" for i in range(50256)), "is not the whole file"),
    ],
    ids=["short", "cut", "words", "base64", "empty", "ranks"],
)
def test_another_file_is_refused(tmp_path, content, words):
    path = tmp_path / "ranks"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="get it again") as caught:
        gpt2_tokens(path)
    assert words in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file of ranks .*missing; mirrorjax\.data\.gpt2_ranks"):
        gpt2_tokens(tmp_path / "missing")
