"""Mirrors clipseg3d/cli/freed_memory.py: kept memory is not asked for again."""

import os
import platform
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs glibc"
)
MEBIBYTES = 64
PAGES_AGAIN = f"""
import resource
from contextlib import suppress


def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (2**20 * {MEBIBYTES})
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


ACTION
pages()
print(pages())
"""


def pages_again(action, **environment):
    """Return how many pages a process asks for when it takes as much memory a second time."""
    code = PAGES_AGAIN.replace("ACTION", action)
    tuned = {"GLIBC_TUNABLES", "CLIPSEG3D_KEEP_FREED_MEMORY"}
    ours = {k: v for k, v in os.environ.items() if k not in tuned and not k.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=ours | environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout.splitlines()[-1])


KEEP = "from clipseg3d.cli.freed_memory import keep_freed_memory; keep_freed_memory()"
COMMAND = """
import sys
from clipseg3d.cli.main import main
sys.argv = ["clipseg3d", "evaluate", "a", "b", "-o", "c.txt"]  # refused, since it is no .csv
"""
GIVEN_BACK = MEBIBYTES * 2**20 // os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 0
"""More pages than this mean that memory had gone back to the system."""


def test_memory_that_was_freed_is_used_again():
    assert pages_again("") > GIVEN_BACK
    assert pages_again(KEEP) < GIVEN_BACK / 100


def test_a_process_forked_from_ours_keeps_memory_too():
    assert pages_again(f"{KEEP}; import os; os.fork() and (os.wait(), os._exit(0))") < (
        GIVEN_BACK / 100
    )


def test_threads_take_memory_that_others_have_freed():
    """Those of a reader, which would have memory of their own."""
    run = """
import sys
from concurrent.futures import ThreadPoolExecutor
pages()
print(ThreadPoolExecutor(1).submit(pages).result())
sys.exit()"""
    assert pages_again(run) > GIVEN_BACK
    assert pages_again(f"{KEEP}{run}") < GIVEN_BACK / 100


@pytest.mark.parametrize(
    "environment",
    [
        {"CLIPSEG3D_KEEP_FREED_MEMORY": "0"},
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"},
    ],
)
def test_the_environment_has_the_last_word(environment):
    assert pages_again(KEEP, **environment) > GIVEN_BACK


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_another_allocator_is_left_alone(tmp_path):
    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(
        "#include <stddef.h>\nvoid *__libc_malloc(size_t);\n"
        "void *malloc(size_t size) { return __libc_malloc(size); }\n"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    assert pages_again(KEEP, LD_PRELOAD=str(library)) > GIVEN_BACK


def test_a_command_keeps_memory_and_a_call_from_python_does_not():
    assert pages_again(f"{COMMAND}main()") < GIVEN_BACK / 100
    assert pages_again(f"{COMMAND}main(sys.argv[1:])") > GIVEN_BACK
