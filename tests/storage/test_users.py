"""Users and sessions in a real database."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from workshop.contracts.errors import NotFoundError
from workshop.contracts.principals import Role
from workshop.contracts.users import User
from workshop.storage.users import SqlUserStore

pytestmark = pytest.mark.anyio

ADA = User("ada", Role.MEMBER, "$argon2id$a")
LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
async def store(url):
    async with replica(url) as store:
        await store.put(ADA)
        yield store


def replica(url):
    return aclosing(SqlUserStore(url))


async def test_users_are_found_by_name(store, url):
    eve = User("eve", Role.VIEWER, "$argon2id$e")
    async with replica(url) as other:
        await other.put(eve)
        assert await store.get("eve") == eve
        assert await other.all() == [ADA, eve]
    assert await store.get("ADA") is None


async def test_a_session_belongs_to_its_user(store):
    opened = await store.open_session(ADA, uuid4(), LATER)
    found = await store.session(opened.id)
    assert found == opened
    assert (found.user, found.expires) == (ADA, LATER)
    assert await store.session(uuid4()) is None


async def test_nobody_has_no_session(store):
    with pytest.raises(NotFoundError, match="no such user eve"):
        await store.open_session(replace(ADA, name="eve"), uuid4(), LATER)


async def test_an_old_password_opens_no_session(store):
    """It may have been checked just before it was changed."""
    await store.put(replace(ADA, password_hash="$argon2id$b"))
    with pytest.raises(NotFoundError, match="no such user ada"):
        await store.open_session(ADA, uuid4(), LATER)


async def test_an_ended_session_is_gone_for_all_replicas(store, url):
    kept, ended = [await store.open_session(ADA, uuid4(), LATER) for _ in range(2)]
    async with replica(url) as other:
        await other.end_session(ended.id)
        await other.end_session(ended.id)
    assert (await store.session(kept.id), await store.session(ended.id)) == (kept, None)


async def test_an_expired_session_is_gone_and_the_next_one_clears_it_away(store):
    expired = await store.open_session(ADA, uuid4(), datetime.now(UTC) - timedelta(seconds=1))
    assert await store.session(expired.id) is None
    assert await store.renew_session(expired.id, uuid4(), uuid4()) is None
    await store.open_session(ADA, uuid4(), LATER)


@pytest.mark.parametrize("change", ["put", "delete"])
async def test_a_changed_user_has_no_sessions(store, change):
    session = await store.open_session(ADA, uuid4(), LATER)
    if change == "put":
        await store.put(replace(ADA, role=Role.VIEWER))
        assert (await store.get("ada")).role is Role.VIEWER
    else:
        await store.delete("ada")
        assert await store.get("ada") is None
        with pytest.raises(NotFoundError):
            await store.delete("ada")
    assert await store.session(session.id) is None


async def test_each_token_renews_a_session_once(store):
    first, second, third = uuid4(), uuid4(), uuid4()
    session = await store.open_session(ADA, first, LATER)
    assert await store.renew_session(session.id, first, second) == session
    assert await store.renew_session(session.id, second, third) == session
    assert await store.renew_session(session.id, second, uuid4()) is None
    assert await store.session(session.id) is None
    assert await store.renew_session(session.id, third, uuid4()) is None


async def test_of_two_who_renew_at_once_at_most_one_succeeds(store, url):
    async with replica(url) as other:
        for _ in range(5):
            refresh_id = uuid4()
            session = await store.open_session(ADA, refresh_id, LATER)
            results = await asyncio.gather(
                *(place.renew_session(session.id, refresh_id, uuid4()) for place in (store, other))
            )
            assert results.count(None) >= 1
            assert await store.session(session.id) is None
