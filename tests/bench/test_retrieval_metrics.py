"""The measurement of the retrieval metrics, on a miniature split."""

import pytest

from bench.harness import results
from bench.pipeline import retrieval_metrics
from bench.pipeline.loading import Sample
from bench.pipeline.retrieval_metrics import OURS, VARIANTS, Arguments

SMALL = "--images 60 --people 6 --width 8 --rounds 1 --threads 1"


def test_every_variant_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["retrieval_metrics", *SMALL.split()])
    monkeypatch.setattr(retrieval_metrics, "peak_mib", lambda variant, argv: 123.4)
    monkeypatch.setattr(results, "append", lambda rows: pytest.fail("rows are kept only where it is asked for"))
    retrieval_metrics.main()
    shown = capsys.readouterr().out
    assert "60 x 60, 2 betas, 1 threads" in shown and all(name in shown for name in VARIANTS) and "123" in shown


def test_peak_of_a_process_of_its_own() -> None:
    assert 100 < retrieval_metrics.peak_mib(OURS, SMALL.split()) < 1000
    with pytest.raises(RuntimeError, match="peak memory of similarity.sort failed"):
        retrieval_metrics.peak_mib("similarity.sort", ["--images", "0"])


def test_rows_compare_with_ours() -> None:
    found = {variant: [Sample(clock, 2 * clock)] for clock, variant in enumerate(VARIANTS, 1)}
    made = retrieval_metrics.rows(Arguments(), found, dict.fromkeys(VARIANTS, 700.0))
    assert [row["times_ours"] for row in made] == ["1", "2", "3", "4"]
    assert made[0]["kind"] == "ours" and made[0]["median_ms"] == "1000" and made[0]["peak_mib"] == "700"
    assert made[0]["note"] == "CPU time 2.0 s; peak of the whole process"
    assert {key for row in made for key in row} <= set(results.COLUMNS)
