"""The protocols beside `dual`: pair by pair against the model itself, what they refuse, and the audit that is no result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from tests.support.tiny_run import tiny_config
from training import evaluate as entry
from training.config.ablations import table_rows
from training.data.datasets import Record, descriptions_path, identity_texts, read_dataset, read_gallery_texts
from training.data.images import transforms
from training.data.loader import tokenize
from training.data.tokenizer import build_tokenizer
from training.engine import checkpoint
from training.engine.checkpoint import TrainedModel, build_model
from training.evaluation import metric_tables, run_evaluation
from training.evaluation.dual import embed_dual
from training.evaluation.experiment_result import Summary
from training.evaluation.metrics import METRICS, retrieval_metrics
from training.evaluation.protocols import fusion_protocols
from training.evaluation.protocols.fusion_protocols import candidates, matching_logits, promote_candidates
from training.evaluation.protocols.measure import measure
from training.evaluation.result import CLOTHING_ALONE, Counts, ProtocolEvaluation
from training.evaluation.run_folder import read_run
from training.experiment.summary import run_folder, summarise
from training.utils import cli
from training.utils.io import decode, encode, read_json, write_json


def untrained(root: Path, batch_size: int = 128, **model: Any) -> TrainedModel:
    """A run of a random model, as if its checkpoint had been loaded."""
    config = tiny_config(root)
    config = replace(config, model=replace(config.model, **model), eval=replace(config.eval, batch_size=batch_size))
    records = read_dataset(config.data).splits["test"]
    tokenizer = build_tokenizer(config.model.text, [text for r in records for text in r.captions])
    torch.manual_seed(0)
    return TrainedModel(config, tokenizer, build_model(config, tokenizer).eval(), 0, 0, 0.5, "")


@pytest.fixture(scope="module")
def records(root: Path) -> list[Record]:
    return read_dataset(tiny_config(root).data).splits["test"]


def measured(run: TrainedModel, records: list[Record], protocol: Any, k: int) -> dict[str, Any]:
    """`measure` as RUN/eval-PROTOCOL.json has it."""
    return encode(measure(run, records, protocol, k).result)


def pair(run: TrainedModel, record: Record, text: str) -> torch.Tensor:
    """f_final (1, E) of one image and one text, by the model's own method."""
    image = transforms.normalise(transforms.decode(record.path, run.config.data.image_size)[None])
    with torch.no_grad():
        return run.model.fuse(image, tokenize(run.tokenizer, [text], run.config.data.text_length)).f_final_BE


def match(run: TrainedModel, record: Record, text: str) -> float:
    """Logit of the matching head for one pair alone."""
    assert run.model.matching_head is not None
    with torch.no_grad():
        t_BE = run.model.embed_texts(tokenize(run.tokenizer, [text], run.config.data.text_length))
        return float(run.model.matching_head(pair(run, record, text), t_BE))


@pytest.mark.parametrize("batch_size", [5, 128])
def test_logits_of_pairs_are_those_of_each_pair_alone(
    root: Path, records: list[Record], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion_protocols, "PAIRS", 7)
    run = untrained(root, batch_size)
    captions = [text + " with a hat" * (i % 3) for i, r in enumerate(records) for text in r.captions]
    generator = torch.Generator().manual_seed(1)
    query = torch.randint(len(captions), (40,), generator=generator)
    image = torch.randint(len(records), (40,), generator=generator)
    seen: list[tuple[int, int]] = []
    logits = matching_logits(run, records, captions, query, image, lambda *x: seen.append(x))
    for i in range(40):
        expected = match(run, records[int(image[i])], captions[int(query[i])])
        assert float(logits[i]) == pytest.approx(expected, rel=0, abs=1e-5)
    assert seen[-1] == (40, 40) and all(a < b for (a, _), (b, _) in zip(seen, seen[1:], strict=False))


def test_candidates_are_the_best_k_and_what_ties_with_the_last(root: Path, records: list[Record]) -> None:
    dual = embed_dual(*(lambda r: (r.model, records, r.tokenizer, r.config))(untrained(root)))
    scores = dual.similarity(0.5)
    query, image = candidates(dual, 0.5, 4)
    assert query.tolist() == [q for q in range(len(scores)) for _ in range(4)]
    assert [set(row.tolist()) for row in image.view(-1, 4)] == [set(row.tolist()) for row in scores.topk(4).indices]
    tied = replace(dual, v_id_GE=torch.zeros_like(dual.v_id_GE), v_clo_GE=torch.zeros_like(dual.v_clo_GE))
    assert len(candidates(tied, 0.5, 1)[0]) == scores.numel(), "one score for all: nobody is left out"
    assert len(candidates(dual, 0.5, 10_000)[0]) == scores.numel()


def test_candidates_stand_in_front_in_their_new_order() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    query, image = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    ranked = promote_candidates(scores, query, image, torch.tensor([-60.0, -50.0, 2.0, 2.0], dtype=torch.float64))
    assert ranked[0].argsort(descending=True).tolist() == [1, 0, 2, 3]
    assert ranked[1, 0] == ranked[1, 1] > ranked[1, 2] > ranked[1, 3]
    everything = promote_candidates(
        scores, torch.arange(2).repeat_interleave(4), torch.arange(4).repeat(2), -scores.flatten()
    )
    assert everything.argsort(dim=1).tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize("k", [3, 1000])
def test_rerank_is_what_scoring_every_candidate_by_hand_gives(root: Path, records: list[Record], k: int) -> None:
    run = untrained(root, batch_size=7)
    result = measured(run, records, "rerank", k)
    dual = embed_dual(run.model, records, run.tokenizer, run.config)
    scores, rows, alone = dual.similarity(run.beta).double(), [], []
    for query, caption in enumerate(dual.captions):
        order = scores[query].argsort(descending=True).tolist()
        head, tail = order[:k], order[k:]
        logit = {i: match(run, records[i], caption) for i in head}
        both = {i: float(scores[query, i]) / result["temperature"] + logit[i] for i in head}
        for target, value in ((rows, both), (alone, logit)):
            target.append(sorted(head, key=value.__getitem__, reverse=True) + tail)
    ids = dual.query_ids_Q, dual.gallery_ids_G
    for key, ranking in (("metrics", rows), ("metrics_matching", alone)):
        places = torch.empty(scores.shape, dtype=torch.float64)
        for query, order in enumerate(ranking):
            places[query, order] = torch.arange(len(order), 0, -1, dtype=torch.float64)
        assert result[key] == pytest.approx(retrieval_metrics(places, *ids), abs=1e-9)
    assert result["metrics_dual"] == pytest.approx(retrieval_metrics(dual.similarity(run.beta), *ids))
    assert result["pairs"] == len(dual.captions) * min(k, len(records))
    assert result["parameters"] == {"beta": 0.5, "k": k} and "audit" not in result


@pytest.mark.parametrize("beta", [CLOTHING_ALONE, 10 * CLOTHING_ALONE])
def test_the_matching_head_counts_where_clothing_alone_ranks(beta: float, root: Path, records: list[Record]) -> None:
    run = replace(untrained(root), beta=beta)
    result, k = measured(run, records, "rerank", 6), 6
    dual = embed_dual(run.model, records, run.tokenizer, run.config)
    assert dual.v_clo_GE is not None
    cosine, places = (dual.t_QE @ dual.v_clo_GE.T).double(), torch.zeros(len(dual.captions), len(records))
    for query, caption in enumerate(dual.captions):
        order = dual.similarity(beta)[query].argsort(descending=True).tolist()
        both = {i: float(cosine[query, i]) / result["temperature"] + match(run, records[i], caption) for i in order[:k]}
        ranked = sorted(both, key=both.__getitem__, reverse=True) + order[k:]
        places[query, ranked] = torch.arange(len(ranked), 0, -1, dtype=torch.float32)
    assert result["metrics"] == pytest.approx(retrieval_metrics(places, dual.query_ids_Q, dual.gallery_ids_G), abs=1e-9)
    assert result["metrics"] != result["metrics_dual"] and result["parameters"] == {"beta": beta, "k": k}


def test_queries_in_parts_give_the_same(root: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained(root)
    whole = measured(run, records, "rerank", 5)
    monkeypatch.setattr(fusion_protocols, "QUERIES", 11)
    parts = measured(run, records, "rerank", 5)
    for key in ("metrics", "metrics_matching", "metrics_dual"):
        assert parts[key] == pytest.approx(whole[key], abs=1e-9)


def describe_all(root: Path, target: Path) -> Path:
    """A copy of a data set in which every image has texts; those of the test split name the person's number."""
    copied = Path(shutil.copytree(root, target))
    lines = [json.loads(line) for line in (copied / "descriptions.jsonl").read_text().splitlines()]
    for item in json.loads((copied / "reid_raw.json").read_text()):
        if item["split"] != "train":
            text = {"identity": f"{item['captions'][0]} number {item['id']}", "clothing": "a shirt", "status": "ok"}
            lines.append({"file_path": item["file_path"], **text})
    (copied / "descriptions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return copied


def test_gallery_text_fuses_each_image_with_its_own_identity_text(
    root: Path, records: list[Record], tmp_path: Path
) -> None:
    run = untrained(describe_all(root, tmp_path / "data"), batch_size=4)
    file = read_gallery_texts(descriptions_path(run.config.data))
    texts = identity_texts(file, records)
    result = measured(run, records, "gallery-text", 128)
    dual = embed_dual(run.model, records, run.tokenizer, run.config)
    gallery = torch.cat([F.normalize(pair(run, r, text), dim=1) for r, text in zip(records, texts, strict=True)])
    ids = dual.query_ids_Q, dual.gallery_ids_G
    assert result["metrics"] == pytest.approx(retrieval_metrics(dual.t_QE @ gallery.T, *ids), abs=1e-6)
    assert result["note"] == "" and "audit" not in result
    assert result["texts"] == {"path": str(tmp_path / "data" / "descriptions.jsonl"), "sha256": file.sha256}
    off = replace(run, config=replace(run.config, loss=replace(run.config.loss, final_info_nce=False)))
    assert "f_final was not trained against captions" in measured(off, records, "gallery-text", 128)["note"]


def test_gallery_text_needs_a_text_of_every_image(root: Path, records: list[Record], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"text of every gallery image; .* has none with status ok for test/.*24 in all\), 0 of them"
    ):
        measure(untrained(root), records, "gallery-text", 128)
    with pytest.raises(FileNotFoundError, match="there is no file of generated texts .*none.jsonl; `python .* writes"):
        read_gallery_texts(tmp_path / "none.jsonl")


def test_paired_audit_makes_an_untrained_model_look_good(root: Path, records: list[Record]) -> None:
    run = untrained(root)
    audit, chance = measured(run, records, "paired-audit", 128), measured(run, records, "rerank", 5)["chance"]
    dual = embed_dual(run.model, records, run.tokenizer, run.config)
    honest = retrieval_metrics(dual.similarity(0.0), dual.query_ids_Q, dual.gallery_ids_G)
    assert chance["R1"] == pytest.approx(100 / 8)
    assert honest["R1"] < 3 * chance["R1"], "a random model finds nobody by text"
    assert audit["metrics_audit"]["R1"] > 5 * chance["R1"], "but finds the image that it was shown"
    assert audit["audit"] is True and "metrics" not in audit


def test_models_that_cannot_take_part_are_named(root: Path, records: list[Record]) -> None:
    run = untrained(root)
    without = untrained(root, fusion=replace(run.config.model.fusion, enabled=False))
    with pytest.raises(ValueError, match="protocol paired-audit fuses images with texts, but the model has no fusion"):
        measure(without, records, "paired-audit", 128)
    run.model.matching_head = None
    with pytest.raises(ValueError, match="protocol rerank needs the matching head"):
        measure(run, records, "rerank", 128)
    with pytest.raises(ValueError, match="--k must be at least 1, got 0"):
        measure(untrained(root), records, "rerank", 0)
    with pytest.raises(
        ValueError,
        match="protocol must be one of rerank, gallery-text, identity, other-outfit, paired-audit, got 'dual'",
    ):
        measure(run, records, "dual", 128)


def test_command_line_writes_one_file_per_protocol_and_parameters(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(run_dir), "--protocol", "rerank"]
    assert cli.run(entry.main, command) == 0
    first = capsys.readouterr().out
    assert "rerank" in first and "matching" in first and "k 128" in first and "eval-rerank.json" in first
    assert cli.run(entry.main, command) == 0
    assert "the test split is evaluated once" in capsys.readouterr().out
    assert cli.run(entry.main, [*command, "--k", "2"]) == 0
    results = [read_json(run_dir / f"eval-rerank{name}.json") for name in ("", "-k2")]
    assert [r["parameters"]["k"] for r in results] == [128, 2] and [r["pairs"] for r in results] == [48 * 24, 48 * 2]
    assert not (run_dir / "eval.json").exists(), "nothing but dual writes the headline"
    with np.load(run_dir / "eval-rerank-queries.npz") as stored:
        assert 100 * stored["ap"].mean() == pytest.approx(results[0]["metrics"]["mAP"], abs=1e-4)
        assert 100 * stored["r1"].mean() == pytest.approx(results[0]["metrics"]["R1"], abs=1e-4)
        assert stored["ids"].shape == (48,)
    assert set(results[0]) >= {"checkpoint", "config", "data", "versions", "seconds", "chance", "ties", "counts"}


def experiment_of(path: Path, run_dir: Path) -> Summary:
    """summary.json of an experiment of one run that has this eval.json."""
    base = checkpoint.load_run(run_dir).config
    row = table_rows(["fig5"], base)[0]
    folder = run_folder(run_dir / "experiment", row.key, 0)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / "eval.json")
    return summarise([row], {"fig5": "Figure 5"}, [0], run_dir / "experiment", base)


def test_audit_enters_no_table(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(entry.main, [str(run_dir), "--protocol", "paired-audit"]) == 0
    printed = capsys.readouterr().out
    assert "not a text-to-image result" in printed and "│" not in printed
    audit = read_json(run_dir / "eval-paired-audit.json")
    assert not (run_dir / "eval-paired-audit-queries.npz").exists()
    # Disguised as the headline, by a copy or by hand, it is still refused.
    disguised = encode(run_evaluation.evaluate(run_dir)[0]) | {"audit": True}
    renamed = {key: value for key, value in audit.items() if key != "audit"}
    path = run_dir / "eval.json"
    for values in (audit, disguised, renamed):
        write_json(path, values)
        for refuse in (
            lambda: run_evaluation.evaluate(run_dir),
            lambda: experiment_of(path, run_dir),
            lambda: read_run(run_dir),
        ):
            with pytest.raises(ValueError, match="it is not a text-to-image result and enters no table"):
                refuse()
    result = replace(decode(ProtocolEvaluation, audit, "audit"), metrics=audit["metrics_audit"], metrics_audit=None)
    with pytest.raises(ValueError, match="this evaluation is of the protocol paired-audit"):
        metric_tables.print_protocol(result, Console(file=StringIO()))


def test_the_note_is_printed(run_dir: Path) -> None:
    values, out = dict.fromkeys(METRICS, 1.0), StringIO()
    result = ProtocolEvaluation(
        protocol="gallery-text",
        parameters={},
        metrics=values,
        metrics_dual=values,
        note="beware",
        chance=values,
        counts=Counts(queries=1, gallery=1, ids=1),
        ties=True,
    )
    metric_tables.print_protocol(result, Console(file=out, width=120))
    assert "beware" in out.getvalue() and "gallery-text" in out.getvalue() and "Tied scores occur" in out.getvalue()
