"""Page of a validated data set: verdict, numbers, findings with images, and samples to read."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from training.data.validation.findings import Sample
from training.data.validation.validate import Validation
from training.report.thumbnails import thumbnail
from training.utils.io import write_bytes

HERE = Path(__file__).parent


def verdict(validation: Validation) -> str:
    """The verdict in one sentence."""
    protocol = "official protocol" if validation.official else "protocol"
    if validation.verdict == "no":
        return f"The {protocol} cannot be run: see the errors."
    if validation.verdict == "open":
        return "Not decided: nothing is wrong with the records, but the images were not opened."
    if validation.official and validation.counts != validation.official:
        return "The protocol can be run, on a set whose size differs from the official one."
    return f"The {protocol} can be run."


def write_validation(validation: Validation, page: Path) -> Path:
    """Writes the page atomically, creates its folder if needed, and returns its path."""
    page.parent.mkdir(parents=True, exist_ok=True)
    return write_bytes(page, build_validation(validation).encode())


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
