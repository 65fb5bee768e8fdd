from __future__ import annotations

import subprocess
import sys

from engines.fingerprint import Fingerprint, cpu_name, device_name


def test_the_key_is_a_literal_that_never_changes() -> None:
    """A table stored by an older version must be found by a newer one."""
    assert Fingerprint("ort", {"device": "d", "version": "1"}).key == "e12cf7c8bbd6"


def test_the_key_depends_on_every_field_but_not_on_their_order() -> None:
    base = Fingerprint("ort", {"a": "1", "b": "2"})
    assert Fingerprint("ort", {"b": "2", "a": "1"}).key == base.key
    others = [
        Fingerprint("reference", {"a": "1", "b": "2"}),
        Fingerprint("ort", {"a": "1"}),
        Fingerprint("ort", {"a": "1", "b": "3"}),
        Fingerprint("ort", {"a": "1", "c": "2"}),
    ]
    assert len({base.key, *(other.key for other in others)}) == 5


def test_the_key_is_the_same_in_another_process() -> None:
    code = "from engines.fingerprint import *; print(Fingerprint('ort', {'b': '1', 'a': '2'}).key)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Fingerprint("ort", {"a": "2", "b": "1"}).key


def test_this_device_has_a_name() -> None:
    assert cpu_name()
    assert "cores" in device_name()
    assert "\0" not in device_name()
