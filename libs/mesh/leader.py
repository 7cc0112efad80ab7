"""One among many: a lease that one process at a time holds, and others when it is gone."""

from redis.asyncio import Redis

# Both look at the owner and act in one go: nobody comes between.
_HOLD = """
local owner = redis.call('get', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
return 1
"""
_LET_GO = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('del', KEYS[1])
"""


class Leadership:
    """This process's claim to lead; to be renewed well within the lease."""

    def __init__(self, redis: Redis, key: str, name: str, lease_seconds: float) -> None:
        self._redis = redis
        self._key = key
        self.name = name
        self._lease_ms = int(lease_seconds * 1000)

    async def hold(self) -> bool:
        """Take the lease if it is free, keep it if it is ours; False if it is another's."""
        held = self._redis.eval(_HOLD, 1, self._key, self.name, str(self._lease_ms))
        return bool(await held)

    async def let_go(self) -> None:
        """Let another one lead at once, if it was we who did."""
        await self._redis.eval(_LET_GO, 1, self._key, self.name)
