"""The tokenizer built from train texts, and loading one."""

import pytest

from tests.support.pedes_dataset import make_pedes
from training.config import DataConfig, EncoderConfig
from training.data.datasets import read_dataset
from training.data.loader import tokenize
from training.data.tokenizer import SPECIAL, build_tokenizer, load_tokenizer, save_tokenizer

TEXTS = ["A man in a red jacket.", "a man, red shoes", "the woman; blue jacket"]


@pytest.fixture
def tokenizer():
    return build_tokenizer(EncoderConfig(), TEXTS)


def words(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_vocabulary_is_special_tokens_characters_and_frequent_words(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[:5] == list(SPECIAL) and tokenizer.pad_token_id == 0
    longer = [token for token in tokens[5:] if len(token.removeprefix("##")) > 1]
    # By count, then by alphabet; "a" is a character already, the others occur once.
    assert longer == ["jacket", "man", "red"]
    assert len(set(tokens)) == len(tokens)


def test_frequent_words_are_whole_and_others_are_spelt(tokenizer):
    assert words(tokenizer, "A MAN") == ["[CLS]", "a", "man", "[SEP]"]
    assert words(tokenizer, "hat, red") == ["[CLS]", "h", "##a", "##t", ",", "red", "[SEP]"]
    assert words(tokenizer, "Café") == ["[CLS]", "c", "##a", "##f", "##e", "[SEP]"]
    assert words(tokenizer, "a ☂") == ["[CLS]", "a", "[UNK]", "[SEP]"]


def test_characters_of_the_train_texts_are_known():
    assert "[UNK]" not in words(build_tokenizer(EncoderConfig(), ["sac à main ☂"]), "☂ ☂☂")


def test_same_texts_in_another_order_give_the_same_vocabulary(tokenizer):
    assert build_tokenizer(EncoderConfig(), TEXTS[::-1]).get_vocab() == tokenizer.get_vocab()


def test_repeated_texts_count_each_time():
    assert "jacket" in build_tokenizer(EncoderConfig(), ["jacket", "jacket"]).get_vocab()
    assert "jacket" not in build_tokenizer(EncoderConfig(), ["jacket"]).get_vocab()


def test_nothing_in_a_data_set_is_unknown(tmp_path):
    dataset = read_dataset(DataConfig(root=str(make_pedes(tmp_path))))
    texts = dataset.train_texts()
    assert texts[:4] == [*dataset.splits["train"][0].captions, "a stout adult", texts[3]] and len(texts) == 4 * 18
    tokenizer = build_tokenizer(EncoderConfig(), texts)
    assert tokenizer.unk_token_id not in tokenize(tokenizer, texts, 64).input_ids_BT
    unseen = [caption for record in dataset.splits["test"] for caption in record.captions]
    assert tokenizer.unk_token_id not in tokenize(tokenizer, unseen, 64).input_ids_BT


def test_tokenize_pads_to_the_longest_and_truncates(tokenizer):
    batch = tokenize(tokenizer, ["red man", "red", "red man jacket red man jacket red man jacket"], 8)
    assert batch.input_ids_BT.shape == batch.attention_mask_BT.shape == (3, 8)
    assert batch.input_ids_BT.dtype == batch.attention_mask_BT.dtype
    assert batch.attention_mask_BT.sum(1).tolist() == [4, 3, 8]
    assert batch.input_ids_BT[1, 3:].tolist() == [0] * 5
    assert (batch.input_ids_BT[:, 0] == tokenizer.cls_token_id).all() and batch.input_ids_BT[2, 7] == 3
    assert tokenize(tokenizer, ["red"], 8).input_ids_BT.shape == (1, 3)


def test_saved_and_loaded_again(tokenizer, tmp_path):
    folder = tmp_path / "run" / "tokenizer"
    save_tokenizer(tokenizer, folder)
    save_tokenizer(tokenizer, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]
    for loaded in (load_tokenizer(folder), build_tokenizer(EncoderConfig(pretrained=str(folder)), [])):
        assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.pad_token_id == 0
        assert words(loaded, "A hat, Café ☂") == words(tokenizer, "A hat, Café ☂")


def test_no_tokenizer_in_a_run_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"there is no tokenizer in {tmp_path}; expected tokenizer_config.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_pretrained_tokenizer_that_cannot_be_loaded(tmp_path, name):
    (tmp_path / "empty").mkdir()
    folder = tmp_path / name
    text = rf"the tokenizer of model.text.pretrained='{folder}' cannot be loaded; give a local folder that holds it"
    with pytest.raises(RuntimeError, match=text):
        build_tokenizer(EncoderConfig(pretrained=str(folder)), TEXTS)
