"""The whole loop on one machine: a broker, a camera, a model, a trainer, and tidemark watching them."""
