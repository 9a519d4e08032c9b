"""The page of `camtools demo --web`: drop an image, pick classes, preset and threshold."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from camtools.defaults import DEFAULT_PRESET, DESCRIPTIONS
from camtools.errors import CamtoolsError, InputError

if TYPE_CHECKING:
    from PIL import Image

    from camtools.sources import LoadedModel

TOP = 5


class Demo:
    """One model behind the page.

    Args:
        loaded: The model with its names and preprocessing.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        from camtools.images import as_transform
        from camtools.images.adjusted import shown_whole

        known = loaded.preprocess
        self.model, self.names = loaded.model, loaded.class_names
        self.transform = None if known is None else shown_whole(as_transform(known), None)  # nothing is cropped away

    def show(
        self, image: Image.Image | None, classes: list[str] | None, preset: str, threshold: float
    ) -> tuple[Image.Image | None, dict[str, float], list[list[Any]]]:
        """Explain one image.

        Args:
            image: What was dropped; None for an empty page.
            classes: Names of the classes to explain; none takes the likeliest.
            preset: A preset's name.
            threshold: A fraction of the map's maximum; 0 takes the preset's own.

        Returns:
            The figure, the likeliest classes with their scores, and a row per class: name, score, x0, y0, x1, y1.
        """
        from camtools.evaluation import calibrated
        from camtools.explainer import Explainer
        from camtools.pipeline import preset as named
        from camtools.plot import compare

        if image is None:
            return None, {}, []
        pipeline: Any = calibrated(named(preset), threshold, name=preset) if threshold else preset
        explainer = Explainer(self.model, pipeline, class_names=self.names, transform=self.transform)
        found = explainer(image, target=classes or None)
        several = found if isinstance(found, list) else [found]
        drawn = several[0].overlay(size=900) if len(several) == 1 else compare(several, height=320)
        probabilities = several[0].logits.softmax(0)
        likeliest = probabilities.topk(min(TOP, len(probabilities)))
        scores = {
            (self.names[k] if self.names else str(k)): p
            for p, k in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        }
        boxes = [[exp.name, round(exp.score, 3), *([] if exp.box is None else exp.box.tolist())] for exp in several]
        return drawn, scores, boxes


def page(loaded: LoadedModel, start: Any = None) -> Any:
    """Build the page.

    Args:
        loaded: The model.
        start: An image that is there from the start.

    Returns:
        `gradio.Blocks`, to be launched.

    Raises:
        InputError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise InputError("--web needs Gradio, which is not installed: pip install 'camtools[web]'") from error

    demo = Demo(loaded)

    def shown(*given: Any) -> Any:
        try:
            return demo.show(*given)
        except CamtoolsError as error:
            raise gradio.Error(str(error)) from error

    names = list(dict.fromkeys(loaded.class_names or ()))
    with gradio.Blocks(title="camtools", analytics_enabled=False) as blocks:
        gradio.Markdown(f"# camtools\nWhere does `{loaded.spec}` see a class? Drop an image.")
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(value=start, type="pil", format="png", label="Image", height=340)
                classes = gradio.Dropdown(names, multiselect=True, label="Classes (none: the likeliest)")
                preset = gradio.Radio(list(DESCRIPTIONS), value=DEFAULT_PRESET, label="Preset")
                threshold = gradio.Slider(0, 0.95, 0, step=0.05, label="Threshold (0: the preset's own)")
            with gradio.Column():
                figure = gradio.Image(label="Explanation", format="png", interactive=False, height=460)
                scores = gradio.Label(label="Likeliest classes")
                boxes = gradio.Dataframe(
                    headers=["class", "score", "x0", "y0", "x1", "y1"], label="Boxes, in pixels", interactive=False
                )
        given, results = [image, classes, preset, threshold], [figure, scores, boxes]
        blocks.load(shown, given, results, api_name="explain")
        for field in (image, classes, preset):
            field.input(shown, given, results, api_visibility="private")
        threshold.release(shown, given, results, api_visibility="private")
    return blocks


def serve(model: str, port: int) -> None:
    """Serve the page until interrupted.

    Args:
        model: A model's name.
        port: Of this machine alone.

    Raises:
        InputError: Gradio is not installed, or the port is taken.
    """
    from skimage import data

    from camtools.loading import load_model

    blocks = page(load_model(model), data.coffee())
    try:
        blocks.launch(server_name="127.0.0.1", server_port=port, footer_links=[])
    except OSError as error:
        raise InputError(f"--port {port} cannot be served ({error}): try another") from error
