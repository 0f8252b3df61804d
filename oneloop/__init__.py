"""Use a trained net from Python:

    import oneloop

    model = oneloop.load("runs/custom/resnet18-0a1b2c3d")  # or a folder that `oneloop publish` wrote
    model.predict(["bird.jpg", "plane.jpg"])               # labels and probabilities
    model.embed(["bird.jpg", "plane.jpg"])                 # features, float32 (N, D)

What trains is in `launch` and `nets`; this package stands above both and is what programs import. It is loaded lazily, and loads
neither accelerate nor W&B, and no recipe unless the net can only be made by one.
"""

from typing import TYPE_CHECKING

from launch.lazy import lazily

if TYPE_CHECKING:
    from .loading import load
    from .model import Model, Prediction

__all__ = ["Model", "Prediction", "load"]
__getattr__ = lazily(__name__, {"loading": "load", "model": "Model Prediction"})
