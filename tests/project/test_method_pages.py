"""docs/methods: every training method has a page, and every configuration on it is one."""

from __future__ import annotations

import re
from pathlib import Path

from weft_trainer.config import run as configs

YAML = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_every_configuration_on_a_methods_page_is_a_run_of_one_of_its_methods(root: Path, tmp_path: Path) -> None:
    pages = sorted((root / "docs" / "methods").glob("*.md"))
    assert pages
    for page in pages:
        text = page.read_text()
        heading = text.splitlines()[0]
        runs = YAML.findall(text)
        assert runs, f"{page.name} shows no configuration"
        for written in runs:
            file = tmp_path / "run.yaml"
            file.write_text(written)
            config = configs.load(file)
            assert f"`{config.method}`" in heading, page.name


def test_every_method_has_a_page_to_which_the_table_of_methods_links(root: Path) -> None:
    headings = {
        page.name: page.read_text().splitlines()[0] for page in sorted((root / "docs" / "methods").glob("*.md"))
    }
    table = [line for line in (root / "docs" / "training.md").read_text().splitlines() if line.startswith("| `")]
    for method in configs.METHOD_OPTIONS:
        (page,) = [name for name, heading in headings.items() if f"`{method}`" in heading]
        rows = [line for line in table if f"`{method}`" in line.split("|")[1]]
        assert any(f"(methods/{page})" in line for line in rows), f"{method}: no row links to methods/{page}"
