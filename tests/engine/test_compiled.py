"""Machine code on disk belongs to the sources that it was made of."""

from pathlib import Path

from numba import config

from engine.compiled import MACHINE_CODE, machine_code_folder, marker


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
