"""What the plugins on transformers and diffusers share: loading, number formats, packed weights, CLIP's two towers."""
