"""A client for the trial of the containers, for any Python 3 without packages.

`client.py URL one` asks once and checks the answer. `client.py URL streams COMMAND...`
opens streams, runs the command when all of them have begun, and checks that each ends
as an undisturbed one does.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

NUM_STREAMS = 6
NUM_TOKENS = 480
TIMEOUT_SECONDS = 120
QUESTION = "What is 47 + 85?"
START_OF_ANSWER = "47 + 85 = 132"


def pieces(url: str, max_tokens: int) -> Iterator[str]:
    """The demo model's greedy answer as it arrives, and what it says after that."""
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": "demo", "messages": messages, "max_tokens": max_tokens}
    body |= {"temperature": 0, "stream": True, "ignore_eos": True}
    request = Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
        for line in reply:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])["choices"][0]["delta"]["content"]


def whole(url: str, max_tokens: int, begun: Callable[[], object]) -> str:
    stream = pieces(url, max_tokens)
    first = next(stream)
    begun()
    return first + "".join(stream)


def one(url: str) -> bool:
    text = whole(url, 32, begun=lambda: None)
    print(text)
    return text.startswith(START_OF_ANSWER)


def streams(url: str, command: list[str]) -> bool:
    """Whether all streams end as expected although the command ran among them."""
    expected = whole(url, NUM_TOKENS, begun=lambda: None)
    all_begun = threading.Barrier(NUM_STREAMS + 1, timeout=TIMEOUT_SECONDS)
    with ThreadPoolExecutor(NUM_STREAMS) as threads:
        answers = [
            threads.submit(whole, url, NUM_TOKENS, all_begun.wait)
            for _ in range(NUM_STREAMS)
        ]
        all_begun.wait()
        subprocess.run(command, check=True)
        num_open = sum(not answer.done() for answer in answers)
        texts = [answer.result() for answer in answers]
    print(
        f"{num_open} of {NUM_STREAMS} streams were open; {texts.count(expected)} right"
    )
    return num_open > 0 and texts == [expected] * NUM_STREAMS


def main() -> int:
    url, what, *command = sys.argv[1:]
    passed = one(url) if what == "one" else streams(url, command)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
