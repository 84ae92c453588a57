"""The cloud server's routes on a toy engine: what /stats tells, and how answers end."""

from tests.cloud.toy_engine import ToyEngine, toy_cloud


async def test_stats_tell_the_sessions_that_are_held_and_their_bytes() -> None:
    async with toy_cloud(ToyEngine()) as http:
        for session in ("a", "b"):
            async with http.post("/verify", json={"session": session, "new_token_ids": [5, 6, 7]}) as response:
                drawn = len((await response.json())["token_ids"])
                assert drawn == 1
        async with http.get("/stats") as response:
            stats = await response.json()
    assert (stats["sessions"], stats["session_bytes"]) == (2, 2 * 4 * 4)
