"""Adds `--quick` to `pytest bench`: the first shape of each op only."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="bench: the first shape of each op only")
