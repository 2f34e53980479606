"""The predicted times: by hand, and what they say of themselves."""

import json

import pytest

from bench.gpu import cases, roofline


def test_prediction_by_hand():
    """B 64, D 1536, L 192, N 16 on an H200: 302e6 element-states, 9.4e6 warps of 32, 1045e9 scheduler cycles a second."""
    counts = roofline.read_counts()
    shape = (64, 1536, 192, 16)
    line = roofline.line(counts, shape, "forward", roofline.GPUS["H200"])
    warps = 64 * 1536 * 192 * 16 / 32
    ours, peer = 9.5 * warps / (132 * 4 * 1.98e9), 57.0 * warps / (132 * 4 * 1.98e9)
    limit = 8.0 * warps / (132 * 4 * 1.98e9)  # 72 us; the bytes, 151 MB, would take 36
    assert round(ours * 1e6) == 86 and round(peer * 1e6) == 515 and round(limit * 1e6) == 72
    assert line == ["B 64 D 1536 L 192 N 16", "forward", "exp unit", "86", "84%", "515", "14%", "6.0"]


def test_prediction_says_what_limits_and_what_is_unknown():
    counts, h200 = roofline.read_counts(), roofline.GPUS["H200"]
    kernel = {"issue": 1.0, "mufu": 1.0, "streams": 4, "saved": 8, "tile": 8}
    # 2 * 4 bytes an element without, 16 with saved states: 1e9 elements, and B and C.
    without, saving = (roofline.floor(kernel, (1, 10**6, 1000, 1), s, h200) for s in (False, True))
    assert without.limiter == "bytes" and without.seconds == pytest.approx(8e9 / 4.22e12, rel=1e-3)
    assert saving.seconds == pytest.approx(2 * without.seconds, rel=1e-3)
    assert roofline.steps_and_issue(kernel, 77) == (80, 1.0)
    # A whole kernel of two instructions for each of 77 steps, of which 80 are computed.
    assert roofline.steps_and_issue({**kernel, "whole": {"77": 2.0}}, 77) == (80, pytest.approx(2 * 77 / 80))
    assert roofline.line(counts, (64, 512, 260, 16), "forward", h200)[5:] == ["not counted", "", ""]
    ratios = [roofline.line(counts, (64, 1536, 193, 16), d, h200)[7] for d in roofline.DIRECTIONS]
    assert ratios == ["5.9", "5.4"]
    few = roofline.line(counts, (2, 1536, 2048, 16), "forward+backward", h200)
    assert few[0].endswith(" *") and few[2] == "exp unit + issue"
    text = roofline.table(counts, "H100")
    assert text.startswith("PREDICTED, not measured") and counts["note"] in text
    assert json.loads(roofline.COUNTS.read_text()) == counts


def test_every_shape_of_the_benchmark_is_predicted():
    text = roofline.table(roofline.read_counts(), "H100")
    for _, (batch, channels, length), _, dtype in cases.STREAMS:
        if dtype == cases.BF16 and length > 1:
            assert text.count(f"| B {batch} D {channels} L {length} N 16") == len(roofline.DIRECTIONS)
