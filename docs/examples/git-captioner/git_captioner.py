from dnd import api

DND_API = 1


class GitCaptioner(api.Captioner):
    """Captions by GIT (Wang et al., 2022), or another captioner that transformers reads by its folder alone."""

    name = "git"
    requires = ("transformers",)

    class Config(api.Config):
        model: api.ModelName = "git-base-coco"
        max_new_tokens: int = 20

    def load(self):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder, local = self.runtime.weights(self.config.model), {"local_files_only": True}
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil", **local)
        model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **local)
        self.model = model.eval().to(self.runtime.device)

    def close(self):
        self.processor = self.model = None

    def caption(self, images):
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.runtime.device)
        tokens = self.model.generate(**inputs, max_new_tokens=self.config.max_new_tokens, do_sample=False)
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


@api.hookimpl
def register_captioners():
    return [GitCaptioner]
