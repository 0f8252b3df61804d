"""`oneloop try`: a page on this machine to try a trained net with photos."""

import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..trained import find_run, rebuild
from .arguments import add_confidence, add_trained_net, check_confidence, command_parser

if TYPE_CHECKING:
    from oneloop import Model

    from .try_nearest import TrainingImages

HOST = "127.0.0.1"
SERVER: dict[str, Any] = {
    "log_config": None,
    "access_log": False,
    "ws": "none",
    "server_header": False,
    "proxy_headers": False,
    "limit_concurrency": 64,  # connections, idle ones as well
    "timeout_graceful_shutdown": 1,  # seconds
}


def main(args: Sequence[str]) -> None:
    parser = command_parser(
        "try",
        usage="RUN [--port 8000] [--unsure P]",
        description="Serve a page on this machine: drop images or take a photo, and see the classes, where the net looks\n"
        "(Grad-CAM, as `oneloop explain`) and the training images that are most alike by its features. RUN may be a folder of\n"
        "`oneloop publish`. Only this machine reaches the page, by the address that is printed. Ctrl-C ends it.",
        example="runs/custom/resnet18-0a1b2c3d",
    )
    add_trained_net(parser)
    add_confidence(parser)
    parser.add_argument("--port", type=int, default=0, help="to forward it from another machine; default: one that is free")
    chosen = parser.parse_args(args)
    if not 0 <= chosen.port <= 65535:
        raise Refused(f"--port takes 0 to 65,535, got {chosen.port}", 2)
    check_confidence(chosen.unsure)
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise Refused(f'oneloop try needs {error.name}: pip install "oneloop[try]"') from error
    import oneloop

    from .try_app import app

    model = oneloop.load(chosen.run, weights=chosen.weights, recipe=chosen.recipe, tta=chosen.tta)
    if model.threshold is not None:
        raise Refused(f"{chosen.run} gives an image several labels, which the page does not show; oneloop predict does", 2)
    training = _training_images(chosen.run, chosen.weights, chosen.recipe, model)
    token = secrets.token_urlsafe()
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, chosen.port))
        except OSError as error:
            raise Refused(f"cannot listen at port {chosen.port} of {HOST}: {error.strerror}; choose another --port") from error
        listening.listen()
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/\nCtrl-C ends it", flush=True)
        application = app(model, training, token, chosen.run.resolve().name, chosen.unsure)
        uvicorn.Server(uvicorn.Config(application, **SERVER)).run([listening])
    raise KeyboardInterrupt  # nothing else ends it; one that comes at the very end of its loop is lost there


def _training_images(run: Path, weights: str, recipe: Path | None, model: "Model") -> "TrainingImages | str":
    """The images of the net's training, or why there are none."""
    from oneloop.loading import is_published

    from .try_nearest import TrainingImages

    if is_published(run):
        return "a published folder has no training images"
    try:
        record, stage = find_run(run)
        trained = rebuild(record, stage, weights=weights, recipe=recipe, data=record.options["data"])
        if not stage and trained.images.fingerprint != record.config["data"]["fingerprint"]:
            return f"{trained.images.source} has changed since the training"
        return TrainingImages(model, trained.images)
    except Refused as error:  # the net itself works without
        return str(error)
