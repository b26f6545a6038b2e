"""What the documents say is true: commands parse, links lead somewhere, the tree names every file."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "docs/edge.md", "docs/python.md", "weights/README.md", "results/TRIALS.md")
SCRIPTS = {
    "detect.py": "detect",
    "prep_data.py": "prep_data",
    "train_changeclass.py": "train_changeclass",
    "test_widerface_personface.py": "test_widerface_personface",
    "convert_to_onnx.py": "convert_to_onnx",
    "widerface_evaluate/evaluation.py": "widerface_evaluate.evaluation",
    "wider_openimagespersonface_evaluate/evaluation.py": "wider_openimagespersonface_evaluate.evaluation",
}


def commands(document: str) -> list[str]:
    """Every line of a document that runs a script, continuation lines joined."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:    |\$ )?((?:[A-Z_]+=\S+ )?(?:python3|torchrun) .*)$", text, re.MULTILINE)
    inline = re.findall(r"`(python3 [^`]+)`", text)
    found = [" ".join(line.split()) for line in lines + inline]
    return [
        line for line in found if ".py" in line and " find.py " not in line
    ]  # find.py: edge.md has it whole


def documented() -> list[str]:
    return list(dict.fromkeys(line for name in DOCUMENTS for line in commands(name)))


def test_the_documents_hold_commands():
    assert len(documented()) > 15


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_is_understood(line):
    words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    assert (ROOT / words[script]).is_file(), line
    if words[script] in SCRIPTS:
        arguments = [word for word in words[script + 1 :] if word != "..."]
        importlib.import_module(SCRIPTS[words[script]]).parse_args(arguments)


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "prep_data.py"])
def test_the_help_of_a_script_has_every_option_in_a_group(script, capsys):
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module(SCRIPTS[script]).parse_args(["-h"])
    shown = capsys.readouterr().out
    alone = shown.split("\noptions:\n")[1].split("\n\n")[0]
    assert re.findall(r"^  (-\S+)", alone, re.MULTILINE) == ["-h,"]
    assert "default: [" not in shown and "inf)" not in shown


def test_the_project_does_not_claim_to_be_a_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings.keys() == {"tool"} and not (ROOT / "setup.py").exists()
    assert "`pip install .` does not install it" in " ".join((ROOT / "README.md").read_text().split())


def blocks(document: str) -> list[str]:
    """The Python of a document, block by block."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def test_the_python_of_the_documents_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("supervision")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    code = blocks("docs/python.md")
    assert len(code) >= 7
    names: dict = {}
    for block in code:
        exec(compile(block, "docs/python.md", "exec"), names)
    told = capsys.readouterr().out
    assert "docs/absent.jpg: " in told and "docs/astronaut.jpg (512, 512, 3) 2" in told
    assert sorted(names["found"].class_names) == ["face", "person"]
    assert len(names["several"]) == 3 and (tmp_path / "found.jpg").is_file()


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "photo.jpg").symlink_to(ROOT / "docs/astronaut.jpg")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("README.md")
    exec(block, {})
    assert capsys.readouterr().out.startswith("face 0.")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, target


def test_the_tree_names_every_file():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    tree = (ROOT / "README.md").read_text().split("## Where things are")[1].split("```")[1]
    named = set(re.findall(r"[\w.]+\.(?:pyx|pxd|py)|[\w]+/", tree))
    rooms = ("benchmarks/", "tests/", ".ci/")  # the tree tells their purpose, not their files
    for file in tracked.stdout.splitlines():
        if file.endswith((".py", ".pyx", ".pxd")) and not file.startswith(rooms) and "__init__" not in file:
            folder, _, name = file.rpartition("/")
            top = f"{folder.split('/')[0]}/" if folder else ""
            inner = f"{folder.split('/')[-1]}/" if folder else ""
            assert name in named or (inner != top and inner in named), file
    for name in named:
        assert any(
            f"/{file}".endswith(f"/{name}") or f"/{name}" in f"/{file}" for file in tracked.stdout.split()
        ), name
