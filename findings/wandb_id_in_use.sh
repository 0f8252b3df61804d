#!/usr/bin/env bash
# wandb 0.31.0: after an online wandb.init(id=X) that the server refuses with 401, wandb.init(id=X, mode="offline") in the same process
# fails, too: "run ID ... is in use". wandb.teardown() between the two frees the id.
#
# Seen (wandb 0.31.0, Python 3.11, Linux):
#   online:   refused
#   offline:  refused, "in use"
#   offline after wandb.teardown(): begun
# For oneloop: the server is asked before init, and teardown comes before the second try (launch/report/, docs/wandb.md).
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet --disable-pip-version-check "wandb==0.31.0" 2> >(grep -v ignored >&2)
cd "$place"
"$place/venv/bin/python" - <<'P'
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Refuses(BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
import wandb  # noqa: E402


def begun(mode):
    try:
        wandb.init(project="p", id="one", mode=mode, settings=wandb.Settings(init_timeout=20)).finish()
        return "begun"
    except Exception as error:
        return f"refused, {'in use' if 'in use' in str(error) else type(error).__name__}"


online, offline = begun("online"), begun("offline")
wandb.teardown()
after = begun("offline")
print(f"wandb {wandb.__version__}: online: {online}; offline: {offline}; offline after teardown: {after}")
sys.exit(int(not (online.startswith("refused") and offline == "refused, in use" and after == "begun")))
P
