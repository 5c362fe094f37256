from __future__ import annotations

import pytest
from running import running, small_model


@pytest.fixture(scope="session")
def model():
    return small_model()


@pytest.fixture(scope="session")
def server(model):
    with running(model) as found:
        yield found


@pytest.fixture
def client(server):
    with server.client() as found:
        yield found
