"""Machine code on disk belongs to the sources that it was made of."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from numba import config

from engine.compiled import MACHINE_CODE, machine_code_folder, marker, save_alone
from engine.operations import FAMILIES, Kind


def test_a_change_of_any_source_has_its_own_folder(tmp_path: Path) -> None:
    """
    A kernel is compiled anew when only a function that it calls was changed.
    """
    (tmp_path / "kernel.py").write_text("from called import add")
    (tmp_path / "called.py").write_text("def add(a, b): return a + b")
    before = machine_code_folder(tmp_path)
    same = machine_code_folder(tmp_path)

    (tmp_path / "called.py").write_text("def add(a, b): return b + a")

    assert same == before
    assert machine_code_folder(tmp_path) != before


def test_kernels_are_kept_there() -> None:
    """
    numba looks for the machine code of this process's kernels in that folder.
    """
    assert Path(config.CACHE_DIR) == MACHINE_CODE


def test_that_all_of_them_are_is_said_for_this_processor() -> None:
    """
    In the same folder, under a name that is always the same here.
    """
    assert marker().parent == MACHINE_CODE
    assert marker() == marker.__wrapped__()


def test_one_at_a_time_adds_to_what_is_kept_of_a_function() -> None:
    """
    Two that compiled it for other types would else both take the next free name: one finds
    the other's machine code later.
    """
    running: list[str] = []

    class File:
        def save(self, key: str, data: bytes) -> None:
            running.append(key)
            time.sleep(0.05)
            assert running == [key], "somebody else saves as well"
            running.remove(key)

    file = File()
    save_alone(file)
    with ThreadPoolExecutor() as pool:
        saved = [pool.submit(file.save, key, b"") for key in "abcd"]

    assert [each.result() for each in saved] == [None] * 4


def test_every_kind_of_operation_has_one_family() -> None:
    """
    A step calls machine code by the number of a kind: one without would be a call to nowhere.
    """
    kinds = [kind for family in FAMILIES.values() for kind in family]

    assert sorted(kinds) == sorted(Kind)


def test_a_process_that_computes_compiles_nothing() -> None:
    """
    All that `engine.compile` left on disk is found again: every family, and what runs them.
    """
    program = """
from engine.operations import FAMILIES, addresses
from engine.place import NOWHERE
from engine.program import go_on, program_of, run
assert addresses().all()
run(program_of(1), NOWHERE)
print([name for name, kernel in {**{f.py_func.__name__: f for f in FAMILIES}, "go_on": go_on}.items()
       if kernel.stats.cache_misses])
"""

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
