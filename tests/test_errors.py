import pickle

import pytest

from pipelines.errors import MappingError, ReloopError


def test_an_error_says_what_was_found_what_is_allowed_and_what_to_do():
    error = MappingError("events: column 'user_id'", found="missing", allowed="one of ['uid', 'ts']", hint="map it with user_id: uid")
    assert str(error) == "events: column 'user_id': missing; expected one of ['uid', 'ts']. Hint: map it with user_id: uid"


@pytest.mark.parametrize("kind", [ReloopError, MappingError])
def test_an_error_keeps_its_parts_across_processes(kind):
    error = pickle.loads(pickle.dumps(kind("file", found="empty", hint="fill it")))
    assert type(error) is kind
    assert (error.thing, error.found, error.hint) == ("file", "empty", "fill it")
