"""The protocols identity and other-outfit: every query ranked by hand, what they need, and that training reads none of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.tiny_run import tiny_config
from training import evaluate as entry
from training.data.datasets import Record, TextFile, read_dataset
from training.data.identity_queries import query_texts
from training.data.images import transforms
from training.data.loader import tokenize
from training.data.tokenizer import build_tokenizer
from training.engine.checkpoint import TrainedModel, build_model
from training.evaluation.metrics import METRICS
from training.evaluation.protocols import clothes_protocols
from training.evaluation.protocols.measure import Measured, measure
from training.synthetic.dataset import generate
from training.train import train
from training.utils import cli
from training.utils.io import read_json

Factors = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rendered") / "set"
    generate(out, 13, seed=4, val_ids=2, test_ids=5, height=160, width=64)
    return out


@pytest.fixture
def copy(rendered: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered, tmp_path / "set"))


@pytest.fixture(scope="module")
def records(rendered: Path) -> list[Record]:
    return read_dataset(tiny_config(rendered).data).splits["test"]


def untrained(root: Path, **model: Any) -> TrainedModel:
    config = tiny_config(root)
    config = replace(config, model=replace(config.model, **model))
    tokenizer = build_tokenizer(config.model.text, read_dataset(config.data).train_texts())
    torch.manual_seed(0)
    return TrainedModel(config, tokenizer, build_model(config, tokenizer).eval(), 0, 0, 0.75, "")


def rows_of(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name).read_text().splitlines()]


def write_rows(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (root / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def cosine(run: TrainedModel, text: str, record: Record) -> tuple[float, float]:
    """Cosines of one text with both embeddings of one image, by the model's own methods."""
    image = transforms.normalise(transforms.decode(record.path, run.config.data.image_size)[None])
    with torch.no_grad():
        t_1E = run.model.embed_texts(tokenize(run.tokenizer, [text], run.config.data.text_length))
        embedded = run.model.embed_images(image)
    return float(t_1E @ embedded.v_id_BE.T), float(t_1E @ embedded.v_clo_BE.T)


def by_hand(ranked: list[bool]) -> list[float]:
    """Metrics of one query in percent from the ranked list of right and wrong, straight from the definitions."""
    ranks = [rank for rank, right in enumerate(ranked, 1) if right]
    precision = sum(found / rank for found, rank in enumerate(ranks, 1)) / len(ranks)
    return [100.0 * value for value in (*(ranks[0] <= k for k in (1, 5, 10)), precision, len(ranks) / ranks[-1])]


def averages(rows: list[list[float]]) -> dict[str, float]:
    return dict(zip(METRICS, np.mean(rows, axis=0).tolist(), strict=True))


def test_identity_ranks_by_the_identity_embedding_alone(rendered: Path, records: list[Record]) -> None:
    run, values = untrained(rendered), []
    texts = {row["file_path"]: row["identity"] for row in rows_of(rendered, "identity_queries.jsonl")}
    for asked in records:
        scores = [cosine(run, texts[asked.file_path], record)[0] for record in records]
        order = sorted(range(len(records)), key=scores.__getitem__, reverse=True)
        values.append(by_hand([records[i].id == asked.id for i in order]))
    measured = measure(run, records, "identity", 128)
    result = measured.result
    assert result.metrics == pytest.approx(averages(values), abs=1e-4)
    assert result.parameters == {"beta": 0.0} and result.counts.queries == len(records) == result.counts.gallery
    same = [sum(other.id == record.id for other in records) / len(records) for record in records]
    assert result.chance["R1"] == pytest.approx(100 * np.mean(same))
    assert measured.ids_Q is not None and measured.ids_Q.tolist() == [record.id for record in records]
    assert result.texts is not None and result.texts.path == str(rendered / "identity_queries.jsonl")


@pytest.mark.parametrize("block", [7, 512])
def test_other_outfit_ranks_what_is_left_of_the_gallery(
    rendered: Path, records: list[Record], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clothes_protocols, "QUERIES", block)
    run = untrained(rendered)
    outfit = {row["file_path"]: row["outfit_number"] for row in rows_of(rendered, "factors.jsonl")}
    values: dict[float, list[list[float]]] = {0.0: [], run.beta: []}
    chance, pairs = [], 0
    for asked in records:
        worn = outfit[asked.file_path]
        gallery = [r for r in records if r.id != asked.id or outfit[r.file_path] != worn]
        assert asked not in gallery and len(gallery) < len(records)
        for caption in asked.captions:
            pairs += 1
            parts = [cosine(run, caption, record) for record in gallery]
            chance.append(sum(r.id == asked.id for r in gallery) / len(gallery))
            for beta, rows in values.items():
                scores = [v_id + beta * v_clo for v_id, v_clo in parts]
                order = sorted(range(len(gallery)), key=scores.__getitem__, reverse=True)
                rows.append(by_hand([gallery[i].id == asked.id for i in order]))
    result = measure(run, records, "other-outfit", 128).result
    assert result.metrics == pytest.approx(averages(values[run.beta]), abs=1e-4)
    assert result.metrics_beta0 == pytest.approx(averages(values[0.0]), abs=1e-4)
    assert result.metrics != result.metrics_beta0 and result.parameters == {"beta": 0.75}
    assert result.chance["R1"] == pytest.approx(100 * np.mean(chance))
    assert (result.counts.queries, result.left_out) == (pairs, 0)


def test_captions_of_people_with_one_outfit_are_left_out_and_counted(copy: Path, records: list[Record]) -> None:
    alone = records[0].id
    rows = rows_of(copy, "factors.jsonl")
    write_rows(copy, "factors.jsonl", [row | {"outfit_number": 0} if row["id"] == alone else row for row in rows])
    here = read_dataset(tiny_config(copy).data).splits["test"]
    measured = measure(untrained(copy), here, "other-outfit", 128)
    theirs, total = (
        sum(len(r.captions) for r in here if keep(r)) for keep in (lambda r: r.id == alone, lambda r: True)
    )
    assert theirs > 0 and measured.result.left_out == theirs
    assert measured.result.counts.queries == total - theirs
    assert measured.result.counts.gallery == len(here), "other people's images stay"
    assert measured.ids_Q is not None and alone not in measured.ids_Q.tolist()
    write_rows(copy, "factors.jsonl", [row | {"outfit_number": 0} for row in rows])
    with pytest.raises(ValueError, match="needs a person with two outfits, but each person wears one only"):
        measure(untrained(copy), here, "other-outfit", 128)


def test_a_model_without_fusion_takes_part(rendered: Path, records: list[Record]) -> None:
    run = untrained(rendered)
    without = untrained(rendered, fusion=replace(run.config.model.fusion, enabled=False))
    results: list[Measured] = [measure(without, records, name, 128) for name in ("identity", "other-outfit")]  # type: ignore
    assert all(item.result.metrics is not None for item in results)


def test_what_the_data_lacks_is_named(root: Path, copy: Path) -> None:
    plain, run = read_dataset(tiny_config(root).data).splits["test"], untrained(root)
    with pytest.raises(
        ValueError, match="protocol identity asks with identity texts, but there is no .*; for a rendered"
    ):
        measure(run, plain, "identity", 128)
    with pytest.raises(ValueError, match="factors.jsonl: protocol other-outfit needs to know who wears what"):
        measure(run, plain, "other-outfit", 128)
    here, rows = read_dataset(tiny_config(copy).data).splits["test"], rows_of(copy, "identity_queries.jsonl")
    write_rows(copy, "identity_queries.jsonl", [row for row in rows if row["file_path"] != here[0].file_path])
    with pytest.raises(ValueError, match=f"has no identity text of {here[0].file_path} .1 in all.; for a rendered set"):
        measure(untrained(copy), here, "identity", 128)


def test_lines_that_are_no_texts(records: list[Record]) -> None:
    for content, words in (
        (b"{\n", "line 1 is not valid JSON"),
        (b'\n{"identity": 3}', "line 2 must be an object with"),
    ):
        with pytest.raises(ValueError, match=f"texts.jsonl, {words}"):
            query_texts(TextFile(Path("texts.jsonl"), content), records)
    rows = [{"file_path": records[0].file_path, "identity": "a man", "status": status} for status in ("ok", "failed")]
    file = TextFile(Path("texts.jsonl"), "\n".join(map(json.dumps, rows)).encode())
    assert query_texts(file, records[:1]) == ["a man"], "a line that failed does not count"


def test_a_damaged_file_is_an_error_and_no_reason_to_leave_a_protocol_out(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, texts = tmp_path / "run", tmp_path / "texts.jsonl"
    train(tiny_config(copy), run)
    texts.write_text("{")
    files = {"identity_queries.jsonl": "identity", "factors.jsonl": "other-outfit"}
    for name, protocol in files.items():
        whole = (copy / name).read_text()
        (copy / name).write_text("{" + whole)
        # Beside another protocol, which alone would have been measured.
        assert cli.run(entry.main, [str(run), "--protocol", protocol, "--protocol", "rerank"]) == 2
        assert f"{name}, line 1 is not valid JSON" in capsys.readouterr().err
        (copy / name).write_text(whole)
    words = [str(run), "--protocol", "gallery-text", "--protocol", "rerank", "--texts", str(texts)]
    assert cli.run(entry.main, words) == 2 and "texts.jsonl, line 1 is not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["others", "missing"])
def test_a_result_belongs_to_the_texts_that_asked(
    content: str, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, name = tmp_path / "run", "identity_queries.jsonl"
    train(tiny_config(copy), run)
    command = [str(run), "--protocol", "identity"]
    assert cli.run(entry.main, command) == 0
    first, before = read_json(run / "eval-identity.json"), capsys.readouterr().out
    if content == "missing":
        (copy / name).unlink()
        assert cli.run(entry.main, command) == 0, "there are no others"
        assert "evaluated before" in capsys.readouterr().out and read_json(run / "eval-identity.json") == first
        return
    write_rows(copy, name, [row | {"identity": "a person"} for row in rows_of(copy, name)])
    digest = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    assert cli.run(entry.main, command) == 0
    told, second = capsys.readouterr().out, read_json(run / "eval-identity.json")
    assert digest[:12] in told and digest[:12] not in before and "evaluated before" not in told
    assert second["texts"]["sha256"] == digest != first["texts"]["sha256"]
    assert second["metrics"] != first["metrics"]
    with np.load(run / "eval-identity-queries.npz") as stored:
        assert 100 * stored["ap"].mean() == pytest.approx(second["metrics"]["mAP"], abs=1e-4)
    assert cli.run(entry.main, command) == 0 and "evaluated before" in capsys.readouterr().out


def test_all_protocols_of_a_run_and_why_one_is_left_out(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(tiny_config(copy), run)
    (copy / "identity_queries.jsonl").unlink()
    assert cli.run(entry.main, [str(run), "--protocol", "identity"]) == 2
    assert "error: protocol identity asks with identity texts" in capsys.readouterr().err
    assert cli.run(entry.main, [str(run), "--protocol", "all"]) == 0
    shown = capsys.readouterr().out
    assert "\nidentity is left out: protocol identity asks with identity texts, but there is no" in shown
    names = {path.name for path in run.glob("eval*.json")}
    assert names == {"eval.json", "eval-rerank.json", "eval-gallery-text.json", "eval-other-outfit.json"}
    with np.load(run / "eval-other-outfit-queries.npz") as stored:
        result = read_json(run / "eval-other-outfit.json")
        assert 100 * stored["ap"].mean() == pytest.approx(result["metrics"]["mAP"], abs=1e-4)
        assert len(stored["ids"]) == result["counts"]["queries"]
    generate_again = [str(run), "--protocol", "identity", "--protocol", "dual"]
    assert cli.run(entry.main, generate_again) == 0 and "identity is left out" in capsys.readouterr().out
