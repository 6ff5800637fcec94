"""What describes a model has an ETag, and is not sent again to a client that has it."""

import httpx
import pytest

PATHS = [
    "/v1/model/metadata",
    "/v1/model/features",
    "/v1/models",
    "/v1/models/workshop-main",
    "/v2",
    "/v2/models/tumour-classifier",
    "/v2/models/tumour-classifier/versions/1.0.0",
    "/model/metadata",
    "/model/features",
]
REPRESENTATION = {"content-length", "content-type"}
"""Headers that describe a body."""


def get(service: httpx.Client, path: str, *known: str) -> httpx.Response:
    return service.get(path, headers=[(b"If-None-Match", tags.encode("latin-1")) for tags in known])


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_has_the_content_does_not_get_it_again(service, path):
    answer = get(service, path)
    etag = answer.headers["ETag"]
    assert answer.status_code == 200
    assert etag.startswith('"')  # a strong one
    assert answer.headers["Cache-Control"] == "private, no-cache"
    again = get(service, path, etag)
    assert (again.status_code, again.content) == (304, b"")
    assert set(again.headers) == set(answer.headers) - REPRESENTATION
    for name in ("ETag", "Cache-Control"):
        assert again.headers[name] == answer.headers[name]
    assert get(service, path).json() == answer.json()


def test_every_replica_and_every_runtime_has_the_same_etags(service, reference):
    for path in PATHS:
        etags = {get(service, path).headers["ETag"] for _ in range(8)}
        assert etags == {get(reference, path).headers["ETag"]}


PATH = "/v1/model/metadata"
MATCHING = ["{}", "W/{}", '"other", {}', '{},"other"', '"oth,er" ,  W/{} , "z"', "*", '"a"{}', '"", {}']
OTHERS = ['"other"', "", "other", "**", '"*"', "{unquoted}", '"{unquoted}x"', "W/", '"', ",,,", '"a" "b"', "é"]


@pytest.mark.parametrize("tags", MATCHING)
def test_the_tag_may_be_weak_or_in_a_list(service, tags):
    etag = get(service, PATH).headers["ETag"]
    assert get(service, PATH, tags.format(etag)).status_code == 304


def test_the_list_may_be_in_several_headers(service):
    etag = get(service, PATH).headers["ETag"]
    assert get(service, PATH, '"one"', etag, '"two"').status_code == 304


@pytest.mark.parametrize("tags", OTHERS)
def test_any_other_tag_gets_the_content(service, tags):
    etag = get(service, PATH).headers["ETag"]
    answer = get(service, PATH, tags.format(unquoted=etag.strip('"')))
    assert (answer.status_code, answer.headers["ETag"]) == (200, etag)


def test_contents_have_tags_of_their_own(service):
    etags = [get(service, path).headers["ETag"] for path in PATHS]
    assert len(set(etags)) == len({get(service, path).content for path in PATHS})


def test_an_error_has_no_tag(service):
    for path in ("/v1/models/nothing", "/v2/models/nothing"):
        answer = get(service, path, "*")
        assert answer.status_code == 404
        assert "ETag" not in answer.headers


def test_what_changes_with_every_request_has_no_tag(service):
    for path in ("/v1/cases", "/v1/stats", "/health"):
        answer = get(service, path, "*")
        assert answer.status_code == 200
        assert "ETag" not in answer.headers
