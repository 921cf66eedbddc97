"""The core without Python: under sanitizers, which see reads outside of an array and races, and on other processors."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
ARM_COMPILER, ARM_EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NATIVE.is_dir(), reason="this is no checkout: the sources of the core are missing"),
]


def build(compiler, program, *options):
    sources = [NATIVE / "tests" / "stress.cpp", *NATIVE.glob("src/*.cpp")]
    sources.remove(NATIVE / "src" / "module.cpp")
    command = [compiler, "-std=c++20", "-g", "-pthread", "-ffp-contract=off", *options, *sources, "-o", program]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def run(*command):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(("sanitizers", "rounds"), [("address,undefined", 150), ("thread", 40)])
def test_random_segments_and_damaged_ones_give_a_sanitizer_nothing_to_say(tmp_path, sanitizers, rounds):
    built = build(COMPILER, tmp_path / "stress", "-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all")
    if "cannot find -l" in built.stderr:
        pytest.skip(f"the compiler's runtime for {sanitizers} is not installed")
    assert built.returncode == 0, built.stderr
    run(tmp_path / "stress", "1", str(rounds))


@pytest.mark.skipif(None in (ARM_COMPILER, ARM_EMULATOR), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64")
def test_an_arm_processor_finds_the_same_hits(tmp_path):
    built = build(ARM_COMPILER, tmp_path / "stress", "-O2", "-static")
    assert built.returncode == 0, built.stderr
    run(ARM_EMULATOR, tmp_path / "stress", "1", "60")
