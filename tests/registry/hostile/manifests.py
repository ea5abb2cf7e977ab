"""Hostile manifests: bytes that are no canonical JSON, documents that lie about the files, and words that do harm where
they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.registry.hostile.case import Cases, edit_config, edit_manifest, put_weights, rewrite_manifest
from tests.registry.lab import raw_safetensors
from weft_registry import artifact
from weft_registry import digest as digests

CASES = Cases()
ZERO = "sha256:" + "0" * 64


def edit_file(directory: Path, path: str, **changes: object) -> None:
    """Changes what the manifest says of one file."""

    def change(document: dict[str, Any]) -> None:
        for file in document["files"]:
            if file["path"] == path:
                file.update(changes)

    edit_manifest(directory, change)


def add_entry(directory: Path, path: str) -> None:
    """Lists one more file, with the content of the card."""

    def change(document: dict[str, Any]) -> None:
        card = next(file for file in document["files"] if file["path"] == artifact.CARD)
        document["files"].append({**card, "path": path})

    edit_manifest(directory, change)


# Bytes.


@CASES("not UTF-8 JSON")
def an_empty_manifest(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: b"")


@CASES("at most 8388608")
def a_manifest_of_nine_mb(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: data[:-1] + b" " * (9 << 20) + b"}")


@CASES("the key 'license' appears twice")
def a_manifest_with_a_key_twice(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: b'{"license":"mit",' + data[1:])


@CASES("the key 'sha256' appears twice")
def a_file_with_two_digests(directory: Path) -> None:
    one = b'"sha256":"' + ZERO.encode() + b'",'
    rewrite_manifest(directory, lambda data: data.replace(b'"sha256":', one + b'"sha256":', 1))


for _constant in ("NaN", "Infinity", "-Infinity", "1e999", "0.5"):
    CASES.add(
        f"a_manifest_with_{_constant}",
        lambda d, constant=_constant: rewrite_manifest(  # type: ignore[misc]
            d, lambda data: data.replace(b'"tokenizer":{}', b'"tokenizer":{"a":' + constant.encode() + b"}")
        ),
        "is not an integer",
    )


@CASES("nested too deeply")
def a_manifest_of_brackets(directory: Path) -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    rewrite_manifest(directory, lambda data: data.replace(b'"tokenizer":{}', b'"tokenizer":{"a":' + deep + b"}"))


@CASES("nested deeper than")
def a_manifest_nested_a_hundred_levels(directory: Path) -> None:
    deep = b"[" * 100 + b"]" * 100
    rewrite_manifest(directory, lambda data: data.replace(b'"tokenizer":{}', b'"tokenizer":{"a":' + deep + b"}"))


@CASES("not UTF-8 JSON")
def a_number_of_seven_million_digits(directory: Path) -> None:
    digits = b"9" * 7_000_000
    rewrite_manifest(directory, lambda data: data.replace(b'"tokenizer":{}', b'"tokenizer":{"a":' + digits + b"}"))


for _field in ("files", "tensors"):
    CASES.add(
        f"a_size_beyond_64_bits_among_the_{_field}",
        lambda d, key=b'"size":' if _field == "files" else b'"shape":[': rewrite_manifest(  # type: ignore[misc]
            d, lambda data: data.replace(key, key + b"9" * 30, 1)
        ),
        "64 bits",
    )


@CASES("lists and objects")
def three_million_empty_lists(directory: Path) -> None:
    lists = b"[" + b",".join([b"[]"] * 2_500_000) + b"]"
    rewrite_manifest(directory, lambda data: data.replace(b'"tokenizer":{}', b'"tokenizer":{"a":' + lists + b"}"))


@CASES("commas")
def four_million_numbers(directory: Path) -> None:
    numbers = b"[" + b",".join([b"1"] * 4_000_000) + b"]"
    rewrite_manifest(directory, lambda data: data.replace(b'"tokenizer":{}', b'"tokenizer":{"a":' + numbers + b"}"))


@CASES("64 bits")
def a_number_that_other_readers_round(directory: Path) -> None:
    digits = b"9" * 4000
    rewrite_manifest(directory, lambda data: data.replace(b'"tokenizer":{}', b'"tokenizer":{"a":' + digits + b"}"))


@CASES("half of a surrogate pair")
def half_of_a_surrogate_pair(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: data.replace(b'"apache-2.0"', b'"\\ud800"'))


@CASES("not UTF-8 JSON")
def overlong_utf_8(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: data.replace(b'"apache-2.0"', b'"\xc0\xaf"'))


@CASES("not in canonical form")
def white_space_between_keys(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: json.dumps(json.loads(data), indent=1).encode())


@CASES("not in canonical form")
def keys_out_of_order(directory: Path) -> None:
    def change(data: bytes) -> bytes:
        backwards = dict(reversed(json.loads(data).items()))
        return json.dumps(backwards, separators=(",", ":"), ensure_ascii=False).encode()

    rewrite_manifest(directory, change)


@CASES("not in canonical form")
def letters_written_as_escapes(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: data.replace(b"apache", b"\\u0061pache"))


@CASES("not UTF-8 JSON")
def a_payload_after_the_manifest(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: data + b"{}")


@CASES("is a list, not an object")
def a_manifest_that_is_a_list(directory: Path) -> None:
    rewrite_manifest(directory, lambda data: b"[" + data + b"]")


# Documents.

DOCUMENTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an_unknown_key": (lambda m: m.update(hooks={"post_pull": "sh"}), "manifest.hooks: unknown key"),
    "an_unknown_key_of_a_megabyte": (lambda m: m.update({"k" * (1 << 20): 1}), "unknown key"),
    "an_unknown_key_in_the_base": (lambda m: m["base"].update(url="http://x"), "unknown key"),
    "a_schema_of_the_future": (lambda m: m.update(schema_version=1 << 62), "this Weft reads 1"),
    "a_schema_that_is_true": (lambda m: m.update(schema_version=True), "this Weft reads 1"),
    "a_size_that_is_true": (lambda m: m["files"][0].update(size=True), "expected int"),
    "a_negative_size": (lambda m: m["files"][0].update(size=-1), "negative"),
    "a_kind_that_nobody_knows": (lambda m: m.update(kind="telepathy"), "telepathy"),
    "a_kind_of_a_megabyte": (lambda m: m.update(kind="k" * (1 << 20)), "manifest.kind"),
    "a_name_that_moves_the_cursor": (lambda m: m.update(name="a\u001b[2J\u001b]0;owned\u0007"), "manifest.name"),
    "a_name_that_reads_backwards": (lambda m: m.update(name="a\u202egpj.exe"), "manifest.name"),
    "a_name_of_a_megabyte": (lambda m: m.update(name="a" * (1 << 20)), "manifest.name"),
    "a_license_of_five_megabytes": (lambda m: m.update(license="x" * (5 << 20)), "manifest.license"),
    "a_license_of_many_lines": (lambda m: m.update(license="mit\nready on 127.0.0.1:1"), "manifest.license"),
    "a_base_id_that_moves_the_cursor": (lambda m: m["base"].update(id="a\r\u001b[1A"), "manifest.base.id"),
    "a_base_digest_that_is_a_path": (
        lambda m: m["base"].update(weights_sha256="../../etc/passwd"),
        "manifest.base.weights_sha256",
    ),
    "a_base_digest_of_a_megabyte": (
        lambda m: m["base"].update(config_sha256="a" * (1 << 20)),
        "manifest.base.config_sha256",
    ),
    "a_nul_in_the_provenance": (lambda m: m["provenance"].update(trainer="a\0b"), "control character"),
    "an_escape_deep_in_the_provenance": (
        lambda m: m["provenance"].update(datasets=[{"uri": {"a": ["\u001b[31m"]}}]),
        "control character",
    ),
    "a_control_character_in_a_key": (lambda m: m["tokenizer"].update({"a\u0007": "b"}), "control character"),
    "a_metric_name_with_a_nul": (lambda m: m.update(metrics=[metric("a\0b")]), "metrics[0]"),
    "a_metric_value_of_a_megabyte": (lambda m: m.update(metrics=[metric("a", value="9" * (1 << 20))]), "metrics[0]"),
    "forty_thousand_metrics": (lambda m: m.update(metrics=[metric(f"m{i}") for i in range(40_000)]), "at most 4096"),
    "a_time_that_is_none": (lambda m: m.update(created="2026-13-45T99:99:99Z"), "manifest.created"),
    "a_time_in_other_digits": (lambda m: m.update(created="٢٠٢٦-01-31T12:00:00Z"), "manifest.created"),
    "a_time_and_a_newline": (lambda m: m.update(created="2026-01-31T12:00:00Z\n"), "manifest.created"),
    "parameters_that_nobody_knows": (lambda m: m["adapter"].update(exec="id"), "adapter.exec: unknown key"),
    "a_rank_of_a_thousand_million": (lambda m: m["adapter"].update(r=10**9), "adapter.r"),
    "a_rank_below_nought": (lambda m: m["adapter"].update(r=-4), "adapter.r"),
    "a_rank_that_the_tensors_do_not_have": (lambda m: m["adapter"].update(r=512), "expected BF16 or F16 or F32"),
    "an_alpha_that_is_nan": (lambda m: m["adapter"].update(alpha="nan"), "adapter.alpha"),
    "an_alpha_that_is_infinite": (lambda m: m["adapter"].update(alpha="inf"), "adapter.alpha"),
    "an_alpha_of_1e308": (lambda m: m["adapter"].update(alpha="1e308"), "adapter.alpha"),
    "an_alpha_of_a_megabyte": (lambda m: m["adapter"].update(alpha="9" * (1 << 20)), "adapter.alpha"),
    "a_module_that_is_a_path": (
        lambda m: m["adapter"].update(target_modules=["../../x"], rank_pattern={}),
        "the lora parameters ask for",
    ),
    "a_hundred_thousand_modules": (
        lambda m: m["adapter"].update(target_modules=[f"m{i}" for i in range(100_000)], rank_pattern={}),
        "the lora parameters ask for",
    ),
    "a_pattern_for_a_module_that_is_not_there": (
        lambda m: m["adapter"].update(rank_pattern={"x" * 5000: 1}),
        "not one of target_modules",
    ),
    "tensors_twice_in_the_table": (lambda m: m["tensors"].append(m["tensors"][0]), "sorted by name"),
    "a_table_without_tensors": (lambda m: m.update(tensors=[]), "no such tensor"),
    "a_tensor_digest_of_nothing": (lambda m: m["tensors"][0].update(sha256=ZERO), "but its bytes have"),
    "a_manifest_without_files": (lambda m: m.update(files=[]), "is missing"),
}


def metric(name: str, value: str = "0.5") -> dict[str, str]:
    return {"name": name, "value": value, "dataset_sha256": "", "split": "test"}


for _name, (_change, _says) in DOCUMENTS.items():
    CASES.add(_name, lambda d, change=_change: edit_manifest(d, change), _says)  # type: ignore[misc]


# Files that it lists.

for _name, _path, _says in (
    ("a_path_that_climbs", "../../etc/cron.d/x.txt", "flat directory"),
    ("an_absolute_path", "/etc/x.txt", "flat directory"),
    ("a_path_with_backslashes", "..\\..\\x.txt", "flat directory"),
    ("a_drive_letter", "C:x.txt", "a file name has"),
    ("a_nul_in_a_path", "x.txt\0.md", "a file name has"),
    ("a_newline_in_a_path", "x\n.txt", "a file name has"),
    ("a_path_that_reads_backwards", "x\u202etxt.md", "a file name has"),
    ("a_path_of_a_megabyte", "x" * (1 << 20) + ".txt", "a file name has"),
    ("a_composed_letter", "caf\u00e9.txt", "a file name has"),
    ("a_decomposed_letter", "cafe\u0301.txt", "a file name has"),
    ("a_full_width_dot", "x\uff0etxt", "a file name has"),
    ("a_name_that_differs_by_case", "readme.MD", "collides"),
    ("the_manifest_listed_in_itself", "Adapter_Manifest.JSON", "cannot list itself"),
    ("a_git_directory", ".git", "a file name has"),
    ("a_home_directory", "~.txt", "a file name has"),
    ("a_pickle_named_bin", "pytorch_model.bin", "can run code"),
    ("a_pickle_named_pt", "training_args.pt", "can run code"),
    ("a_pickle_named_pkl", "x.pkl", "can run code"),
    ("a_checkpoint", "last.ckpt", "can run code"),
    ("a_python_file", "modeling_x.py", "can run code"),
    ("a_python_file_in_capitals", "SETUP.PY", "can run code"),
    ("a_web_page", "index.html", "not a type"),
    ("a_second_file_of_weights", "more.safetensors", "not a type"),
    ("an_archive", "x.tar.gz", "not a type"),
):

    def _add(directory: Path, path: str = _path) -> None:
        add_entry(directory, path)

    CASES.add(_name, _add, _says)


@CASES("collides")
def two_files_of_one_path(directory: Path) -> None:
    add_entry(directory, artifact.CARD)


@CASES("at most 64")
def a_hundred_thousand_files(directory: Path) -> None:
    # Without the card's digest: it would make the manifest too long, which is another case.
    def change(document: dict[str, Any]) -> None:
        card = {**document["files"][0], "media_type": "", "size": 0}
        document["files"] += [{**card, "path": f"{i}.md"} for i in range(50_000)]

    edit_manifest(directory, change)


@CASES("its digest is another", wire="blobs are missing")
def a_wrong_digest(directory: Path) -> None:
    edit_file(directory, artifact.CARD, sha256=ZERO)


@CASES("is not a digest")
def a_digest_that_is_a_path(directory: Path) -> None:
    edit_file(directory, artifact.CARD, sha256="sha256:../../../../etc/passwd")


@CASES("is not a digest")
def a_digest_in_capitals(directory: Path) -> None:
    edit_file(directory, artifact.CARD, sha256="sha256:" + "A" * 64)


@CASES("its digest is another", wire="but the file has")
def the_digest_of_another_file(directory: Path) -> None:
    edit_file(directory, artifact.CARD, sha256=digests.of_file(directory / artifact.CONFIG))


@CASES("but the file has")
def a_wrong_size(directory: Path) -> None:
    edit_file(directory, artifact.WEIGHTS, size=1)


@CASES("at most 1048576")
def a_size_that_adds_up_beyond_64_bits(directory: Path) -> None:
    for path in (artifact.CARD, artifact.CONFIG, artifact.WEIGHTS):
        edit_file(directory, path, size=(1 << 63) - 1)


@CASES("media_type")
def a_card_that_claims_to_be_a_web_page(directory: Path) -> None:
    edit_file(directory, artifact.CARD, media_type="text/html")


@CASES("1 element is NaN or infinite")
def eight_thousand_tensors_and_a_nan_in_the_last(directory: Path) -> None:
    """Everything is right but for the last element: nothing can be refused early."""
    many_modules(directory, [f"m{i:05}" for i in range(4_000)])


@CASES("takes too long")
def a_pattern_for_each_of_eight_thousand_modules(directory: Path) -> None:
    """Thirty expressions, each plain, that nearly match each of the modules from each of its dots."""
    many_modules(directory, [f"{'a.' * 80}{i:04}" for i in range(8_000)])
    edit_config(directory, lambda c: c.update(rank_pattern={f".*a.*x{i}": 1 for i in range(30)}))


def many_modules(directory: Path, modules: list[str]) -> None:
    """A LoRA of rank 1 at each of them, whose last element is not a number."""
    names = sorted(f"base_model.model.{module}.lora_{half}.weight" for module in modules for half in "AB")
    header = {
        name: {"dtype": "F16", "shape": [1, 1], "data_offsets": [2 * i, 2 * i + 2]} for i, name in enumerate(names)
    }
    data = b"\1\1" * (len(names) - 1) + b"\0\x7e"
    put_weights(directory, raw_safetensors(json.dumps(header).encode(), data))
    ones, nan = digests.of_bytes(b"\1\1"), digests.of_bytes(b"\0\x7e")

    def change(document: dict[str, Any]) -> None:
        document["tensors"] = [{"name": n, "dtype": "F16", "shape": [1, 1], "sha256": ones} for n in names]
        document["tensors"][-1]["sha256"] = nan
        document["adapter"].update(r=1, target_modules=modules, rank_pattern={})

    edit_manifest(directory, change)
    edit_config(directory, lambda c: c.update(r=1, target_modules=None, rank_pattern={}))
