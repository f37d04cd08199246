from dnd import api

DND_API = 1


class MeanColour(api.Captioner):
    """Names the strongest colour channel of an image."""

    name = "mean-colour"

    class Config(api.Config):
        article: str = "a"

    def caption(self, images):
        channels = ("red", "green", "blue")
        means = [image.resize((1, 1)).getpixel((0, 0)) for image in images]
        return [f"{self.config.article} {channels[mean.index(max(mean))]} picture" for mean in means]


@api.hookimpl
def register_captioners():
    return [MeanColour]
