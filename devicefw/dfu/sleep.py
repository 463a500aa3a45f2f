"""A device that sleeps most of the time: one look for an update, between waking and sleeping."""

from dfu.backoff import ANSWER

TURNS_MAX = 30


async def once(agent):
    """Ask, do what is to be done now, and hang up. Returns after how many seconds to ask again."""
    wait_s = turns = 0
    # A server that has more to say, again and again, is asked again after the sleep; on trial it has nothing to say.
    while wait_s == 0 and turns < (1 if agent.trial or agent.apps and agent.apps.trial else TURNS_MAX):
        wait_s = await agent.turn(0, 0)
        turns += 1
    await agent.close()
    if wait_s is None:
        wait_s = agent.backoff.pause_ms(ANSWER) // 1000
    return max(1, wait_s)
