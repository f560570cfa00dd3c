"""Builds the fuzzer: the parser and its harness as C, compiled by clang with libFuzzer, AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from Cython.Compiler.Main import CompilationOptions
from Cython.Compiler.Main import compile as cython

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OUTPUT = ROOT / "var" / "fuzz"
SANITIZERS = "address,undefined,fuzzer"


def clang() -> str | None:
    """The compiler, or None: Debian's clang-14 with libclang-rt-14-dev, or another that is called clang."""
    return shutil.which("clang-14") or shutil.which("clang")


def build() -> Path:
    """The program, made anew when a source of it is newer. RuntimeError when a compiler finds fault."""
    program = OUTPUT / "fuzz_parser"
    sources = [HERE / "harness.pyx", HERE / "driver.cc", ROOT / "cube_mesh" / "_fastpath.pyx"]
    sources += (ROOT / "cube_mesh" / "_fastpath").glob("*.pxi")
    if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return program
    OUTPUT.mkdir(parents=True, exist_ok=True)
    options = CompilationOptions(output_file=str(OUTPUT / "harness.c"), compiler_directives={})
    if cython(str(HERE / "harness.pyx"), options).num_errors:
        raise RuntimeError("Cython refuses the harness")
    directory, version = sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LDVERSION")
    command = [
        clang() or "clang", "-g", "-O2", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZERS}",
        "-fno-sanitize-recover=undefined", "-w", f"-I{sysconfig.get_path('include')}", f"-I{OUTPUT}",
        str(HERE / "driver.cc"), str(OUTPUT / "harness.c"), "-o", str(program),
        f"-L{directory}", f"-Wl,-rpath,{directory}", f"-lpython{version}", "-lm",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return program


def environment() -> dict[str, str]:
    """For the program: where the package is, and the C allocator, which the sanitizer watches, in place of Python's."""
    site = sysconfig.get_path("purelib")
    wanted = {"PYTHONPATH": f"{ROOT}:{site}", "PYTHONMALLOC": "malloc", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, "PYTHONHOME": sysconfig.get_config_var("prefix"), **wanted}
