"""Tokenizers: a pretrained one by name or folder, or a whole-word vocabulary built from the train texts."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from training.config import EncoderConfig
from training.data.known_words import count_unknown
from training.data.pretrained_files import load_pretrained
from training.utils.io import file_digest, naming_full_disk

# Folder of the tokenizer in a run folder.
TOKENIZER = "tokenizer"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# A word that occurs once is split into characters: its own embedding would have one training example.
MIN_COUNT = 2
# Files of which a folder with a pretrained tokenizer has at least one.
VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# Largest share of unknown words in the training texts: the English vocabulary of MiniLM lacks none of the 18,323 words of
# rendered captions, 3 of 7 words of a Russian sentence and all of a Chinese one.
UNKNOWN_SHARE = 0.1


def build_tokenizer(config: EncoderConfig, train_texts: Sequence[str]) -> Any:
    """Tokenizer of the text encoder, `transformers` interface, texts wrapped as [CLS] ... [SEP].

    Without `config.pretrained` the vocabulary holds the lower-cased words that occur at least twice in `train_texts`
    (most frequent first, ties by alphabet), and every character of the texts and of ASCII as a word start and as a
    continuation, so that only characters unseen in training become [UNK]. Equal texts give equal vocabularies.

    Raises RuntimeError when the pretrained tokenizer cannot be loaded, ValueError when it has no padding token or does not
    know more than UNKNOWN_SHARE of the words of `train_texts`.
    """
    if not config.pretrained:
        return _build_word_tokenizer(train_texts)
    name = f"the tokenizer of model.text.pretrained={config.pretrained!r}"
    try:
        _require_vocabulary(Path(config.pretrained))
        tokenizer = load_pretrained(AutoTokenizer.from_pretrained, config.pretrained)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise RuntimeError(
            f"{name} cannot be loaded; give a local folder that holds it, or a Hugging Face name while online "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{name} has no padding token, which batches of texts need; choose another text encoder")
    _require_known_words(tokenizer, train_texts, name)
    return tokenizer


def _require_vocabulary(folder: Path) -> None:
    """Raises FileNotFoundError for a folder without any of VOCABULARY: transformers makes a tokenizer without words of it."""
    if folder.is_dir() and not any(path for name in VOCABULARY for path in folder.glob(name)):
        raise FileNotFoundError(f"{folder} has no vocabulary, expected one of {', '.join(VOCABULARY)}")


def _require_known_words(tokenizer: Any, texts: Sequence[str], name: str) -> None:
    number, words, unknown = count_unknown(tokenizer, texts)
    if number > UNKNOWN_SHARE * words:
        raise ValueError(
            f"{name} does not know {number / words:.1%} of the {words:,} words of the training texts, such as "
            f"{', '.join(unknown[:5])}; at most {UNKNOWN_SHARE:.0%} may be unknown: choose a text encoder of their language"
        )


def _build_word_tokenizer(train_texts: Sequence[str]) -> PreTrainedTokenizerFast:
    normalizer, pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    # Texts repeat; each distinct one is normalised once.
    for text, count in Counter(train_texts).items():
        for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)):
            counts[word] += count
    vocabulary = {token: i for i, token in enumerate(_vocabulary(counts))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    # The type stubs of Tokenizer declare these attributes read-only.
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _vocabulary(counts: Counter[str]) -> Iterable[str]:
    """Special tokens, characters, continuations, then words, without repetition."""
    ascii_characters = {chr(i) for i in range(33, 127) if not chr(i).isupper()}
    characters = sorted(ascii_characters | {character for word in counts for character in word})
    words = sorted((word for word, count in counts.items() if count >= MIN_COUNT), key=lambda w: (-counts[w], w))
    return dict.fromkeys([*SPECIAL, *characters, *("##" + character for character in characters), *words])


def save_tokenizer(tokenizer: Any, folder: Path | str) -> None:
    """Writes the files of the tokenizer into `folder`, each one atomically. Raises OSError, naming a disk that is full."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        naming_full_disk(folder),
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary,
    ):
        try:
            tokenizer.save_pretrained(temporary)
        except Exception as error:
            # The tokenizers library, which is no Python, raises a bare Exception "... (os error 28)".
            if number := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise
        for file in sorted(Path(temporary).iterdir()):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            os.replace(file, folder / file.name)


def tokenizer_digests(folder: Path | str) -> dict[str, str]:
    """SHA-256 of each file of a tokenizer by its name; empty without the folder."""
    return {path.name: file_digest(path) for path in sorted(Path(folder).glob("*")) if path.is_file()}


def require_tokenizer(folder: Path | str, expected: dict[str, str] | None) -> None:
    """Raises ValueError naming the first file of the tokenizer that is not as `tokenizer_digests` saw it; None checks nothing."""
    found = tokenizer_digests(folder)
    for name, digest in (expected or {}).items():
        if found.get(name) != digest:
            what = "is missing" if name not in found else "is not the file that the model was trained with"
            raise ValueError(
                f"{Path(folder) / name} {what}: words would get other embeddings; restore it from a copy, or run the command "
                "that trained the run again with --resume, which writes it again"
            )


def load_tokenizer(folder: Path | str) -> Any:
    """Loads a tokenizer written by `save_tokenizer`. Raises FileNotFoundError if the folder holds none."""
    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise FileNotFoundError(
            f"there is no tokenizer in {folder}; expected tokenizer_config.json as written by a run"
        )
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
