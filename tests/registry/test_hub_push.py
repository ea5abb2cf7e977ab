"""Stock PEFT, transformers and `hf` push by name, with nothing set but HF_ENDPOINT, and load what they pushed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.registry.hub_lab import hf, run_client
from tests.registry.lab import add_base
from tests.registry.test_hub_peft import MODEL
from weft_registry import artifact
from weft_registry.embedded import EmbeddedRegistry
from weft_registry.home import Home
from weft_registry.hub.port import HubPort

NewArtifact = Callable[..., Path]
PUSHES = (
    MODEL
    + """
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model

CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}
for name, config in CONFIGS.items():
    repo = f"acme/{name}"
    base = model()
    base.name_or_path = "tiny/base"
    trained = get_peft_model(base, config).eval()
    if name == "prefix":
        torch.nn.init.normal_(trained.prompt_encoder["default"].embedding.weight)
    said = logits(trained)
    assert (said - plain).abs().max() > 1e-3, name
    first = trained.push_to_hub(repo)
    HfApi().create_tag(repo, tag="v1")
    assert HfApi().model_info(repo, revision="v1").sha == first.oid
    # Another one on a branch of its own, which nobody reads who does not ask for it.
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.mul_(2.0)
    assert not torch.equal(logits(trained), said)
    trained.push_to_hub(repo, revision="trial")
    for revision in ("v1", None, first.oid):
        found = logits(PeftModel.from_pretrained(model(), repo, revision=revision))
        assert (found - said).abs().max() == 0.0, (name, revision)
    HfApi().create_tag(repo, tag="v2", revision="trial")
    found = logits(PeftModel.from_pretrained(model(), repo, revision="v2"))
    assert (found - logits(trained)).abs().max() == 0.0, name
    if name == "lora":
        loaded = model()
        loaded.load_adapter(repo, adapter_kwargs={"revision": "v1"})
        torch.testing.assert_close(logits(loaded), said)
        loaded.push_to_hub("acme/from-transformers")
        again = model()
        again.load_adapter("acme/from-transformers")
        assert (logits(again) - logits(loaded)).abs().max() == 0.0
    print(name)
"""
)


@pytest.fixture
def port(registry: EmbeddedRegistry, home: Home) -> Iterator[HubPort]:
    add_base(home)
    port = HubPort(registry, "127.0.0.1", 0, grace_s=0)
    yield port
    port.close()


def test_what_peft_pushes_computes_the_same_when_it_is_loaded(
    registry: EmbeddedRegistry, port: HubPort, tmp_path: Path
) -> None:
    said = run_client(PUSHES, address=port.address, home=tmp_path / "hf")
    assert said.split() == ["lora", "prefix"]
    for kind in ("lora", "prefix"):
        first, second = registry.resolve(f"acme/{kind}:v1"), registry.resolve(f"acme/{kind}:v2")
        assert (first.manifest.kind, second.manifest.kind) == (kind, kind)
        assert first.digest != second.digest
        assert first.aliases == ("latest",)
        assert artifact.CARD in {file.path for file in first.manifest.files}


def test_the_command_line_uploads_tags_and_downloads(
    registry: EmbeddedRegistry, port: HubPort, new_artifact: NewArtifact, tmp_path: Path
) -> None:
    def run(*arguments: str) -> str:
        return hf(*arguments, address=port.address, home=tmp_path / "hf")

    directory = new_artifact(seed=1)
    run("repos", "create", "acme/topics")
    run("repos", "create", "acme/topics", "--exist-ok")
    said = run("upload", "acme/topics", str(directory))
    version = registry.resolve("acme/topics")
    assert version.digest == artifact.read(directory).digest()
    assert version.digest[7:47] in said
    run("repos", "tag", "create", "acme/topics", "v1")
    assert registry.resolve("acme/topics:v1") == registry.resolve("acme/topics")
    run("upload", "acme/topics", str(new_artifact(seed=2)), "--revision", "trial")
    run("upload", "acme/topics", str(directory / artifact.CARD), "notes.md", "--revision", "trial")
    assert registry.resolve("acme/topics").tags == ("v1",)
    run("download", "acme/topics", "--revision", "v1", "--local-dir", str(tmp_path / "out"))
    for path in directory.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    run("download", "acme/topics", "notes.md", "--revision", "trial", "--local-dir", str(tmp_path / "trial"))
    assert (tmp_path / "trial" / "notes.md").read_text() == "A card.\n"
    run("repos", "branch", "delete", "acme/topics", "trial")
    assert registry.workspaces.heads(version.adapter) == {}
