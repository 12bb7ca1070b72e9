"""What the processes of a node are told by their environment."""

from __future__ import annotations

import os

import pytest

from erhpc.cluster.children import prepend_folder


@pytest.mark.parametrize(("inherited", "expected"), [(None, "/a"), ("", "/a"), ("/b", "/a:/b"), ("/b:/c", "/a:/b:/c")])
def test_a_folder_comes_before_what_is_inherited(inherited, expected):
    assert prepend_folder("/a", inherited) == expected.replace(":", os.pathsep)
