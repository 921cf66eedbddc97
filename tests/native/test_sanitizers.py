"""The core without Python, under sanitizers: reads outside of an array, undefined behaviour, and races."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler"),
    pytest.mark.skipif(not NATIVE.is_dir(), reason="this is no checkout: the sources of the core are missing"),
]


@pytest.mark.parametrize(("sanitizers", "rounds"), [("address,undefined", 150), ("thread", 40)])
def test_random_segments_and_damaged_ones_give_a_sanitizer_nothing_to_say(tmp_path, sanitizers, rounds):
    sources = [str(NATIVE / "tests" / "stress.cpp"), *map(str, sorted((NATIVE / "src").glob("*.cpp")))]
    sources.remove(str(NATIVE / "src" / "module.cpp"))
    program = tmp_path / "stress"
    options = ["-std=c++20", "-O1", "-g", "-pthread", "-ffp-contract=off", f"-fsanitize={sanitizers}"]
    built = subprocess.run(
        [COMPILER, *options, "-fno-sanitize-recover=all", *sources, "-o", str(program)],
        check=False,
        capture_output=True,
        text=True,
    )
    if "cannot find -l" in built.stderr:
        pytest.skip(f"the compiler's runtime for {sanitizers} is not installed")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), "1", str(rounds)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
