"""STAND-IN for an agent: it repeats the answers of a real one, with one lie in them. Standard library only.

    python liar.py answers.json      the answers of a whole conversation, by op

Each line on stdin is a request, or `{"lie": {...}}`, which holds from then on:
    {"op": "measure", "path": ["inner", "comparison", "target"], "value": 7}     "inner" leads into a sealed result
    {"op": "hello", "path": ["machine", "cpus"], "absent": true}
    {"op": "open", "raw": "not JSON\\n"}            written as it is, in the place of the answer
    {"op": "check", "do": "os._exit(3)"}            done in the place of the answer
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
import time  # noqa: F401 - for what is done
from typing import Any


def seal(reply: dict[str, Any], inner: Any) -> dict[str, Any]:
    text = json.dumps(inner)
    return {**reply, "text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def changed(reply: dict[str, Any], lie: dict[str, Any]) -> dict[str, Any]:
    reply = copy.deepcopy(reply)
    inner, path = None, lie["path"]
    if path[0] == "inner":
        inner, path = json.loads(reply["text"]), path[1:]
    place: Any = reply if inner is None else inner
    for key in path[:-1]:
        place = place[key]
    if lie.get("absent"):
        del place[path[-1]]
    else:
        place[path[-1]] = lie["value"]
    return reply if inner is None else seal(reply, inner)


def main(known: dict[str, dict[str, Any]], lie: dict[str, Any]) -> None:
    for line in sys.stdin.buffer:
        request: dict[str, Any] = json.loads(line) if line.strip() else {"op": "pulse"}
        if "lie" in request:
            lie = request["lie"]
            continue
        if request["op"] not in known:
            continue
        reply = {**known[request["op"]], "id": request["id"]}
        if request["op"] == lie.get("op"):
            if "do" in lie:
                exec(lie["do"])  # noqa: S102
            if "raw" in lie:
                os.write(1, lie["raw"].replace("ID", str(request["id"])).encode())
                continue
            reply = changed(reply, lie) if "path" in lie else reply
        os.write(1, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    with open(sys.argv[1]) as file:  # noqa: PTH123
        answers = json.load(file)
    main(answers, {})
