"""The page of a validated data set: verdict, numbers, findings with pictures, and samples to read by eye."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.data.validation.findings import Sample
from training.data.validation.validate import Validation
from training.report.run_page import write_whole
from training.report.thumbnails import thumbnail

HERE = Path(__file__).parent


def verdict(validation: Validation) -> str:
    """The answer in one sentence."""
    protocol = "official protocol" if validation.official else "protocol"
    if validation.verdict == "no":
        return f"The {protocol} cannot be run: see the errors."
    if validation.verdict == "open":
        return "Not decided: nothing is wrong with the records, but the images were not opened."
    if validation.official and validation.counts != validation.official:
        return "The protocol can be run, on a set of another size than the official one."
    return f"The {protocol} can be run."


def write_validation(validation: Validation, page: Path) -> Path:
    """Writes the page in one move, makes its folder if need be, and returns its path."""
    page.parent.mkdir(parents=True, exist_ok=True)
    return write_whole(page, build_validation(validation).encode())


def build_validation(validation: Validation) -> str:
    """The page as one HTML text without any outside reference."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    splits = sorted({*validation.counts, *validation.official}, key=["train", "val", "test"].index)
    return environment.get_template("validation_page.html.j2").render(
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        validation=validation,
        verdict=verdict(validation),
        splits=[(split, validation.counts.get(split), validation.official.get(split)) for split in splits],
        findings=[(finding, _shown(finding.samples)) for finding in validation.findings],
        samples=[(split, _shown(samples)) for split, samples in validation.samples.items() if samples],
    )


def _shown(samples: tuple[Sample, ...]) -> list[dict[str, str | None]]:
    return [{"image": thumbnail(sample.path), "name": sample.name, "text": sample.text} for sample in samples]
