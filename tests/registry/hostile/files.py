"""Hostile files beside the weights: links, devices, pictures that are none, and model cards that do harm when their
front matter is read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.registry.hostile.case import Cases, put_file
from weft_registry import artifact

CASES = Cases()
CARD = artifact.CARD


def card(directory: Path, front_matter: str, text: str = "\n# A card\n") -> None:
    put_file(directory, CARD, f"---\n{front_matter}\n---\n{text}".encode())


@CASES("neither links nor directories", wire="")
def a_link_to_a_secret(directory: Path) -> None:
    (directory / "notes.txt").symlink_to("/etc/passwd")


@CASES("neither links nor directories", wire="")
def weights_that_are_a_link(directory: Path) -> None:
    target = directory / artifact.WEIGHTS
    target.rename(directory.parent / f"{directory.name}-weights")
    target.symlink_to(directory.parent / f"{directory.name}-weights")


@CASES("neither links nor directories", wire="")
def a_link_to_itself(directory: Path) -> None:
    (directory / "loop.txt").symlink_to("loop.txt")


@CASES("neither links nor directories", wire="")
def a_directory_named_as_a_file(directory: Path) -> None:
    (directory / "notes.txt").mkdir()


@CASES("neither links nor directories", wire="")
def a_pipe_that_never_ends(directory: Path) -> None:
    os.mkfifo(directory / "notes.txt")


@CASES("neither links nor directories", wire="")
def a_socket(directory: Path) -> None:
    here = os.getcwd()
    os.chdir(directory)  # A socket's path may not be long.
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("notes.txt")
    finally:
        os.chdir(here)


@CASES("regular file", wire="")
def a_manifest_that_is_a_link(directory: Path) -> None:
    path = directory / artifact.MANIFEST
    path.rename(directory.parent / f"{directory.name}-manifest")
    path.symlink_to(directory.parent / f"{directory.name}-manifest")


@CASES("regular file", wire="")
def a_manifest_that_is_a_pipe(directory: Path) -> None:
    path = directory / artifact.MANIFEST
    path.unlink()
    os.mkfifo(path)


@CASES("the manifest does not list it", wire="")
def a_file_that_the_manifest_does_not_list(directory: Path) -> None:
    (directory / "notes.txt").write_text("x")


@CASES("a file name has", wire="")
def a_name_that_is_no_text(directory: Path) -> None:
    (Path(os.fsdecode(os.fsencode(directory) + b"/\xff\xfe.txt"))).write_text("x")


@CASES("a file name has", wire="")
def a_hidden_file(directory: Path) -> None:
    (directory / ".netrc.txt").write_text("x")


@CASES("collides", wire="")
def two_names_that_differ_by_case(directory: Path) -> None:
    (directory / "Readme.md").write_text("x")


@CASES("at most 64", wire="")
def ten_thousand_files(directory: Path) -> None:
    for number in range(10_000):
        (directory / f"{number}.txt").touch()


@CASES("not a PNG picture")
def a_picture_that_is_a_script(directory: Path) -> None:
    put_file(directory, "loss.png", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")


@CASES("can run code")
def a_pickle(directory: Path) -> None:
    put_file(directory, "optimizer.pt", b"\x80\x04cposix\nsystem\n", media_type="text/plain")


@CASES("at most 67108864", wire="at most 67108864")
def a_text_of_70_mb(directory: Path) -> None:
    put_file(directory, "vocab.txt", b"a\n" * (35 << 20))


@CASES("at most 1048576")
def a_card_of_two_megabytes(directory: Path) -> None:
    put_file(directory, CARD, b"# A card\n" + b"x" * (2 << 20))


@CASES("front matter")
def a_card_with_900_kb_of_yaml(directory: Path) -> None:
    card(directory, "\n".join(f"k{i}: [1, 2, 3]" for i in range(50_000)))


@CASES("front matter")
def a_card_that_grows_a_thousand_million_times(directory: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    card(directory, "\n".join(lines))


@CASES("front matter")
def a_card_that_contains_itself(directory: Path) -> None:
    card(directory, "tags: &a [*a]")


@CASES("front matter")
def a_card_that_merges_keys(directory: Path) -> None:
    card(directory, "a: &a {x: 1}\nb:\n  <<: *a")


@CASES("front matter")
def a_card_that_runs_python(directory: Path) -> None:
    card(directory, "tags: !!python/object/apply:os.system [id]")


@CASES("front matter")
def a_card_of_nested_lists(directory: Path) -> None:
    card(directory, "tags: " + "[" * 50_000)


@CASES("front matter")
def a_card_of_nested_mappings(directory: Path) -> None:
    card(directory, "tags: " + "{a: " * 200 + "1" + "}" * 200)


@CASES("front matter")
def a_card_whose_yaml_is_none(directory: Path) -> None:
    card(directory, "license: [mit\nbase_model: }")


@CASES("front matter")
def a_card_whose_front_matter_is_a_list(directory: Path) -> None:
    card(directory, "- mit")


@CASES("UTF-8")
def a_card_that_is_no_text(directory: Path) -> None:
    put_file(directory, CARD, b"# A card\n\xff\xfe\x00")
